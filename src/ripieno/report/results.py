"""The rows of an analysis, looked up by what a page asks for: this set, this answerer, this measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ripieno.measures import accuracy, uncertainty
from ripieno.measures.analysis import Comparison, Row
from ripieno.measures.bootstrap import paired_interval
from ripieno.predictions import Predictions

BASE = "base"
Answerer = Literal["base", "base_temperature", "members_mean", "ensemble", "ensemble_temperature"]
ANSWERERS: tuple[Answerer, ...] = ("base", "base_temperature", "members_mean", "ensemble", "ensemble_temperature")


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

    def __truediv__(self, scale: float) -> Interval:
        low, high = (None if end is None else end / scale for end in (self.low, self.high))
        return Interval(self.value / scale, low, high)


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
        gap: mean confidence less accuracy, above 0 where it is too sure; None without two known answers.
    """

    name: str
    out: bool
    n: int
    sizes: tuple[int, ...]
    even_odds: float
    guess: float | None
    gap: Interval | None


def evaluated_set(p: Predictions, out: bool) -> EvaluatedSet:
    """Return what a page needs to know of the questions that these predictions answer."""
    sizes = p.mask.sum(axis=1)
    guess, gap = None, None
    if p.labelled.any():
        guess = float((1.0 / sizes[p.labelled]).mean())
    if p.labelled.sum() > 1:
        pooled = uncertainty.pool(p.probs)[p.labelled]
        confidence, right = uncertainty.confidence(pooled), accuracy.correct(pooled, p.targets[p.labelled])
        gap = Interval(float((confidence - right).mean()), *paired_interval(confidence, right))
    kinds = tuple(int(size) for size in np.unique(sizes))
    return EvaluatedSet(p.name, out, len(sizes), kinds, float(np.log(sizes).mean()), guess, gap)


class Results:
    """Rows and paired comparisons of one method and its base.

    Args:
        rows: the long table; the last epoch in it of `method` is the one the page speaks of.
        comparisons: paired differences at that epoch.
        method: whose rows, beside the base's.
    """

    def __init__(self, rows: Sequence[Row], comparisons: Sequence[Comparison], method: str) -> None:
        self.method = method
        self.comparisons = tuple(c for c in comparisons if c.first.removesuffix(", temperature-scaled") == method)
        self._rows = {
            (_name(row), row.method, row.epoch, row.who, row.variant, row.measure): row
            for row in rows
            if row.method in (BASE, method) and row.pooling == "prob" and row.against is None
        }
        self.epochs = tuple(sorted({row.epoch for row in rows if row.method == method}))

    def row(self, name: str, answerer: Answerer | int, measure: str, epoch: int | None = None) -> Row | None:
        """Return one row: of an answerer or of a member by its number; the last epoch by default."""
        last = self.epochs[-1] if self.epochs else 0
        epoch = last if epoch is None else epoch
        if isinstance(answerer, int):
            return self._rows.get((name, self.method, epoch, answerer, None, measure))
        who = answerer.removesuffix("_temperature")
        kind = "temperature" if answerer.endswith("_temperature") else None
        if who == BASE:
            return self._rows.get((name, BASE, 0, "ensemble", kind, measure))
        return self._rows.get((name, self.method, epoch, who, kind, measure))

    def value(self, name: str, answerer: Answerer | int, measure: str) -> Interval | None:
        """Return a row's value with its interval, None where it has no value."""
        row = self.row(name, answerer, measure)
        return None if row is None or row.value is None else Interval(row.value, row.low, row.high)

    def course(self, name: str, answerer: Answerer | int, measure: str) -> list[tuple[int, Interval]]:
        """Return a measure over the epochs, from the base (epoch 0) on."""
        rows = [self.row(name, "base", measure), *(self.row(name, answerer, measure, epoch) for epoch in self.epochs)]
        return [(row.epoch, Interval(row.value, row.low, row.high)) for row in rows if row and row.value is not None]

    def members(self, name: str) -> tuple[int, ...]:
        """Return the numbers of the members that have rows of their own on a set."""
        found = {who for n, method, _, who, _, _ in self._rows if n == name and method == self.method}
        return tuple(sorted(who for who in found if isinstance(who, int)))

    def difference(self, name: str, measure: str, second: str) -> Interval | None:
        """Return the paired difference of the ensemble and a reference ("uniform guess", "base", ...)."""
        for c in self.comparisons:
            if (_name(c), c.first, c.second, c.measure) == (name, self.method, second, measure):
                return Interval(c.difference, c.low, c.high)
        return None

    def compared(self, name: str) -> list[Comparison]:
        """Return the paired comparisons on one set; a single member is its own mean member, which says nothing."""
        several = len(self.members(name)) > 1
        return [c for c in self.comparisons if _name(c) == name and (several or c.second != "mean member")]


def _name(item: Row | Comparison) -> str:
    """Return `DATASET/SPLIT`, as `Predictions.name` has it."""
    return f"{item.dataset}/{item.split}" if item.split else item.dataset
