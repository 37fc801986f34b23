"""What the numbers say, in plain words: every sentence comes from rows and claims no more than intervals support."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ripieno.report.results import EvaluatedSet, Interval, Results

if TYPE_CHECKING:
    from ripieno.report.build import Summary

# Below this share of the most uncertainty there could be (ln K), the members' disagreement is called nothing.
HARDLY_ANY = 0.01

ALWAYS = (
    "Anything unlike the sets on this page: nothing here speaks of it. "
    "The intervals hold for other questions of the same kinds and for these trained members, not for training again."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One question that a reader has, its short answer, and the sentences behind it."""

    question: str
    verdict: str
    points: tuple[str, ...]


def tell(summary: Summary, results: Results, sets: Sequence[EvaluatedSet]) -> list[Finding]:
    """Return the page's first screen: the questions a reader has, in their order."""
    return [
        trained(summary),
        how_right(results, sets),
        how_confident(results, sets),
        how_noticed(results, sets, summary.members),
        where_not(results, sets, summary.members),
    ]


def percent(value: float) -> str:
    """Return 0.452 as "45%"."""
    return f"{value:.0%}"


def spoken(x: Interval, form: str = ".0%") -> str:
    """Return "45% (39% to 51%)"; `form` is the numbers' format (".0%": 45%, ".1%": 45.2%, ".2f": 0.45)."""

    def text(value: float) -> str:
        return f"{value:{form}}"

    return text(x.value) if x.low is None or x.high is None else f"{text(x.value)} ({text(x.low)} to {text(x.high)})"


def counted(n: int, noun: str) -> str:
    """Return "1 member", "2 members"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def trained(summary: Summary) -> Finding:
    """Say what was trained, and what the words on the page mean."""
    one = summary.members == 1
    total = sum(count for _, count in summary.training)
    sources = ", ".join(f"{name} ({count:,})" for name, count in summary.training)
    out = ", ".join(summary.out_of_domain)
    answers = (
        "With one member there is no second opinion: the ensemble is that member."
        if one
        else "The ensemble answers with the average of its members' probabilities; each member has its own random seed."
    )
    return Finding(
        "What was trained?",
        f"{counted(summary.members, 'member')} on {counted(total, 'question')}, for "
        f"{counted(summary.epochs, 'epoch')} (passes over them).",
        (
            f"The base is {summary.base}, a language model that stays as it is. A member is a small set of extra "
            f"weights on top of it (an adapter of rank {summary.rank}), trained on {sources}. {answers}",
            f"In domain (questions like those it was trained on): {', '.join(summary.in_domain) or 'none evaluated'}. "
            + (f"Out of domain (of another kind): {out}." if out else "No out-of-domain questions were evaluated."),
            "Brackets hold 95% intervals: other questions of the same kind would give somewhat other numbers, and the "
            "interval says how far off this sample may be.",
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
        return f"{s.name}: the right answers are not known here, so how right it is cannot be said."
    said = f"{s.name} ({_role(s)}, {counted(s.n, 'question')}): right on {spoken(right)}; a guess gets "
    above = beats_guess(results, s)
    guess = {1: "Better than a guess", 0: "It cannot be told from a guess", -1: "Worse than a guess"}[above]
    if base is None:
        return f"{said}{percent(s.guess)}. {guess}."
    gain = beats_base(results, s)
    over = {1: "better than the base", 0: "it cannot be told from the base", -1: "worse than the base"}[gain]
    both = {1: "Better than both", 0: "It cannot be told from either", -1: "Worse than both"}[above]
    said += f"{percent(s.guess)}, the base {spoken(base)}. "
    return f"{said}{both}." if above == gain else f"{said}{guess}; {over}."


def probabilities_on(results: Results, s: EvaluatedSet) -> str | None:
    """Say how good its probabilities are (NLL) against the references and its own mean member."""
    found = [
        (label, difference)
        for label in ("uniform guess", "base", "base, temperature-scaled")
        if (difference := results.difference(s.name, "nll", label)) is not None
    ]
    if not found:
        return None
    known = {
        "uniform guess": "a uniform guess",
        "base": "the base",
        "base, temperature-scaled": "the base with its confidence corrected (temperature-scaled)",
    }
    parts = [_lower_is_better(d, known[label]) for label, d in found]
    said = (
        f"{s.name}, judged by the probability it gives to the right answer (NLL, negative log-likelihood: lower is "
        f"better): {'; '.join(parts)}."
    )
    own = results.difference(s.name, "nll", "mean member")
    if own is not None and own.value < 0:
        said += (
            f" It is better than its average member by {spoken(_turned(own), '.2f')}, which is no evidence: averaging "
            "probabilities can never come out worse than that (convexity)."
        )
    return said


def how_right(results: Results, sets: Sequence[EvaluatedSet]) -> Finding:
    """Answer "How right is it?" for every set."""
    known = [s for s in sets if results.value(s.name, "ensemble", "accuracy") is not None]
    verdicts = []
    for out, role in ((False, "In domain"), (True, "Out of domain")):
        mine = [s for s in known if s.out == out]
        above = sum(beats_guess(results, s) == 1 for s in mine)
        if mine:
            verdicts.append(f"{role}: {_share(above, len(mine), 'better than a guess', 'no better than a guess')}.")
    in_domain = (probabilities_on(results, s) for s in known if not s.out)
    points = (*(right_on(results, s) for s in sets), *(point for point in in_domain if point))
    return Finding("How right is it?", " ".join(verdicts) or "Unknown: no answers to compare with.", points)


def confidence_on(results: Results, s: EvaluatedSet) -> tuple[int | None, str]:
    """Say whether its confidence on one set can be believed.

    Returns:
        1 too sure, -1 not sure enough, 0 no sign of either, None where it is wrong both ways or cannot be said; and
        the sentence.
    """
    ece, null = (results.value(s.name, "ensemble", measure) for measure in ("ece", "ece_null_q95"))
    sure, right = (results.value(s.name, "ensemble", measure) for measure in ("mean_confidence", "accuracy"))
    if s.gap is None or ece is None or null is None or sure is None or right is None:
        return None, f"{s.name}: the right answers are not known here, so its confidence cannot be checked."
    said = f"{s.name}: on average {percent(right.value + s.gap.value)} sure and {percent(right.value)} right"
    measured = (
        f"Its calibration error (ECE) is {ece.value:.2f}; by chance alone a perfectly calibrated model shows up to "
        f"{null.value:.2f}."
    )
    direction = s.gap.against(0.0)
    if direction:
        gap = s.gap if direction > 0 else _turned(s.gap)
        blunt = " (The ECE, a blunter test, would not show this.)" if ece.value <= null.value else ""
        return (
            direction,
            f"{said}: {'over' if direction > 0 else 'under'}-confident by {_points(gap)}. {measured}{blunt}",
        )
    if ece.value > null.value:
        return None, f"{said}. {measured} Too sure at some levels, not sure enough at others."
    return 0, f"{said}. {measured} No sign of a wrong confidence; one smaller than that would not show here."


def how_confident(results: Results, sets: Sequence[EvaluatedSet]) -> Finding:
    """Answer "Can I believe its confidence?" for every set."""
    found = [(s, *confidence_on(results, s)) for s in sets]
    words = {1: "over-confident", -1: "under-confident", 0: "no sign that it is wrong", None: "off at some levels"}
    verdicts = []
    for out, role in ((False, "In domain"), (True, "Out of domain")):
        mine = [words[way] for s, way, _ in found if s.out == out and s.gap is not None]
        if mine:
            each = [
                f"{word}{f' on {mine.count(word)} of {len(mine)} sets' if len(set(mine)) > 1 else ''}"
                for word in dict.fromkeys(mine)
            ]
            verdicts.append(f"{role}: {', '.join(each)}.")
    lead = (
        "Confidence is the probability it gives to its own answer. It can be believed where, of the answers it is 70% "
        "sure of, 70% are right."
    )
    return Finding(
        "Can I believe its confidence?",
        " ".join(verdicts) or "Unknown: no answers to compare with.",
        (lead, *(sentence for _, _, sentence in found)),
    )


def entropy_signal(results: Results, home: EvaluatedSet, away: EvaluatedSet) -> tuple[int, str]:
    """Compare the entropy on an unfamiliar set with that in domain: 1 higher, -1 lower, 0 unclear; and say so."""
    same = home.sizes == away.sizes and len(home.sizes) == 1
    measure, form = ("predictive_entropy", ".2f") if same else ("normalised_entropy", ".0%")
    inside, outside = (results.value(s.name, "ensemble", measure) for s in (home, away))
    if inside is None or outside is None:
        return 0, "its entropy was not measured"
    name = "entropy" if same else "entropy, as a share of ln K,"
    numbers = f"{name} {spoken(outside, form)} against {spoken(inside, form)} in domain"
    verdict = {
        1: "so on average it is less sure here, as it should be",
        0: "and the intervals overlap, so it says nothing",
        -1: "so it is surer here than at home, which misleads",
    }
    way = outside.apart(inside)
    return way, f"{numbers}, {verdict[way]}"


def disagreement_signal(results: Results, home: EvaluatedSet, away: EvaluatedSet) -> tuple[int, str]:
    """Compare how much the members disagree (mutual information) with in domain: 1 more, -1 less, 0 unclear."""
    inside, outside = (results.value(s.name, "ensemble", "mutual_information") for s in (home, away))
    if inside is None or outside is None:
        return 0, "the members' disagreement was not measured"
    if max(inside.value / home.even_odds, outside.value / away.even_odds) < HARDLY_ANY:
        return 0, (
            f"the members hardly disagree anywhere ({outside.value:.3f} against {inside.value:.3f} in domain), "
            "so it says nothing"
        )
    form, unit = ".3f", ""
    if home.sizes != away.sizes:
        inside, outside, form, unit = inside / home.even_odds, outside / away.even_odds, ".1%", " of ln K"
    numbers = f"members' disagreement {spoken(outside, form)}{unit} against {spoken(inside, form)} in domain"
    verdict = {
        1: "so they disagree more here, as they should",
        0: "and the intervals overlap, so it says nothing",
        -1: "so they agree more here than at home, which misleads",
    }
    way = outside.apart(inside)
    return way, f"{numbers}, {verdict[way]}"


def noticed(results: Results, home: EvaluatedSet, away: EvaluatedSet, members: int) -> tuple[set[int], str]:
    """Say which ways its signals go on one unfamiliar set: 1 up, as they should, -1 down, both, or neither."""
    signals = [entropy_signal(results, home, away)]
    if members > 1:
        signals.append(disagreement_signal(results, home, away))
    ways = {way for way, _ in signals} - {0}
    return ways, f"{away.name}: {'; '.join(sentence for _, sentence in signals)}."


def how_noticed(results: Results, sets: Sequence[EvaluatedSet], members: int) -> Finding:
    """Answer "Does it notice unfamiliar questions?" for every out-of-domain set, against the first one in domain."""
    question = "Does it notice unfamiliar questions?"
    home = next((s for s in sets if not s.out), None)
    away = [s for s in sets if s.out]
    if home is None or not away:
        return Finding(question, "Not tested: that takes a set in domain and one out of domain.", ())
    found = [noticed(results, home, s, members) for s in away]
    yes, misled, torn = (sum(ways == which for ways, _ in found) for which in ({1}, {-1}, {1, -1}))
    verdict = "No: nothing here shows that it does."
    if torn and not yes:
        verdict = f"Not reliably: on {torn} of {len(away)} unfamiliar sets its two signals contradict each other."
    if yes:
        verdict = "On average, yes." if yes == len(away) else f"In part: on {yes} of {len(away)} unfamiliar sets."
    if misled:
        verdict += f" On {misled} of {len(away)} it is surer than in domain, which misleads."
    parts = [
        "Two signals could tell. Entropy is how spread out its probabilities are (0: certain; ln K: even odds among K "
        "choices)."
    ]
    parts.append(
        "Mutual information is how much the members disagree (0: not at all)."
        if members > 1
        else "The other, the members' disagreement, needs two members: this run has one."
    )
    if any(s.sizes != home.sizes for s in away) or len(home.sizes) > 1:
        parts.append(
            "The number of choices alone moves both; where it differs they are given as a share of ln K, which makes "
            "sets more alike, not wholly."
        )
    caveat = "These are averages: a harder set raises them too, and a single question can still be wrong and sure."
    return Finding(question, verdict, (" ".join(parts), *(sentence for _, sentence in found), caveat))


def where_not(results: Results, sets: Sequence[EvaluatedSet], members: int) -> Finding:
    """Gather where it should not be trusted."""
    warnings = []
    home = next((s for s in sets if not s.out), None)
    for s in sets:
        reasons = []
        if s.guess is None:
            reasons.append("its right answers are not known, so nothing vouches for it")
        elif beats_guess(results, s) < 1:
            reasons.append("its answers are not shown to be better than a guess")
        if s.guess is not None and beats_base(results, s) < 1 and results.value(s.name, "base", "accuracy"):
            reasons.append("training is not shown to help there")
        way, _ = confidence_on(results, s)
        if way == 1 and s.gap is not None:
            reasons.append(f"it is too sure of itself, by {_points(s.gap)}")
        elif way is None and s.gap is not None:
            reasons.append("its confidence is off at some levels")
        if s.out and home is not None and noticed(results, home, s, members)[0] != {1}:
            reasons.append("nothing clearly warns that it is unfamiliar")
        if reasons:
            warnings.append(f"{s.name}: {'; '.join(reasons)}.")
    verdict = "No set shown here gives a reason not to, which is no proof."
    if warnings:
        share = "every set" if len(warnings) == len(sets) else f"{len(warnings)} of {len(sets)} sets"
        verdict = f"On {share} shown here there is a reason not to."
    return Finding("Where should it not be trusted?", verdict, (*warnings, ALWAYS))


def _role(s: EvaluatedSet) -> str:
    return "out of domain" if s.out else "in domain"


def _share(k: int, n: int, yes: str, no: str) -> str:
    """Return `yes` where all of n are, the negation where none is, else how many."""
    if k == n:
        return yes
    return f"not shown to be {yes}" if k == 0 else f"{yes} on {k} of {n} sets"


def _lower_is_better(difference: Interval, reference: str) -> str:
    """Say how a loss compares with a reference's, given the paired difference."""
    way = difference.against(0.0)
    if way == 0:
        return f"not to be told from {reference} (difference {spoken(difference, '.2f')})"
    size = difference if way > 0 else _turned(difference)
    return f"{'worse' if way > 0 else 'better'} than {reference} by {spoken(size, '.2f')}"


def _points(x: Interval) -> str:
    """Return "7 points (2 to 12)": a difference of two percentages."""
    low, high = (0.0 if end is None else 100 * end for end in (x.low, x.high))
    places = 0 if min(abs(low), abs(high)) >= 1 else 1  # an interval that excludes 0 must not read "0 to 12"
    return f"{100 * x.value:.{places}f} points ({low:.{places}f} to {high:.{places}f})"


def _turned(x: Interval) -> Interval:
    """Return the difference the other way round, so that "better by" has a positive number."""
    return Interval(-x.value, None if x.high is None else -x.high, None if x.low is None else -x.low)
