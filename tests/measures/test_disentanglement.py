"""The disentanglement error in closed form."""

import numpy as np
import pytest

from ripieno.measures.disentanglement import Disentanglement, Series, correlation_by_chance, disentanglement

WORSE = np.array([0.9, 0.7, 0.6, 0.5])  # accuracy, along either series
APART = np.array([1.0, -1.0, -1.0, 1.0])  # minus the mean: orthogonal to ...
LEVEL = np.array([3.0, 1.0, -1.0, -3.0])  # ... this


def test_each_follows_its_own_cause_alone() -> None:
    found = disentanglement(noise=Series(LEVEL, -LEVEL, APART), size=Series(LEVEL, APART, -2 * LEVEL + 5))
    assert found.aleatoric_noise == pytest.approx(1)
    assert found.epistemic_size == pytest.approx(1)
    assert found.error == pytest.approx(0, abs=1e-12)


def test_one_estimate_given_twice_is_half_wrong() -> None:
    rising = 1 - WORSE
    found = disentanglement(Series(WORSE, rising, rising), Series(WORSE, rising, rising))
    assert found.error == pytest.approx(0.5)


def test_estimates_that_follow_the_other_ones_cause_are_wholly_wrong() -> None:
    found = disentanglement(Series(LEVEL, APART, -LEVEL), Series(LEVEL, -LEVEL, APART))
    assert found.error == pytest.approx(1)
    assert Disentanglement(-1, -1, 1, 1).error == 1.5  # and those that fall where theirs rises are worse


def test_correlations_are_pearsons() -> None:
    accuracy, aleatoric, epistemic = np.random.default_rng(0).random((3, 7))
    found = disentanglement(Series(accuracy, aleatoric, epistemic), Series(accuracy, aleatoric, epistemic))
    loss = accuracy.mean() - accuracy
    for estimate, correlation in ((aleatoric, found.aleatoric_noise), (epistemic, found.epistemic_noise)):
        centred = estimate - estimate.mean()
        assert correlation == pytest.approx(centred @ loss / np.sqrt((centred @ centred) * (loss @ loss)))


def test_what_does_not_change_correlates_with_nothing() -> None:
    same = np.full(4, 0.5)
    with pytest.raises(ValueError, match="4 points on which accuracy or uncertainty is the same"):
        disentanglement(Series(same, WORSE, WORSE), Series(WORSE, WORSE, WORSE))


@pytest.mark.parametrize("points", [3, 4, 9])
def test_correlations_by_chance(points: int) -> None:
    x, y = np.random.default_rng(points).normal(size=(2, 20_000, points))
    x, y = (v - v.mean(axis=1, keepdims=True) for v in (x, y))
    r = np.abs((x * y).sum(axis=1)) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert correlation_by_chance(points) == pytest.approx(r.mean(), abs=3 * r.std() / 20_000**0.5)
    with pytest.raises(ValueError, match="2 points"):
        correlation_by_chance(2)
