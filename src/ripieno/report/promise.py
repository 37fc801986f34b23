"""What was promised (`ripieno certify`), and how it went on questions that it was not made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ripieno.measures.certificate import WORDS, Certificate, refusal
from ripieno.measures.certify import Promise, at_least, at_most, most_errors
from ripieno.measures.uncertainty import pool
from ripieno.predictions import Predictions
from ripieno.report.handover import Told
from ripieno.report.results import EvaluatedSet
from ripieno.report.words import counted, percent

Choices = Mapping[str, Sequence[str]]  # of each question by its id


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How a threshold went on a set of questions with known answers.

    Args:
        questions, answered, wrong: how many.
        allowed: the most wrong ones that chance explains at the promised risk, in 95 of 100 draws.
        covered: whether the promise speaks of such questions: those in domain.
    """

    questions: int
    answered: int
    wrong: int
    allowed: int
    covered: bool

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
        if self.wrong <= self.allowed:
            return f"{share}up to {self.allowed} by chance"
        return f"{share}more than the {self.allowed} by chance" + (
            "" if self.covered else "; nothing was promised here"
        )


@dataclass(frozen=True, slots=True)
class Promised:
    """One promise as a line of the page's table."""

    risk: str
    asked: bool
    rule: str
    coverage: str
    sets: tuple[HeldOut | None, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """The page's part about the promise.

    Args:
        confidence: of the promises, in words.
        lines: the promise that was asked for, if it could be made, and those that hold all at once.
        coverage: a sentence a set on its prediction sets.
    """

    confidence: str
    lines: tuple[Promised, ...]
    coverage: tuple[str, ...]


def tell(certificate: Certificate, sets: Sequence[EvaluatedSet], last: Sequence[Predictions]) -> Told:
    """Answer "What is promised?".

    Args:
        certificate: what was certified.
        sets: of the page, in its order.
        last: the predictions of the same sets at the last epoch.
    """
    risk, sure = at_most(certificate.asked_risk), at_least(certificate.confidence)
    promise = certificate.promise
    if promise is None:
        others = [
            f"at most {at_most(p.risk)} wrong when {percent(p.coverage)} are answered" for p in certificate.listed
        ]
        points = [f"Why: {refusal(certificate)}."]
        if others:
            points.append(f"What holds at {sure} confidence, all at once: {'; '.join(others)}.")
        return Told(f"That at most {risk} of the answered are wrong cannot be promised.", tuple(points))
    verdict = f"At most {risk} wrong among the answered, at {sure} confidence, on questions like the certified ones."
    points = [
        f"It answers {_rule(certificate, promise)}: {percent(promise.coverage)} of the "
        f"{counted(promise.questions, 'certification question')}, {promise.errors} of these wrong."
    ]
    for s, p in zip(sets, last, strict=True):
        found = _held_out(certificate, promise, s, p)
        if found is not None and found.answered:
            points.append(f"On {s.short} ({s.role}): {found.said} ({found.note}).")
    more = ("Which share is wrong is known of many answers together, and of no single one.",)
    return Told(verdict, tuple(points), more)


def section(
    certificate: Certificate,
    sets: Sequence[EvaluatedSet],
    last: Sequence[Predictions],
    choices: Mapping[str, Choices],
) -> Section:
    """Return the table of promises, each with what came of it on the evaluated sets.

    Args:
        certificate, sets, last: as in `tell`.
        choices: of each set's questions, by the set's name.
    """
    promises = [*([certificate.promise] if certificate.promise else []), *certificate.listed]
    lines = [
        Promised(
            at_most(promise.risk),
            promise is certificate.promise,
            _rule(certificate, promise),
            f"{promise.answered:,} of {promise.questions:,} ({percent(promise.coverage)})",
            tuple(_held_out(certificate, promise, s, p) for s, p in zip(sets, last, strict=True)),
        )
        for promise in promises
    ]
    covered = [
        said for s, p in zip(sets, last, strict=True) if (said := _coverage(certificate, s, p, choices.get(s.name, {})))
    ]
    return Section(at_least(certificate.confidence), tuple(lines), tuple(covered))


def _held_out(certificate: Certificate, promise: Promise, s: EvaluatedSet, p: Predictions) -> HeldOut | None:
    """Return how a promise's threshold went; None where no answer is known."""
    known = p.select(p.labelled)
    if not len(known.targets):
        return None
    answered = certificate.rule.uncertainties(known) <= promise.threshold
    wrong = certificate.rule.wrong(known)[answered]
    n = int(answered.sum())
    return HeldOut(len(known.targets), n, int(wrong.sum()), most_errors(n, promise.risk), not s.out)


def _coverage(certificate: Certificate, s: EvaluatedSet, p: Predictions, choices: Choices) -> str | None:
    """Say how often the prediction sets held the right choice; None where no answer is known."""
    known, rule = p.select(p.labelled), certificate.sets
    N = len(known.targets)
    if not N:
        return None
    pooled = pool(certificate.rule.probs(known))
    sets = rule.sets(known, pooled, [choices.get(question_id, ()) for question_id in known.question_ids])
    held = int(sets[range(N), known.targets].sum())
    fewest = N - most_errors(N, 1 - rule.level)
    said = (
        f"{s.short} ({s.role}): {held:,} of {N:,} sets hold the right choice ({held / N:.1%}); by chance at least "
        f"{fewest:,}. A set has {sets.sum() / N:.2f} of {known.mask.sum() / N:.2f} choices on average."
    )
    return said if held >= fewest or not s.out else f"{said} Nothing was promised here."


def _rule(certificate: Certificate, promise: Promise) -> str:
    if promise.threshold == float("inf"):
        return "every question"
    if certificate.rule.uncertainty == "confidence":
        return f"from {1 - promise.threshold:.1%} sure"
    return f"where {WORDS[certificate.rule.uncertainty]} is at most {promise.threshold:.4f} nats"
