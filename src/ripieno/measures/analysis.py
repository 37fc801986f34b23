"""Every measure of a set of predictions, as rows of one long table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from ripieno.measures.about import About
from ripieno.measures.bootstrap import RESAMPLES
from ripieno.measures.calibration import BINS
from ripieno.measures.estimates import (
    NO_QUESTION,
    Context,
    Costs,
    Estimates,
    View,
    checks,
    of_ensemble,
    of_labels,
    of_members,
)
from ripieno.measures.replicates import over_replicates
from ripieno.measures.table import MEASURES, Estimate, Row
from ripieno.measures.temperature import apply_temperature, fit_temperature
from ripieno.measures.uncertainty import over_vocabulary, with_other
from ripieno.predictions import Predictions, concatenate

NO_FIT = "no calibration question has a known answer of positive probability"

FittedAs = tuple[str, int, int, tuple[int, ...]]
Temperatures = Mapping[FittedAs, Estimate]


def analyze(
    predictions: Sequence[Predictions],
    *,
    calibration: Sequence[Predictions] = (),
    about: Mapping[str, About] | None = None,
    costs: Costs | None = None,
    bins: int = BINS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Return every measure of every `Predictions`.

    For the ensemble: all measures, pooled by the mean of probabilities and, with several members, by the mean of logits
    as well. For each member and the mean over members: those that are means over questions, and ece. What needs the
    right choices is taken over the questions where they are known, the rest over all. Means, and at a method's last
    epoch error_correlation and measures that rank questions, carry bootstrap intervals (bootstrap.py); errors of
    calibration do not, since theirs would be wrong.

    Args:
        predictions: any data sets, methods and epochs. Several replicates of the same become one: their mean, with an
            interval that speaks of training again (scope "training").
        calibration: predictions on the calibration role. Where they hold the same method, epoch and replicate, one
            temperature is fitted to them (several data sets count as one), and the ensemble's measures after it are
            added as the variant "temperature", with T itself as the measure "temperature".
        about: by `Predictions.name`, what else is known of the questions.
        costs: of an error and of a hand-over; adds the decision_* measures.
        bins: of the errors of calibration.
        resamples: of the bootstrap, and redraws of the labels for ece_null.
        seed: of both; the same call gives the same rows.

    Returns:
        Rows in the order of `predictions`; within one: ensemble, members_mean, members, then the variants.
    """
    fits = fit_temperatures(calibration)
    groups: dict[tuple[str, str, str, int], list[list[Row]]] = {}
    last = last_epochs(predictions)
    for p in predictions:
        at_last = p.epoch == last[p.name, p.method]
        context = Context.of(p, about, at_last, costs, bins, resamples, seed)
        rows = _measured(p, context, fits.get(fitted_as(p)))
        groups.setdefault((p.dataset, p.split, p.method, p.epoch), []).append(rows)
    return [row for group in groups.values() for row in over_replicates(group)]


def _measured(p: Predictions, context: Context, fit: Estimate | None) -> list[Row]:
    """Return the rows of one `Predictions`."""
    view = View.of(p.log_probs, p.mask, p.targets)
    found = of_ensemble(view, context)
    if p.outside_mass is not None:
        found |= context.all.means({"outside_mass": p.outside_mass.mean(axis=0)}, NO_QUESTION)
    found |= checks(p, view, context) | of_labels(p, view)
    rows = _rows(p, "ensemble", found)
    drawn = len(set(p.members)) < len(p.members)  # a row says whose it is, and cannot say of which draw
    for who, estimates in of_members(p, view, context).items():
        if who == "members_mean" or not drawn:
            rows += _rows(p, who, estimates)
    if len(p.members) > 1:
        by_logits = View.of(p.log_probs, p.mask, p.targets, "logit")
        rows += _rows(p, "ensemble", of_ensemble(by_logits, context), pooling="logit")
    if fit is not None:
        rows += _rows(p, "ensemble", {"temperature": fit}, variant="temperature")
        if fit.value is not None:
            scaled = View.of(apply_temperature(p.log_probs, p.mask, fit.value), p.mask, p.targets)
            rows += _rows(p, "ensemble", of_ensemble(scaled, context), variant="temperature")
    if p.letter_log_probs is not None:
        log_probs = with_other(p.letter_log_probs)
        other = log_probs.shape[-1] - 1
        # A right choice beyond the fixed letters is "other".
        everything = View.of(log_probs, np.ones(log_probs.shape[1:], dtype=bool), np.minimum(p.targets, other))
        rows += _rows(p, "ensemble", of_ensemble(everything, context), variant="other")
    whole = None if p.top_tokens is None or p.top_log_probs is None else over_vocabulary(p.top_tokens, p.top_log_probs)
    if whole is not None:
        parts = {
            "predictive_entropy": whole.total,
            "expected_entropy": whole.aleatoric,
            "mutual_information": whole.epistemic,
        }
        rows += _rows(p, "ensemble", context.all.means(parts, NO_QUESTION), variant="vocabulary")
    return rows


def _rows(
    p: Predictions, who: str | int, estimates: Estimates, *, pooling: str = "prob", variant: str | None = None
) -> list[Row]:
    order = {measure: n for n, measure in enumerate(MEASURES)}
    names = sorted(estimates, key=lambda name: order.get(name, len(order)))  # recalls and positions come last
    return [
        Row(
            *(p.dataset, p.split, p.method, p.epoch, p.members[who] if isinstance(who, int) else who, name),
            **asdict(estimates[name]),
            pooling=pooling,
            variant=variant,
        )
        for name in names
    ]


def last_epochs(predictions: Sequence[Predictions]) -> dict[tuple[str, str], int]:
    """Return the last epoch that each data set was asked at, by its name and the method."""
    last: dict[tuple[str, str], int] = {}
    for p in predictions:
        last[p.name, p.method] = max(p.epoch, last.get((p.name, p.method), p.epoch))
    return last


def fitted_as(p: Predictions) -> FittedAs:
    """Return what shares a temperature: the same members at the same epoch, whatever they were asked."""
    return p.method, p.epoch, p.replicate, p.members


def fit_temperatures(parts: Sequence[Predictions]) -> Temperatures:
    """Fit a temperature to each method, epoch and replicate, over all its data sets."""
    groups: dict[FittedAs, list[Predictions]] = {}
    for p in parts:
        groups.setdefault(fitted_as(p), []).append(p)
    fits = {}
    for key, group in groups.items():
        joined = concatenate(group)
        n = int(joined.labelled.sum())
        try:
            fits[key] = Estimate(fit_temperature(joined.log_probs, joined.mask, joined.targets), n)
        except ValueError:
            fits[key] = Estimate(None, n, reason=NO_FIT)
    return fits
