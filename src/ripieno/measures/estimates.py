"""The estimates behind a table: what is measured of one way to read predictions, with its intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.about import About, about_of
from ripieno.measures.accuracy import brier, correct, macro_f1, nll, recall
from ripieno.measures.bootstrap import Counts, draw, percentiles, resampled, resampled_means, units
from ripieno.measures.brier_parts import brier_decomposition
from ripieno.measures.calibration import adaptive_ece, ece, ece_null, smooth_ece
from ripieno.measures.debiased import debiased_ce, debiased_ce_interval
from ripieno.measures.selective import cheapest_threshold, cross_fitted_costs, selective_measures
from ripieno.measures.table import DECISION, SELECTIVE, Estimate
from ripieno.measures.uncertainty import (
    Floats,
    confidence,
    decompose,
    disagreement,
    entropy,
    margin,
    normalised_entropy,
    pairwise_agreement,
    pairwise_kl,
    pool,
    pool_log,
    pool_logits,
)
from ripieno.predictions import Predictions

# Why a value is null.
NO_QUESTION = "no questions"
NO_ANSWER = "no question has a known answer"
NO_PAIR = "one member makes no pair"
NO_ERROR = "every answer is right: there is no error to find"
NO_SUCCESS = "every answer is wrong: there is nothing to tell errors from"
NO_SPREAD = "every member is right on all questions, or wrong on all"
ONE_QUESTION = "one question leaves none to choose a threshold on"
TURNS_NEGATIVE = "of a mean of logits, entropy less expected entropy can turn negative: it is no mutual information"

Estimates = dict[str, Estimate]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a wrong answer and a question handed over to a person cost the user, both > 0, in one unit."""

    error: float
    handover: float


def infinite(values: Floats) -> str | None:
    """Return why the mean of values [N] is null where some are infinite."""
    count = int(np.isinf(values).sum())
    return f"infinite: a probability is exactly 0 on {count} of {len(values)} questions" if count else None


@dataclass(frozen=True)
class View:
    """One way to read predictions: a distribution a member and question, and how they are pooled.

    Args:
        log_probs, mask, targets: as in `Predictions`, after a temperature or over other outcomes.
        probs: [M, N, K], exp of the first.
        pooled_log: [N, K], the ensemble's.
        pooled: [N, K]; its argmax is the answer, for which `pooled_log` may break a tie otherwise.
        pooling: "prob" or "logit".
    """

    log_probs: Floats
    mask: NDArray[np.bool_]
    targets: NDArray[np.int64]
    probs: Floats
    pooled_log: Floats
    pooled: Floats
    pooling: str

    @classmethod
    def of(cls, log_probs: Floats, mask: NDArray[np.bool_], targets: NDArray[np.int64], pooling: str = "prob") -> View:
        """Pool the members' log-probabilities."""
        probs = np.exp(log_probs)
        if pooling == "logit":
            pooled_log = pool_logits(log_probs)
            return cls(log_probs, mask, targets, probs, pooled_log, np.exp(pooled_log), pooling)
        return cls(log_probs, mask, targets, probs, pool_log(log_probs), pool(probs), pooling)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Bool [N]: whether the right choice is known."""
        return self.targets >= 0


@dataclass(frozen=True)
class Sample:
    """Questions that are resampled together: how often each was drawn, or None where there are too few to draw from."""

    counts: Counts | None
    N: int

    @classmethod
    def of(cls, questions: int, clusters: NDArray[np.int64] | None, resamples: int, seed: int) -> Sample:
        """Draw questions again and again."""
        if units(questions, clusters) < 2:
            return cls(None, questions)
        return cls(draw(questions, clusters=clusters, resamples=resamples, seed=seed), questions)

    def means(self, columns: Mapping[Key, Floats], nothing: str) -> dict[Key, Estimate]:
        """Estimate the mean of each column [N]; `nothing` is the reason where N is 0."""
        if self.N == 0:
            return {key: Estimate(None, 0, reason=nothing) for key in columns}
        estimates = {}
        for key, values in columns.items():
            reason = infinite(values)
            estimates[key] = Estimate(None if reason else float(values.mean()), self.N, reason=reason)
        finite = [key for key, estimate in estimates.items() if estimate.value is not None]
        if self.counts is not None and finite:
            low, high = percentiles(resampled_means(np.array([columns[key] for key in finite]), self.counts))
            for i, key in enumerate(finite):
                estimates[key] = replace(estimates[key], low=float(low[i]), high=float(high[i]))
        return estimates

    def statistics(self, names: tuple[str, ...], statistic: Callable[[Floats | None], Floats]) -> Estimates:
        """Estimate statistics of weights [b, N] (None: each question once), [b, R] in the order of their names.

        Where one is not defined (NaN) it has neither value nor reason here.
        """
        values = statistic(None)
        low = high = np.full(len(names), np.nan)
        if self.counts is not None:
            low, high = percentiles(resampled(statistic, self.counts))
        estimates = {}
        for i, name in enumerate(names):
            if np.isnan(values[i]):
                estimates[name] = Estimate(None, self.N)
            elif np.isnan(low[i]):
                estimates[name] = Estimate(float(values[i]), self.N)
            else:
                estimates[name] = Estimate(float(values[i]), self.N, float(low[i]), float(high[i]))
        return estimates


@dataclass(frozen=True)
class Context:
    """What a table is measured with, the same for every variant of the predictions.

    Args:
        about: of the questions.
        all, labelled: the questions, and those with a known answer.
        ranked: as `labelled`, for measures that are no means, whose resamples take longest: without any where the epoch
            is not the last.
        costs, bins, resamples, seed: as in `analysis.analyze`.
    """

    about: About
    all: Sample
    labelled: Sample
    ranked: Sample
    costs: Costs | None
    bins: int
    resamples: int
    seed: int

    @classmethod
    def of(
        cls,
        p: Predictions,
        about: Mapping[str, About] | None,
        last: bool,
        costs: Costs | None,
        bins: int,
        resamples: int,
        seed: int,
    ) -> Context:
        """Draw the questions of `p`: all of them, and those with a known answer."""
        own = about_of(about, p)
        clusters, known = own.clusters, p.labelled
        every = Sample.of(len(p.question_ids), clusters, resamples, seed)
        labelled = every
        if not known.all():
            labelled = Sample.of(int(known.sum()), None if clusters is None else clusters[known], resamples, seed)
        return cls(own, every, labelled, labelled if last else Sample(None, labelled.N), costs, bins, resamples, seed)


def of_ensemble(view: View, context: Context) -> Estimates:
    """Return every measure of the pooled prediction."""
    pooled, several = view.pooled, len(view.log_probs) > 1
    parts = decompose(view.probs)
    everywhere = {
        "mean_confidence": confidence(pooled),
        "predictive_entropy": entropy(pooled),
        "normalised_entropy": normalised_entropy(pooled, view.mask.sum(axis=1)),
        "expected_entropy": parts.aleatoric,
        "mutual_information": parts.epistemic,
        "disagreement": disagreement(view.probs),
        "margin": margin(pooled),
    }
    if several:
        everywhere["pairwise_kl"] = pairwise_kl(view.log_probs)
        everywhere["pairwise_agreement"] = pairwise_agreement(view.probs)
    found = context.all.means(everywhere, NO_QUESTION)
    if not several:
        found |= {name: Estimate(None, context.all.N, reason=NO_PAIR) for name in ("pairwise_kl", "pairwise_agreement")}
    if view.pooling == "logit":
        found["mutual_information"] = Estimate(None, context.all.N, reason=TURNS_NEGATIVE)

    known = view.labelled
    targets, answers = view.targets[known], pooled[known]
    right = correct(answers, targets)
    found |= context.labelled.means(
        {
            "accuracy": right,
            "nll": nll(view.pooled_log[known], targets),
            "brier": brier(answers, targets),
            "confidence_gap": confidence(answers) - right,
        },
        NO_ANSWER,
    )
    found |= _calibration(answers, right, targets, view.mask[known], context)
    found |= _error_correlation(view, context)
    uncertainties = {
        "entropy": entropy(answers),
        "mi": parts.epistemic[known] if several and view.pooling == "prob" else None,
        "confidence": -confidence(answers),
    }
    for name, uncertainty in uncertainties.items():
        reason = NO_ANSWER if not len(targets) else TURNS_NEGATIVE if view.pooling == "logit" else NO_PAIR
        found |= _selective(name, uncertainty, 1.0 - right, reason, context)
    return found


def of_members(p: Predictions, view: View, context: Context) -> dict[str | int, Estimates]:
    """Return the measures that are means over questions (and ece) of the mean member and of each member.

    Returns:
        By who: "members_mean", then each member's place.
    """
    M, known = len(p.members), view.labelled
    targets, confidences = view.targets[known], confidence(view.probs)
    sizes = view.mask.sum(axis=1)
    everywhere = {
        "mean_confidence": confidences,
        "predictive_entropy": entropy(view.probs),
        "normalised_entropy": normalised_entropy(view.probs, sizes),
        "margin": margin(view.probs),
    }
    right = correct(view.probs[:, known], targets)
    where_known = {
        "accuracy": right,
        "nll": nll(view.log_probs[:, known], targets),
        "brier": brier(view.probs[:, known], targets),
    }
    found: dict[str | int, Estimates] = {who: {} for who in ("members_mean", *range(M))}
    for sample, columns, nothing in (
        (context.all, everywhere, NO_QUESTION),
        (context.labelled, where_known, NO_ANSWER),
    ):
        each: dict[tuple[str | int, str], Floats] = {
            ("members_mean", name): values.mean(axis=0) for name, values in columns.items()
        }
        each |= {(m, name): values[m] for name, values in columns.items() for m in range(M)}
        for (who, name), estimate in sample.means(each, nothing).items():
            found[who][name] = estimate
    if not len(targets):
        return {who: of | {"ece": Estimate(None, 0, reason=NO_ANSWER)} for who, of in found.items()}
    errors = [ece(confidences[m, known], right[m], bins=context.bins) for m in range(M)]
    found["members_mean"]["ece"] = Estimate(float(np.mean(errors)), len(targets))
    for m, error in enumerate(errors):
        found[m]["ece"] = Estimate(error, len(targets))
    return found


def checks(p: Predictions, view: View, context: Context) -> Estimates:
    """Return how often the answers, and the truth, are the shortest choice and stand at each place: it should agree."""
    answer, known = view.pooled.argmax(axis=1), view.labelled
    N, K = view.mask.shape
    found: Estimates = {}
    lengths = p.bytes if context.about.choice_bytes is None else context.about.choice_bytes
    if lengths is not None:
        lengths = np.where(view.mask, lengths[:, :K], np.iinfo(np.int64).max)
        shortest = lengths == lengths.min(axis=1, keepdims=True)
        answered = shortest[np.arange(N), answer].astype(np.float64)
        truth = shortest[known, view.targets[known]].astype(np.float64)
        found |= context.all.means({"shortest_answered": answered}, NO_QUESTION)
        found |= context.labelled.means({"shortest_right": truth}, NO_ANSWER)
    for k in range(K):
        found |= context.all.means({f"position_{k}_answered": (answer == k).astype(np.float64)}, NO_QUESTION)
        truth = (view.targets[known] == k).astype(np.float64)
        found |= context.labelled.means({f"position_{k}_right": truth}, NO_ANSWER)
    return found


def of_labels(p: Predictions, view: View) -> Estimates:
    """Return macro-F1 and each class's recall, where the choices are the same labels for every question."""
    labels, known = p.metadata.get("labels"), view.labelled
    if not labels or len(labels) != view.mask.shape[1]:  # another program's labels may be of something else
        return {}
    n = int(known.sum())
    if not n:
        return {"macro_f1": Estimate(None, 0, reason=NO_ANSWER)}
    predicted, targets = view.pooled[known].argmax(axis=1), view.targets[known]
    found = {"macro_f1": Estimate(macro_f1(predicted, targets, len(labels)), n)}
    of_classes = recall(predicted, targets, len(labels))
    for label, count, value in zip(labels, of_classes.count.tolist(), of_classes.value.tolist(), strict=True):
        unknown = None if count else "this is the right answer of no question"
        found[f"recall_{label}"] = Estimate(value if count else None, count, reason=unknown)
    return found


def _calibration(
    answers: Floats, right: Floats, targets: NDArray[np.int64], mask: NDArray[np.bool_], context: Context
) -> Estimates:
    """Return the errors of calibration. A bootstrap's intervals would be wrong; the debiased one has its own."""
    n, sure, bins = len(right), confidence(answers), context.bins
    names = ("ece", "ece_null_mean", "ece_null_q95", "adaptive_ece", "smooth_ece", "debiased_ce")
    parts = ("brier_reliability", "brier_resolution", "brier_uncertainty")
    if not n:
        return {name: Estimate(None, 0, reason=NO_ANSWER) for name in (*names, *parts)}
    null = ece_null(sure, bins=bins, draws=context.resamples, seed=context.seed)
    values = (
        ece(sure, right, bins=bins),
        *null,
        adaptive_ece(sure, right, bins=bins),
        smooth_ece(sure, right),
        debiased_ce(sure, right, bins=bins),
    )
    of_brier = brier_decomposition(answers, targets, mask)
    split = (of_brier.reliability, of_brier.resolution, of_brier.uncertainty)
    found = {name: Estimate(value, n) for name, value in zip((*names, *parts), (*values, *split), strict=True)}
    # It takes questions for independent, which those of one passage are not.
    ends = None if context.about.clusters is not None else debiased_ce_interval(sure, right, bins=bins)
    if ends is not None:
        found["debiased_ce"] = replace(found["debiased_ce"], low=ends[0], high=ends[1])
    return found


def _error_correlation(view: View, context: Context) -> Estimates:
    """Return how far the members err on the same questions.

        mean over pairs of cov(e_i, e_j) / mean over members of var(e_i),   e_m in {0, 1} the error of member m

    0: each errs on its own, 1: all err together, and the ensemble gains nothing. For members of equal accuracy it is
    the mean of the pairs' correlations (Kuncheva and Whitaker 2003, their rho); unlike that mean it stays defined where
    one member makes no error.
    """
    name, known, M = "error_correlation", view.labelled, len(view.log_probs)
    if M < 2 or not known.any():
        return {name: Estimate(None, int(known.sum()), reason=NO_PAIR if M < 2 else NO_ANSWER)}
    errors = 1.0 - correct(view.probs[:, known], view.targets[known])
    together = errors.sum(axis=0)
    columns = np.vstack([errors, together * (together - 1.0)])  # the last: ordered pairs that err together

    def statistic(weights: Floats | None) -> Floats:
        weights = np.ones(columns.shape[1]) if weights is None else weights
        means = weights @ columns.T / weights.sum(axis=-1, keepdims=True)
        each, pairs = means[..., :-1], means[..., -1]
        squares = (each**2).sum(axis=-1)
        covariance = (pairs - (each.sum(axis=-1) ** 2 - squares)) / (M * (M - 1))
        variance = (each.sum(axis=-1) - squares) / M
        return (covariance / np.where(variance > 0.0, variance, np.nan))[..., None]

    found = context.ranked.statistics((name,), statistic)
    return {name: found[name] if found[name].value is not None else replace(found[name], reason=NO_SPREAD)}


def _selective(name: str, uncertainty: Floats | None, wrong: Floats, reason: str, context: Context) -> Estimates:
    """Return the measures of handing over by one uncertainty, and what that costs."""
    measures = tuple(f"{measure}_{name}" for measure in SELECTIVE)
    decisions = tuple(f"{measure}_{name}" for measure in DECISION)
    n = len(wrong)
    if uncertainty is None or not n:
        names = (*measures, *decisions) if context.costs else measures
        return {measure: Estimate(None, n, reason=reason) for measure in names}
    ranked = uncertainty

    def statistic(weights: Floats | None) -> Floats:
        found = selective_measures(ranked, wrong, weights)
        return np.stack([found[measure] for measure in SELECTIVE], axis=-1)

    undefined = NO_SUCCESS if wrong.all() else NO_ERROR
    found = {
        measure: estimate if estimate.value is not None else replace(estimate, reason=undefined)
        for measure, estimate in context.ranked.statistics(measures, statistic).items()
    }
    if context.costs is None:
        return found
    if n < 2:
        return found | {measure: Estimate(None, n, reason=ONE_QUESTION) for measure in decisions}
    error, handover = context.costs.error, context.costs.handover
    chosen = cheapest_threshold(ranked, wrong, error, handover)
    spent = cross_fitted_costs(ranked, wrong, error, handover, seed=context.seed)
    # Against the better of answering all and handing over all, which takes no threshold.
    without = wrong * error if chosen.cost_of_answering_all <= handover else np.full(n, handover)
    of_costs = context.labelled.means({decisions[2]: spent, decisions[3]: without - spent}, NO_ANSWER)
    if chosen.threshold == -np.inf:
        threshold = Estimate(None, n, reason="the cheapest is to hand over every question")
    else:
        # As the user sees it: answer at this confidence or above, at this entropy or below.
        threshold = Estimate(-chosen.threshold if name == "confidence" else chosen.threshold, n)
    return found | {decisions[0]: threshold, decisions[1]: Estimate(chosen.coverage, n), **of_costs}
