"""What one more member would bring: each measure against the number of members."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.about import About
from ripieno.measures.accuracy import brier, correct, nll
from ripieno.measures.bootstrap import RESAMPLES, draw, generator, percentiles, resampled_means, units
from ripieno.measures.calibration import BINS, ece
from ripieno.measures.ood import k_matched
from ripieno.measures.ranking import ood_measures
from ripieno.measures.selective import selective_measures
from ripieno.measures.table import UNCERTAINTIES, SizePoint
from ripieno.measures.uncertainty import (
    Floats,
    confidence,
    disagreement,
    entropy,
    margin,
    normalised_entropy,
    pool,
    pool_log,
)
from ripieno.predictions import Predictions

MOST_SUBSETS = 20  # of one size; more are drawn, not enumerated
OF_LABELLED = ("accuracy", "nll", "brier")
OF_ALL = (
    *("mean_confidence", "predictive_entropy", "normalised_entropy", "expected_entropy", "mutual_information"),
    *("disagreement", "margin"),
)


def by_members(
    p: Predictions, about: About | None = None, *, bins: int = BINS, resamples: int = RESAMPLES, seed: int = 0
) -> list[SizePoint]:
    """Return each measure of ensembles of 1 to M of the members, as the mean over subsets of that size.

    Mutual information, too, grows with the number of members, so two ensembles compare at equal size only: read both
    at the smaller one's. Points of one measure share their questions' resamples, so a gain's interval is paired: where
    it holds 0, the gain of that member lies inside the noise of the questions.

    Args:
        p: predictions of M members.
        about: of the questions, for their passages.
        bins: of ece.
        resamples: of the bootstrap over questions.
        seed: of the bootstrap, and of the subsets where there are more than `MOST_SUBSETS` of a size.

    Returns:
        Points by measure, then by size. Measures that are no means (ece, and those of handing over) have no interval,
        and no point at a size where a subset leaves them undefined; losses that are infinite are left out as well.
    """
    M, known = len(p.members), p.labelled
    clusters = None if about is None else about.of(p.question_ids).clusters
    members = _Members.of(p)
    subsets = [_subsets(M, m, seed) for m in range(1, M + 1)]
    columns = [_mean_columns(members, of_size) for of_size in subsets]
    points = []

    def add(measure: str, values: Sequence[float], n: int, ends: Floats | None = None) -> None:
        """Add a measure's points, `ends` the interval's of its M values, then of its M - 1 gains: [2, 2 M - 1]."""
        for m in range(1, M + 1):
            if math.isnan(values[m - 1]):
                continue
            low, high = (None, None) if ends is None else ends[:, m - 1].tolist()
            gain_low, gain_high = (None, None) if ends is None or m == 1 else ends[:, M + m - 2].tolist()
            gain = None if m == 1 or math.isnan(values[m - 2]) else values[m - 1] - values[m - 2]
            where = (p.dataset, p.split, p.method, p.epoch, measure, m, len(subsets[m - 1]))
            points.append(SizePoint(*where, values[m - 1], low, high, gain, gain_low, gain_high, n))

    for measures, asked in ((OF_LABELLED, known), (OF_ALL, np.ones(len(known), dtype=bool))):
        n = int(asked.sum())
        finite = [measure for measure in measures if n and np.isfinite([of[measure] for of in columns]).all()]
        if not finite:
            continue
        values = np.array([[of[measure] for of in columns] for measure in finite])  # [measure, size, question]
        ends: list[Floats | None] = [None] * len(finite)
        together = None if clusters is None else clusters[asked]
        if units(n, together) > 1:
            counts = draw(n, clusters=together, resamples=resamples, seed=seed)
            means = resampled_means(values.reshape(-1, n), counts).reshape(len(counts), len(finite), M)
            both = np.concatenate([means, np.diff(means, axis=2)], axis=2)
            ends = [np.array(percentiles(both[:, i])) for i in range(len(finite))]
        for i, measure in enumerate(finite):
            add(measure, values[i].mean(axis=1).tolist(), n, ends[i])
    if known.any():
        others = [[members.others(subset, bins) for subset in of_size] for of_size in subsets]
        for measure in others[0][0]:
            add(measure, [float(np.mean([of[measure] for of in of_size])) for of_size in others], int(known.sum()))
    return points


def apart_by_members(
    inside: Predictions, outside: Predictions, *, matched: Sequence[Predictions] = (), seed: int = 0
) -> list[SizePoint]:
    """Return how well ensembles of 1 to M of the members tell a foreign set from the familiar one, K-matched.

    Args:
        inside, outside, matched: as in `ood.tell_apart`.
        seed: of the subsets, and of the choices that are dropped.

    Returns:
        Points of `ood_auroc_U`, as means over subsets, without intervals; none where the two cannot be K-matched. One
        member has no mutual information, so its course begins at two.
    """
    pair = k_matched(inside, outside, matched, seed)
    if isinstance(pair, str):
        return []
    M, n = len(inside.members), sum(len(p.question_ids) for p in pair)
    both = [_Members.of(p) for p in pair]
    points: list[SizePoint] = []
    found: dict[str, list[float]] = {uncertainty: [] for uncertainty in UNCERTAINTIES}
    counts = []
    for m in range(1, M + 1):
        subsets = _subsets(M, m, seed)
        counts.append(len(subsets))
        of_subsets = [[of.uncertainties(subset) for of in both] for subset in subsets]
        for name, values in found.items():
            aurocs = [float(ood_measures(first[name], second[name])["ood_auroc"]) for first, second in of_subsets]
            values.append(math.nan if name == "mi" and m == 1 else float(np.mean(aurocs)))
    for name, values in found.items():
        for m, value in enumerate(values, start=1):
            if not math.isnan(value):
                gain = None if m == 1 or math.isnan(values[m - 2]) else value - values[m - 2]
                where = (outside.dataset, outside.split, outside.method, outside.epoch, f"ood_auroc_{name}", m)
                ends = (None, None, gain, None, None)
                points.append(SizePoint(*where, counts[m - 1], value, *ends, n, inside.name, "k_matched"))
    return points


def enough_members(points: Sequence[SizePoint]) -> int | None:
    """Return the least size from which the next member's gain falls inside the noise; None where it never does.

    Args:
        points: of one measure and data set, whose gains have intervals.
    """
    for point in sorted(points, key=lambda point: point.members):
        if point.gain_low is not None and point.gain_high is not None and point.gain_low <= 0.0 <= point.gain_high:
            return point.members - 1
    return None


def _subsets(members: int, size: int, seed: int) -> list[tuple[int, ...]]:
    """Return all subsets of a size, or `MOST_SUBSETS` different ones drawn by the seed."""
    if math.comb(members, size) <= MOST_SUBSETS:
        return list(combinations(range(members), size))
    rng, drawn = generator(seed, f"subsets of {size}"), dict[tuple[int, ...], None]()
    while len(drawn) < MOST_SUBSETS:
        drawn[tuple(sorted(rng.choice(members, size=size, replace=False).tolist()))] = None
    return list(drawn)


@dataclass(frozen=True)
class _Members:
    """What is computed of each member once, whatever subsets it is in.

    Args:
        probs: [M, N, K].
        entropies: [M, N], nats.
        sizes: int [N], the questions' numbers of choices.
        right_log_probs: [M, N'], of the right choices of the N' labelled questions.
        targets, known: int [N'], bool [N].
    """

    probs: Floats
    entropies: Floats
    sizes: NDArray[np.int64]
    right_log_probs: Floats
    targets: NDArray[np.int64]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, p: Predictions) -> _Members:
        probs, known = p.probs, p.labelled
        targets = p.targets[known]
        right_log_probs = -nll(p.log_probs[:, known], targets)
        return cls(probs, entropy(probs), p.mask.sum(axis=1), right_log_probs, targets, known)

    def columns(self, subset: Sequence[int]) -> dict[str, Floats]:
        """Return each question's values, of an ensemble of some members."""
        index = list(subset)
        probs = self.probs[index]
        pooled = pool(probs)
        answers, total = pooled[self.known], entropy(pooled)
        expected = self.entropies[index].mean(axis=0)
        return {
            "accuracy": correct(answers, self.targets),
            "nll": 0.0 - pool_log(self.right_log_probs[index]),
            "brier": brier(answers, self.targets),
            "mean_confidence": confidence(pooled),
            "predictive_entropy": total,
            "normalised_entropy": normalised_entropy(pooled, self.sizes),
            "expected_entropy": expected,
            # As `decompose`, with the members' entropies at hand.
            "mutual_information": np.maximum(total - expected, 0.0),
            "disagreement": disagreement(probs),
            "margin": margin(pooled),
        }

    def uncertainties(self, subset: Sequence[int]) -> dict[str, Floats]:
        """Return each question's uncertainties [N], of an ensemble of some members."""
        index = list(subset)
        pooled = pool(self.probs[index])
        total = entropy(pooled)
        expected = self.entropies[index].mean(axis=0)
        return {"entropy": total, "mi": np.maximum(total - expected, 0.0), "confidence": -confidence(pooled)}

    def others(self, subset: Sequence[int], bins: int) -> dict[str, float]:
        """Return the measures that are no means over questions; NaN where one is not defined."""
        uncertainties = {name: values[self.known] for name, values in self.uncertainties(subset).items()}
        wrong = 1.0 - correct(pool(self.probs[list(subset)][:, self.known]), self.targets)
        found = {"ece": ece(-uncertainties["confidence"], 1.0 - wrong, bins=bins)}
        for name, uncertainty in uncertainties.items():
            one = name == "mi" and len(subset) == 1  # cannot disagree with itself
            for measure, value in selective_measures(uncertainty, wrong).items():
                found[f"{measure}_{name}"] = math.nan if one else float(value)
        return found


def _mean_columns(members: _Members, subsets: Sequence[tuple[int, ...]]) -> dict[str, Floats]:
    """Return the means over subsets of each question's values."""
    total = members.columns(subsets[0])
    for subset in subsets[1:]:
        for measure, values in members.columns(subset).items():
            total[measure] += values
    return {measure: values / len(subsets) for measure, values in total.items()}
