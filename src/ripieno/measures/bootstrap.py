"""Percentile bootstrap over questions: of means, and of any statistic that takes a weight a question.

What the intervals speak of: other questions from the same source, for *these* members. They say nothing about training
again. Efron and Tibshirani 1993, chapter 13. Known limits: with few questions they are somewhat too narrow, and where
all values are equal (every answer right) the interval has no width.

A resample is held as how often each question was drawn, `counts` [B, N]. A statistic that takes these as weights is
computed for many resamples at once, and statistics of the same counts are resampled together: their difference is a
paired one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.uncertainty import Floats

RESAMPLES = 1000
LEVEL = 0.95

# Random numbers held at a time: 8 MB an array, whatever the number of questions.
DRAWN_AT_ONCE = 1 << 20

# An interval needs the statistic to be defined on nearly every resample (an AUROC needs both kinds of questions).
MOST_UNDEFINED = 0.01

Counts = NDArray[np.uint16]


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the random generator of a seed and a purpose: the one way this package draws random numbers.

    Two purposes never share a stream, and the same call always returns the same stream.
    """
    return np.random.default_rng([seed, *purpose.encode()])


def draw(
    questions: int,
    *,
    clusters: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    purpose: str = "bootstrap",
) -> Counts:
    """Draw questions again with replacement, and return how often each was drawn.

    The draws depend on the seed, the purpose and the number of questions (with clusters: of clusters) alone.

    Args:
        questions: N.
        clusters: [N], a label a question; those of one label (one passage) are drawn together. None: each alone.
        resamples: B.
        seed: of the draws.
        purpose: sets that are compared but not paired (in and out of domain) take different ones.

    Returns:
        uint16 [B, N]. Without clusters each row sums to N.

    Raises:
        ValueError: there is no question, or no resample is asked for.
    """
    if questions == 0:
        raise ValueError("there is no question to draw from")
    if resamples < 1:
        raise ValueError(f"{resamples} resamples make no interval; ask for 1 at least")
    of_cluster = None
    units = questions
    if clusters is not None:
        labels, of_cluster = np.unique(clusters, return_inverse=True)
        units = len(labels)
    rng = generator(seed, purpose)
    counts = np.empty((resamples, units), dtype=np.uint16)
    step = max(1, DRAWN_AT_ONCE // units)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
    return counts if of_cluster is None else counts[:, of_cluster]


def units(questions: int, clusters: NDArray[Any] | None = None) -> int:
    """Return how many things `draw` draws: the questions, or with clusters the passages they are asked about.

    One alone, drawn again and again, says nothing of others: an interval takes two at least.
    """
    return questions if clusters is None else len(np.unique(clusters))


def resampled(statistic: Callable[[Floats], Floats], counts: Counts) -> Floats:
    """Return a statistic of every resample, a few resamples at a time.

    Args:
        statistic: weights [b, N] to values [b, ...]; NaN where a resample leaves it undefined.
        counts: [B, N].

    Returns:
        [B, ...].
    """
    step = max(1, DRAWN_AT_ONCE // counts.shape[1])
    parts = [statistic(counts[start : start + step].astype(np.float64)) for start in range(0, len(counts), step)]
    return np.concatenate(parts)


def resampled_means(values: Floats, counts: Counts) -> Floats:
    """Return the means of resampled questions, for R measures of the same questions at once.

    Args:
        values: [R, N], finite.
        counts: [B, N].

    Returns:
        [B, R].

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(values).all():
        raise ValueError("a mean over values that are not finite has no interval")
    return resampled(lambda weights: weights @ values.T / weights.sum(axis=1, keepdims=True), counts)


def percentiles(resamples: Floats, *, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Return the percentile interval of each of R resampled statistics.

        [q_{(1-level)/2}, q_{(1+level)/2}] of the resamples

    Args:
        resamples: [B, R]; NaN where a resample left the statistic undefined.
        level: the interval's nominal coverage.

    Returns:
        Lower and upper ends, [R] each; NaN where more than 1% of the resamples are undefined.
    """
    ends = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
    undefined = np.isnan(resamples)
    if not undefined.any():
        low, high = np.quantile(resamples, ends, axis=0)
        return low, high
    low, high = np.full(resamples.shape[1], np.nan), np.full(resamples.shape[1], np.nan)
    for r in np.flatnonzero(undefined.mean(axis=0) <= MOST_UNDEFINED):
        low[r], high[r] = np.quantile(resamples[~undefined[:, r], r], ends)
    return low, high


def p_value(difference: Floats, resamples: Floats, drawn: int) -> Floats:
    """Return the two-sided p-value of "no difference", from a paired difference and its resamples.

        erfc(|d| / (sqrt(2) s)),   s the standard deviation of the resampled differences

    Wald's test with the bootstrap's standard error (Efron and Tibshirani 1993, section 12.5): unlike the share of
    resamples beyond 0 it can be small enough to survive a correction for many tests. It relies on the difference being
    near normal, which means of 30 questions are. Without any spread (every question differs by the same) it is the
    sign test's, 2^(1 - U).

    Args:
        difference: [R].
        resamples: [B, R]; NaN (undefined) resamples are left out, not all may be.
        drawn: U, how many `units` were drawn from.

    Returns:
        [R], between 0 and 1; 1 where the difference is 0.
    """
    spread = np.nanstd(resamples, axis=0)
    # Resampled means of N equal values differ by rounding alone: at most N eps of them, 1e-9 for 4 million.
    rounding = 1e-9 * np.abs(difference)
    return np.array(
        [
            1.0 if d == 0.0 else math.erfc(abs(d) / (math.sqrt(2.0) * s)) if s > r else min(1.0, 2.0 ** (1 - drawn))
            for d, s, r in zip(difference.tolist(), spread.tolist(), rounding.tolist(), strict=True)
        ]
    )


def holm(p_values: Floats) -> Floats:
    """Return the p-values of R tests that are looked at together, adjusted so that one false alarm stays rare.

        p_(i) -> max_{j <= i} min(1, (R - j + 1) p_(j)),   p_(1) <= p_(2) <= ...

    Holm 1979: the chance of any false alarm among the R is at most the level, whatever their dependence.

    Args:
        p_values: [R].

    Returns:
        [R], in the order given.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.minimum(p_values[order] * np.arange(len(p_values), 0, -1), 1.0)
    result = np.empty_like(p_values)
    result[order] = np.maximum.accumulate(adjusted)
    return result


def intervals(
    values: Floats,
    *,
    clusters: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Return the percentile interval of the mean of each of R measures of the same questions.

    Args:
        values: [R, N], finite: R measures of N questions.
        clusters: [N], a label a question; those of one label are drawn together. None: each alone.
        resamples: how many times to draw N questions.
        level: the interval's nominal coverage.
        seed: of the draws.

    Returns:
        Lower and upper ends, [R] each.

    Raises:
        ValueError: there is no question, or a value is not finite.
    """
    counts = draw(values.shape[1], clusters=clusters, resamples=resamples, seed=seed)
    return percentiles(resampled_means(values, counts), level=level)


def interval(
    values: Floats,
    *,
    clusters: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of a mean over questions: `intervals` of one measure, values [N]."""
    low, high = intervals(values[None], clusters=clusters, resamples=resamples, level=level, seed=seed)
    return float(low[0]), float(high[0])


def paired_interval(
    first: Floats,
    second: Floats,
    *,
    clusters: NDArray[Any] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile interval of mean(first - second), both measured on the same N questions, [N] each.

    Pairing takes out what makes a question hard for both: two intervals that overlap may still differ surely.

    Raises:
        ValueError: the two differ in shape, there is no question, or a value is not finite.
    """
    if first.shape != second.shape:
        raise ValueError(f"not the same questions: shapes {first.shape} and {second.shape}")
    return interval(first - second, clusters=clusters, resamples=resamples, level=level, seed=seed)
