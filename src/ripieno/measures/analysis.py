"""Every measure of a set of predictions, as one long table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ripieno.predictions import Predictions


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table (the contract of `analyze --json` and report/metrics.json)."""

    dataset: str
    split: str
    method: str
    epoch: int
    who: str | int  # "ensemble" (pooled), "members_mean", or a member's number
    measure: str
    value: float | None
    n: int
    low: float | None = None  # 95% interval
    high: float | None = None
    pooling: str = "prob"
    variant: str | None = None
    against: str | None = None
    scope: str = "questions"
    reason: str | None = None  # why value is null


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference `first - second` of a measure on the same questions; negative: `first` is lower."""

    dataset: str
    split: str
    measure: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    n: int


def analyze(
    predictions: Sequence[Predictions], *, calibration: Sequence[Predictions] = (), resamples: int = 1000, seed: int = 0
) -> list[Row]:
    """Return every measure of every `Predictions`."""
    raise NotImplementedError


def compare_with_references(
    predictions: Sequence[Predictions], *, calibration: Sequence[Predictions] = (), resamples: int = 1000, seed: int = 0
) -> list[Comparison]:
    """Compare the last epoch's ensemble with a uniform guess, the temperature-scaled base and its mean member."""
    raise NotImplementedError
