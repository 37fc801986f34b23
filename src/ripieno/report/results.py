"""What an analysis found, looked up by what a page asks for: this set, this answerer, this measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ripieno.measures.table import Analysis, Comparison, Flow, Row, SizePoint
from ripieno.predictions import Predictions

BASE = "base"
Answerer = Literal[
    "base",
    "base_temperature",
    "members_mean",
    "ensemble",
    "ensemble_temperature",
    "ensemble_logit",
    "ensemble_other",
    "ensemble_vocabulary",
]
# Of each answerer: whose rows (`who`), how they are pooled, which variant.
_WHERE: dict[Answerer, tuple[str, str, str | None]] = {
    "base": ("ensemble", "prob", None),
    "base_temperature": ("ensemble", "prob", "temperature"),
    "members_mean": ("members_mean", "prob", None),
    "ensemble": ("ensemble", "prob", None),
    "ensemble_temperature": ("ensemble", "prob", "temperature"),
    "ensemble_logit": ("ensemble", "logit", None),
    "ensemble_other": ("ensemble", "prob", "other"),
    "ensemble_vocabulary": ("ensemble", "prob", "vocabulary"),
}
ANSWERERS = tuple(_WHERE)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and its 95% interval, whose ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def against(self, reference: float) -> int:
        """Return 1 where the whole interval lies above the reference, -1 below it, 0 where nothing can be said."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > reference) - int(self.high < reference)

    def apart(self, other: Interval) -> int:
        """Return 1 where the whole interval lies above the other's, -1 below it, 0 where they overlap."""
        if other.low is None or other.high is None:
            return 0
        return max(0, self.against(other.high)) + min(0, self.against(other.low))


@dataclass(frozen=True, slots=True)
class EvaluatedSet:
    """What a page needs to know of one set of questions beside the rows.

    Args:
        name: `DATASET/SPLIT`.
        out: whether it is out of domain.
        n: its questions.
        sizes: the numbers of choices that occur.
        even_odds: mean ln K, nats: the entropy and the NLL of a uniform guess.
        guess: the accuracy of a uniform guess; None without known answers.
        gap: mean confidence less accuracy, above 0 where it is too sure; None without known answers.
        short: what sentences call it: the data set alone, where the page has no other split of it.
    """

    name: str
    out: bool
    n: int
    sizes: tuple[int, ...]
    even_odds: float
    guess: float | None
    gap: Interval | None
    short: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "short", self.short or self.name)

    @property
    def role(self) -> str:
        """What the set is to the members."""
        return "out of domain" if self.out else "in domain"


def evaluated_set(results: Results, p: Predictions, out: bool, short: str = "") -> EvaluatedSet:
    """Return what a page needs to know of the questions that these predictions answer."""
    sizes = p.mask.sum(axis=1)
    guess = float((1.0 / sizes[p.labelled]).mean()) if p.labelled.any() else None
    gap = results.value(p.name, "ensemble", "confidence_gap")
    kinds = tuple(int(size) for size in np.unique(sizes))
    return EvaluatedSet(p.name, out, len(sizes), kinds, float(np.log(sizes).mean()), guess, gap, short)


def wilson(share: Any, n: Any) -> Any:
    """Return the lower and the upper end of the 95% interval of a share of n, or of arrays of them (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


class Results:
    """What was found of one method and its base.

    Args:
        analysis: the last epoch of `method` in its rows is the one the page speaks of.
        method: whose rows, beside the base's.
    """

    def __init__(self, analysis: Analysis, method: str) -> None:
        self.method = method
        self.comparisons = tuple(
            c for c in analysis.comparisons if c.first.removesuffix(", temperature-scaled") == method
        )
        # Of several replicates the first counts.
        self._rows: dict[tuple[object, ...], Row] = {}
        for row in analysis.rows:
            if row.method in (BASE, method):
                key = (row.method, row.epoch, row.who, row.pooling, row.variant, row.against, row.measure)
                self._rows.setdefault((name_of(row), *key), row)
        self.epochs = tuple(sorted({row.epoch for row in analysis.rows if row.method == method}))
        self.last = self.epochs[-1] if self.epochs else 0
        self._sizes = [s for s in analysis.sizes if s.method == method and s.epoch == self.last]
        self._flows = [f for f in analysis.flows if f.method == method]

    @property
    def trained_again(self) -> bool:
        """Whether several replicates were measured, so that intervals speak of training again."""
        return any(row.scope == "training" for row in self._rows.values())

    def row(self, name: str, answerer: Answerer | int, measure: str, epoch: int | None = None) -> Row | None:
        """Return one row: of an answerer or of a member by its number; the last epoch by default."""
        epoch = self.last if epoch is None else epoch
        if isinstance(answerer, int):
            return self._rows.get((name, self.method, epoch, answerer, "prob", None, None, measure))
        who, pooling, variant = _WHERE[answerer]
        if answerer.startswith(BASE):
            return self._rows.get((name, BASE, 0, who, pooling, variant, None, measure))
        return self._rows.get((name, self.method, epoch, who, pooling, variant, None, measure))

    def value(self, name: str, answerer: Answerer | int, measure: str) -> Interval | None:
        """Return a row's value with its interval, None where it has no value."""
        return interval_of(self.row(name, answerer, measure))

    def course(self, name: str, answerer: Answerer | int, measure: str) -> list[tuple[int, Interval]]:
        """Return a measure over the epochs, from the base (epoch 0) on."""
        rows = [self.row(name, "base", measure), *(self.row(name, answerer, measure, epoch) for epoch in self.epochs)]
        return [(row.epoch, Interval(row.value, row.low, row.high)) for row in rows if row and row.value is not None]

    def members(self, name: str) -> tuple[int, ...]:
        """Return the numbers of the members that have rows of their own on a set."""
        found = {key[3] for key in self._rows if key[0] == name and key[1] == self.method}
        return tuple(sorted(who for who in found if isinstance(who, int)))

    def apart(self, away: str, home: str, measure: str, matched: bool = False, epoch: int | None = None) -> Row | None:
        """Return how well a score tells the set `away` from `home` ("ood_auroc_mi", ...), K-matched or as it is."""
        epoch, variant = self.last if epoch is None else epoch, "k_matched" if matched else None
        return self._rows.get((away, self.method, epoch, "ensemble", "prob", variant, home, measure))

    def measures(self, name: str) -> list[str]:
        """Return what was measured of the ensemble on a set, in the rows' order."""
        own = (name, self.method, self.last, "ensemble", "prob", None, None)
        return [str(key[-1]) for key in self._rows if key[:-1] == own]

    def difference(self, name: str, measure: str, second: str) -> Interval | None:
        """Return the paired difference of the ensemble and a reference ("uniform guess", "base", ...)."""
        for c in self.comparisons:
            if (name_of(c), c.first, c.second, c.measure) == (name, self.method, second, measure):
                return Interval(c.difference, c.low, c.high)
        return None

    def compared(self, name: str) -> list[Comparison]:
        """Return the paired comparisons on one set; a single member is its own mean member, which says nothing."""
        several = len(self.members(name)) > 1
        return [c for c in self.comparisons if name_of(c) == name and (several or c.second != "mean member")]

    def sizes(self, name: str, measure: str) -> list[SizePoint]:
        """Return a measure against the number of members, the smallest first."""
        found = [s for s in self._sizes if (name_of(s), s.measure) == (name, measure)]
        return sorted(found, key=lambda s: s.members)

    def flows(self, name: str, *, base: bool = False) -> list[Flow]:
        """Return the flows of a set's questions between the method's epochs, or from the base to the last epoch."""
        return [f for f in self._flows if name_of(f) == name and (f.epoch_from == 0) == base]


def interval_of(row: Row | None) -> Interval | None:
    """Return a row's value with its interval, None where there is no row or it has no value."""
    return None if row is None or row.value is None else Interval(row.value, row.low, row.high)


def name_of(item: Row | Comparison | SizePoint | Flow) -> str:
    """Return `DATASET/SPLIT`, as `Predictions.name` has it."""
    return f"{item.dataset}/{item.split}" if item.split else item.dataset
