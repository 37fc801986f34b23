"""Whether a confidence of 80% is right 80% of the time.

Everything here looks at a prediction's confidence (its highest probability) and whether it was right: `confidence` [N]
between 0 and 1, `right` [N] of 0 and 1 (`accuracy.correct`). No measure depends on the order of the questions.
`temperature` mends part of what is measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.bootstrap import DRAWN_AT_ONCE, generator
from ripieno.measures.uncertainty import Floats
from ripieno.predictions import SUM_TOLERANCE

BINS = 15

# The grid of the smooth ECE: its spacing is h = 1 / _GRID. The search stops at this width of the bandwidth.
_GRID = 1 << 14
_BANDWIDTH_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predictions sorted into bins of confidence: what a reliability diagram draws.

    Args:
        edges: [B + 1], bin b holds confidences in (edges[b], edges[b + 1]]; the first bin holds 0 as well.
        count: int [B], questions in the bin.
        confidence: [B], their mean confidence; 0 where the bin is empty.
        accuracy: [B], the share of them that is right; 0 where the bin is empty.
    """

    edges: Floats
    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def reliability(confidence: Floats, right: Floats, *, bins: int = BINS) -> Reliability:
    """Sort predictions into bins of equal width by confidence.

    DeGroot and Fienberg 1983; bins (a, b] as Guo et al. 2017 (arXiv:1706.04599).

    Args:
        confidence: [N], between 0 and 1.
        right: [N], 0 or 1.
        bins: how many.

    Returns:
        Counts, mean confidence and accuracy of each bin.

    Raises:
        ValueError: the two differ in shape, a confidence is not between 0 and 1, or there is no bin.
    """
    check(confidence, right, bins)
    bin_of = _bin_of(confidence, bins)
    count = np.bincount(bin_of, minlength=bins)
    divisor = np.maximum(count, 1)
    return Reliability(
        edges=_edges(bins),
        count=count,
        confidence=np.bincount(bin_of, weights=confidence, minlength=bins) / divisor,
        accuracy=np.bincount(bin_of, weights=right, minlength=bins) / divisor,
    )


def ece(confidence: Floats, right: Floats, *, bins: int = BINS) -> float:
    """Return the expected calibration error.

        sum_b n_b / N * |accuracy_b - confidence_b|

    Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599). It misleads: it is biased upward, so that a perfectly
    calibrated model does not get 0 (read it beside `ece_null`), and it depends on the number of bins.

    Args:
        confidence: [N], between 0 and 1.
        right: [N], 0 or 1.
        bins: of equal width.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: there is no question, the two differ in shape, a confidence is not between 0 and 1, or there is no
            bin.
    """
    check(confidence, right, bins)
    check_some(confidence)
    return _mean_gap(confidence, right, _bin_of(confidence, bins))


def adaptive_ece(confidence: Floats, right: Floats, *, bins: int = BINS) -> float:
    """Return the expected calibration error over bins of equal numbers of questions.

        sum_b n_b / N * |accuracy_b - confidence_b|

    Nguyen and O'Connor 2015; Nixon et al. 2019 (arXiv:1904.01685). The sorted confidences are cut into B = min(bins, N)
    parts, the first N mod B of them one longer than the rest. The last confidence of a part is its bin's upper edge,
    and bin b holds the confidences in (edge_{b-1}, edge_b]: equal ones always share a bin, and where they fill whole
    parts there are fewer bins. torch-uncertainty cuts at the same places but also between equal confidences, so that
    its value then depends on the order of the questions, and with fewer questions than bins it returns NaN.

    Biased upward like `ece`; it misleads where most confidences are near 1, since one bin then spans all the doubtful
    answers and their errors cancel.

    Args:
        confidence: [N], between 0 and 1.
        right: [N], 0 or 1.
        bins: of equal numbers of questions.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: there is no question, the two differ in shape, a confidence is not between 0 and 1, or there is no
            bin.
    """
    check(confidence, right, bins)
    check_some(confidence)
    return _mean_gap(confidence, right, equal_mass_bin_of(confidence, bins))


def ece_null(confidence: Floats, *, bins: int = BINS, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the ECE that a perfectly calibrated model of these confidences would show: its mean and 95% quantile.

    The labels are redrawn from the model's own probabilities and the ECE measured again. The ECE only asks whether the
    likeliest choice is the label, which is true with the probability `confidence`, so that is what is drawn.
    Consistency resampling: Broecker and Smith 2007; Vaicenavicius et al. 2019 (arXiv:1902.06977).

    Args:
        confidence: [N], between 0 and 1.
        bins: of equal width, as for the ECE it is compared with.
        draws: how many times all labels are redrawn.
        seed: of the draws.

    Returns:
        Mean and 95% quantile. An ECE below the quantile is no evidence of miscalibration.

    Raises:
        ValueError: there is no question, a confidence is not between 0 and 1, or there is no bin.
    """
    check(confidence, confidence, bins)
    check_some(confidence)
    N = len(confidence)
    in_bin = (_bin_of(confidence, bins)[:, None] == np.arange(bins)).astype(np.float64)
    expected = confidence @ in_bin
    rng = generator(seed, "ece_null")
    errors = np.empty(draws)
    step = max(1, DRAWN_AT_ONCE // N)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        right = (rng.random((rows, N)) < confidence).astype(np.float64)
        errors[start : start + rows] = np.abs(right @ in_bin - expected).sum(axis=1) / N
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def smooth_ece(confidence: Floats, right: Floats) -> float:
    """Return the smooth calibration error: the gap is smoothed by a kernel instead of by bins.

        smECE_s = integral over [0, 1] of |1/N sum_n K_s(confidence_n, t) (right_n - confidence_n)| dt
        smECE = the s where smECE_s = s

    Blasiok and Nakkiran 2023 (arXiv:2309.12236); K_s is the Gaussian of standard deviation s reflected at 0 and 1.
    smECE_s falls as s grows, so there is one such s: no bin and no bandwidth is left to choose. It misleads where many
    questions are at hand and the error is a fine ripple: what is narrower than itself it does not see.

    The gaps are split linearly between the two nearest points of a grid of spacing h = 1/16,384 and smoothed as a
    cosine series (every reflection at once), by FFT: O(N + grid log grid) a bandwidth. Splitting costs at most
    h^2/8 |K''|_1, the trapezoid rule for the absolute value at most h^2/4 |K''|_1, times the mean |gap|; |K''|_1 is
    4 phi(1) / s^2 for the Gaussian. As smECE_s falls, the root moves no further than the value: the error is at most
    0.37 (h/s)^2 mean|gap|, below 6e-7 for s >= 0.05. For a smaller s nothing is worse than 1.2e-3 (where the bound
    is as large as s itself), and the cosine series' end costs less than 1e-7 for s >= 2 h.

    relplot differs by up to about 1e-3: it knows the bandwidth to 1/1,024, smooths on a coarser grid (2,000 points for
    s >= 0.01), and integrates over 200 points against a density kept off 0, by whose own integral it divides.

    Args:
        confidence: [N], between 0 and 1.
        right: [N], 0 or 1.

    Returns:
        Between 0 and 1; 0 where every gap is 0.

    Raises:
        ValueError: there is no question, the two differ in shape, or a confidence is not between 0 and 1.
    """
    check(confidence, right)
    check_some(confidence)
    place = np.clip(confidence, 0.0, 1.0) * _GRID
    left = np.minimum(place.astype(np.int64), _GRID - 1)
    gap = right - confidence
    split = np.concatenate([gap * (left + 1 - place), gap * (place - left)])
    mass = np.bincount(np.concatenate([left, left + 1]), weights=split, minlength=_GRID + 1) / len(gap)
    # As an even function of period 2: what lies inside has its mirror image, the ends are their own.
    mass[[0, -1]] *= 2.0
    spectrum = np.fft.rfft(np.concatenate([mass, mass[-2:0:-1]])).real
    frequency = math.pi * np.arange(_GRID + 1)

    def smoothed(bandwidth: float) -> float:
        series = spectrum * np.exp(-0.5 * (frequency * bandwidth) ** 2)
        curve = np.abs(np.fft.irfft(series, 2 * _GRID)[: _GRID + 1])
        return float(curve.sum() - (curve[0] + curve[-1]) / 2.0)

    low, high = 0.0, float(np.abs(gap).mean())
    while high - low > _BANDWIDTH_TOLERANCE:
        middle = (low + high) / 2.0
        if smoothed(middle) > middle:
            low = middle
        else:
            high = middle
    return high


def _edges(bins: int) -> Floats:
    # i / bins is rounded once, so a confidence written as 3 / 15 lies exactly on its edge; linspace is off by an ulp.
    return np.arange(bins + 1) / bins


def _bin_of(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Return int [N]: the bin (a, b] of each confidence; 0 belongs to the first, 1.0 to the last."""
    return np.clip(np.searchsorted(_edges(bins), confidence, side="left") - 1, 0, bins - 1)


def equal_mass_bin_of(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Return int [N]: the bin of each confidence, the bins of equal numbers of questions (see `adaptive_ece`)."""
    N = len(confidence)
    bins = min(bins, N)
    longer = np.arange(bins) < N % bins
    last = np.cumsum(N // bins + longer) - 1
    edges = np.unique(np.sort(confidence)[last])
    return np.searchsorted(edges, confidence, side="left")


def _mean_gap(confidence: Floats, right: Floats, bin_of: NDArray[np.int64]) -> float:
    return float(np.abs(np.bincount(bin_of, weights=right - confidence)).sum() / len(confidence))


def check(confidence: Floats, right: Floats, bins: int = BINS) -> None:
    """Raise a ValueError where the two differ in shape, a confidence is none, or there is no bin."""
    if confidence.shape != right.shape:
        raise ValueError(f"not the same questions: shapes {confidence.shape} and {right.shape}")
    # Written so that NaN fails as well.
    outside = ~((confidence >= 0.0) & (confidence <= 1.0 + SUM_TOLERANCE))
    if outside.any():
        n = int(outside.argmax())
        raise ValueError(f"the confidence of question {n} is {confidence[n]:g}, not between 0 and 1")
    if bins < 1:
        raise ValueError(f"{bins} bins hold no question")


def check_some(confidence: Floats) -> None:
    """Raise a ValueError where there is no question."""
    if len(confidence) == 0:
        raise ValueError("there is no question to measure")
