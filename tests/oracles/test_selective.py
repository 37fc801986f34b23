"""What is gained by not answering the most uncertain questions.

torch-uncertainty knows the curve's points k = 1 .. N only: r_k, the error rate of the k most certain. Its areas are
trapezoids between them, divided by their width, 1 - 1/N. For a curve y_k

    theirs = (sum_k y_k - (y_1 + y_N) / 2) / (N - 1)

Ours are AURC = 1/N sum_k r_k, so that

    N AURC = (N - 1) theirs + (r_1 + r_N) / 2

and AUGRC = 1/N (sum_k g_k - g_N / 2), g_k = r_k k / N, with the trapezoid from (0, 0) to the first point as well:

    N AUGRC = (N - 1) theirs + g_1 / 2,   g_1 = r_1 / N

It leaves the order of ties to its sort; ours are the mean over all their orders, which the last tests go through.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from oracles.samples import CHOICES, EPS64, N, counts, population, rounding
from ripieno import measures
from ripieno.measures.selective import (
    COVERAGES,
    augrc,
    aurc,
    excess_aurc,
    prediction_rejection_ratio,
    risk_coverage,
    selective_accuracy,
    selective_measures,
)

UNCERTAINTIES = pytest.mark.parametrize("name", ["entropy", "mi", "confidence"])

# Ours sums (E - C r) (H_{C+n} - H_C), factors of at most N and differences of harmonic numbers of at most 1 + ln N,
# and divides by N.
WITHIN = rounding(N, 1 + math.log(N))


def answers(name, choices=4):
    """Return the uncertainty and wrongness [N] of members that are far too confident."""
    log_probs, targets = population(choices, sharpness=4)
    probs = np.exp(log_probs)
    pooled = measures.pool(probs)
    uncertainty = {
        "entropy": measures.entropy(pooled),
        "mi": measures.mutual_information(probs),
        "confidence": -measures.confidence(pooled),
    }[name]
    assert len(np.unique(uncertainty)) == N
    return uncertainty, 1 - measures.correct(pooled, targets)


def in_order(wrong):
    """Return probabilities [N, 2] and targets of answers that are less and less certain, and as wrong as `wrong` says.

    So the other program, which knows no uncertainty but the highest probability, measures any of them.
    """
    confidence = 1 - np.arange(len(wrong)) / (2 * len(wrong))
    return np.stack([confidence, 1 - confidence], axis=1), wrong.astype(int)


def measured(metric, torch, wrong):
    probs, targets = in_order(wrong)
    metric.update(torch.tensor(probs), torch.tensor(targets))
    return float(metric.compute())


def their_aurc(wrong, torch, torch_uncertainty):
    """AURC of answers in their order, the most certain first, by our definition and their number."""
    n = len(wrong)
    return ((n - 1) * measured(torch_uncertainty.AURC(), torch, wrong) + (wrong[0] + wrong.mean()) / 2) / n


def their_augrc(wrong, torch, torch_uncertainty):
    n = len(wrong)
    return ((n - 1) * measured(torch_uncertainty.AUGRC(), torch, wrong) + wrong[0] / n / 2) / n


def their_accuracy(wrong, coverage, torch, torch_uncertainty):
    # Both answer the first ceil(coverage N); only ours takes off the product's own rounding (.55 * 100 > 55).
    assert math.ceil(coverage * len(wrong)) == math.ceil(coverage * len(wrong) * (1 - 2 * EPS64))
    return 1 - measured(torch_uncertainty.RiskAtxCov(cov_threshold=coverage), torch, wrong)


def their_measures(wrong, torch, torch_uncertainty):
    """All that follows from torch-uncertainty's numbers, for answers in their order."""
    area = their_aurc(wrong, torch, torch_uncertainty)
    perfect = their_aurc(np.sort(wrong), torch, torch_uncertainty)
    return {
        "aurc": area,
        "eaurc": area - perfect,
        "augrc": their_augrc(wrong, torch, torch_uncertainty),
        # A random order has the error rate, in the mean.
        "prr": (wrong.mean() - area) / (wrong.mean() - perfect),
    } | {
        f"selective_accuracy_{percent}": their_accuracy(wrong, percent / 100, torch, torch_uncertainty)
        for percent in COVERAGES
    }


@pytest.mark.parametrize("choices", CHOICES)
def test_areas_of_the_confidence_are_torch_uncertaintys_of_the_predictions_themselves(
    choices, torch, torch_uncertainty
):
    log_probs, targets = population(choices, sharpness=4)
    probs = measures.pool(np.exp(log_probs))
    uncertainty, wrong = answers("confidence", choices)
    most_certain = wrong[uncertainty.argmin()]
    theirs = {}
    for name in ("AURC", "AUGRC", "RiskAt80Cov"):
        metric = getattr(torch_uncertainty, name)()
        metric.update(torch.tensor(probs), torch.tensor(targets))
        theirs[name] = float(metric.compute())
    area = ((N - 1) * theirs["AURC"] + (most_certain + wrong.mean()) / 2) / N
    assert aurc(uncertainty, wrong) == pytest.approx(area, abs=WITHIN)
    area = ((N - 1) * theirs["AUGRC"] + most_certain / N / 2) / N
    assert augrc(uncertainty, wrong) == pytest.approx(area, abs=WITHIN)
    assert selective_accuracy(uncertainty, wrong, 0.8) == pytest.approx(1 - theirs["RiskAt80Cov"], abs=rounding(2, 1.0))


@UNCERTAINTIES
@pytest.mark.parametrize("choices", CHOICES)
def test_each_measure_is_torch_uncertaintys(name, choices, torch, torch_uncertainty):
    uncertainty, wrong = answers(name, choices)
    theirs = their_measures(wrong[uncertainty.argsort()], torch, torch_uncertainty)
    # The ratio's denominator, the room between a random and the perfect order, divides the errors of both areas.
    within = WITHIN * 2 / (theirs["eaurc"] / (1 - theirs["prr"]))
    ours = {
        "aurc": aurc(uncertainty, wrong),
        "eaurc": excess_aurc(uncertainty, wrong),
        "augrc": augrc(uncertainty, wrong),
        "prr": prediction_rejection_ratio(uncertainty, wrong),
    } | {
        f"selective_accuracy_{percent}": selective_accuracy(uncertainty, wrong, percent / 100) for percent in COVERAGES
    }
    assert ours == pytest.approx(theirs, abs=within)
    together = selective_measures(uncertainty, wrong)
    assert {name: together[name] for name in theirs} == pytest.approx(theirs, abs=within)


@UNCERTAINTIES
def test_weighted_measures_are_torch_uncertaintys_of_questions_repeated(name, torch, torch_uncertainty):
    # A question drawn w times makes a tie of w equal answers, whose order changes nothing.
    uncertainty, wrong = answers(name)
    order = uncertainty.argsort()
    weights = counts(N)
    ours = selective_measures(uncertainty, wrong, weights)
    for i, row in enumerate(weights.astype(int)):
        theirs = their_measures(np.repeat(wrong[order], row[order]), torch, torch_uncertainty)
        within = WITHIN * 2 / (theirs["eaurc"] / (1 - theirs["prr"]))
        assert {measure: float(ours[measure][i]) for measure in theirs} == pytest.approx(theirs, abs=within)


@pytest.mark.parametrize("coverage", [0.001, 0.123, 0.5, 0.77, 0.999, 1.0])
@pytest.mark.parametrize("questions", [N, 487, 3])
def test_selective_accuracy_is_torch_uncertaintys_at_any_coverage(coverage, questions, torch, torch_uncertainty):
    uncertainty, wrong = (values[:questions] for values in answers("entropy"))
    theirs = their_accuracy(wrong[uncertainty.argsort()], coverage, torch, torch_uncertainty)
    assert selective_accuracy(uncertainty, wrong, coverage) == pytest.approx(theirs, abs=rounding(2, 1.0))


@UNCERTAINTIES
def test_the_risk_coverage_curve_is_torch_uncertaintys(name, torch, torch_uncertainty):
    uncertainty, wrong = answers(name)
    metric = torch_uncertainty.AURC()
    probs, targets = in_order(wrong[uncertainty.argsort()])
    metric.update(torch.tensor(probs), torch.tensor(targets))
    curve = risk_coverage(uncertainty, wrong)
    assert curve.risk == pytest.approx(metric.partial_compute().numpy(), abs=EPS64)
    # The highest coverage at a risk, as theirs: the last point of the curve that is not above it.
    for risk in (0.1, 0.2, 0.3):
        theirs = measured(torch_uncertainty.CovAtxRisk(risk_threshold=risk), torch, wrong[uncertainty.argsort()])
        below = curve.coverage[curve.risk <= risk]
        assert (below[-1] if len(below) else math.nan) == pytest.approx(theirs, abs=EPS64, nan_ok=True)


@pytest.mark.parametrize("tied", [False, True])
@UNCERTAINTIES
def test_failure_prediction_is_scikit_learns(name, tied, sklearn_metrics):
    uncertainty, wrong = answers(name)
    if tied:
        uncertainty = np.round(uncertainty, 1)
    weights = counts(N)
    ours, resampled = selective_measures(uncertainty, wrong), selective_measures(uncertainty, wrong, weights)
    for measure, theirs in (
        ("error_auroc", sklearn_metrics.roc_auc_score),
        ("error_aupr", sklearn_metrics.average_precision_score),
    ):
        assert ours[measure] == pytest.approx(theirs(wrong, uncertainty), abs=rounding(N, 1.0))
        expected = [theirs(wrong, uncertainty, sample_weight=row) for row in weights]
        assert resampled[measure] == pytest.approx(expected, abs=rounding(N, 1.0))


# Each row: the uncertainties of 7 answers (equal: a tie) and how wrong they are.
TIES = [
    ([0, 0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1, 1]),
    ([0, 1, 1, 1, 1, 2, 3], [0, 0, 1, 0, 1, 0, 1]),
    ([3, 3, 2, 2, 1, 1, 1], [1, 0, 1, 1, 0, 0, 1]),
    ([5, 5, 5, 5, 5, 5, 5], [0, 1, 0, 0, 1, 0, 0]),
]


@pytest.mark.parametrize(("uncertainty", "wrong"), TIES)
def test_ties_have_the_mean_of_torch_uncertaintys_over_all_orders(uncertainty, wrong, torch, torch_uncertainty):
    uncertainty, wrong = np.array(uncertainty, dtype=float), np.array(wrong, dtype=float)
    ties = [wrong[uncertainty == value] for value in np.unique(uncertainty)]
    # Orders of equal answers are equal: their permutations come as often as each other.
    orders = [
        np.concatenate(order)
        for order in itertools.product(*(sorted(set(itertools.permutations(tie.tolist()))) for tie in ties))
    ]
    theirs = [their_measures(order, torch, torch_uncertainty) for order in orders]
    mean = {name: float(np.mean([of[name] for of in theirs])) for name in theirs[0]}
    ours = selective_measures(uncertainty, wrong)
    # The room of the ratio is above 1/10 here.
    assert {name: ours[name] for name in mean} == pytest.approx(mean, abs=10 * rounding(7, 1 + math.log(7)))
