"""At which confidence to hand over to a person, and what that costs, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ripieno.measures import accuracy, uncertainty
from ripieno.measures.table import UNCERTAINTIES
from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions
from ripieno.report.results import EvaluatedSet, Interval, Results, wilson
from ripieno.report.words import pairs, percent, spoken, turned

# Shares of the questions that it still answers: where no costs are given, both are told, the first of them first.
HALF, MOST = 50, 80
# Whoever is right this often needs help with a fifth of the questions rather than with half of them.
OFTEN = 0.8
NAMES = {"entropy": "entropy", "mi": "the members' disagreement", "confidence": "confidence"}


@dataclass(frozen=True, slots=True)
class Told:
    """The short answer, the sentences behind it, and more for who asks on."""

    verdict: str
    points: tuple[str, ...] = ()
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """Answer where the confidence is at least `threshold`, hand over the rest.

    Args:
        threshold: the confidence.
        answered: the share of the questions that is answered.
        right: the share of the answered that is right; None where none is answered.
    """

    threshold: float
    answered: float
    right: Interval | None


def tell(
    results: Results, home: EvaluatedSet, familiar: Predictions, foreign: Sequence[tuple[EvaluatedSet, Predictions]]
) -> Told:
    """Say below which confidence a person should decide, by the in-domain set, and what the rule does elsewhere.

    Args:
        results: what was found.
        home: the in-domain set.
        familiar: its predictions at the last epoch.
        foreign: out-of-domain sets and theirs.
    """
    confidence, right = _answers(familiar)
    if not len(right):
        return Told("Unknown: no answers to compare with.")
    if right.all() or not right.any():
        return Told(f"Its answers to {home.short} are all {'right' if right.all() else 'wrong'}: no reason to choose.")
    overall = percent(float(right.mean()))
    separates = results.value(home.name, "ensemble", "error_auroc_confidence")
    decided = _at_costs(results, home, confidence, right)
    more: list[str] = []
    first, second = (MOST, HALF) if right.mean() >= OFTEN else (HALF, MOST)
    rules = [_rule(results, home, confidence, right, coverage) for coverage in (first, second)]
    if decided is not None:
        rule, verdict, points = decided
    else:
        rule, other = rules
        verdict = (
            f"Below {percent(rule.threshold)} sure: it then answers {percent(rule.answered)} of the questions and is "
            f"right on {percent(rule.right.value) if rule.right else 'none'} of them, not {overall}."
        )
        points = [_in_words(rule)]
        if other.right is not None:
            points.append(
                f"Handing over only what it is less than {percent(other.threshold)} sure of "
                f"(the last {percent(1.0 - other.answered)}): right on {spoken(other.right)}."
            )
        more.append(
            "No costs were given, so the thresholds are examples: the least sure half, and the least sure fifth. Given "
            "what an error and a hand-over cost, the report names the cheapest one."
        )
    if separates is not None:
        told = (
            f"Of a wrong and a right answer, it is less sure of the wrong one in {pairs(separates)} of cases; 50% is "
            "chance."
        )
        (more if separates.against(0.5) == 1 else points).insert(0, told)
    if separates is None or separates.against(0.5) != 1:
        verdict = (
            "Its confidence does not help to choose: handing over the least sure answers is not shown to be better "
            "than handing over any."
        )
    elsewhere = [said for s, p in foreign if (said := _there(s, p, rule.threshold))]
    if elsewhere:
        points.append(f"Out of domain the same threshold gives: {'; '.join(elsewhere)}.")
    return Told(verdict, tuple(points), (*more, *_rankings(results, home)))


def _there(s: EvaluatedSet, p: Predictions, threshold: float) -> str | None:
    """Say what a threshold does on another set, None where its answers are not known."""
    confidence, right = _answers(p)
    if not len(right):
        return None
    rule = _applied(confidence, right, threshold)
    if rule.right is None:
        return f"{s.short} answers nothing"
    return f"{s.short} answers {percent(rule.answered)}, {spoken(rule.right)} of these right"


def _answers(p: Predictions) -> tuple[Floats, Floats]:
    """Return the confidence and whether the answer is right, [n] each, where that is known."""
    pooled = uncertainty.pool(p.probs)[p.labelled]
    return uncertainty.confidence(pooled), accuracy.correct(pooled, p.targets[p.labelled])


def _applied(confidence: Floats, right: Floats, threshold: float) -> Rule:
    kept = confidence >= threshold
    n = int(kept.sum())
    if n == 0:
        return Rule(threshold, 0.0, None)
    share = float(right[kept].mean())
    return Rule(threshold, n / len(right), Interval(share, *wilson(share, n)))


def _rule(results: Results, s: EvaluatedSet, confidence: Floats, right: Floats, coverage: int) -> Rule:
    """Return the rule that answers the surest `coverage` percent; its interval is that of the bootstrap, if any."""
    answered = int(np.ceil(coverage * len(confidence) / 100))
    rule = _applied(confidence, right, float(np.sort(confidence)[len(confidence) - answered]))
    measured = results.value(s.name, "ensemble", f"selective_accuracy_{coverage}_confidence")
    return rule if measured is None else Rule(rule.threshold, rule.answered, measured)


def _in_words(rule: Rule) -> str:
    right = "none" if rule.right is None else spoken(rule.right)
    return (
        f"Answering only when at least {percent(rule.threshold)} sure, it answers {percent(rule.answered)} and is "
        f"right on {right} of these; a person decides the rest."
    )


def _at_costs(
    results: Results, s: EvaluatedSet, confidence: Floats, right: Floats
) -> tuple[Rule, str, list[str]] | None:
    """Return the rule for the user's costs, the short answer and the sentences; None where none were given."""
    threshold = results.row(s.name, "ensemble", "decision_threshold_confidence")
    cost, saving = (results.value(s.name, "ensemble", f"decision_{what}_confidence") for what in ("cost", "saving"))
    if threshold is None or cost is None or saving is None:
        return None
    # Without a value the cheapest is to answer nothing.
    rule = _applied(confidence, right, np.inf if threshold.value is None else threshold.value)
    whole = "the better of answering all and handing over all"
    saved = {
        1: f"saves {spoken(saving, '.2f')} a question against {whole}",
        0: f"is not shown to save anything against {whole} (difference {spoken(saving, '.2f')} a question)",
        -1: f"costs {spoken(turned(saving), '.2f')} a question more than {whole}",
    }[saving.against(0.0)]
    said = f"At your costs this rule comes to {spoken(cost, '.2f')} a question; it {saved}."
    if rule.right is None:
        return rule, "At your costs: always. Errors cost too much for what it knows.", [said]
    if rule.answered == 1.0:
        return rule, "At your costs: never. Handing over costs more than it saves.", [said]
    verdict = f"At your costs: below {percent(rule.threshold)} sure, so that it answers {percent(rule.answered)}."
    if saving.against(0.0) < 1:
        verdict = f"At your costs no threshold is shown to save anything. The best is {percent(rule.threshold)} sure."
    return rule, verdict, [_in_words(rule), said]


def _rankings(results: Results, s: EvaluatedSet) -> list[str]:
    """Say which uncertainty finds the errors, where several were measured."""
    found = {u: results.value(s.name, "ensemble", f"error_auroc_{u}") for u in UNCERTAINTIES}
    said = [f"{NAMES[u]} {pairs(x)}" for u, x in found.items() if x is not None]
    if len(said) < 2:
        return []
    return [f"{s.short}: how often each uncertainty puts a wrong answer before a right one: {', '.join(said)}."]
