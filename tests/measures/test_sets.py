"""Prediction sets cover as often as they say, on average over draws of certification questions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ripieno.measures.sets import aps_scores, fewest_questions, lac_scores, prediction_sets, threshold

SPLITS = 1000


def questions(rng: np.random.Generator, count: int, choices: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities that are too sure, which choices are there, and the right ones."""
    sizes = rng.integers(2, choices + 1, size=count)
    mask = np.arange(choices) < sizes[:, None]
    scores = np.where(mask, rng.normal(size=(count, choices)), -np.inf)
    truth = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    targets = (rng.random(count)[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(max=sizes - 1)
    sharp = np.exp(3 * scores) / np.exp(3 * scores).sum(axis=1, keepdims=True)
    return sharp, mask, targets


@pytest.mark.parametrize("kind", ["lac", "aps"])
@pytest.mark.parametrize(("n", "level"), [(99, 0.9), (40, 0.8)])
def test_mean_coverage_is_what_was_asked_for(kind: str, n: int, level: float) -> None:
    rng = np.random.default_rng(0)
    coverages = []
    for _ in range(SPLITS):
        probs, mask, targets = questions(rng, n + 200)
        scores = lac_scores(probs, mask) if kind == "lac" else aps_scores(probs, mask, rng.random(len(probs)))
        of_right = scores[np.arange(len(targets)), targets]
        sets = prediction_sets(scores[n:], mask[n:], threshold(of_right[:n], level))
        coverages.append(sets[np.arange(200), targets[n:]].mean())
    error = 3 * np.std(coverages, ddof=1) / math.sqrt(SPLITS)
    assert np.mean(coverages) >= level - error
    assert np.mean(coverages) <= level + 1 / (n + 1) + error  # both kinds of scores have no ties here


def test_scores_by_hand() -> None:
    probs, mask = np.array([[0.5, 0.3, 0.2, 0.0]]), np.array([[True, True, True, False]])
    assert lac_scores(probs, mask)[0].tolist() == [0.5, 0.7, 0.8, math.inf]
    np.testing.assert_allclose(aps_scores(probs, mask, np.array([0.5]))[0], [0.25, 0.65, 0.9, math.inf], rtol=1e-15)
    # Two of one probability share one score.
    equal = aps_scores(np.array([[0.25, 0.5, 0.25]]), np.ones((1, 3), bool), np.array([0.2]))[0]
    np.testing.assert_allclose(equal, [0.6, 0.1, 0.6], rtol=1e-15)


def test_threshold_is_the_rank_that_counts_the_new_question() -> None:
    scores = np.arange(1.0, 100.0)  # 99 of them: the ceil(100 * 0.9) = 90th
    assert threshold(scores, 0.9) == 90.0
    assert threshold(np.arange(1.0, 9.0), 0.9) == math.inf
    assert threshold(np.arange(1.0, 10.0), 0.9) == 9.0
    assert fewest_questions(0.9) == 9
    assert threshold(np.array([]), 0.5) == math.inf
    with pytest.raises(ValueError, match="NaN"):
        threshold(np.array([math.nan]), 0.5)
    with pytest.raises(ValueError, match="level 1"):
        threshold(scores, 1.0)


def test_each_group_has_its_own_threshold() -> None:
    scores = np.array([[0.2, 0.8], [0.2, 0.8]])
    mask = np.ones((2, 2), bool)
    assert prediction_sets(scores, mask, np.array([0.5, 0.9])).tolist() == [[True, False], [True, True]]
    assert prediction_sets(scores, mask, np.array([[0.1, 0.9]])).tolist() == [[False, True], [False, True]]
    # What is too few to say holds every choice there is, and none that is not.
    absent = np.array([[True, False], [True, True]])
    assert prediction_sets(np.where(absent, scores, math.inf), absent, math.inf).tolist() == absent.tolist()
