"""The one temperature that makes a confidence of 80% right 80% of the time, as far as one number can.

It divides the scores of every member, before pooling; `calibration` measures what it mends.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.accuracy import nll
from ripieno.measures.uncertainty import Floats, log_softmax, pool_log

# The temperatures looked at. Beyond them predictions are one-hot or uniform for all practical purposes.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
_GRID = 25
_LOG_TEMPERATURE_TOLERANCE = 1e-6


def apply_temperature(log_probs: Floats, mask: NDArray[np.bool_], temperature: float) -> Floats:
    """Divide every member's scores by one temperature and normalise over each question's choices again.

        softmax_k(ln p_mk / T)

    Guo et al. 2017 (arXiv:1706.04599). Log-probabilities serve as scores: they differ from any other scores of the
    same softmax by a constant a question, which the softmax ignores.

    Args:
        log_probs: [M, N, K], normalised or not; -inf where a choice is absent.
        mask: bool [N, K], whether the question has the choice.
        temperature: T > 0; above 1 flattens, below 1 sharpens, 1 changes nothing.

    Returns:
        [M, N, K], log-probabilities; -inf where a choice is absent.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature {temperature} is not positive")
    scores = np.where(mask, log_probs, -np.inf)
    # The highest score is taken off before the division, so that a small T cannot overflow.
    return log_softmax((scores - scores.max(axis=-1, keepdims=True)) / temperature)


def fit_temperature(log_probs: Floats, mask: NDArray[np.bool_], targets: NDArray[np.int64]) -> float:
    """Return the one temperature, for all members, under which the *pooled* prediction has the lowest NLL.

        argmin_T mean_n -ln (1/M) sum_m softmax(ln p_mn / T)[y_n],   0.05 <= T <= 20

    Calibrating each member alone leaves the ensemble underconfident (Rahaman and Thiery 2021, arXiv:2007.08792; Wu and
    Gales 2021, arXiv:2101.05397), so T is chosen after pooling, yet acts before it: every member stays a distribution
    and mutual information stays defined. With members the NLL can have several valleys in T, so a grid over ln T
    finds the deepest and a golden-section search its bottom.

    Args:
        log_probs: [M, N, K], of questions used for nothing else; -inf where a choice is absent.
        mask: bool [N, K], whether the question has the choice.
        targets: int [N], the right choice. Questions of an unknown one (negative), and those whose right choice every
            member gives probability 0 (no T changes that), are left out.

    Returns:
        T; 1.0 where no T is better than 1, one of the ends of the range where the NLL falls all the way there (all
        right: the lower end).

    Raises:
        ValueError: no question is left.
    """
    known = targets >= 0
    known[known] = np.isfinite(nll(pool_log(log_probs[:, known]), targets[known]))
    if not known.any():
        raise ValueError("no question with a known right choice of positive probability to fit a temperature to")
    log_probs, mask, targets = log_probs[:, known], mask[known], targets[known]

    def loss(temperature: float) -> float:
        scaled = apply_temperature(log_probs, mask, temperature)
        return float(nll(pool_log(scaled), targets).mean())

    grid = np.geomspace(LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE, _GRID)
    deepest = int(np.argmin([loss(float(temperature)) for temperature in grid]))
    lower, upper = float(grid[max(deepest - 1, 0)]), float(grid[min(deepest + 1, _GRID - 1)])
    inside = _golden_section(lambda x: loss(math.exp(x)), math.log(lower), math.log(upper))
    # The first of equals wins: where no temperature changes anything, that is 1.
    return min((1.0, math.exp(inside), float(grid[deepest])), key=loss)


def _golden_section(loss: Callable[[float], float], lower: float, upper: float) -> float:
    """Return where `loss`, with one valley between `lower` and `upper`, is lowest (Kiefer 1953)."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = upper - ratio * (upper - lower), lower + ratio * (upper - lower)
    at_left, at_right = loss(left), loss(right)
    while upper - lower > _LOG_TEMPERATURE_TOLERANCE:
        if at_left <= at_right:
            upper, right, at_right = right, left, at_left
            left = upper - ratio * (upper - lower)
            at_left = loss(left)
        else:
            lower, left, at_left = left, right, at_right
            right = lower + ratio * (upper - lower)
            at_right = loss(right)
    return (lower + upper) / 2.0
