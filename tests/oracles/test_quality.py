"""Accuracy, losses, scores a class, and the bootstrap's intervals and tests."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from oracles.samples import CHOICES, N, of_unequal_size, population, rounding
from ripieno import measures
from ripieno.measures.accuracy import macro_f1, recall
from ripieno.measures.bootstrap import holm, p_value


@pytest.mark.parametrize("choices", CHOICES)
def test_accuracy_and_log_loss_are_scikit_learns(choices, sklearn_metrics):
    log_probs, targets = population(choices)
    probs = measures.pool(np.exp(log_probs))
    assert measures.correct(probs, targets).mean() == sklearn_metrics.accuracy_score(targets, probs.argmax(axis=1))
    ours = measures.nll(measures.pool_log(log_probs), targets)
    # scikit-learn normalises the rows again: each is off by a few eps.
    theirs = sklearn_metrics.log_loss(targets, probs / probs.sum(axis=1, keepdims=True), labels=list(range(choices)))
    assert ours.mean() == pytest.approx(theirs, abs=rounding(N, float(ours.mean()) + 1))


@pytest.mark.parametrize("choices", CHOICES)
def test_brier_is_scikit_learns_unhalved(choices, sklearn_metrics):
    # By default scikit-learn halves the two-class score (0 to 1); ours sums over the choices (0 to 2) for every K.
    log_probs, targets = population(choices)
    probs = measures.pool(np.exp(log_probs))
    labels = list(range(choices))
    theirs = sklearn_metrics.brier_score_loss(targets, probs, labels=labels, scale_by_half=False)
    assert measures.brier(probs, targets).mean() == pytest.approx(theirs, abs=rounding(N * choices, 2.0))
    if choices == 2:
        one_sided = sklearn_metrics.brier_score_loss(targets, probs[:, 1], pos_label=1)
        assert measures.brier(probs, targets).mean() == pytest.approx(2 * one_sided, abs=rounding(N * choices, 2.0))


@pytest.mark.parametrize("choices", CHOICES)
def test_brier_and_log_loss_are_torch_uncertaintys(choices, torch, torch_uncertainty):
    log_probs, targets = population(choices)
    probs = measures.pool(np.exp(log_probs))
    brier = torch_uncertainty.BrierScore(num_classes=choices, reduction="none")
    brier.update(torch.tensor(probs), torch.tensor(targets))
    assert measures.brier(probs, targets) == pytest.approx(brier.compute().numpy(), abs=rounding(choices, 2.0))
    nll = torch_uncertainty.CategoricalNLL(reduction="none")
    nll.update(torch.tensor(probs), torch.tensor(targets))
    ours = measures.nll(measures.pool_log(log_probs), targets)
    # A logarithm turns the relative error of its argument (M terms) into an absolute one.
    assert ours == pytest.approx(nll.compute().numpy(), abs=rounding(len(log_probs), 1 + float(ours.max())))


@pytest.mark.parametrize("label", ["in both", "never answered", "never right", "nowhere"])
def test_macro_f1_and_recall_are_scikit_learns(label, sklearn_metrics):
    # A label that is only answered or only right has F1 0; one of neither does not enter, as in scikit-learn where it
    # is not told the labels. A label that is never right has no recall: ours says so by its count, and by 0.
    log_probs, targets = population(5, sharpness=4)
    predicted = measures.pool(np.exp(log_probs)).argmax(axis=1)
    if label in ("never answered", "nowhere"):
        predicted = np.where(predicted == 3, 0, predicted)
    if label in ("never right", "nowhere"):
        targets = np.where(targets == 3, 0, targets)
    theirs = sklearn_metrics.f1_score(targets, predicted, average="macro", zero_division=0.0)
    assert macro_f1(predicted, targets, 5) == pytest.approx(theirs, abs=rounding(5, 1.0))
    ours = recall(predicted, targets, 5)
    theirs = sklearn_metrics.recall_score(targets, predicted, labels=range(5), average=None, zero_division=0.0)
    assert ours.value == pytest.approx(theirs, abs=rounding(1, 1.0))
    assert ours.count.tolist() == sklearn_metrics.confusion_matrix(targets, predicted, labels=range(5)).sum(1).tolist()


def test_questions_of_unequal_size_have_scikit_learns_losses(sklearn_metrics):
    log_probs, targets, _ = of_unequal_size()
    probs = measures.pool(np.exp(log_probs))
    labels = list(range(5))
    theirs = sklearn_metrics.brier_score_loss(targets, probs, labels=labels, scale_by_half=False)
    assert measures.brier(probs, targets).mean() == pytest.approx(theirs, abs=rounding(N * 5, 2.0))
    ours = measures.nll(measures.pool_log(log_probs), targets).mean()
    theirs = sklearn_metrics.log_loss(targets, probs / probs.sum(axis=1, keepdims=True), labels=labels)
    assert ours == pytest.approx(theirs, abs=rounding(N, float(ours) + 1))


def test_the_bootstrap_interval_is_scipys(stats):
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


def test_the_p_value_is_the_normal_tail_of_scipy(stats):
    rng = np.random.default_rng(0)
    resamples = rng.normal(size=(1000, 7)) * np.geomspace(0.01, 10, 7)
    differences = np.array([0.0, 0.01, -0.2, 0.5, -1.0, 3.0, 30.0])
    theirs = 2 * stats.norm.sf(np.abs(differences) / resamples.std(axis=0))
    # The tail's relative error is the squared distance's: d (ln p) = -z dz, dz a few eps of z.
    relative = rounding(1000, 1.0) * (1 + (differences / resamples.std(axis=0)) ** 2)
    assert np.all(np.abs(p_value(differences, resamples, 1000) - theirs) <= relative * theirs)


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_the_closed_test_of_bonferronis(seed):
    # Holm 1979 from the closure principle (Marcus, Peritz and Gabriel 1976): a hypothesis is rejected at a level if
    # every set of hypotheses that holds it is, each set S by Bonferroni's |S| min p. Its adjusted p-value is therefore
    # the highest |S| min p over all 2^(R-1) sets S with it, at most 1. The products are the same: so are the results.
    rng = np.random.default_rng(seed)
    R = int(rng.integers(1, 9))
    p = rng.random(R) ** 3
    if seed % 2:
        p = np.round(p, 1)
    sets = [list(s) for size in range(1, R + 1) for s in itertools.combinations(range(R), size)]
    adjusted = [min(1.0, max(len(s) * p[s].min() for s in sets if i in s)) for i in range(R)]
    assert holm(p).tolist() == adjusted
