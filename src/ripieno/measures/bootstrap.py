"""Percentile bootstrap over questions, for measures that are means over questions.

What the intervals speak of: other questions from the same source, for *these* members. They say nothing about training
again. Efron and Tibshirani 1993, chapter 13. Known limits: with few questions they are somewhat too narrow, and where
all values are equal (every answer right) the interval has no width.
"""

from __future__ import annotations

import numpy as np

from ripieno.measures.uncertainty import Floats

RESAMPLES = 1000
LEVEL = 0.95

# Random numbers held at a time: 8 MB an array, whatever the number of questions.
DRAWN_AT_ONCE = 1 << 20


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the random generator of a seed and a purpose: the one way this package draws random numbers.

    Two purposes never share a stream, and the same call always returns the same stream.
    """
    return np.random.default_rng([seed, *purpose.encode()])


def resampled_means(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return the means of questions drawn again with replacement, for R measures of the same questions at once.

    The draws depend on the seed and N alone, so measures of the same questions are resampled together, and a
    difference of two of them is a paired one.

    Args:
        values: [R, N], finite.
        resamples: how many times to draw N questions.
        seed: of the draws.

    Returns:
        [resamples, R].

    Raises:
        ValueError: there is no question, or a value is not finite.
    """
    R, N = values.shape
    if N == 0:
        raise ValueError("there is no question to draw from")
    if not np.isfinite(values).all():
        raise ValueError("a mean over values that are not finite has no interval")
    rng = generator(seed, "bootstrap")
    means = np.empty((resamples, R))
    step = max(1, DRAWN_AT_ONCE // N)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(N, size=(rows, N))
        # How often each question was drawn: one product then gives every measure's mean.
        drawn += np.arange(rows)[:, None] * N
        counts = np.bincount(drawn.ravel(), minlength=rows * N).reshape(rows, N)
        means[start : start + rows] = counts.astype(np.float64) @ values.T / N
    return means


def intervals(
    values: Floats, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[Floats, Floats]:
    """Return the percentile interval of the mean of each of R measures.

        [q_{(1-level)/2}, q_{(1+level)/2}] of the resampled means

    Args:
        values: [R, N], finite: R measures of N questions.
        resamples: how many times to draw N questions.
        level: the interval's nominal coverage.
        seed: of the draws.

    Returns:
        Lower and upper ends, [R] each.

    Raises:
        ValueError: there is no question, or a value is not finite.
    """
    means = resampled_means(values, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    return low, high


def interval(values: Floats, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of a mean over questions: `intervals` of one measure, values [N]."""
    low, high = intervals(values[None], resamples=resamples, level=level, seed=seed)
    return float(low[0]), float(high[0])


def paired_interval(
    first: Floats, second: Floats, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of mean(first - second), both measured on the same N questions, [N] each.

    Pairing takes out what makes a question hard for both: two intervals that overlap may still differ surely.

    Raises:
        ValueError: the two differ in shape, there is no question, or a value is not finite.
    """
    if first.shape != second.shape:
        raise ValueError(f"not the same questions: shapes {first.shape} and {second.shape}")
    return interval(first - second, resamples=resamples, level=level, seed=seed)
