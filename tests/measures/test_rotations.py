"""The three parts of uncertainty over rotations of the choices: the chain rule, and cases known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import EPS, any_predictions, log_softmax, random_predictions, rounding

from ripieno import measures
from ripieno.predictions import Predictions

PARTS = ("total", "expected", "members", "prompts")


def rotated(sizes: list[int], members: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random answers [J, M, N, K] and the mask [N, K]; what was not asked is NaN, and must not matter."""
    J = K = max(sizes)
    mask = np.arange(K) < np.array(sizes)[:, None]
    scores = 2 * np.random.default_rng(seed).normal(size=(J, members, len(sizes), K))
    probs = np.exp(log_softmax(scores, mask))
    probs[np.broadcast_to(~asked_of(mask)[:, None, :, None], probs.shape)] = np.nan
    return probs, mask


def asked_of(mask: np.ndarray) -> np.ndarray:
    """Bool [J, N]: a question of K choices has K rotations."""
    return np.arange(mask.shape[1])[:, None] < mask.sum(axis=1)


def bound(shape: tuple[int, ...]) -> float:
    """Rounding of three means over J M entropies; and differences within `epistemic`'s own bound count as 0."""
    J, M, _, K = shape
    return 3 * rounding(J * M * K, math.log(K)) + (2 * (J + M + K) + 20) * EPS * math.log(K)


@settings(max_examples=40)
@given(st.lists(any_predictions(), min_size=1, max_size=3), st.data())
def test_the_parts_are_the_chain_rule(answers: list[Predictions], data: st.DataObject) -> None:
    """Against the formula's own sums over pairs, in whatever way each question was asked; no part is negative."""
    first = answers[0]
    probs = np.stack([np.roll(first.probs, shift, axis=0) * 0.5 + first.probs * 0.5 for shift in range(len(answers))])
    J, _, N, _ = probs.shape
    asked = np.array(data.draw(st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=J, max_size=J)))
    asked[0] = True
    parts = measures.decompose_rotations(probs, asked)
    off = bound(probs.shape)
    assert parts.total == pytest.approx(parts.expected + parts.members + parts.prompts, abs=off)
    assert min(getattr(parts, part).min() for part in PARTS) >= 0
    for n in range(N):
        own = probs[asked[:, n], :, n]  # [rotation, member, choice]
        of_ensemble = measures.entropy(own.mean(axis=1)).mean()
        assert parts.total[n] == pytest.approx(measures.entropy(own.mean(axis=(0, 1))), abs=off)
        assert parts.expected[n] == pytest.approx(measures.entropy(own).mean(), abs=off)
        assert parts.members[n] == pytest.approx(of_ensemble - parts.expected[n], abs=off)
        assert parts.prompts[n] == pytest.approx(parts.total[n] - of_ensemble, abs=off)


def test_one_rotation_is_the_two_parts_of_an_ensemble() -> None:
    p = random_predictions(3, 20, 4)
    parts, u = measures.decompose_rotations(p.probs[None]), measures.decompose(p.probs)
    np.testing.assert_array_equal(parts.total, u.total)
    np.testing.assert_array_equal(parts.expected, u.aleatoric)
    np.testing.assert_array_equal(parts.members, u.epistemic)
    assert not parts.prompts.any()


def test_members_that_agree_have_no_part_and_rotations_that_agree_neither() -> None:
    probs, mask = rotated([2, 3, 5, 5, 4], members=3)
    asked = asked_of(mask)
    alike = measures.decompose_rotations(np.repeat(probs[:, :1], 3, axis=1), asked)
    assert not alike.members.any()  # exactly, so that such questions tie
    assert (alike.prompts > 0).all()
    steady = measures.decompose_rotations(np.repeat(probs[:1], len(probs), axis=0), asked)
    assert not steady.prompts.any()
    assert (steady.members > 0).all()
    u = measures.decompose(probs[0])
    np.testing.assert_allclose(steady.members, u.epistemic, atol=bound(probs.shape), rtol=0)


@pytest.mark.parametrize("place", [0, 1])
def test_always_answering_one_place_is_all_of_the_prompt(place: int) -> None:
    """Rotation j puts choice (place + j) mod K there, so each choice is answered once: ln K, and nothing else."""
    sizes = np.array([2, 3, 4, 5])
    J = K = 5
    probs = np.zeros((J, 2, 4, K))
    for j in range(J):
        probs[j, :, np.arange(4), (place + j) % sizes] = 1.0
    mask = np.arange(K) < sizes[:, None]
    parts = measures.decompose_rotations(probs, asked_of(mask))
    np.testing.assert_allclose(parts.total, np.log(sizes), atol=rounding(K, math.log(K)), rtol=0)
    np.testing.assert_array_equal(parts.prompts, parts.total)
    assert not parts.expected.any()
    assert not parts.members.any()
    # Right under the one rotation that puts the right choice there, so 1/K; the mean is a tie of all choices.
    s = measures.summarise_rotations(probs, mask, np.array([1, 2, 3, 4]), resamples=50)
    assert s.single.value == pytest.approx((1 / sizes).mean(), abs=4 * EPS)
    assert s.accuracy.value == 0.0
    assert s.of_prompts.value == pytest.approx(np.log(sizes).mean(), abs=rounding(K, math.log(K)))


def test_members_with_a_place_of_their_own_disagree_and_the_prompt_is_not_blamed() -> None:
    """What an order does to each member in its own way is the members': their mean is even whatever the order."""
    K = 4
    probs = np.array([[[np.eye(K)[(j + m) % K]] for m in range(K)] for j in range(K)])
    parts = measures.decompose_rotations(probs)
    assert parts.members == pytest.approx(math.log(K), abs=rounding(K, math.log(K)))
    assert not parts.prompts.any()
    assert not parts.expected.any()


def test_neither_the_order_of_rotations_nor_of_members_moves_a_bit() -> None:
    probs, mask = rotated([5, 3, 2, 5], members=4)
    asked, rng = asked_of(mask), np.random.default_rng(1)
    j, m = rng.permutation(5), rng.permutation(4)
    here, there = measures.decompose_rotations(probs, asked), measures.decompose_rotations(probs[j][:, m], asked[j])
    for part in PARTS:
        np.testing.assert_array_equal(getattr(here, part), getattr(there, part))


def test_a_summary_is_means_over_questions_and_each_weighs_its_own_rotations_evenly() -> None:
    probs, mask = rotated([2, 3, 5, 5, 4, 3], members=2)
    targets = np.array([1, 0, -1, 4, 2, 2])
    s = measures.summarise_rotations(probs, mask, targets, resamples=200)
    parts = measures.decompose_rotations(probs, asked_of(mask))
    assert (s.questions, s.members, s.rotations) == (6, 2, 5)
    shown = {"total": s.total, "expected": s.expected, "members": s.of_members, "prompts": s.of_prompts}
    for part, estimate in shown.items():
        values = getattr(parts, part)
        assert (estimate.value, estimate.n) == (pytest.approx(values.mean(), abs=rounding(6, 2.0)), 6)
        low, high = measures.interval(values, resamples=200)
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
    known = [0, 1, 3, 4, 5]
    ensemble = probs.mean(axis=1)  # [rotation, question, choice]
    right = {n: [float(ensemble[j, n].argmax() == targets[n]) for j in range(mask[n].sum())] for n in known}
    assert s.single.value == pytest.approx(np.mean([np.mean(right[n]) for n in known]), abs=8 * EPS)
    mean = [ensemble[: mask[n].sum(), n].mean(axis=0).argmax() == targets[n] for n in known]
    assert (s.accuracy.value, s.accuracy.n) == (pytest.approx(np.mean(mean), abs=8 * EPS), 5)
    # Every rotation is of all questions: the fourth of a question of two choices is its second again.
    assert s.by_rotation == pytest.approx([np.mean([right[n][j % len(right[n])] for n in known]) for j in range(5)])


def test_without_answers_there_is_no_accuracy_and_of_one_question_no_interval() -> None:
    probs, mask = rotated([3], members=2)
    s = measures.summarise_rotations(probs, mask, np.array([-1]))
    assert (s.accuracy.value, s.single.value, s.by_rotation) == (None, None, ())
    assert s.accuracy.reason == "no question has a known answer"
    assert (s.total.low, s.total.high) == (None, None)
    assert s.total.value is not None


def test_what_is_no_rotation_is_refused() -> None:
    probs, _ = rotated([3, 3], members=2)
    for wrong, asked, why in (
        (probs[0], None, "not .rotation, member, question, choice."),
        (probs[:0], None, "with one at least"),
        (probs, np.array([[True, False]] * 3), "question 1 was asked under no rotation"),
        (np.log(probs), None, "outside 0..1"),
        (0.9 * probs, None, "question 0 sum to 0.9"),
    ):
        with pytest.raises(ValueError, match=why):
            measures.decompose_rotations(wrong, asked)
