"""Prediction sets: as many choices as it takes to hold the right one at a stated rate (split conformal prediction).

    P(the right choice is in the set) >= 1 - a,

over draws of the certification questions *and* of a new one like them. It is a rate over all questions: a hard
question's set may miss far more often than an easy one's, and no set's own chance is known. Groups (subjects, labels)
may have the rate each, from their own questions alone (Vovk 2012, arXiv:1209.2673); a group of few questions then has
large sets.

Scores are [N, K], the higher the less a choice fits, inf where a choice is absent. Vovk, Gammerman and Shafer 2005;
Angelopoulos and Bates 2021 (arXiv:2107.07511).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions

Score = Literal["lac", "aps"]
By = Literal["subject", "label"]

# Far below 1 / (n + 1) and far above a product's rounding: (99 + 1) * 0.9 is 90 questions, not 91.
_ROUNDING = 1e-9


def lac_scores(probs: Floats, mask: NDArray[np.bool_]) -> Floats:
    """Return one less each choice's probability: the smallest sets on average where the probabilities are right.

        s_k = 1 - p_k

    Least ambiguous classifiers, Sadinle, Lei and Wasserman 2019 (arXiv:1609.00451).

    Args:
        probs: [N, K], the pooled prediction.
        mask: bool [N, K], whether the question has the choice.

    Returns:
        [N, K].
    """
    return np.where(mask, 1.0 - probs, np.inf)


def aps_scores(probs: Floats, mask: NDArray[np.bool_], random: Floats) -> Floats:
    """Return the probability of all likelier choices, and a random part of the choice's own: sets that adapt.

        s_k = sum_{j: p_j > p_k} p_j + u (sum_{j: p_j = p_k} p_j),   u uniform in [0, 1)

    Adaptive prediction sets, Romano, Sesia and Candes 2020 (arXiv:2006.02544). Choices of equal probability stand or
    fall together. The random part makes sets smaller: without it the last choice would count whole.

    Args:
        probs: [N, K], the pooled prediction.
        mask: bool [N, K], whether the question has the choice.
        random: [N], u, one a question, drawn independently of everything else.

    Returns:
        [N, K].
    """
    p = np.where(mask, probs, 0.0)
    above = (p[:, None, :] * (p[:, None, :] > p[:, :, None])).sum(axis=2)
    equal = (p[:, None, :] * (p[:, None, :] == p[:, :, None])).sum(axis=2)
    return np.where(mask, above + random[:, None] * equal, np.inf)


def threshold(scores: Floats, level: float) -> float:
    """Return the score up to which a choice is in the set.

        the ceil((n + 1) (1 - a))-th smallest score of n right choices; inf where that is more than n

    With scores that never tie the sets' coverage of new questions is between 1 - a and 1 - a + 1 / (n + 1), on
    average over certification questions; where they tie it may be higher.

    Args:
        scores: [n], of the certification questions' right choices.
        level: 1 - a, between 0 and 1.

    Raises:
        ValueError: the level is not between 0 and 1, or a score is NaN.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level} is not between 0 and 1")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    rank = _rank(len(scores), level)
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else math.inf


def fewest_questions(level: float) -> int:
    """Return how many certification questions a level needs: with fewer every choice is in every set (9 for 90%)."""
    return math.ceil(level / (1.0 - level) - _ROUNDING)


def prediction_sets(scores: Floats, mask: NDArray[np.bool_], thresholds: float | Floats) -> NDArray[np.bool_]:
    """Return which choices are in the sets.

    Args:
        scores: [N, K].
        mask: bool [N, K], whether the question has the choice.
        thresholds: one, or [N] (each question's group's), or [N, K] (each label's).

    Returns:
        bool [N, K]. A set may be empty: with LAC nothing fits as well as right choices do, with APS by lot.
    """
    of_choices = np.asarray(thresholds, dtype=np.float64)
    if of_choices.ndim == 1:
        of_choices = of_choices[:, None]
    return mask & (scores <= of_choices)


# ---- a rule, found once and kept ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetGroup:
    """Questions (or, by label, choices) with a rate of their own.

    Args:
        name: a subject or a label; None for all questions, or by subject for those that have none.
        threshold: a choice is in where its score is at most this; inf where there are too few questions.
        questions: n, that it was found on.
    """

    name: str | None
    threshold: float
    questions: int


@dataclass(frozen=True, slots=True)
class SetRule:
    """Which choices are in a prediction set.

    Args:
        score: `lac` or `aps`.
        by: what has a rate of its own: each subject, each label (of questions that all have the same choices), or None:
            all questions have one.
        level: how often the right choice is in the set, at least, over all questions like the certified ones.
        groups: the one group of all, or one a subject or label.
    """

    score: Score
    by: By | None
    level: float
    groups: tuple[SetGroup, ...]

    def sets(self, p: Predictions, pooled: Floats, choices: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
        """Return [N, K], which choices are in the sets; all are, of a subject or label that was not certified.

        The likeliest choice is in every set of APS, which only adds to the rate: an empty set would say nothing.

        Args:
            p: N questions.
            pooled: [N, K], what was predicted.
            choices: N questions' choices.
        """
        thresholds = {group.name: group.threshold for group in self.groups}
        if self.by == "label":
            of = np.full(p.mask.shape, math.inf)
            for n, texts in enumerate(choices):
                of[n, : len(texts)] = [thresholds.get(text, math.inf) for text in texts]
        else:
            of = np.array([thresholds.get(name, math.inf) for name in _names(p, self.by, choices)])
        sets = prediction_sets(_scores(self.score, p, pooled), p.mask, of)
        if self.score == "aps":
            sets[np.arange(len(sets)), pooled.argmax(axis=1)] = True
        return sets

    def uncertified(self, subjects: Sequence[str | None], choices: Sequence[Sequence[str]]) -> int:
        """Return how many questions are of no certified subject, or have none but uncertified labels."""
        known = {group.name for group in self.groups}
        if self.by == "label":
            return sum(known.isdisjoint(texts) for texts in choices)
        return sum(subject not in known for subject in subjects) if self.by == "subject" else 0

    def quantile(self, p: Predictions, choices: Sequence[Sequence[str]]) -> int:
        """Return the fewest right choices in the sets of new questions that are no surprise: no fewer in 95% of draws.

        Given the certification questions a group's rate is no more 1 - a itself, but a draw from Beta(k, n + 1 - k),
        k = ceil((n + 1) (1 - a)) (Vovk 2012); so many of N are held is beta-binomial, and groups add up.

        Args:
            p, choices: N questions, each right choice known.
        """
        names = _names(p, self.by, choices)
        held = np.ones(1)
        for name in set(names):
            n = next((group.questions for group in self.groups if group.name == name), 0)
            held = np.convolve(held, _held(names.count(name), n, _rank(n, self.level)))
        return int(np.searchsorted(held.cumsum(), 0.05))


def find_sets(
    p: Predictions, pooled: Floats, level: float, score: Score, by: By | None, choices: Sequence[Sequence[str]]
) -> SetRule:
    """Find the thresholds of prediction sets.

    Args:
        p: N certification questions, each right choice known.
        pooled: [N, K], what was predicted.
        level: 1 - a.
        score, by: as in `SetRule`.
        choices: N questions' choices, which `label` needs.

    Raises:
        ValueError: by label, and a question's choices are missing.
    """
    if by == "label" and not all(choices):
        raise ValueError("sets by label need every question's choices")
    of_right = _scores(score, p, pooled)[np.arange(len(p.targets)), p.targets]
    names = np.array(_names(p, by, choices), dtype=object)
    groups = []
    for name in sorted(set(names), key=lambda name: name or "") if by else (None,):
        own = of_right[names == name]
        groups.append(SetGroup(name, threshold(own, level), len(own)))
    return SetRule(score, by, level, tuple(groups))


def random_parts(question_ids: Sequence[str]) -> Floats:
    """Return [N], in [0, 1): a question's own u of `aps_scores`, so that asking again gives the same set again.

    A hash of the id: it knows nothing of the question's answer, nor of the model's.
    """
    bits = [int.from_bytes(hashlib.sha256(f"aps {name}".encode()).digest()[:8], "big") >> 11 for name in question_ids]
    return np.array(bits, dtype=np.float64) / 2**53


def _rank(n: int, level: float) -> int:
    return math.ceil((n + 1) * level - _ROUNDING)


def _held(new: int, n: int, rank: int) -> Floats:
    """Return [new + 1], how probable 0 to `new` held right choices are: beta-binomial; 1 for all where n is too few."""
    if rank > n:
        return np.eye(1, new + 1, new)[0]
    a, b, lgamma = rank, n + 1 - rank, math.lgamma

    def log_beta(x: float, y: float) -> float:
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    logs = [
        lgamma(new + 1) - lgamma(k + 1) - lgamma(new - k + 1) + log_beta(a + k, b + new - k) for k in range(new + 1)
    ]
    return np.exp(np.array(logs) - log_beta(a, b))


def _scores(score: Score, p: Predictions, pooled: Floats) -> Floats:
    if score == "lac":
        return lac_scores(pooled, p.mask)
    return aps_scores(pooled, p.mask, random_parts(p.question_ids))


def _names(p: Predictions, by: By | None, choices: Sequence[Sequence[str]]) -> list[str | None]:
    """Return each question's group: its subject, or its right choice (known where thresholds are found)."""
    if by == "label":
        return [texts[target] for texts, target in zip(choices, p.targets, strict=True)]
    return list(p.subjects) if by == "subject" and p.subjects else [None] * len(p.targets)
