"""Our measures against scikit-learn's, torchmetrics' and scipy's (`make oracles`; skipped where those are absent)."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ripieno import measures

OWN_ENVIRONMENT = "needs the second environment: run `make oracles`"
metrics = pytest.importorskip("sklearn.metrics", reason=OWN_ENVIRONMENT)
torchmetrics = pytest.importorskip("torchmetrics.functional.classification", reason=OWN_ENVIRONMENT)
torch = pytest.importorskip("torch", reason=OWN_ENVIRONMENT)
special = pytest.importorskip("scipy.special", reason=OWN_ENVIRONMENT)
stats = pytest.importorskip("scipy.stats", reason=OWN_ENVIRONMENT)
distance = pytest.importorskip("scipy.spatial.distance", reason=OWN_ENVIRONMENT)

EPS64, EPS32 = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)
M, N = 4, 500


def rounding(terms: int, size: float, eps: float = EPS64) -> float:
    """Bound how far two ways of summing `terms` numbers of absolute sum `size` can differ."""
    return (2 * terms + 10) * eps * size


def population(choices: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities [M, N, K] and targets [N], right more often than not, and overconfident."""
    rng = np.random.default_rng(seed)
    scores = 2 * rng.normal(size=(N, choices)) + rng.normal(size=(M, N, choices))
    log_probs = special.log_softmax(scores, axis=-1)
    right = special.softmax(scores.mean(axis=0) / 1.7, axis=-1)
    return log_probs, np.array([rng.choice(choices, p=row) for row in right])


@pytest.mark.parametrize("choices", [2, 4, 10])
def test_accuracy_and_log_loss_are_scikit_learns(choices):
    log_probs, targets = population(choices)
    probs = measures.pool(np.exp(log_probs))
    labels = list(range(choices))
    assert measures.correct(probs, targets).mean() == metrics.accuracy_score(targets, probs.argmax(axis=1))
    ours = measures.nll(measures.pool_log(log_probs), targets)
    # scikit-learn normalises the rows again: each is off by a few eps.
    theirs = metrics.log_loss(targets, probs / probs.sum(axis=1, keepdims=True), labels=labels)
    assert ours.mean() == pytest.approx(theirs, abs=rounding(N, float(ours.mean()) + 1))


@pytest.mark.parametrize("choices", [2, 4, 10])
def test_brier_is_scikit_learns_unhalved(choices):
    # By default scikit-learn halves the two-class score (0 to 1); ours sums over the choices (0 to 2) for every K.
    log_probs, targets = population(choices)
    probs = measures.pool(np.exp(log_probs))
    labels = list(range(choices))
    theirs = metrics.brier_score_loss(targets, probs, labels=labels, scale_by_half=False)
    assert measures.brier(probs, targets).mean() == pytest.approx(theirs, abs=rounding(N * choices, 2.0))
    if choices == 2:
        one_sided = metrics.brier_score_loss(targets, probs[:, 1], pos_label=1)
        assert measures.brier(probs, targets).mean() == pytest.approx(2 * one_sided, abs=rounding(N * choices, 2.0))


@pytest.mark.parametrize("bins", [10, 15])
def test_ece_is_torchmetrics(bins):
    # torchmetrics' bins are [a, b), ours (a, b], and it computes in float32: confidences near an edge are left out.
    log_probs, targets = population()
    probs = measures.pool(np.exp(log_probs))
    confidence = measures.confidence(probs)
    from_edge = np.abs(confidence * bins - np.round(confidence * bins))
    inside = from_edge > 2 * bins * EPS32
    assert inside.sum() > 0.99 * N
    probs, targets = probs[inside], targets[inside]
    theirs = torchmetrics.multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(targets), num_classes=4, n_bins=bins, norm="l1"
    )
    ours = measures.ece(measures.confidence(probs), measures.correct(probs, targets), bins=bins)
    assert ours == pytest.approx(float(theirs), abs=rounding(N, 1.0, EPS32))


def test_the_reliability_diagram_is_scikit_learns():
    # scikit-learn's curve leaves out empty bins, and its bins are (a, b] as ours.
    calibration = pytest.importorskip("sklearn.calibration", reason=OWN_ENVIRONMENT)
    log_probs, targets = population()
    probs = measures.pool(np.exp(log_probs))
    right = measures.correct(probs, targets)
    accuracy, confidence = calibration.calibration_curve(right, measures.confidence(probs), n_bins=15)
    table = measures.reliability(measures.confidence(probs), right, bins=15)
    assert table.accuracy[table.count > 0] == pytest.approx(accuracy, abs=rounding(N, 1.0))
    assert table.confidence[table.count > 0] == pytest.approx(confidence, abs=rounding(N, 1.0))


def test_entropies_are_scipys():
    log_probs, _ = population()
    probs = np.exp(log_probs)
    bound = rounding(4 * M, 1 + math.log(4))
    u = measures.decompose(probs)
    assert u.total == pytest.approx(stats.entropy(probs.mean(axis=0), axis=-1), abs=bound)
    assert u.aleatoric == pytest.approx(stats.entropy(probs, axis=-1).mean(axis=0), abs=bound)
    # Mutual information is the members' mean divergence from the pooled prediction ...
    assert u.epistemic == pytest.approx(stats.entropy(probs, probs.mean(axis=0)[None], axis=-1).mean(axis=0), abs=bound)
    # ... and for two members Jensen and Shannon's divergence, whose root scipy returns.
    two = distance.jensenshannon(probs[0], probs[1], axis=-1) ** 2
    assert measures.mutual_information(probs[:2]) == pytest.approx(two, abs=bound)


def test_pairwise_kl_is_scipys():
    log_probs, _ = population()
    probs = np.exp(log_probs)
    pairs = [special.rel_entr(probs[a], probs[b]).sum(axis=-1) for a in range(M) for b in range(M) if a != b]
    bound = rounding(M * M * 4, float(-log_probs.min()))
    assert measures.pairwise_kl(log_probs) == pytest.approx(np.mean(pairs, axis=0), abs=bound)


def test_margin_and_disagreement_are_those_of_sorting_and_counting():
    log_probs, _ = population()
    probs = np.exp(log_probs)
    ordered = np.sort(probs.mean(axis=0), axis=-1)
    assert np.array_equal(measures.margin(measures.pool(probs)), ordered[:, -1] - ordered[:, -2])
    votes = stats.mode(probs.argmax(axis=-1), axis=0).count
    assert measures.disagreement(probs) == pytest.approx(1 - votes / M, abs=EPS64)


def test_one_members_temperature_is_scikit_learns():
    calibration = pytest.importorskip("sklearn.calibration", reason=OWN_ENVIRONMENT)
    base = pytest.importorskip("sklearn.base", reason=OWN_ENVIRONMENT)
    frozen = pytest.importorskip("sklearn.frozen", reason=OWN_ENVIRONMENT)

    class Scores(base.ClassifierMixin, base.BaseEstimator):
        """A classifier whose scores are its input."""

        def fit(self, scores, targets):
            self.classes_ = np.unique(targets)
            return self

        def decision_function(self, scores):
            return scores

        def predict(self, scores):
            return self.classes_[scores.argmax(axis=1)]

    log_probs, targets = population()
    model = frozen.FrozenEstimator(Scores().fit(log_probs[0], targets))
    theirs = calibration.CalibratedClassifierCV(model, method="temperature").fit(log_probs[0], targets)
    beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    ours = measures.fit_temperature(log_probs[:1], np.ones((N, 4), dtype=bool), targets)
    # Both find the bottom of a parabola, which is flat to rounding over about sqrt(eps) = 1.5e-8 of the loss's
    # own scale; ours stops at a width of 1e-6 in ln T.
    assert math.log(ours) == pytest.approx(-math.log(beta), abs=1e-6)


def test_the_bootstrap_interval_is_scipys():
    log_probs, targets = population()
    losses = measures.nll(measures.pool_log(log_probs), targets)
    B = 4000
    theirs = stats.bootstrap(
        (losses,), np.mean, n_resamples=B, method="percentile", rng=np.random.default_rng(0), batch=500
    ).confidence_interval
    # Two independent draws of a quantile: each has standard error sqrt(q (1 - q) / B) / density; four of both.
    error = losses.std() / math.sqrt(N)
    slack = 4 * math.sqrt(2) * math.sqrt(0.025 * 0.975 / B) / stats.norm.pdf(1.96) * error
    assert measures.interval(losses, resamples=B) == pytest.approx((theirs.low, theirs.high), abs=slack)
