"""Prediction sets cover as often as they say, on average over draws of certification questions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import betabinom, kstest

from ripieno.measures.sets import (
    By,
    Score,
    SetGroup,
    SetRule,
    aps_scores,
    fewest_questions,
    find_sets,
    lac_scores,
    prediction_sets,
    random_parts,
    threshold,
)
from ripieno.predictions import Predictions

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


LABELS = ("red", "green", "blue")
N = 60


def answers(rng: np.random.Generator, count: int) -> tuple[Predictions, np.ndarray]:
    """Return answers to questions of two subjects and three labels, some of which are hard, and their probabilities."""
    targets = rng.choice(3, size=count, p=[0.6, 0.3, 0.1])
    subjects = tuple(rng.choice(["easy", "hard"], size=count))
    hard = np.array([0.7 if subject == "hard" else 0.1 for subject in subjects]) + 0.2 * targets
    scores = rng.normal(size=(count, 3)) * hard[:, None] + np.eye(3)[targets]
    probs = np.exp(3 * scores) / np.exp(3 * scores).sum(axis=1, keepdims=True)
    ids = tuple(str(x) for x in rng.integers(1 << 62, size=count))
    mask = np.ones((count, 3), bool)
    return Predictions(np.log(probs)[None], mask, ids, targets, (0,), subjects=subjects), probs


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize("by", [None, "subject", "label"])
def test_each_group_is_covered_as_often_as_it_says(score: Score, by: By | None) -> None:
    rng = np.random.default_rng(1)
    level, covered, bounds = 0.8, {}, {}
    for _ in range(SPLITS):
        (p, probs), (new, probs_new) = answers(rng, N), answers(rng, 40)
        rule = find_sets(p, probs, level, score, by, [LABELS] * N)
        assert sum(group.questions for group in rule.groups) == N
        held = rule.sets(new, probs_new, [LABELS] * 40)[np.arange(40), new.targets]
        names = [LABELS[target] for target in new.targets] if by == "label" else new.subjects
        for group in rule.groups:  # scores do not tie, so no group has more than it takes
            most = level + 1 / (group.questions + 1) if math.isfinite(group.threshold) else 1.0
            bounds.setdefault(group.name, []).append(most)
        for name in set(names) if by else {None}:
            covered.setdefault(name, []).append(held[[by is None or own == name for own in names]].mean())
    assert set(covered) == {None: {None}, "subject": {"easy", "hard"}, "label": set(LABELS)}[by]
    for name, shares in covered.items():
        error = 3 * np.std(shares, ddof=1) / math.sqrt(len(shares))
        assert np.mean(shares) >= level - error
        if score == "lac":  # APS always has the likeliest choice too
            assert np.mean(shares) <= np.mean(bounds[name]) + error


def test_one_rate_for_all_does_not_cover_the_hard_ones() -> None:
    # What the grouped sets are for; were both kinds as easy, the test above could not fail.
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(SPLITS):
        (p, probs), (new, probs_new) = answers(rng, N), answers(rng, 40)
        rule = find_sets(p, probs, 0.8, "lac", None, [LABELS] * N)
        held = rule.sets(new, probs_new, [LABELS] * 40)[np.arange(40), new.targets]
        covered.append(held[[subject == "hard" for subject in new.subjects]].mean())
    assert np.mean(covered) < 0.8 - 3 * np.std(covered, ddof=1) / math.sqrt(SPLITS)


def test_what_was_not_certified_has_every_choice_in_its_set() -> None:
    (p, probs) = answers(np.random.default_rng(3), N)
    by_subject = find_sets(p, probs, 0.8, "lac", "subject", [LABELS] * N)
    other = Predictions(p.log_probs[:, :2], p.mask[:2], p.question_ids[:2], p.targets[:2], (0,), subjects=("new", None))
    assert by_subject.sets(other, probs[:2], [LABELS] * 2).all()
    by_label = find_sets(p, probs, 0.8, "lac", "label", [LABELS] * N)
    assert by_label.sets(other, probs[:2], [("violet", "grey", "pink")] * 2).all()
    assert not by_label.sets(p, probs, [LABELS] * N).all()
    assert by_subject.uncertified(("easy", "new", None), [LABELS] * 3) == 2
    assert by_label.uncertified((None, None), [LABELS, ("violet", "grey")]) == 1
    # A label is known by its name, wherever it stands.
    turned = replace(other, log_probs=other.log_probs[..., ::-1])
    there = by_label.sets(other, probs[:2], [LABELS] * 2)
    assert by_label.sets(turned, probs[:2, ::-1], [LABELS[::-1]] * 2)[:, ::-1].tolist() == there.tolist()


def test_adaptive_sets_are_never_empty() -> None:
    p, probs = answers(np.random.default_rng(4), 400)
    sure = np.array([[0.999, 0.0005, 0.0005]] * 400)
    rule = find_sets(p, probs, 0.8, "aps", None, [LABELS] * 400)
    assert rule.sets(p, sure, [LABELS] * 400)[:, 0].all()


@pytest.mark.parametrize(("n", "level", "new"), [(99, 0.9, 300), (240, 0.95, 120), (20, 0.5, 1)])
def test_so_many_held_are_no_surprise(n: int, level: float, new: int) -> None:
    p, _ = answers(np.random.default_rng(5), new)
    rule = SetRule("lac", None, level, (SetGroup(None, 0.5, n),))
    rank = math.ceil((n + 1) * level - 1e-9)
    assert rule.quantile(p, [LABELS] * new) == betabinom.ppf(0.05, new, rank, n + 1 - rank)


def test_groups_add_up() -> None:
    rng = np.random.default_rng(6)
    p, _ = answers(rng, 200)
    groups = (SetGroup("easy", 0.5, 50), SetGroup("hard", 0.5, 30))
    found = SetRule("lac", "subject", 0.8, groups).quantile(p, [LABELS] * 200)
    easy = p.subjects.count("easy")
    draws = sum(
        rng.binomial(count, rng.beta(math.ceil(51 * 0.8) if n == 50 else math.ceil(31 * 0.8), b, size=20_000))
        for count, n, b in ((easy, 50, 51 - 41), (200 - easy, 30, 31 - 25))
    )
    assert abs((draws < found).mean() - 0.05) < 0.02  # a step of the distribution is up to 1.5%
    # Of a group with too few to say, or none, every set holds all.
    few = SetRule("lac", "subject", 0.95, (SetGroup("easy", math.inf, 5),))
    assert few.quantile(p, [LABELS] * 200) == 200


def test_random_parts_are_uniform_and_a_questions_own() -> None:
    parts = random_parts([f"q{n}" for n in range(4000)])
    assert parts[7] == random_parts(["q7"])[0]
    assert kstest(parts, "uniform").pvalue > 0.001
