"""Shifts are warned of, and questions of one kind no more often than stated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ripieno.measures.shift import compare


def sample(rng: np.random.Generator, count: int, moved: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    # One feature dwarfs all others, as massive activations do; lengths tie a lot.
    hidden = rng.normal(size=(count, 16)) * np.array([1000.0, *[1.0] * 15])
    hidden[:, 1:4] += moved
    return hidden, rng.integers(20, 40, size=count)


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    draws, rate = 400, 0.1
    warned = 0
    for seed in range(draws):
        (a, a_lengths), (b, b_lengths) = sample(rng, 60), sample(rng, 30)
        warned += compare(a, b, a_lengths, b_lengths, false_alarms=rate, permutations=199, seed=seed).warns
    assert warned / draws <= rate + 3 * math.sqrt(rate * (1 - rate) / draws)


def test_a_shift_of_either_kind_is_warned_of() -> None:
    rng = np.random.default_rng(1)
    a, lengths = sample(rng, 200)
    b, _ = sample(rng, 100, moved=1.0)
    other = compare(a, b, lengths, lengths[:100])
    assert other.warns
    assert other.hidden == 1 / 1000  # the least there is
    assert other.length > 0.01
    longer = compare(a, sample(rng, 100)[0], lengths, lengths[:100] + 10)
    assert longer.warns
    assert longer.length == 1 / 1000
    assert longer.hidden > 0.005


def test_equal_states_and_lengths_are_no_shift() -> None:
    same = compare(np.ones((50, 3)), np.ones((30, 3)), np.full(50, 7), np.full(30, 7))
    assert (same.hidden, same.length, same.warns) == (1.0, 1.0, False)


def test_large_samples_are_thinned_and_few_questions_refused() -> None:
    rng = np.random.default_rng(2)
    a, lengths = sample(rng, 3000)
    assert not compare(a, a[:800], lengths, lengths[:800], permutations=199, false_alarms=0.02).warns
    with pytest.raises(ValueError, match="19 new questions and 3000 certified ones: 20 of each"):
        compare(a, a[:19], lengths, lengths[:19])
    with pytest.raises(ValueError, match="cannot show a false-alarm rate"):
        compare(a, a, lengths, lengths, permutations=99)
    with pytest.raises(ValueError, match="a length a question"):
        compare(a, a, lengths, lengths[:5])
