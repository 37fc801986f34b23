"""Whether new questions are like the certified ones: where they are not, nothing that was certified holds for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.bootstrap import generator
from ripieno.measures.uncertainty import Floats

FALSE_ALARMS = 0.01
PERMUTATIONS = 999
MOST = 500  # questions of a side that are compared: kernels grow with the square
FEWEST = 20  # new questions: of fewer hardly any difference would be seen


@dataclass(frozen=True, slots=True)
class Shift:
    """What two samples of questions say of each other.

    Args:
        hidden: p-value of the base's hidden states.
        length: p-value of the prompts' lengths.
        false_alarms: how often questions of one and the same kind would be warned of, at most.
    """

    hidden: float
    length: float
    false_alarms: float

    @property
    def warns(self) -> bool:
        """Whether the new questions are not like the certified ones; half of the false alarms are left to each test."""
        return min(self.hidden, self.length) <= self.false_alarms / 2


def compare(
    certified: NDArray[Any],
    new: NDArray[Any],
    certified_lengths: NDArray[np.int64],
    new_lengths: NDArray[np.int64],
    *,
    false_alarms: float = FALSE_ALARMS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Shift:
    """Test whether two samples of questions come from one population, by the base's hidden states and by length.

    Both are permutation tests, whose level is exact for questions that are drawn independently, whatever their
    distribution: of hidden states the maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012), its width
    the median distance; of lengths the largest difference of the cumulative distributions (Kolmogorov and Smirnov).
    That no shift is seen does not mean that there is none: few new questions can differ unseen, and a test of prompts
    says nothing of the answers that are right.

    Args:
        certified, new: [n, D] and [m, D], hidden states; more than 500 of a side are thinned at random.
        certified_lengths, new_lengths: [n] and [m], tokens of the prompts.
        false_alarms: the two tests' together.
        permutations: of each test.
        seed: of the permutations, and of the thinning.

    Raises:
        ValueError: there are fewer than 20 new questions or certified ones, shapes do not fit, or there are too few
            permutations for so few false alarms.
    """
    if min(len(certified), len(new)) < FEWEST:
        raise ValueError(f"{len(new)} new questions and {len(certified)} certified ones: {FEWEST} of each are needed")
    if len(certified) != len(certified_lengths) or len(new) != len(new_lengths):
        raise ValueError("a hidden state and a length a question are needed")
    if (permutations + 1) * false_alarms / 2 < 1:
        raise ValueError(f"{permutations} permutations cannot show a false-alarm rate of {false_alarms}")
    rng = generator(seed, "shift")
    rows = [rng.permutation(len(side))[:MOST] for side in (certified, new)]
    hidden = np.concatenate([side[kept] for side, kept in zip((certified, new), rows, strict=True)]).astype(np.float64)
    lengths = np.concatenate([side[kept] for side, kept in zip((certified_lengths, new_lengths), rows, strict=True)])
    N, m = len(hidden), len(rows[1])
    # The first row is what was seen: the new questions stand last.
    is_new = np.zeros((permutations + 1, N))
    is_new[0, N - m :] = 1.0
    for row in is_new[1:]:
        row[rng.permutation(N)[:m]] = 1.0
    tests = (_discrepancy(hidden, is_new), _largest_gap(lengths, is_new))
    # The least p-value is 1 / (permutations + 1): what was seen counts as a permutation of itself. Sums of another
    # order round differently, and what ties must count as a tie.
    p = [float((test >= test[0] - 1e-12 * max(1.0, abs(test[0]))).mean()) for test in tests]
    return Shift(p[0], p[1], false_alarms)


def _discrepancy(points: Floats, is_new: Floats) -> Floats:
    """Return [B], the squared maximum mean discrepancy (unbiased) of points [N, D] under each labelling [B, N]."""
    spread = points.std(axis=0)
    points = (points - points.mean(axis=0)) / np.where(spread > 0, spread, 1.0)  # no single feature rules the distance
    squares = (points**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0.0)
    width = np.median(distances[np.triu_indices(len(points), 1)])
    kernel = np.exp(-distances / (width if width > 0 else 1.0))
    np.fill_diagonal(kernel, 0.0)
    m = is_new.sum(axis=1)
    n = is_new.shape[1] - m
    to_new = is_new @ kernel
    within_new, between = (to_new * is_new).sum(axis=1), (to_new * (1 - is_new)).sum(axis=1)
    within_old = kernel.sum() - within_new - 2 * between
    discrepancy: Floats = within_new / (m * (m - 1)) + within_old / (n * (n - 1)) - 2 * between / (n * m)
    return discrepancy


def _largest_gap(values: NDArray[np.int64], is_new: Floats) -> Floats:
    """Return [B], the largest gap between the two cumulative distributions of values [N] under each labelling."""
    order = np.argsort(values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    new = np.cumsum(is_new[:, order], axis=1)[:, ends]
    old = (ends + 1) - new
    gaps: Floats = np.abs(new / new[:, -1:] - old / old[:, -1:]).max(axis=1)
    return gaps
