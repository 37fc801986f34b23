"""How well a score tells two kinds of questions apart: right from wrong answers, one data set from another.

Only the order of the scores counts, and equal scores are a tie, whatever the order of the questions in a file.

`weights` [..., N] say how often each question was drawn (`bootstrap.draw`): whole numbers. A question drawn w times
counts as w questions of the same score. Many resamples are measured at once, and what a resample leaves undefined (it
holds one kind alone) is NaN there; without weights that is a ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.uncertainty import Floats


@dataclass(frozen=True, slots=True)
class Tally:
    """How many questions, and how many positive ones, stand at each distinct score and up to it.

    Args:
        positive, count: [..., G], at each of the G distinct scores, the lowest first.
        positive_to, count_to: [..., G], at or below it. The last is the number of all.
    """

    positive: Floats
    count: Floats
    positive_to: Floats
    count_to: Floats

    @property
    def positives(self) -> Floats:
        """[...], how many questions are positive."""
        return self.positive_to[..., -1]

    @property
    def questions(self) -> Floats:
        """[...], how many questions there are."""
        return self.count_to[..., -1]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Questions sorted by a score, from the lowest to the highest.

    Args:
        order: int [N], the questions in that order.
        ends: int [G], where in `order` each group of equal scores ends (its last question).
    """

    order: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Floats) -> Ranking:
        """Sort questions by their scores [N].

        Raises:
            ValueError: there is no question, the scores have more than one axis, or one is NaN.
        """
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(f"scores of shape {scores.shape}: one a question is needed, and at least one question")
        if np.isnan(scores).any():
            raise ValueError(f"the score of question {int(np.isnan(scores).argmax())} is NaN")
        order = np.argsort(scores)
        ordered = scores[order]
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)
        return cls(order=order, ends=ends)

    def tally(self, positive: NDArray[Any], weights: Floats | None = None) -> Tally:
        """Count the questions at and up to each distinct score.

        Args:
            positive: [N], bool or 0 and 1.
            weights: [..., N], how often each question was drawn; None: each once.

        Returns:
            The counts, [..., G].

        Raises:
            ValueError: the shapes do not fit, `positive` holds anything but 0 and 1, or a weight is no whole number.
        """
        N = len(self.order)
        if positive.shape != (N,) or (weights is not None and weights.shape[-1:] != (N,)):
            shapes = positive.shape if weights is None else (positive.shape, weights.shape)
            raise ValueError(f"{N} questions have scores, which the shapes {shapes} do not fit")
        if not ((positive == 0) | (positive == 1)).all():
            raise ValueError("whether a question is of the one kind or the other takes a 1 or a 0")
        if weights is None:
            count = np.ones(N)
        else:
            # Written so that NaN fails as well.
            if not (weights.min(initial=0.0) >= 0.0 and (weights == np.rint(weights)).all()):
                raise ValueError("a weight says how often a question was drawn: a whole number, 0 or more")
            count = np.take(weights, self.order, axis=-1)
        of_kind = count * positive[self.order]
        count_to, of_kind_to = np.cumsum(count, axis=-1), np.cumsum(of_kind, axis=-1)
        if len(self.ends) < N:
            count_to, of_kind_to = np.take(count_to, self.ends, axis=-1), np.take(of_kind_to, self.ends, axis=-1)
            # Exact, because the counts are whole numbers.
            count, of_kind = steps(count_to), steps(of_kind_to)
        return Tally(positive=of_kind, count=count, positive_to=of_kind_to, count_to=count_to)


def auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Return the area under the ROC curve: how often a positive question scores higher than a negative one.

        P(s+ > s-) + P(s+ = s-) / 2,   over all pairs of a positive and a negative question

    Hanley and McNeil 1982; Mann and Whitney 1947. It does not depend on how many of each there are.

    Args:
        scores: [N], any real numbers.
        positive: bool [N].
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], between 0 and 1; 1/2 where all scores are equal. NaN where only one kind was drawn.

    Raises:
        ValueError: only one kind is there (without weights), a score is NaN, or the shapes do not fit.
    """
    tally = _both_kinds(scores, positive, weights)
    return auroc_from(tally, positives_below(tally))


def aupr(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Return the area under the precision-recall curve as average precision.

        sum_s (recall(s) - recall(next higher s)) * precision(s),   over the distinct scores s as thresholds

    where recall and precision count the questions of a score of at least s as found. This is the step-wise sum of
    scikit-learn's average_precision_score (Davis and Goadrich 2006 on why not the trapezoid). A score that says nothing
    gets the share of positive questions: compare it between equal shares only.

    Args:
        scores: [N], any real numbers; a high one should mean positive.
        positive: bool [N].
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], above 0 and at most 1. NaN where only one kind was drawn.

    Raises:
        ValueError: only one kind is there (without weights), a score is NaN, or the shapes do not fit.
    """
    return aupr_of_high(_both_kinds(scores, positive, weights))


def fpr_at_tpr(
    scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None, *, tpr: float = 0.95
) -> Floats:
    """Return the false positive rate at the threshold that lets enough of the positive questions through.

        min over s of P(s- >= s),   where P(s+ >= s) >= tpr

    The thresholds s are the scores that occur, and a question passes with a score of at least s: equal scores pass
    together, and nothing is interpolated, so that more than `tpr` of the positives may pass. (Liang et al. 2018,
    arXiv:1706.02690, use it with tpr = .95 and the in-domain questions as positive.)

    Args:
        scores: [N], any real numbers; a high one should mean positive.
        positive: bool [N].
        weights: [..., N], how often each question was drawn; None: each once.
        tpr: above 0, at most 1.

    Returns:
        [...], between 0 and 1; 1 where all scores are equal. NaN where only one kind was drawn.

    Raises:
        ValueError: only one kind is there (without weights), `tpr` is outside (0, 1], a score is NaN, or the shapes do
            not fit.
    """
    # From the highest score down: those that pass come first.
    tally = _both_kinds(-scores, positive, weights)
    return _passing(tally.positive_to, tally.count_to - tally.positive_to, tpr)


def ood_measures(
    inside: Floats,
    outside: Floats,
    inside_weights: Floats | None = None,
    outside_weights: Floats | None = None,
) -> dict[str, Floats]:
    """Return how well an uncertainty tells questions of another data set from those of the own: all measures, one sort.

    `ood_auroc`, `ood_aupr_out`: `auroc` and `aupr` with the outside questions as positive.
    `ood_aupr_in`: `aupr` with the inside ones as positive, scored by the negated uncertainty.
    `ood_fpr95`: `fpr_at_tpr` with the inside ones as positive, scored by the negated uncertainty: the threshold accepts
    at least 95% of the inside questions, and this share of the outside ones is accepted with them.

    Hendrycks and Gimpel 2017 (arXiv:1610.02136); Liang et al. 2018 (arXiv:1706.02690), which is where the in-domain
    questions are the positive ones of fpr95.

    Args:
        inside: [N0], the uncertainties of the in-domain questions.
        outside: [N1], of the others; they should be higher.
        inside_weights: [..., N0], how often each inside question was drawn; None: each once.
        outside_weights: [..., N1], of the outside ones, with the same leading axes.

    Returns:
        The four measures, [...] each. NaN where only one kind was drawn.

    Raises:
        ValueError: one of the two is empty (without weights), an uncertainty is NaN, or the shapes do not fit.
    """
    is_outside = np.repeat([False, True], [len(inside), len(outside)])
    weights = _join(inside_weights, len(inside), outside_weights, len(outside))
    tally = _both_kinds(np.concatenate([inside, outside]), is_outside, weights)
    inside_to = tally.count_to - tally.positive_to
    return {
        "ood_auroc": auroc_from(tally, positives_below(tally)),
        "ood_aupr_in": average_precision(tally.count - tally.positive, inside_to, tally.count_to),
        "ood_aupr_out": aupr_of_high(tally),
        "ood_fpr95": _passing(inside_to, tally.positive_to, 0.95),
    }


def positives_below(tally: Tally) -> Floats:
    """Return, summed over all questions, how many positive ones score lower; equal ones, itself too, count half.

        sum_g n_g (E_g - e_g / 2),   n_g questions and e_g positive ones at a score, E_g positive ones up to it

    Returns:
        [...], exact: a multiple of 1/2.
    """
    midway = tally.positive * -0.5
    midway += tally.positive_to
    return np.vecdot(tally.count, midway)


def auroc_from(tally: Tally, below: Floats) -> Floats:
    """Return the AUROC [...] from `positives_below`, which others need as well; NaN where one kind is missing."""
    positives = tally.positives
    pairs = positives * (tally.questions - positives)
    # The positive questions among themselves are P^2 / 2 of the sum; the rest is pairs in the wrong order.
    return _ratio(pairs - (below - positives * positives / 2.0), pairs)


def aupr_of_high(tally: Tally) -> Floats:
    """Return the average precision [...] of a high score as a sign of the positive; NaN where one kind is missing."""
    positive_from = tally.positive - tally.positive_to
    positive_from += tally.positives[..., None]
    count_from = tally.count - tally.count_to
    count_from += tally.questions[..., None]
    return average_precision(tally.positive, positive_from, count_from)


def average_precision(found: Floats, found_to: Floats, passed_to: Floats) -> Floats:
    """Return the average precision of the thresholds at all G distinct scores.

    Args:
        found: [..., G], positive questions at each score.
        found_to: [..., G], positive questions that pass a threshold there.
        passed_to: [..., G], all questions that pass it.

    Returns:
        [...]; NaN where one kind is missing.
    """
    # No question passes only where none stands at the score either (none was drawn).
    precision = found_to / np.maximum(passed_to, 1.0)
    # All pass at one of the two ends.
    positives = np.maximum(found_to[..., 0], found_to[..., -1])
    questions = np.maximum(passed_to[..., 0], passed_to[..., -1])
    return _ratio(np.vecdot(found, precision), np.where(positives < questions, positives, 0.0))


def whole_share(share: float, total: Floats) -> Floats:
    """Return the smallest whole number that is at least a share of each total; 55 for .55 of 100, at least 1.

    In floating point .55 * 100 lies above 55. Two roundings (of the share and of the product) are taken off first.
    """
    return np.maximum(np.ceil(share * total * (1.0 - 2.0 * np.finfo(np.float64).eps)), 1.0)


def at(group: NDArray[np.int64], values: Floats) -> Floats:
    """Return values [..., G] at one group a row, `group` [...]."""
    return np.take_along_axis(values, group[..., None], axis=-1)[..., 0]


def steps(cumulated: Floats) -> Floats:
    """Return what was added at each place of cumulated sums [..., G]: the inverse of cumsum."""
    added = np.empty_like(cumulated)
    added[..., 0] = cumulated[..., 0]
    np.subtract(cumulated[..., 1:], cumulated[..., :-1], out=added[..., 1:])
    return added


def _passing(wanted_to: Floats, others_to: Floats, share: float) -> Floats:
    """Return the share of the others that pass [...], where the first `share` of the wanted do: both [..., G]."""
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a true positive rate of {share} is not above 0 and at most 1")
    wanted, others = wanted_to[..., -1], others_to[..., -1]
    group = (wanted_to < whole_share(share, wanted)[..., None]).sum(axis=-1)
    group = np.minimum(group, wanted_to.shape[-1] - 1)  # beyond the last where nothing is wanted
    return _ratio(at(group, others_to), np.where(wanted > 0.0, others, 0.0))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return numerator / denominator, NaN where the denominator (a number of questions or pairs) is 0."""
    return np.where(denominator > 0.0, numerator / np.maximum(denominator, 1.0), np.nan)[()]


def _both_kinds(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None) -> Tally:
    tally = Ranking.of(scores).tally(positive, weights)
    if weights is None and not 0 < tally.positives < tally.questions:
        positives, questions = int(tally.positives), int(tally.questions)
        raise ValueError(f"a score tells two kinds apart, and {positives} of {questions} questions are positive")
    return tally


def _join(first: Floats | None, n: int, second: Floats | None, m: int) -> Floats | None:
    """Return the weights of two sets as those of one, [..., n + m]."""
    if first is None and second is None:
        return None
    first = np.ones(n) if first is None else first
    second = np.ones(m) if second is None else second
    leading = np.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    parts = [np.broadcast_to(part, (*leading, part.shape[-1])) for part in (first, second)]
    return np.concatenate(parts, axis=-1)
