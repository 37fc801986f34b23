"""The Brier score in three parts: what recalibration would mend, what telling right from wrong gains, and the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.accuracy import brier
from ripieno.measures.uncertainty import Floats


@dataclass(frozen=True, slots=True)
class BrierParts:
    """The mean Brier score, taken apart: reliability - resolution + uncertainty. Each is >= 0, on its scale of 0 to 2.

    Args:
        reliability: what calibration costs: what the score would fall by if every probability were recalibrated.
        resolution: what telling choices apart gains, against giving each choice the same probability.
        uncertainty: the score of that one probability for all.
    """

    reliability: float
    resolution: float
    uncertainty: float


def brier_decomposition(probs: Floats, targets: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> BrierParts:
    """Take the mean Brier score apart into calibration, discrimination and how hard the questions are.

        mean brier = reliability - resolution + uncertainty
        reliability = S(p) - S(q),   resolution = S(r) - S(q),   uncertainty = S(r),   S(x) = 1/N sum_i (x_i - o_i)^2

    over all pairs i of a question and a choice it has, p_i its probability, o_i whether it is the right one, q the
    isotonic (never falling) regression of o on p, and r = mean o for all. Murphy 1973, with the recalibration of
    Dimitriadis, Gneiting and Jordan 2021 (CORP, PNAS 118(8)) in place of bins: nothing is left to choose, and no part
    is ever negative. Pairs of equal p are one point of the regression.

    With n pairs r = N / n, and uncertainty = 1 - N/n: 1 - 1/K where every question has K choices. Where all p are
    equal, so are all q: resolution is 0.

    It misleads with few questions: q is fitted to the questions it is measured on, so reliability and resolution
    are both too high, by the same amount. It treats choices alike: which one it is (the first, "yes") is not used.

    Args:
        probs: [N, K], 0 where a choice is absent; `pool(probs)` for an ensemble.
        targets: int [N], the right choice.
        mask: bool [N, K], whether the question has the choice; None: every question has all K.

    Returns:
        The three parts.

    Raises:
        ValueError: there is no question, a target is unknown (negative) or none of its question's choices, or shapes
            differ.
    """
    if len(targets) == 0:
        raise ValueError("there is no question to measure")
    N, K = probs.shape
    score = float(brier(probs, targets).mean())
    if mask is None:
        mask = np.ones((N, K), dtype=bool)
    if mask.shape != probs.shape:
        raise ValueError(f"not the same choices: shapes {probs.shape} and {mask.shape}")
    absent = ~mask[np.arange(N), targets]
    if absent.any():
        n = int(absent.argmax())
        raise ValueError(f"target {targets[n]} of question {n} is a choice that the question does not have")
    value, point = np.unique(probs[mask], return_inverse=True)
    count = np.bincount(point, minlength=len(value)).astype(np.float64)
    happened = (np.arange(K) == targets[:, None])[mask]
    hits = np.bincount(point, weights=happened, minlength=len(value))
    recalibrated = _isotonic(hits / count, count)
    climate = N / count.sum()
    resolution = float((count * (recalibrated - climate) ** 2).sum() / N)
    # S(q) in the same way: q is the mean of o wherever it is constant, so the square's cross terms vanish.
    left_over = float((count * recalibrated * (1.0 - recalibrated)).sum() / N)
    return BrierParts(
        # q is the best of all recalibrations, p itself among them: below 0 is rounding.
        reliability=max(score - left_over, 0.0),
        resolution=resolution,
        uncertainty=float(1.0 - climate),
    )


def _isotonic(values: Floats, weights: Floats) -> Floats:
    """Return the never falling sequence nearest to `values` in weighted squares.

    Pool adjacent violators (Ayer et al. 1955) with a stack of pooled blocks: each value enters and leaves at most
    once, so it is O(n).
    """
    means: list[float] = []
    sums: list[float] = []
    lengths: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        length = 1
        while means and means[-1] >= value:
            total = sums.pop()
            value = (means.pop() * total + value * weight) / (total + weight)
            weight += total
            length += lengths.pop()
        means.append(value)
        sums.append(weight)
        lengths.append(length)
    return np.repeat(means, lengths)
