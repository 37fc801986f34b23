"""Promises and prediction sets, against MAPIE and crepes.

Both leave the thresholds to the caller; what is compared is which of them pass, and which choices are in a set. Sets
of MAPIE's LAC may be empty, as ours. crepes keeps a choice whose p-value (#{scores >= s} + 1) / (n + 1) is at least a,
which is our rank, counted from the other end.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from ripieno.measures.certify import certify, upper_bound
from ripieno.measures.sets import aps_scores, lac_scores, prediction_sets, threshold

# (n + 1) a is no whole number, or a rounding would decide whether a choice at the threshold is in.
N, NEW, K = 103, 200, 4
LEVELS = (0.8, 0.9, 0.95)


def population(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(K, 0.7), size=count)
    return probs, np.array([rng.choice(K, p=p) for p in probs])


@pytest.mark.parametrize("level", LEVELS)
def test_lac_sets_are_mapies(mapie: ModuleType, sklearn_base: ModuleType, level: float) -> None:
    class Given(sklearn_base.ClassifierMixin, sklearn_base.BaseEstimator):  # type: ignore[misc]
        """Takes the probabilities themselves as its features."""

        classes_ = np.arange(K)
        fitted_ = True

        def predict_proba(self, probs: np.ndarray) -> np.ndarray:
            return probs

        def predict(self, probs: np.ndarray) -> np.ndarray:
            return probs.argmax(axis=1)

    (probs, right), (new, _) = population(0, N), population(1, NEW)
    theirs = mapie.SplitConformalClassifier(Given(), confidence_level=level, conformity_score="lac", prefit=True)
    theirs.conformalize(probs, right)
    mask = np.ones((NEW, K), bool)
    limit = threshold(lac_scores(probs, mask[:N])[np.arange(N), right], level)
    ours = prediction_sets(lac_scores(new, mask), mask, limit)
    np.testing.assert_array_equal(ours, theirs.predict_set(new)[1][:, :, 0])
    assert 0.3 < ours.mean() < 0.9


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["lac", "aps"])
def test_sets_are_crepes(crepes: ModuleType, kind: str, level: float) -> None:
    (probs, right), (new, _) = population(2, N), population(3, NEW)
    rng = np.random.default_rng(4)

    def scores(p: np.ndarray) -> np.ndarray:
        mask = np.ones(p.shape, bool)
        return lac_scores(p, mask) if kind == "lac" else aps_scores(p, mask, rng.random(len(p)))

    of_right, of_new = scores(probs)[np.arange(N), right], scores(new)
    theirs = crepes.ConformalClassifier().fit(of_right).predict_set(of_new, confidence=level, smoothing=False)
    ours = prediction_sets(of_new, np.ones((NEW, K), bool), threshold(of_right, level))
    np.testing.assert_array_equal(ours, theirs.astype(bool))


def test_each_groups_sets_are_mondrian_ones(crepes: ModuleType) -> None:
    (probs, right), (new, _) = population(5, N), population(6, NEW)
    rng = np.random.default_rng(7)
    group, of_new = rng.integers(3, size=N), rng.integers(3, size=NEW)
    of_right, scores = 1 - probs[np.arange(N), right], 1 - new
    limits = np.array([threshold(of_right[group == g], 0.87) for g in range(3)])
    ours = prediction_sets(scores, np.ones((NEW, K), bool), limits[of_new])
    theirs = crepes.ConformalClassifier().fit(of_right, bins=group)
    np.testing.assert_array_equal(
        ours, theirs.predict_set(scores, bins=of_new, confidence=0.87, smoothing=False).astype(bool)
    )


@pytest.mark.parametrize("seed", range(20))
def test_thresholds_pass_as_in_mapies_fixed_sequence(mapie_fwer: ModuleType, stats: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    uncertainty = rng.random(300)
    wrong = (rng.random(300) < uncertainty / 2).astype(float)
    thresholds, risk, confidence = np.linspace(0.2, 1.0, 15), 0.15, 0.9
    inside = uncertainty <= thresholds[:, None]
    p = stats.binom.cdf(inside @ wrong, inside.sum(axis=1), risk)
    passed = mapie_fwer.control_fwer(p, 1 - confidence, fwer_method="fixed_sequence")
    promise = certify(uncertainty, wrong, thresholds, risk, confidence)
    assert (promise is None) == (len(passed) == 0)
    if promise is not None:
        assert promise.threshold == thresholds[max(passed)]
        interval = stats.binomtest(promise.errors, promise.answered, alternative="less").proportion_ci(confidence)
        assert upper_bound(promise.errors, promise.answered, confidence) == pytest.approx(interval.high, rel=1e-9)
