"""Whether a confidence of 80% is right 80% of the time, and the temperature that mends it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oracles.samples import CHOICES, EPS32, N, of_unequal_size, population, rounding
from ripieno import measures
from ripieno.measures.brier_parts import brier_decomposition
from ripieno.measures.calibration import adaptive_ece, smooth_ece
from ripieno.measures.debiased import debiased_ce

BINS = pytest.mark.parametrize("bins", [1, 10, 15])
TIED = pytest.mark.parametrize("tied", [False, True])
SHARPNESS = pytest.mark.parametrize("sharpness", [1, 4])  # calibrated members; far too confident ones


def answers(choices=4, *, sharpness=1.7, dtype=np.float64):
    """Return a prediction [N, K] whose confidences the type `dtype` holds exactly, and the targets."""
    log_probs, targets = population(choices, sharpness=sharpness)
    return measures.pool(np.exp(log_probs)).astype(dtype).astype(np.float64), targets


def confidence_and_right(choices=4, *, sharpness=1.7, dtype=np.float64):
    probs, targets = answers(choices, sharpness=sharpness, dtype=dtype)
    return measures.confidence(probs), measures.correct(probs, targets)


@BINS
@SHARPNESS
@pytest.mark.parametrize("choices", CHOICES)
def test_ece_is_torchmetrics(bins, sharpness, choices, torch, torchmetrics):
    # torchmetrics' bins are [a, b), ours (a, b], and it computes in float32: confidences near an edge are left out
    # (among them confidence 1, for which it has a bin of its own).
    probs, targets = answers(choices, sharpness=sharpness)
    confidence = measures.confidence(probs)
    from_edge = np.abs(confidence * bins - np.round(confidence * bins))
    inside = from_edge > 2 * bins * EPS32
    assert inside.sum() > 0.99 * N
    probs, targets = probs[inside], targets[inside]
    theirs = torchmetrics.multiclass_calibration_error(
        torch.tensor(probs), torch.tensor(targets), num_classes=choices, n_bins=bins, norm="l1"
    )
    ours = measures.ece(measures.confidence(probs), measures.correct(probs, targets), bins=bins)
    assert ours == pytest.approx(float(theirs), abs=rounding(N, 1.0, EPS32))


@BINS
@SHARPNESS
@pytest.mark.parametrize("choices", CHOICES)
def test_ece_is_uncertainty_calibrations(bins, sharpness, choices, uncertainty_calibration):
    # Whose bins are (a, b] with the same edges, in float64: nothing is left out.
    confidence, right = confidence_and_right(choices, sharpness=sharpness)
    theirs = uncertainty_calibration.lower_bound_scaling_ce(
        confidence,
        right.astype(int),
        p=1,
        debias=False,
        num_bins=bins,
        binning_scheme=uncertainty_calibration.get_equal_prob_bins,
    )
    assert measures.ece(confidence, right, bins=bins) == pytest.approx(theirs, abs=rounding(N, 1.0))


def test_the_reliability_diagram_is_scikit_learns(sklearn_calibration):
    # scikit-learn's curve leaves out empty bins, and its bins are (a, b] as ours.
    confidence, right = confidence_and_right()
    accuracy, mean = sklearn_calibration.calibration_curve(right, confidence, n_bins=15)
    table = measures.reliability(confidence, right, bins=15)
    assert table.accuracy[table.count > 0] == pytest.approx(accuracy, abs=rounding(N, 1.0))
    assert table.confidence[table.count > 0] == pytest.approx(mean, abs=rounding(N, 1.0))


@BINS
@SHARPNESS
@pytest.mark.parametrize("choices", CHOICES)
def test_adaptive_ece_is_torch_uncertaintys(bins, sharpness, choices, torch, torch_uncertainty):
    # It computes in float32, whatever it is given: so are the confidences, and its sums. No two are equal here: it cuts
    # between equal ones, ours does not.
    probs, targets = answers(choices, sharpness=sharpness, dtype=np.float32)
    confidence, right = measures.confidence(probs), measures.correct(probs, targets)
    assert len(np.unique(confidence)) == N
    metric = torch_uncertainty.AdaptiveCalibrationError(
        task="multiclass", num_classes=choices, num_bins=bins, norm="l1"
    )
    metric.update(torch.tensor(probs), torch.tensor(targets))
    ours = adaptive_ece(confidence, right, bins=bins)
    assert ours == pytest.approx(float(metric.compute()), abs=rounding(N, 1.0, EPS32))


@BINS
@TIED
@pytest.mark.parametrize("questions", [N, 487, 7])
@pytest.mark.parametrize("choices", CHOICES)
def test_measures_over_bins_of_equal_mass_are_uncertainty_calibrations(
    bins, tied, questions, choices, uncertainty_calibration
):
    # It cuts the sorted confidences at the same places, and sets each edge halfway between the two beside the cut; in
    # a tie that is the confidence itself, and (a, b] keeps the tie together, as ours does. With more bins than
    # questions both have a bin a question.
    confidence, right = (values[:questions] for values in confidence_and_right(choices, sharpness=4))
    if tied:
        confidence = np.round(confidence, 1)

    def theirs(power, debias):
        return uncertainty_calibration.lower_bound_scaling_ce(
            confidence, right.astype(int), p=power, debias=debias, num_bins=bins
        )

    ours = adaptive_ece(confidence, right, bins=bins)
    assert ours == pytest.approx(theirs(1, False), abs=rounding(questions, 1.0))
    # The root makes any rounding of a small square large, so the squares are compared.
    ours = debiased_ce(confidence, right, bins=bins)
    assert ours**2 == pytest.approx(theirs(2, True) ** 2, abs=rounding(questions, 1.0))


@SHARPNESS
@pytest.mark.parametrize("choices", CHOICES)
def test_debiased_ce_is_uncertainty_calibrations_of_the_whole_prediction(sharpness, choices, uncertainty_calibration):
    probs, targets = answers(choices, sharpness=sharpness)
    theirs = uncertainty_calibration.get_top_calibration_error(probs, targets, p=2, debias=True)
    ours = debiased_ce(measures.confidence(probs), measures.correct(probs, targets), bins=15)
    assert ours**2 == pytest.approx(theirs**2, abs=rounding(N, 1.0))


# The smooth ECE. relplot's own conventions, beside the definition:
#  - the grid on which it splits and smooths has spacing 1/1000 (for a bandwidth of at least .01), ours 1/16384;
#  - its kernel ends at a distance of 1/2, which cuts off P(|Z| > 1 / (2 s)) of it: nothing for a bandwidth below .1;
#  - what the splitting puts on the ends of [0, 1] counts once, though the mirror image of an end is the end itself;
#  - it integrates by sums over a mesh with the ends at full weight, and divides by the same sum of the density (which
#    it keeps off 0 by 1e-4 a point);
#  - it tries bandwidths of multiples of 1/1024 and returns the error at the lowest that is not below its own error.


def smooth_sample(choices):
    """Return confidences and whether they were right, of an error small enough for relplot's kernel."""
    confidence, right = confidence_and_right(choices, sharpness=1.4)
    assert 0.01 < smooth_ece(confidence, right) < 0.1
    return confidence, right


@pytest.mark.parametrize(("choices", "certain"), [(2, False), (4, True)])
def test_smooth_ece_is_a_fixed_point_of_relplots_kernel(choices, certain, relplot):
    # With relplot's kernel on the grid that ours has, and a plain trapezoid rule, the error at bandwidth s is s.
    points = 2**14
    confidence, right = smooth_sample(choices)
    if certain:
        confidence = np.where(confidence > 0.95, 1.0, confidence)  # and some of these are wrong
    s, gap = smooth_ece(confidence, right), right - confidence
    # What the splitting puts on the end 1 (nothing lies near 0) is given to it once more.
    at_the_end = (gap * np.maximum(confidence * points - (points - 1), 0)).sum()
    assert (at_the_end != 0) == certain
    grid = np.linspace(0, 1, points + 1)
    curve = relplot.kernels.ReflectedGaussianKernel(s).apply(
        np.append(confidence, 1.0), np.append(gap, at_the_end), grid, eval_points=2 * points
    )
    theirs = np.trapezoid(np.abs(curve), grid) / len(gap)
    mean_gap = np.abs(gap).mean()
    # Ours is the upper end of a bracket of 1e-9, over which the error falls by at most 1e-9 mean|gap| |dK/ds|_1, where
    # |dK/ds|_1 = E|Z^2 - 1| / s = 4 phi(1) / s. Either smoothing sums 2^14 products, theirs one by one.
    slope = 4 * math.exp(-0.5) / math.sqrt(2 * math.pi) / s * mean_gap
    cut_off = math.erfc(1 / (2 * s) / math.sqrt(2)) * mean_gap
    assert s == pytest.approx(theirs, abs=1e-9 * (1 + slope) + cut_off + rounding(points, mean_gap))


@pytest.mark.parametrize("choices", CHOICES)
def test_smooth_ece_lies_where_relplot_brackets_it(choices, relplot, monkeypatch):
    mesh = 200_001
    monkeypatch.setattr(relplot.config, "smECE_mesh_pts", mesh)
    confidence, right = smooth_sample(choices)
    inside = confidence < 1 - 1 / 1000  # so that nothing is put on the end
    assert inside.mean() > 0.9
    confidence, right = confidence[inside], right[inside]
    theirs, bandwidth = relplot.smECE(confidence, right, return_width=True)
    lower = bandwidth - 1 / 1024
    ours, mean_gap = smooth_ece(confidence, right), np.abs(right - confidence).mean()
    # How far relplot's R(s) and the definition's S(s) differ, for s not below `lower`, |K''|_1 = 4 phi(1) / s^2:
    curvature = 4 * math.exp(-0.5) / math.sqrt(2 * math.pi) / lower**2
    splitting = (1 / 1000) ** 2 / 8 * curvature * mean_gap  # and as much for its linear interpolation
    highest = 2 / (lower * math.sqrt(2 * math.pi))  # of the reflected kernel, and so of the density
    ends = 2 * mean_gap * highest / (mesh - 1)  # of the integral and of the density, half a point's too much each
    cut_off = 2 * mean_gap * math.erfc(1 / (2 * bandwidth) / math.sqrt(2))
    kept_off_zero = 1e-4 / len(right) * mean_gap
    differ = 2 * splitting + ends + cut_off + kept_off_zero + 1e-6  # the last: ours, by its own account
    # R(bandwidth) <= bandwidth and R(lower) > lower. S falls and S(ours) = ours, which is therefore
    assert lower - differ < ours <= bandwidth + differ
    # and, either above the bandwidth or not below the error there,
    assert ours >= theirs - differ
    assert differ < 1 / 4096


@TIED
@pytest.mark.parametrize("choices", [*CHOICES, "unequal"])
def test_the_brier_decomposition_is_model_diagnostics(choices, tied, model_diagnostics):
    # Theirs is of one-sided probabilities, so of the pairs of a question and a choice it has; its means are over the
    # pairs, ours over the questions.
    if choices == "unequal":
        log_probs, targets, mask = of_unequal_size()
    else:
        log_probs, targets = population(choices, sharpness=4)
        mask = np.ones((N, choices), dtype=bool)
    probs = measures.pool(np.exp(log_probs))
    if tied:
        probs = np.round(probs, 1)
    happened = (np.arange(probs.shape[1]) == targets[:, None])[mask].astype(float)
    table = model_diagnostics.decompose(
        happened, probs[mask], scoring_function=model_diagnostics.SquaredError(), functional="mean"
    )
    a_question = mask.sum() / N
    theirs = {name: a_question * table[name][0] for name in ("miscalibration", "discrimination", "uncertainty")}
    parts = brier_decomposition(probs, targets, mask)
    ours = {
        "miscalibration": parts.reliability,
        "discrimination": parts.resolution,
        "uncertainty": parts.uncertainty,
    }
    # Sums over all pairs of squares, of which each is a mean over a block of them.
    within = rounding(2 * int(mask.sum()), 2.0)
    assert ours == pytest.approx(theirs, abs=within)
    score = parts.reliability - parts.resolution + parts.uncertainty
    assert score == pytest.approx(a_question * table["score"][0], abs=within)
    if choices != "unequal":
        assert brier_decomposition(probs, targets, None) == parts


def test_one_members_temperature_is_scikit_learns(sklearn_calibration, sklearn_base, sklearn_frozen):
    class Scores(sklearn_base.ClassifierMixin, sklearn_base.BaseEstimator):
        """A classifier whose scores are its input."""

        def fit(self, scores, targets):
            self.classes_ = np.unique(targets)
            return self

        def decision_function(self, scores):
            return scores

        def predict(self, scores):
            return self.classes_[scores.argmax(axis=1)]

    log_probs, targets = population()
    model = sklearn_frozen.FrozenEstimator(Scores().fit(log_probs[0], targets))
    theirs = sklearn_calibration.CalibratedClassifierCV(model, method="temperature").fit(log_probs[0], targets)
    beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    ours = measures.fit_temperature(log_probs[:1], np.ones((N, 4), dtype=bool), targets)
    # Both find the bottom of a parabola, which is flat to rounding over about sqrt(eps) = 1.5e-8 of the loss's
    # own scale; ours stops at a width of 1e-6 in ln T.
    assert math.log(ours) == pytest.approx(-math.log(beta), abs=1e-6)
