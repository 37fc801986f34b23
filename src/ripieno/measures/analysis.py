"""Every measure of a set of predictions, as one long table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.accuracy import brier, correct, nll
from ripieno.measures.bootstrap import RESAMPLES, intervals
from ripieno.measures.calibration import apply_temperature, ece, ece_null, fit_temperature
from ripieno.measures.uncertainty import (
    Floats,
    confidence,
    decompose,
    disagreement,
    margin,
    normalised_entropy,
    pairwise_kl,
    pool,
    pool_log,
)
from ripieno.predictions import Predictions, concatenate

SCHEMA_VERSION = 1

# The order of rows: first what needs the right choices, then what does not.
MEASURES = (
    "accuracy",
    "nll",
    "brier",
    "ece",
    "ece_null_mean",
    "ece_null_q95",
    "mean_confidence",
    "predictive_entropy",
    "normalised_entropy",
    "expected_entropy",
    "mutual_information",
    "pairwise_kl",
    "disagreement",
    "margin",
    "outside_mass",
)

# A row's keys in JSON, in the contract's order.
ROW_KEYS = (
    *("dataset", "split", "method", "epoch", "who", "pooling", "variant", "against"),
    *("measure", "value", "low", "high", "scope", "n", "reason"),
)

# Why a value is null.
NO_QUESTION = "no questions"
NO_ANSWER = "no question has a known answer"
NO_PAIR = "one member makes no pair"
NO_FIT = "no calibration question has a known answer of positive probability"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table (the contract of `analyze --json` and report/metrics.json).

    Args:
        dataset, split, method, epoch: which predictions.
        who: "ensemble" (pooled), "members_mean" (the mean of the members' values), or a member's number.
        measure: its name in the contract; entropies, nll and divergences are in nats.
        value: None where the measure is not defined; `reason` then says why.
        n: the questions it was measured on; for the measure "temperature", those it was fitted to.
        low, high: 95% interval, None where there is none (a measure that is no mean, fewer than two questions).
        pooling: how the members' predictions were pooled: "prob", the mean of probabilities.
        variant: None for the predictions as they are; "temperature" after temperature scaling.
        against: the data set that this one is compared with, where the measure compares.
        scope: what the interval speaks of: other questions, for these members.
        reason: why value is None.
    """

    dataset: str
    split: str
    method: str
    epoch: int
    who: str | int
    measure: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    pooling: str = "prob"
    variant: str | None = None
    against: str | None = None
    scope: str = "questions"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference `first - second` of a measure on the same questions; negative: `first` is lower.

    Args:
        dataset, split: which questions.
        measure: accuracy, nll or brier.
        first, second: what is compared: the method's name ("ensemble"), "uniform guess", "base", "mean member", or
            one of them with ", temperature-scaled".
        difference: mean of first - second.
        low, high: its paired 95% interval.
        n: the questions that both answered.
    """

    dataset: str
    split: str
    measure: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What a row says of its measure."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    reason: str | None = None


# What is measured of whom: a member is its position here (its number may repeat), and becomes its number in a row.
_Key = tuple[str | int, str]
_Losses = dict[str, Floats]


def analyze(
    predictions: Sequence[Predictions],
    *,
    calibration: Sequence[Predictions] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Return every measure of every `Predictions`.

    For the ensemble: all measures. For each member and the mean over members: accuracy, nll, brier, ece and
    mean_confidence. Those that need the right choices are taken over the questions where they are known, the others
    over all. Means carry bootstrap intervals (bootstrap.py).

    Args:
        predictions: any data sets, methods and epochs.
        calibration: predictions on the calibration role. Where they hold the same method, epoch and replicate, one
            temperature is fitted to them (several data sets count as one), and the ensemble's measures after it are
            added as the variant "temperature", with T itself as the measure "temperature".
        resamples: of the bootstrap, and redraws of the labels for ece_null.
        seed: of both; the same call gives the same rows.

    Returns:
        Rows in the order of `predictions`; within one: ensemble, members_mean, members, then the variants.
    """
    fits = _fit_temperatures(calibration)
    rows = []
    for p in predictions:
        rows += _rows(p, None, _estimates(p, p.log_probs, members=True, resamples=resamples, seed=seed))
        fit = fits.get(_fitted_as(p))
        if fit is None:
            continue
        rows += _rows(p, "temperature", {("ensemble", "temperature"): fit})
        if fit.value is not None:
            scaled = apply_temperature(p.log_probs, p.mask, fit.value)
            rows += _rows(p, "temperature", _estimates(p, scaled, members=False, resamples=resamples, seed=seed))
    return rows


def compare_with_references(
    predictions: Sequence[Predictions],
    *,
    calibration: Sequence[Predictions] = (),
    epoch: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the ensemble with what it has to beat, on the same questions, by paired bootstrap intervals.

    Against a uniform guess (nll = ln K, brier = 1 - 1/K, accuracy = 1/K, each question its own K), the base as it is,
    the base after temperature scaling, and the mean member. The last is no evidence for the ensemble: the loss of a
    mean is never above the mean of the losses, for nll and brier alike (convexity). The ensemble with a temperature of
    its own is compared with the same, and with itself without. A temperature moves no member's argmax, so accuracy is
    left out there.

    Args:
        predictions: of the data sets to compare on, the base's among them (method "base").
        calibration: as in `analyze`; without it nothing is temperature-scaled.
        epoch: which one of each other method; the last of each data set and split by default.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A comparison a data set, method, pair and measure. Left out: references that are not given, fewer than two
        labelled questions in common, and losses that are infinite (a right choice of probability 0).
    """
    fits = _fit_temperatures(calibration)
    bases = {(p.dataset, p.split, p.replicate): p for p in predictions if p.method == "base"}
    comparisons = []
    for p in _of_epoch(predictions, epoch):
        base = bases.get((p.dataset, p.split, p.replicate))
        p, base = _in_common(p, base)
        n = len(p.question_ids)
        if n < 2:
            continue
        losses = _contenders(p, base, fits)
        ensemble, scaled, scaled_base = p.method, f"{p.method}, temperature-scaled", "base, temperature-scaled"
        pairs = [(ensemble, other) for other in ("uniform guess", "base", scaled_base, "mean member")]
        pairs += [(scaled, other) for other in ("uniform guess", scaled_base, ensemble)]
        differences = {
            (measure, first, second): losses[first][measure] - losses[second][measure]
            for first, second in pairs
            if first in losses and second in losses
            for measure in losses[first].keys() & losses[second].keys()
            if np.isfinite(losses[first][measure]).all() and np.isfinite(losses[second][measure]).all()
        }
        order = sorted(differences, key=lambda key: (pairs.index(key[1:]), MEASURES.index(key[0])))
        values = np.array([differences[key] for key in order])
        low, high = intervals(values, resamples=resamples, seed=seed)
        for i, (measure, first, second) in enumerate(order):
            mean = float(values[i].mean())
            comparisons.append(
                Comparison(p.dataset, p.split, measure, first, second, mean, float(low[i]), float(high[i]), n)
            )
    return comparisons


def to_json(rows: Sequence[Row], comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Return the object that `analyze --json` prints and report/metrics.json holds, keys in the contract's order."""
    return {
        "schema": SCHEMA_VERSION,
        "rows": [{key: getattr(row, key) for key in ROW_KEYS} for row in rows],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }


def _rows(p: Predictions, variant: str | None, estimates: dict[_Key, _Estimate]) -> list[Row]:
    return [
        Row(
            dataset=p.dataset,
            split=p.split,
            method=p.method,
            epoch=p.epoch,
            who=p.members[who] if isinstance(who, int) else who,
            measure=measure,
            variant=variant,
            **asdict(estimate),
        )
        for (who, measure), estimate in estimates.items()
    ]


def _estimates(p: Predictions, log_probs: Floats, *, members: bool, resamples: int, seed: int) -> dict[_Key, _Estimate]:
    """Measure `log_probs` [M, N, K]: p's own, or p's after a temperature; the members one by one only if asked to."""
    M = len(p.members)
    probs, pooled = np.exp(log_probs), pool(np.exp(log_probs))
    parts = decompose(probs)
    everywhere: dict[_Key, Floats] = {
        ("ensemble", "mean_confidence"): confidence(pooled),
        ("ensemble", "predictive_entropy"): parts.total,
        ("ensemble", "normalised_entropy"): normalised_entropy(pooled, p.mask.sum(axis=1)),
        ("ensemble", "expected_entropy"): parts.aleatoric,
        ("ensemble", "mutual_information"): parts.epistemic,
        ("ensemble", "disagreement"): disagreement(probs),
        ("ensemble", "margin"): margin(pooled),
    }
    if M > 1:
        everywhere["ensemble", "pairwise_kl"] = pairwise_kl(log_probs)
    if p.outside_mass is not None:
        everywhere["ensemble", "outside_mass"] = p.outside_mass.mean(axis=0)

    targets = p.targets[p.labelled]
    n = len(targets)
    log_probs, pooled = log_probs[:, p.labelled], pooled[p.labelled]
    losses = _pooled_losses(log_probs, targets)
    where_known: dict[_Key, Floats] = {("ensemble", name): values for name, values in losses.items()}
    errors: dict[_Key, float] = {}
    if n:
        errors["ensemble", "ece"] = ece(confidence(pooled), losses["accuracy"])
        null = ece_null(confidence(pooled), draws=resamples, seed=seed)
        errors["ensemble", "ece_null_mean"], errors["ensemble", "ece_null_q95"] = null

    if members:
        confidences = confidence(probs)
        everywhere |= _of_each("mean_confidence", confidences)
        losses = _member_losses(log_probs, targets)
        for name, values in losses.items():
            where_known |= _of_each(name, values)
        if n:
            each = [ece(confidences[m, p.labelled], losses["accuracy"][m]) for m in range(M)]
            errors["members_mean", "ece"] = float(np.mean(each))
            errors |= {(m, "ece"): error for m, error in enumerate(each)}

    found = _means(everywhere, NO_QUESTION, resamples, seed) | _means(where_known, NO_ANSWER, resamples, seed)
    found |= {key: _Estimate(error, n) for key, error in errors.items()}
    if M == 1:
        found["ensemble", "pairwise_kl"] = _Estimate(None, len(p.question_ids), reason=NO_PAIR)
    if n == 0:
        found |= {
            (who, name): _Estimate(None, 0, reason=NO_ANSWER)
            for who in {who for who, _ in found}
            for name in (("ece", "ece_null_mean", "ece_null_q95") if who == "ensemble" else ("ece",))
        }
    whos: list[str | int] = ["ensemble", "members_mean", *range(M)]
    return {(who, name): found[who, name] for who in whos for name in MEASURES if (who, name) in found}


def _of_each(measure: str, values: Floats) -> dict[_Key, Floats]:
    """Return a measure's values [M, N] as those of each member, and their mean over members."""
    return {("members_mean", measure): values.mean(axis=0)} | {(m, measure): v for m, v in enumerate(values)}


def _losses(probs: Floats, log_probs: Floats, targets: NDArray[np.int64]) -> _Losses:
    """Return accuracy, nll and brier of each question: [..., N] from one prediction [..., N, K] in both forms."""
    return {"accuracy": correct(probs, targets), "nll": nll(log_probs, targets), "brier": brier(probs, targets)}


def _member_losses(log_probs: Floats, targets: NDArray[np.int64]) -> _Losses:
    """Return the losses [M, N] of the members, each on its own."""
    return _losses(np.exp(log_probs), log_probs, targets)


def _pooled_losses(log_probs: Floats, targets: NDArray[np.int64]) -> _Losses:
    """Return the losses [N] of the ensemble. Its answer is that of `pool`: `pool_log` may break a tie otherwise."""
    return _losses(pool(np.exp(log_probs)), pool_log(log_probs), targets)


def _means(columns: dict[_Key, Floats], nothing: str, resamples: int, seed: int) -> dict[_Key, _Estimate]:
    """Estimate the mean of each column [N], all on the same questions; `nothing` is the reason where N is 0."""
    N = len(next(iter(columns.values())))
    if N == 0:
        return {key: _Estimate(None, 0, reason=nothing) for key in columns}
    estimates = {}
    for key, values in columns.items():
        infinite = int(np.isinf(values).sum())
        if infinite:
            reason = f"infinite: a probability is exactly 0 on {infinite} of {N} questions"
            estimates[key] = _Estimate(None, N, reason=reason)
        else:
            estimates[key] = _Estimate(float(values.mean()), N)
    finite = [key for key, estimate in estimates.items() if estimate.value is not None]
    # Drawing one question again and again says nothing of other questions.
    if N > 1 and finite:
        low, high = intervals(np.array([columns[key] for key in finite]), resamples=resamples, seed=seed)
        for i, key in enumerate(finite):
            estimates[key] = replace(estimates[key], low=float(low[i]), high=float(high[i]))
    return estimates


def _fitted_as(p: Predictions) -> tuple[str, int, int]:
    """Return what shares a temperature: the same members at the same epoch, whatever they were asked."""
    return p.method, p.epoch, p.replicate


def _fit_temperatures(parts: Sequence[Predictions]) -> dict[tuple[str, int, int], _Estimate]:
    """Fit a temperature to each method, epoch and replicate, over all its data sets."""
    groups: dict[tuple[str, int, int], list[Predictions]] = {}
    for p in parts:
        groups.setdefault(_fitted_as(p), []).append(p)
    fits = {}
    for key, group in groups.items():
        joined = concatenate(group)
        n = int(joined.labelled.sum())
        try:
            fits[key] = _Estimate(fit_temperature(joined.log_probs, joined.mask, joined.targets), n)
        except ValueError:
            fits[key] = _Estimate(None, n, reason=NO_FIT)
    return fits


def _of_epoch(predictions: Sequence[Predictions], epoch: int | None) -> list[Predictions]:
    """Return the predictions to compare: of each data set and method but the base, one epoch (None: the last)."""
    chosen: dict[tuple[str, str, str, int], Predictions] = {}
    for p in predictions:
        key = (p.dataset, p.split, p.method, p.replicate)
        if p.method == "base" or (epoch is not None and p.epoch != epoch):
            continue
        if key not in chosen or p.epoch > chosen[key].epoch:
            chosen[key] = p
    return list(chosen.values())


def _in_common(p: Predictions, base: Predictions | None) -> tuple[Predictions, Predictions | None]:
    """Return both on the labelled questions that both answered, in the order of the first."""
    if base is None:
        return p.select(p.labelled), None
    position = {question: n for n, question in enumerate(base.question_ids)}
    answered = np.array([question in position for question in p.question_ids], dtype=bool)
    p = p.select(p.labelled & answered)
    return p, base.select(np.array([position[question] for question in p.question_ids], dtype=np.int64))


def _contenders(
    p: Predictions, base: Predictions | None, fits: dict[tuple[str, int, int], _Estimate]
) -> dict[str, _Losses]:
    """Return the losses of the ensemble and of each reference, all on p's questions."""
    sizes = p.mask.sum(axis=1).astype(np.float64)
    members = _member_losses(p.log_probs, p.targets)
    contenders = {
        "uniform guess": {"accuracy": 1.0 / sizes, "nll": np.log(sizes), "brier": 1.0 - 1.0 / sizes},
        "mean member": {measure: values.mean(axis=0) for measure, values in members.items()},
    }
    for name, one in ((p.method, p), ("base", base)):
        if one is None:
            continue
        contenders[name] = _pooled_losses(one.log_probs, p.targets)
        fit = fits.get(_fitted_as(one))
        if fit is not None and fit.value is not None:
            losses = _pooled_losses(apply_temperature(one.log_probs, one.mask, fit.value), p.targets)
            contenders[f"{name}, temperature-scaled"] = {"nll": losses["nll"], "brier": losses["brier"]}
    return contenders
