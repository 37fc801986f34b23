"""Whether it notices what it was not trained for, in words: how well its uncertainty tells a foreign set from home."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ripieno.measures.table import BASELINES, UNCERTAINTIES
from ripieno.report.results import EvaluatedSet, Interval, Results, interval_of
from ripieno.report.words import listed, pairs

# An uncertainty that tells two questions apart less often than this does so weakly, however surely.
WEAK = 0.6
NAMES = {
    "entropy": "entropy",
    "mi": "its members' disagreement",
    "confidence": "confidence",
    "choices": "the number of choices",
    "prompt_length": "the prompt's length",
    "perplexity": "how odd the base finds the prompt",
    "mahalanobis": "the distance of the base's hidden state",
}


@dataclass(frozen=True, slots=True)
class Signs:
    """What tells one unfamiliar set from home.

    Args:
        set: the unfamiliar one.
        way: 1 where entropy or confidence is surely less certain there, -1 surely more certain, 0 neither or both.
        weak: whether even the best uncertainty is right in fewer than `WEAK` of pairs.
        disagreement: the same of the members' disagreement: 1, 0, -1; None where it was not measured.
        beaten: the trivial baseline that surely tells the two apart better than every uncertainty, or None.
        rivalled: whether a trivial baseline tells them apart as well, surely or not.
        matched: whether both sets had as many choices; None where nothing was measured.
        sentence: all of it, in words.
    """

    set: EvaluatedSet
    way: int
    weak: bool
    disagreement: int | None
    beaten: str | None
    rivalled: bool
    matched: bool | None
    sentence: str

    @property
    def noticed(self) -> bool:
        """Whether anything surely warns there."""
        return self.way == 1 or (self.way == 0 and self.disagreement == 1)


def signs_on(results: Results, home: EvaluatedSet, away: EvaluatedSet) -> Signs:
    """Read how well each uncertainty and each trivial baseline tells one unfamiliar set from home."""
    matched = any(_auroc(results, home, away, score, True) for score in UNCERTAINTIES)
    found = {score: _auroc(results, home, away, score, matched) for score in (*UNCERTAINTIES, *BASELINES)}
    own = {score: x for score in UNCERTAINTIES if (x := found[score]) is not None}
    if not own:
        return Signs(away, 0, False, None, None, False, None, f"{away.short}: not measured.")
    best = max(own.values(), key=lambda x: x.value)
    # A baseline may lie on either side of chance: what is always shorter gives itself away as well.
    trivial = {score: either_side(x) for score in BASELINES if (x := found[score]) is not None}
    strongest = max(trivial, key=lambda score: trivial[score].value, default=None)
    beaten = strongest if strongest and trivial[strongest].apart(best) == 1 else None
    said = ", ".join(f"{pairs(x)} by {NAMES[score]}" for score, x in own.items())
    if strongest is not None:
        said += f"; {NAMES[strongest]} alone tells in {pairs(trivial[strongest])}"
    if not matched and away.sizes != home.sizes:
        said += ". The number of choices differs, which alone moves these"
    ways = {x.against(0.5) for score, x in own.items() if score != "mi"}
    way = 0 if {1, -1} <= ways else sum(ways)
    disagreement = own["mi"].against(0.5) if "mi" in own else None
    rivalled = strongest is not None and trivial[strongest].value >= best.value
    return Signs(away, way, best.value < WEAK, disagreement, beaten, rivalled, matched, f"{away.short}: {said}.")


def verdict(signs: Sequence[Signs]) -> str:
    """Return the short answer over all unfamiliar sets."""
    n = len(signs)
    if all(sign.matched is None for sign in signs):
        return "Not measured."
    told = [sign for sign in signs if sign.way == 1]
    only = sum(sign.noticed and sign.way != 1 for sign in signs)
    misled = sum(sign.way == -1 for sign in signs)
    said = "No: nothing here shows that it does."
    if only and not told:
        said = f"Only its members' disagreement does, on {_of(only, n)}."
    if told:
        weak = " but weakly" if all(sign.weak for sign in told) else ""
        said = f"Yes{weak}, on average." if len(told) == n else f"In part:{weak} on {_of(len(told), n)}."
        said += f" On {_of(only, n)} only its members' disagreement does." if only else ""
    if misled:
        said += f" On {_of(misled, n)} it is surer than at home, which misleads."
    ways = [sign.disagreement for sign in signs if sign.disagreement is not None]
    parts = [
        f"{word} on {_of(ways.count(way), n)}"
        for way, word in ((0, "says nothing"), (-1, "misleads"))
        if way in ways and (told or only or misled or way)
    ]
    if parts:
        said += f" Its members' disagreement {' and '.join(parts)}."
    beaten = [sign.beaten for sign in signs if sign.beaten]
    if beaten:
        names = listed([NAMES[name] for name in dict.fromkeys(beaten)], "or")
        said += f" On {_of(len(beaten), n)} {names} alone tells better."
    elif told and all(sign.rivalled for sign in told):
        said += " It is not shown to beat a trivial check of the input, though."
    return said


def notes(signs: Sequence[Signs]) -> list[str]:
    """Return what the words mean, for who asks on."""
    said = [
        "Entropy is how spread out its probabilities are; its members' disagreement is their mutual information; "
        "confidence is the probability of its own answer.",
    ]
    if any(sign.matched for sign in signs):
        said.append(
            "Measured with as many choices in both sets (K-matched: wrong choices dropped at random), because more "
            "choices alone look more uncertain. Below, they also stand as they are."
        )
    said.append(
        "A trivial sign knows nothing of the answers. Where it does better than the ensemble's uncertainty, the two "
        "sets differ in how they look, and a simple check of the input is the better guard."
    )
    return said


def _auroc(results: Results, home: EvaluatedSet, away: EvaluatedSet, score: str, matched: bool) -> Interval | None:
    return interval_of(results.apart(away.name, home.name, f"ood_auroc_{score}", matched))


def either_side(x: Interval) -> Interval:
    """Return an AUROC as how well it tells two sets apart, whichever of them is the higher one."""
    if x.value >= 0.5:
        return x
    return Interval(1.0 - x.value, None if x.high is None else 1.0 - x.high, None if x.low is None else 1.0 - x.low)


def _of(k: int, n: int) -> str:
    return "the unfamiliar set" if n == 1 else "every unfamiliar set" if k == n else f"{k} of {n} unfamiliar sets"
