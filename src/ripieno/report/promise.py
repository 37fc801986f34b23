"""What was promised (`ripieno certify`), and how it went on questions that had no part in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ripieno.measures.certificate import Certificate, refusal
from ripieno.measures.certify import Promise, at_least, at_most, most_errors
from ripieno.measures.uncertainty import pool
from ripieno.predictions import Predictions
from ripieno.report.handover import Told
from ripieno.report.results import EvaluatedSet
from ripieno.report.words import counted, percent

Choices = Mapping[str, Sequence[str]]  # of each question by its id


@dataclass(frozen=True)
class CertifiedRun:
    """A run's promise, and the sets that show how it goes.

    Args:
        certificate: what was promised.
        choices: of each question by its id, of each set by its name: those that had no part in the promise.
    """

    certificate: Certificate
    choices: Mapping[str, Choices]

    def shown(
        self, sets: Sequence[EvaluatedSet], last: Sequence[Predictions]
    ) -> list[tuple[EvaluatedSet, Predictions]]:
        """Return the page's sets that had no part in the promise, with their predictions at the last epoch."""
        return [(s, p) for s, p in zip(sets, last, strict=True) if s.name in self.choices]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a threshold went on a set of questions with known answers.

    Args:
        questions, answered, wrong: how many.
        allowed: the most wrong ones that chance explains at the promised risk, in 95 of 100 draws; None out of domain,
            where nothing was promised.
    """

    questions: int
    answered: int
    wrong: int
    allowed: int | None

    @property
    def said(self) -> str:
        """Say it in a cell."""
        return f"{self.wrong} of {self.answered:,} wrong" if self.answered else "none answered"

    @property
    def note(self) -> str:
        """Say what to think of it."""
        if not self.answered:
            return ""
        share = f"answers {percent(self.answered / self.questions)}; "
        if self.allowed is None:
            return f"{share}nothing was promised here"
        return f"{share}{'up to' if self.wrong <= self.allowed else 'more than the'} {self.allowed} by chance"


@dataclass(frozen=True, slots=True)
class Line:
    """One promise as a line of the page's table."""

    risk: str
    asked: bool
    when: str
    coverage: str
    sets: tuple[HeldOut | None, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """The page's part about the promise.

    Args:
        confidence: of the promises, in words.
        sets: that are shown.
        lines: the promise that was asked for, if it could be made, and those that hold all at once.
        coverage: a sentence a set on its prediction sets.
    """

    confidence: str
    sets: tuple[EvaluatedSet, ...]
    lines: tuple[Line, ...]
    coverage: tuple[str, ...]


def tell(certified: CertifiedRun, sets: Sequence[EvaluatedSet], last: Sequence[Predictions]) -> Told:
    """Answer "What is promised?".

    Args:
        certified: what was promised.
        sets: of the page, in its order.
        last: the predictions of the same sets at the last epoch.
    """
    certificate = certified.certificate
    risk, sure = at_most(certificate.asked_risk), at_least(certificate.confidence)
    promise = certificate.promise
    if promise is None:
        others = [f"at most {at_most(p.risk)} wrong, answering {percent(p.coverage)}" for p in certificate.listed]
        points = [f"Why: {refusal(certificate)}."]
        if others:
            points.append(f"What holds at {sure} confidence, all at once: {'; '.join(others)}.")
        return Told(f"That at most {risk} of the answered are wrong cannot be promised.", tuple(points))
    verdict = f"At most {risk} wrong among the answered, at {sure} confidence, on questions like the certified ones."
    points = [
        f"It answers {certificate.rule.when(promise.threshold)}: {percent(promise.coverage)} of the "
        f"{counted(promise.questions, 'certification question')}, {promise.errors} of these wrong.",
        "That line is drawn for the promise; the one under “When should a person decide instead?” promises nothing.",
    ]
    for s, p in certified.shown(sets, last):
        found = _held_out(certificate, promise, s, p)
        if found is not None and found.answered:
            points.append(f"On {s.short} ({s.role}): {found.said} ({found.note}).")
    more = ("Which share is wrong is known of many answers together, and of no single one.",)
    return Told(verdict, tuple(points), more)


def section(certified: CertifiedRun, sets: Sequence[EvaluatedSet], last: Sequence[Predictions]) -> Section:
    """Return the table of promises, each with what came of it on the evaluated sets; as `tell`."""
    certificate, shown = certified.certificate, certified.shown(sets, last)
    promises = [*([certificate.promise] if certificate.promise else []), *certificate.listed]
    lines = [
        Line(
            at_most(promise.risk),
            promise is certificate.promise,
            certificate.rule.when(promise.threshold),
            f"{promise.answered:,} of {promise.questions:,} ({percent(promise.coverage)})",
            tuple(_held_out(certificate, promise, s, p) for s, p in shown),
        )
        for promise in promises
    ]
    covered = [said for s, p in shown if (said := _coverage(certificate, s, p, certified.choices[s.name]))]
    return Section(at_least(certificate.confidence), tuple(s for s, _ in shown), tuple(lines), tuple(covered))


def _held_out(certificate: Certificate, promise: Promise, s: EvaluatedSet, p: Predictions) -> HeldOut | None:
    """Return how a promise's threshold went; None where no answer is known."""
    known = p.select(p.labelled)
    if not len(known.targets):
        return None
    answered = certificate.rule.uncertainties(known) <= promise.threshold
    wrong = certificate.rule.wrong(known)[answered]
    n = int(answered.sum())
    return HeldOut(len(known.targets), n, int(wrong.sum()), None if s.out else most_errors(n, promise.risk))


def _coverage(certificate: Certificate, s: EvaluatedSet, p: Predictions, choices: Choices) -> str | None:
    """Say how often the prediction sets held the right choice; None where no answer is known."""
    known, rule = p.select(p.labelled), certificate.sets
    N = len(known.targets)
    if not N:
        return None
    of_each = [choices[question_id] for question_id in known.question_ids]
    sets = rule.sets(known, pool(certificate.rule.probs(known)), of_each)
    held = int(sets[range(N), known.targets].sum())
    judged = "nothing was promised here"
    if not s.out:
        each = f" for each {rule.by}" if rule.by else ""
        judged = f"promised: {at_least(rule.level)}{each}; in 95 of 100 draws {rule.quantile(known, of_each):,} or more"
    return (
        f"{s.short} ({s.role}): {held:,} of {N:,} sets hold the right choice ({held / N:.1%}; {judged}). A set has "
        f"{sets.sum() / N:.2f} of {known.mask.sum() / N:.2f} choices on average."
    )
