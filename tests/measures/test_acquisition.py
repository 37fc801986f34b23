"""Which questions to label next: closed forms, determinants, and what every order of the questions must have."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from populations import rounding

from ripieno import measures


def drawn(questions: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and states of which no two are alike."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1.0, questions), rng.normal(size=(questions, dimensions))


def kernel(scores: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Return sqrt(u_i u_j) cos(x_i, x_j) of standardised states, as the definition has it."""
    x = (states - states.mean(axis=0)) / states.std(axis=0)
    x /= np.sqrt((x**2).sum(axis=1))[:, None]
    return np.sqrt(np.outer(scores, scores)) * (x @ x.T)


def volume(of: np.ndarray, chosen: tuple[int, ...]) -> float:
    return float(np.linalg.det(of[np.ix_(chosen, chosen)]))


def test_the_highest_come_first() -> None:
    scores = np.array([0.2, 0.9, 0.0, 0.5])
    batch = measures.highest(scores, 3)
    assert batch.chosen.tolist() == [1, 3, 0]
    assert batch.scores.tolist() == [0.9, 0.5, 0.2]


def test_where_all_tie_every_order_is_as_likely() -> None:
    draws, orders = 6000, list(permutations(range(3), 2))
    found = [tuple(measures.highest(np.zeros(3), 2, seed).chosen.tolist()) for seed in range(draws)]
    share = 1 / len(orders)
    slack = 4 * math.sqrt(share * (1 - share) / draws)  # four standard deviations of a binomial share
    for order in orders:
        assert found.count(order) / draws == pytest.approx(share, abs=slack)
    assert found[0] == tuple(measures.highest(np.zeros(3), 2, 0).chosen.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_the_greedy_way_to_the_largest_determinant(seed: int) -> None:
    scores, states = drawn(9, 6, seed)
    L, count = kernel(scores, states), 4
    batch = measures.diverse_batch(scores, states, count, seed)
    chosen = tuple(batch.chosen.tolist())
    # Of a matrix of entries up to 1, elimination is off by a few roundings an entry, and the pivots divide by >= 1e-3.
    tolerance = 1e3 * rounding(9 * 6, 1.0)
    for i in range(count):
        volumes = {n: volume(L, (*chosen[:i], n)) for n in range(9) if n not in chosen[:i]}
        assert max(volumes, key=lambda n: volumes[n]) == chosen[i]
        assert math.prod(batch.scores[: i + 1]) == pytest.approx(volumes[chosen[i]], abs=tolerance)
    assert chosen[0] == scores.argmax()
    assert min(batch.scores) > 1e-3
    # Greedily chosen edges span 1/k! of the largest volume at least (Civril and Magdon-Ismail 2009); the determinant is
    # its square.
    best = max(volume(L, of) for of in combinations(range(9), count))
    assert volume(L, chosen) >= best / math.factorial(count) ** 2


def test_corners_of_a_simplex_are_worth_less_and_less_and_the_last_one_nothing() -> None:
    # N unit vectors that lie as far apart as can be have cosines of -1/(N - 1) = -a; of k of them the determinant is
    # (1 + a)^(k - 1) (1 - (k - 1) a), and a gain is the ratio of two.
    N, a = 5, 0.25
    batch = measures.diverse_batch(np.full(N, 0.7), np.eye(N), N)
    assert sorted(batch.chosen.tolist()) == list(range(N))
    ratios = [1.0, *((1 + a) * (1 - (k - 1) * a) / (1 - (k - 2) * a) for k in range(2, N + 1))]
    assert batch.scores == pytest.approx([0.7 * ratio for ratio in ratios], abs=rounding(N * N, 1.0))
    assert batch.scores[-1] == 0.0


def test_no_copy_is_chosen_as_long_as_anything_is_new() -> None:
    scores, states = drawn(6, 8)
    copies = np.repeat(states, 3, axis=0).astype(np.float32)
    batch = measures.diverse_batch(np.repeat(scores, 3), copies, 18, seed=1)
    # Six states around their mean span five dimensions.
    assert len(set(batch.chosen[:5] // 3)) == 5
    # The highest alone are three copies of one question each.
    assert measures.highest(np.repeat(scores, 3), 3).chosen.tolist() != batch.chosen[:3].tolist()
    assert set(measures.highest(np.repeat(scores, 3), 3).chosen // 3) == {scores.argmax()}
    # After that nothing is new, and the rest comes by score.
    assert batch.scores[4] > 0.0
    assert batch.scores[5:].tolist() == [0.0] * 13
    rest = np.repeat(scores, 3)[batch.chosen[5:]]
    assert (np.diff(rest) <= 0).all()


def test_questions_of_no_uncertainty_come_last_by_lot() -> None:
    scores, states = np.array([0.0, 0.0, 0.4, 0.0, 0.1]), drawn(5, 4)[1]
    seen = {tuple(measures.diverse_batch(scores, states, 5, seed).chosen.tolist()) for seed in range(60)}
    assert {of[:2] for of in seen} == {(2, 4)}
    assert {of[2:] for of in seen} == set(permutations((0, 1, 3)))  # missing one of 6 in 60 draws: 1 in 10,000


def test_what_states_are_measured_in_and_their_order_do_not_matter() -> None:
    scores, states = drawn(12, 5)
    chosen = measures.diverse_batch(scores, states, 5).chosen
    scaled = states * np.array([1e3, 1.0, 1e-3, 7.0, 0.2]) + np.arange(5)
    assert measures.diverse_batch(scores, scaled, 5).chosen.tolist() == chosen.tolist()
    constant = np.concatenate([scaled, np.full((12, 1), 0.1)], axis=1)  # of no use, and no reason to divide by 0
    assert measures.diverse_batch(scores, constant, 5).chosen.tolist() == chosen.tolist()
    order = np.random.default_rng(1).permutation(12)
    assert order[measures.diverse_batch(scores[order], states[order], 5).chosen].tolist() == chosen.tolist()


@pytest.mark.parametrize("questions", [1, 3])
def test_states_that_do_not_differ_leave_the_score(questions: int) -> None:
    scores = np.linspace(0.1, 0.3, questions)
    batch = measures.diverse_batch(scores, np.full((questions, 4), 0.1, dtype=np.float32), questions)
    assert batch.chosen.tolist() == list(range(questions))[::-1]
    assert batch.scores.tolist() == scores[::-1].tolist()


def test_wrong_calls() -> None:
    scores, states = drawn(3, 2)
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"{count} questions of 3"):
            measures.highest(scores, count)
        with pytest.raises(ValueError, match=f"{count} questions of 3"):
            measures.diverse_batch(scores, states, count)
    with pytest.raises(ValueError, match=r"states has shape \(2, 2\), not \[3, D\]"):
        measures.diverse_batch(scores, states[:2], 1)
    scores[1] = np.nan
    for choose in (measures.highest, lambda s, n: measures.diverse_batch(s, states, n)):
        with pytest.raises(ValueError, match="score of question 1 is NaN"):
            choose(scores, 2)
