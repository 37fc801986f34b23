"""What the numbers say, in plain words: every sentence comes from rows and claims no more than intervals support."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ripieno.predictions import Predictions
from ripieno.report import believed, handover, promise, unfamiliar
from ripieno.report.promise import CertifiedRun
from ripieno.report.results import EvaluatedSet, Interval, Results
from ripieno.report.words import counted, listed, percent, spoken, turned

if TYPE_CHECKING:
    from ripieno.report.build import Summary

# Sets of one kind whose sentences stand on the first screen; those of more stand below a click.
SHOWN = 3

ALWAYS = "Anything unlike the sets on this page: nothing here speaks of it."


@dataclass(frozen=True, slots=True)
class Finding:
    """One question that a reader has, its short answer, the sentences behind it, and more for who asks on."""

    question: str
    verdict: str
    points: tuple[str, ...]
    more: tuple[str, ...] = ()


def tell(
    summary: Summary,
    results: Results,
    sets: Sequence[EvaluatedSet],
    last: Sequence[Predictions],
    certified: CertifiedRun | None = None,
) -> list[Finding]:
    """Return the page's first screen: the questions a reader has, in their order.

    Args:
        summary: what was run.
        results: what was found.
        sets: of the page, in its order.
        last: the predictions of the same sets at the last epoch.
        certified: what was promised, where something was certified.
    """
    promised = [] if certified is None else [what_promised(certified, sets, last)]
    return [
        trained(summary, sets, again=results.trained_again),
        how_right(results, sets),
        how_believed(results, sets),
        who_decides(results, sets, last),
        *promised,
        how_noticed(results, sets),
        where_not(results, sets),
    ]


def trained(summary: Summary, sets: Sequence[EvaluatedSet] = (), *, again: bool = False) -> Finding:
    """Say what was trained, and what the words on the page mean.

    Args:
        summary: what was run.
        sets: of the page, for their short names.
        again: whether intervals speak of training again.
    """
    base = summary.base.rsplit("/", 1)[-1] if summary.base.startswith("/") else summary.base
    total = sum(count for _, count in summary.training)
    sources = ", ".join(f"{name} ({counted(count, 'question')})" for name, count in summary.training)
    short = {s.name: s.short for s in sets}
    inside, outside = (
        listed([short.get(name, name) for name in names]) for names in (summary.in_domain, summary.out_of_domain)
    )
    answers = (
        "With one member there is no second opinion: the ensemble is that member."
        if summary.members == 1
        else "The ensemble answers with the mean of its members' probabilities."
    )
    return Finding(
        "What was trained?",
        f"{counted(summary.members, 'member')} on {counted(total, 'question')}, for "
        f"{counted(summary.epochs, 'epoch')} (passes over them).",
        (
            f"A member is a small set of extra weights (an adapter) on top of {base}, the base, which stays as "
            f"it is. {answers}",
            f"In domain (of the kind it was trained on): {inside or 'no set'}. Out of domain: {outside or 'no set'}. "
            "Brackets: 95% intervals.",
        ),
        (
            f"Trained on {sources}. Each member has its own random seed.",
            "An interval says what training again, on other seeds, would give."
            if again
            else "An interval says what other questions of the same kind would give, asked of these members. It says "
            "nothing of training again.",
        ),
    )


def beats_guess(results: Results, s: EvaluatedSet) -> int:
    """Return 1 where its accuracy is surely above a uniform guess's, -1 surely below, 0 where nothing can be said."""
    difference = results.difference(s.name, "accuracy", "uniform guess")
    if difference is not None:
        return difference.against(0.0)
    right = results.value(s.name, "ensemble", "accuracy")
    return 0 if right is None or s.guess is None else right.against(s.guess)


def beats_base(results: Results, s: EvaluatedSet) -> int:
    """Return 1 where its accuracy is surely above the base's, -1 surely below, 0 where nothing can be said."""
    difference = results.difference(s.name, "accuracy", "base")
    if difference is not None:
        return difference.against(0.0)
    right, base = results.value(s.name, "ensemble", "accuracy"), results.value(s.name, "base", "accuracy")
    return 0 if right is None or base is None else right.apart(base)


def right_on(results: Results, s: EvaluatedSet) -> str:
    """Say how right it is on one set, against a guess and the base."""
    right, base = results.value(s.name, "ensemble", "accuracy"), results.value(s.name, "base", "accuracy")
    if right is None or s.guess is None:
        return f"{s.short}: the right answers are not known here, so how right it is cannot be said."
    above = beats_guess(results, s)
    guess = {1: "Better than a guess", 0: "It cannot be told from a guess", -1: "Worse than a guess"}[above]
    said = f"{s.short}: {spoken(right)} right; a guess {percent(s.guess)}"
    loss = results.difference(s.name, "nll", "uniform guess")
    # Being sure and wrong can cost more than knowing nothing, which the share of right answers does not show.
    worse = " Its probabilities are worse than a guess's." if loss is not None and loss.against(0.0) == 1 else ""
    if base is None:
        return f"{said}. {guess}.{worse}"
    gain = beats_base(results, s)
    over = {1: "better than the base", 0: "it cannot be told from the base", -1: "worse than the base"}[gain]
    both = {1: "Better than both", 0: "It cannot be told from either", -1: "Worse than both"}[above]
    said += f", the base {spoken(base)}. "
    return f"{said}{both}.{worse}" if above == gain else f"{said}{guess}; {over}.{worse}"


def probabilities_on(results: Results, s: EvaluatedSet) -> str | None:
    """Say how good its probabilities are (NLL) against the references and its own mean member."""
    known = {
        "uniform guess": "a uniform guess",
        "base": "the base",
        "base, temperature-scaled": "the base with its confidence corrected (temperature-scaled)",
    }
    found = [(label, results.difference(s.name, "nll", label)) for label in known]
    parts = [_lower_is_better(difference, known[label]) for label, difference in found if difference is not None]
    if not parts:
        return None
    said = (
        f"{s.short}, judged by the probability it gives to the right answer (NLL, negative log-likelihood: lower is "
        f"better): {'; '.join(parts)}."
    )
    own = results.difference(s.name, "nll", "mean member")
    if own is not None and own.value < 0:
        said += (
            f" It is better than its average member by {spoken(turned(own), '.2f')}, which is no evidence: averaging "
            "probabilities can never come out worse than that (convexity)."
        )
    return said


def how_right(results: Results, sets: Sequence[EvaluatedSet]) -> Finding:
    """Answer "How right is it?" for every set."""
    question = "How right is it?"
    known = [s for s in sets if results.value(s.name, "ensemble", "accuracy") is not None]
    if not known:
        return Finding(question, "Unknown: no answers to compare with.", tuple(right_on(results, s) for s in sets))
    verdicts = []
    for role, mine in _by_role(known):
        right = results.value(mine[0].name, "ensemble", "accuracy")
        above = sum(beats_guess(results, s) == 1 for s in mine)
        if len(mine) == 1 and right is not None:
            than = "better than" if above else "not shown to be better than"
            verdicts.append(f"{role}: {percent(right.value)} right, {than} a guess.")
        else:
            verdicts.append(f"{role}: {_share(above, len(mine), 'better than a guess')}.")
    shown, more = _split(sets, lambda s: right_on(results, s))
    more += [said for s in known if not s.out and (said := probabilities_on(results, s))]
    return Finding(question, " ".join(verdicts), tuple(shown), tuple(more))


def how_believed(results: Results, sets: Sequence[EvaluatedSet]) -> Finding:
    """Answer "Can I believe its confidence?" for every set."""
    found = {s.name: believed.confidence_on(results, s) for s in sets}
    words = {1: "too sure", -1: "not sure enough", 0: "no sign that it is wrong", None: "off at some levels"}
    verdicts = []
    for role, mine in _by_role([s for s in sets if s.gap is not None]):
        ways = [words[found[s.name][0]] for s in mine]
        each = [
            f"{word}{f' on {ways.count(word)} of {len(mine)} sets' if len(set(ways)) > 1 else ''}"
            for word in dict.fromkeys(ways)
        ]
        verdicts.append(f"{role}: {', '.join(each)}.")
    lead = (
        "Confidence is the probability it gives its own answer. Of answers it is 70% sure of, 70% should be right; how "
        "far that is off, on average, is the calibration error (ECE)."
    )
    shown, more = _split(sets, lambda s: found[s.name][1])
    more += [said for s in sets if (said := believed.more_on(results, s))]
    return Finding(
        "Can I believe its confidence?",
        " ".join(verdicts) or "Unknown: no answers to compare with.",
        (lead, *shown),
        tuple(more),
    )


def who_decides(results: Results, sets: Sequence[EvaluatedSet], last: Sequence[Predictions]) -> Finding:
    """Answer "When should a person decide?": below which confidence, and what that costs."""
    by_name = {p.name: p for p in last}
    home = next((s for s in sets if not s.out), None)
    away = [s for s in sets if s.out]
    if home is None:
        told = handover.Told("Unknown: no set in domain was evaluated.")
    else:
        told = handover.tell(results, home, by_name[home.name], [(s, by_name[s.name]) for s in away[:SHOWN]])
    return Finding("When should a person decide instead?", told.verdict, told.points, told.more)


def what_promised(certified: CertifiedRun, sets: Sequence[EvaluatedSet], last: Sequence[Predictions]) -> Finding:
    """Answer "What is promised?": the certified risk, and what came of it on the sets shown."""
    told = promise.tell(certified, sets, last)
    return Finding("What is promised?", told.verdict, told.points, told.more)


def how_noticed(results: Results, sets: Sequence[EvaluatedSet]) -> Finding:
    """Answer "Does it notice what it was not trained for?", against the first set in domain."""
    question = "Does it notice what it was not trained for?"
    home = next((s for s in sets if not s.out), None)
    away = [s for s in sets if s.out]
    if home is None or not away:
        return Finding(question, "Not tested: that takes a set in domain and one out of domain.", ())
    signs = [unfamiliar.signs_on(results, home, s) for s in away]
    lead = (
        f"Of an unfamiliar question and one from {home.short}, how often does the unfamiliar one look more uncertain? "
        "50% is chance."
    )
    sentences = {s.name: sign.sentence for s, sign in zip(away, signs, strict=True)}
    shown, more = _split(away, lambda s: sentences[s.name])
    caveat = "A harder set looks more uncertain too, and a single question can still be wrong and sure."
    return Finding(question, unfamiliar.verdict(signs), (lead, *shown), (*more, *unfamiliar.notes(signs), caveat))


def where_not(results: Results, sets: Sequence[EvaluatedSet]) -> Finding:
    """Gather where it should not be trusted."""
    home = next((s for s in sets if not s.out), None)
    warnings = {s.name: said for s in sets if (said := _against(results, s, home))}
    verdict = "No set shown here gives a reason not to, which is no proof."
    if warnings:
        share = "every set" if len(warnings) == len(sets) else f"{len(warnings)} of {len(sets)} sets"
        verdict = f"On {share} shown here there is a reason not to."
    shown, more = _split([s for s in sets if s.name in warnings], lambda s: warnings[s.name])
    return Finding("Where should it not be trusted?", verdict, (*shown, ALWAYS), tuple(more))


def _against(results: Results, s: EvaluatedSet, home: EvaluatedSet | None) -> str | None:
    """Return what speaks against trusting it on one set, None where nothing does."""
    reasons = []
    if s.guess is None:
        reasons.append("its right answers are not known, so nothing vouches for it")
    elif beats_guess(results, s) < 1:
        reasons.append("not shown to be better than a guess")
    if s.guess is not None and beats_base(results, s) < 1 and results.value(s.name, "base", "accuracy"):
        reasons.append("training is not shown to help")
    way, _ = believed.confidence_on(results, s)
    if way == 1 and s.gap is not None:
        reasons.append(f"too sure, by {100 * s.gap.value:.0f} points")
    elif way is None and s.gap is not None:
        reasons.append("its confidence is off at some levels")
    if s.out and home is not None and not unfamiliar.signs_on(results, home, s).noticed:
        reasons.append("nothing clearly warns that it is unfamiliar")
    return f"{s.short}: {'; '.join(reasons)}." if reasons else None


def _by_role(sets: Sequence[EvaluatedSet]) -> list[tuple[str, list[EvaluatedSet]]]:
    roles = [("In domain", [s for s in sets if not s.out]), ("Out of domain", [s for s in sets if s.out])]
    return [(role, mine) for role, mine in roles if mine]


def _split(sets: Sequence[EvaluatedSet], sentence: Callable[[EvaluatedSet], str]) -> tuple[list[str], list[str]]:
    """Return the sentences of the first few sets of each role, and those of the others."""
    shown = [s.name for _, mine in _by_role(sets) for s in mine[:SHOWN]]
    return [sentence(s) for s in sets if s.name in shown], [sentence(s) for s in sets if s.name not in shown]


def _share(k: int, n: int, yes: str) -> str:
    """Return `yes` where all of n are, the negation where none is, else how many."""
    if k == n:
        return yes
    return f"not shown to be {yes}" if k == 0 else f"{yes} on {k} of {n} sets"


def _lower_is_better(difference: Interval, reference: str) -> str:
    """Say how a loss compares with a reference's, given the paired difference."""
    way = difference.against(0.0)
    if way == 0:
        return f"not to be told from {reference} (difference {spoken(difference, '.2f')})"
    size = difference if way > 0 else turned(difference)
    return f"{'worse' if way > 0 else 'better'} than {reference} by {spoken(size, '.2f')}"
