import math

import numpy as np
import pytest
from hypothesis import given, settings
from populations import any_predictions, log_softmax, random_predictions, rounding
from scipy import optimize

from ripieno import measures
from ripieno.predictions import Predictions


def calibrated_population() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return p [N, K], mask and targets where each p is exactly how often each choice is right: no sampling noise."""
    p, targets = [], []
    for counts in ([2, 1, 1], [6, 1, 1], [1, 5, 2], [3, 1, 0], [1, 1, 0]):
        for choice, times in enumerate(counts):
            p += [np.array(counts) / sum(counts)] * times
            targets += [choice] * times
    probs = np.array(p)
    return probs, probs > 0, np.array(targets)


@pytest.mark.parametrize("true", [0.07, 0.5, 1.0, 3.0, 17.0])
@pytest.mark.parametrize("members", [1, 3])
def test_a_known_temperature_is_found(true, members):
    probs, mask, targets = calibrated_population()
    scores = np.log(np.where(mask, probs, 1.0)) * true
    log_probs = np.repeat(log_softmax(scores, mask)[None], members, axis=0)
    found = measures.fit_temperature(log_probs, mask, targets)
    # The search stops at a width of 1e-6 in ln T and returns its middle; around it the loss is flat to rounding.
    assert math.log(found) == pytest.approx(math.log(true), abs=1e-6)
    scaled = measures.apply_temperature(log_probs, mask, found)
    # d ln p / d ln T is at most the spread of ln p, here ln 6.
    assert np.exp(scaled) == pytest.approx(np.broadcast_to(probs, scaled.shape), abs=1e-6 * math.log(6))


def test_no_other_temperature_is_better():
    p = random_predictions(4, 120, 5, seed=1)
    rng = np.random.default_rng(2)
    targets = np.array(
        [rng.choice(5, p=row) for row in np.exp(log_softmax(measures.pool_log(p.log_probs) / 2, p.mask))]
    )

    def loss(log_temperature: float) -> float:
        scaled = measures.apply_temperature(p.log_probs, p.mask, math.exp(log_temperature))
        return measures.nll(measures.pool_log(scaled), targets).mean()

    found = measures.fit_temperature(p.log_probs, p.mask, targets)
    other = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9})
    assert loss(math.log(found)) <= other.fun + rounding(120, 5.0)


def test_all_right_all_wrong_and_indifferent():
    mask = np.ones((3, 2), dtype=bool)
    log_probs = np.log(np.array([[[0.9, 0.1]] * 3]))
    # The search's tolerance: at the end of the range the loss is flat to rounding.
    assert measures.fit_temperature(log_probs, mask, np.array([0, 0, 0])) == pytest.approx(0.05, rel=1e-6)
    assert measures.fit_temperature(log_probs, mask, np.array([1, 1, 1])) == pytest.approx(20.0, rel=1e-6)
    assert measures.fit_temperature(np.log(np.full((1, 3, 2), 0.5)), mask, np.array([0, 1, 0])) == 1.0


def test_questions_that_no_temperature_can_mend_are_left_out():
    log_probs = np.log(np.array([[[0.9, 0.1]] * 4]))
    mask = np.ones((4, 2), dtype=bool)
    targets = np.array([0, 0, 0, 1])
    expected = measures.fit_temperature(log_probs, mask, targets)
    hopeless = np.array([[[0.0, -np.inf], [0.0, -np.inf]]])
    more = np.concatenate([log_probs, hopeless], axis=1)
    mask = np.ones((6, 2), dtype=bool)
    assert measures.fit_temperature(more, mask, np.array([*targets, 1, -1])) == expected
    with pytest.raises(ValueError, match="no question"):
        measures.fit_temperature(hopeless, mask[:2], np.array([1, -1]))


@settings(deadline=None)
@given(any_predictions())
def test_scaled_members_stay_distributions(p: Predictions):
    K = p.mask.shape[1]
    for temperature in (0.05, 1.0, 20.0):
        scaled = measures.apply_temperature(p.log_probs, p.mask, temperature)
        assert np.exp(scaled).sum(axis=-1) == pytest.approx(1.0, abs=rounding(K, 1.0))
        assert np.isneginf(scaled[:, ~p.mask]).all()
    assert np.exp(measures.apply_temperature(p.log_probs, p.mask, 1.0)) == pytest.approx(p.probs, abs=rounding(K, 1.0))
    if p.labelled.any():
        assert 0.05 <= measures.fit_temperature(p.log_probs, p.mask, p.targets) <= 20.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(ValueError, match="not positive"):
        measures.apply_temperature(np.zeros((1, 1, 2)), np.ones((1, 2), dtype=bool), temperature)
