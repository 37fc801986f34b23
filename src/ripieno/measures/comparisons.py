"""Whether one answerer is better than another on the same questions, by paired resamples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.about import About, about_of
from ripieno.measures.accuracy import brier, correct, nll
from ripieno.measures.analysis import Temperatures, fit_temperatures, fitted_as
from ripieno.measures.bootstrap import (
    RESAMPLES,
    Counts,
    draw,
    holm,
    p_value,
    percentiles,
    resampled,
    resampled_means,
    units,
)
from ripieno.measures.selective import selective_measures
from ripieno.measures.table import Comparison
from ripieno.measures.temperature import apply_temperature
from ripieno.measures.uncertainty import Floats, confidence, pool, pool_log
from ripieno.predictions import BASE, Predictions

UNIFORM, MEAN_MEMBER, SCALED = "uniform guess", "mean member", ", temperature-scaled"
_ROW = re.compile(r"(?P<method>[^@:]+)(?:@(?P<epoch>\d+))?(?::(?P<member>\d+))?")
RANKING = ("aurc", "error_auroc")  # by confidence; these are compared as well, where a question has one


@dataclass(frozen=True)
class Answerer:
    """Somebody's answers to N questions, as the comparisons see them.

    Args:
        losses: accuracy, nll, brier: [N] each.
        uncertainty: [N], what it would hand over by; None where it has none.
        scaled: after temperature scaling, which moves no member's argmax, and seldom the ensemble's.
    """

    losses: Mapping[str, Floats]
    uncertainty: Floats | None = None
    scaled: bool = False

    @classmethod
    def pooled(cls, log_probs: Floats, targets: NDArray[np.int64], *, scaled: bool = False) -> Answerer:
        """An ensemble, from its members' log-probabilities [M, N, K]."""
        probs = pool(np.exp(log_probs))
        losses = {
            "accuracy": correct(probs, targets),
            "nll": nll(pool_log(log_probs), targets),
            "brier": brier(probs, targets),
        }
        return cls(losses, -confidence(probs), scaled)

    @classmethod
    def mean_member(cls, log_probs: Floats, targets: NDArray[np.int64]) -> Answerer:
        """What to expect of one of the members [M, N, K]: the mean of their losses."""
        probs = np.exp(log_probs)
        each = {"accuracy": correct(probs, targets), "nll": nll(log_probs, targets), "brier": brier(probs, targets)}
        return cls({measure: values.mean(axis=0) for measure, values in each.items()})

    @classmethod
    def uniform(cls, sizes: NDArray[np.int64]) -> Answerer:
        """A guess among K choices: accuracy 1/K, nll ln K, brier 1 - 1/K, each question its own K."""
        return cls({"accuracy": 1.0 / sizes, "nll": np.log(sizes), "brier": 1.0 - 1.0 / sizes})

    def ranking(self, counts: Counts) -> tuple[Floats, Floats] | None:
        """Return the measures that rank questions, [R], and their resamples [B, R]; None where it has none."""
        if self.uncertainty is None:
            return None
        wrong, uncertainty = 1.0 - self.losses["accuracy"], self.uncertainty

        def statistic(weights: Floats | None) -> Floats:
            found = selective_measures(uncertainty, wrong, weights)
            return np.stack([found[measure] for measure in RANKING], axis=-1)

        return statistic(None), resampled(statistic, counts)


def compare(
    answerers: Mapping[str, Answerer],
    pairs: Sequence[tuple[str, str]],
    dataset: str,
    split: str,
    *,
    clusters: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare answerers of the same N questions in pairs; all share the same resamples.

    Args:
        answerers: by the name that comparisons carry.
        pairs: names of the first and the second of each; pairs of whom one is missing are left out.
        dataset, split: of the questions.
        clusters: [N], a label a question; those of one label are drawn together.
        resamples, seed: of the bootstrap.

    Returns:
        A comparison a pair and measure, Holm-corrected over all of them; none for fewer than two questions (with
        clusters: labels). Left out: losses that are infinite (a right choice of probability 0), and rankings that are
        not defined (all right).
    """
    N = len(next(iter(answerers.values())).losses["accuracy"])
    drawn = units(N, clusters)
    if drawn < 2:
        return []
    counts = draw(N, clusters=clusters, resamples=resamples, seed=seed)
    pairs = [(first, second) for first, second in pairs if first in answerers and second in answerers]
    ranked = {name: answerers[name].ranking(counts) for name in {name for pair in pairs for name in pair}}
    found = []
    for first, second in pairs:
        a, b = answerers[first], answerers[second]
        # A temperature moves no member's argmax, and seldom the ensemble's: accuracy would say it all twice.
        names = [measure for measure in a.losses if measure != "accuracy" or not (a.scaled or b.scaled)]
        names = [m for m in names if np.isfinite(a.losses[m]).all() and np.isfinite(b.losses[m]).all()]
        of_questions = np.array([a.losses[m] - b.losses[m] for m in names]).reshape(len(names), N)
        values, draws = list(of_questions.mean(axis=1)), list(resampled_means(of_questions, counts).T)
        by_first, by_second = ranked[first], ranked[second]
        if by_first is not None and by_second is not None:
            (at_a, of_a), (at_b, of_b) = by_first, by_second
            for r, measure in enumerate(RANKING):
                if not np.isnan(at_a[r] - at_b[r]):
                    names.append(f"{measure}_confidence")
                    values.append(at_a[r] - at_b[r])
                    draws.append(of_a[:, r] - of_b[:, r])
        for measure, value, resamples_of in zip(names, values, draws, strict=True):
            [low], [high] = percentiles(resamples_of[:, None])
            if not np.isnan(low):
                [p] = p_value(np.array([value]), resamples_of[:, None], drawn)
                ends = (float(value), float(low), float(high))
                found.append(Comparison(dataset, split, measure, first, second, *ends, N, float(p), 1.0))
    return corrected(found)


def compare_with_references(
    predictions: Sequence[Predictions],
    *,
    calibration: Sequence[Predictions] = (),
    about: Mapping[str, About] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the ensemble, at its last epoch, with what it has to beat, on the same questions.

    Against a uniform guess (nll = ln K, brier = 1 - 1/K, accuracy = 1/K, each question its own K), the base as it is,
    the base after temperature scaling, and the mean member. The last is no evidence for the ensemble: the loss of a
    mean is never above the mean of the losses, for nll and brier alike (convexity). The ensemble with a temperature of
    its own is compared with the same, and with itself without; accuracy, which a temperature hardly moves, is left out
    there. Where several methods answered a set, each is compared with each.

    Args:
        predictions: of the data sets to compare on, the base's among them (method "base").
        calibration: as in `analyze`; without it nothing is temperature-scaled.
        about: by `Predictions.name`, for the questions' passages.
        resamples, seed: of the bootstrap.

    Returns:
        As `compare`, by data set and method, Holm-corrected over all of a data set. Left out: references that are not
        given.
    """
    fits = fit_temperatures(calibration)
    bases = {(p.dataset, p.split, p.replicate): p for p in predictions if p.method == BASE}
    comparisons = []
    chosen = _at_last(predictions)
    for p in chosen:
        first, base = in_common(p, bases.get((p.dataset, p.split, p.replicate), p))
        if not first.question_ids:
            continue
        answerers = {
            UNIFORM: Answerer.uniform(first.mask.sum(axis=1)),
            MEAN_MEMBER: Answerer.mean_member(first.log_probs, first.targets),
            **_with_temperature(first, first.targets, fits),
        }
        if (p.dataset, p.split, p.replicate) in bases:
            answerers |= _with_temperature(base, first.targets, fits)
        ensemble = p.method
        pairs = [(ensemble, other) for other in (UNIFORM, BASE, f"{BASE}{SCALED}", MEAN_MEMBER)]
        pairs += [(f"{ensemble}{SCALED}", other) for other in (UNIFORM, f"{BASE}{SCALED}", ensemble)]
        clusters = about_of(about, first).clusters
        comparisons += compare(answerers, pairs, p.dataset, p.split, clusters=clusters, resamples=resamples, seed=seed)
    for p, q in combinations(chosen, 2):
        if p.name == q.name:
            names = (p.method, q.method)
            comparisons += compare_runs([p], [q], names, about=about, resamples=resamples, seed=seed)
    return corrected(comparisons)


def compare_runs(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    names: tuple[str, str],
    *,
    about: Mapping[str, About] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare the ensembles of two runs, or any two predictions, at their last epochs, on what both answered.

    Args:
        first, second: predictions of the two runs.
        names: what the comparisons call them.
        about: by `Predictions.name`, for the questions' passages.
        resamples, seed: of the bootstrap.

    Returns:
        As `compare`, a pair a data set that both have.
    """
    others = {(p.dataset, p.split): p for p in _at_last(second)}
    found = []
    for p in _at_last(first):
        if (p.dataset, p.split) in others:
            found += _compare_two(names, p, others[p.dataset, p.split], about, resamples, seed)
    return corrected(found)


def compare_rows(
    predictions: Sequence[Predictions],
    pairs: Sequence[tuple[str, str]],
    *,
    about: Mapping[str, About] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Comparison]:
    """Compare any two ensembles, members or epochs of a table, on every data set that both answered.

    Args:
        predictions: of any data sets, methods and epochs.
        pairs: names of the first and the second of each: METHOD[@EPOCH][:MEMBER], such as ("ensemble@2",
            "ensemble@1") or ("ensemble:0", "base"). Without an epoch the method's last, without a member all.
        about: by `Predictions.name`, for the questions' passages.
        resamples, seed: of the bootstrap.

    Returns:
        As `compare`, Holm-corrected over all of a data set.

    Raises:
        ValueError: a name is not of that form, or there is nothing of that name.
    """
    named = {name: rows_named(predictions, name) for pair in pairs for name in pair}
    found = []
    for first, second in pairs:
        for where, p in named[first].items():
            if where in named[second]:
                found += _compare_two((first, second), p, named[second][where], about, resamples, seed)
    return corrected(found)


def _compare_two(
    names: tuple[str, str],
    first: Predictions,
    second: Predictions,
    about: Mapping[str, About] | None,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """Compare two ensembles on the questions that both answered; none where there are none."""
    a, b = in_common(first, second)
    if not a.question_ids:
        return []
    answerers = {name: Answerer.pooled(of.log_probs, a.targets) for name, of in zip(names, (a, b), strict=True)}
    clusters = about_of(about, a).clusters
    return compare(answerers, [names], a.dataset, a.split, clusters=clusters, resamples=resamples, seed=seed)


def rows_named(predictions: Sequence[Predictions], name: str) -> dict[tuple[str, str], Predictions]:
    """Return what a name of `compare_rows` stands for, by data set and split.

    Raises:
        ValueError: the name is not of that form, or there is nothing of that name.
    """
    match = _ROW.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r}: write METHOD[@EPOCH][:MEMBER], such as ensemble@2:0")
    found: dict[tuple[str, str], Predictions] = {}
    for p in sorted(predictions, key=lambda p: (-p.replicate, p.epoch)):  # the last one stays
        if p.method == match["method"] and (not match["epoch"] or p.epoch == int(match["epoch"])):
            found[p.dataset, p.split] = p
    if match["member"]:
        found = {where: _of_member(p, int(match["member"])) for where, p in found.items()}
        found = {where: p for where, p in found.items() if p.members}
    if not found:
        known = ", ".join(dict.fromkeys(f"{p.method}@{p.epoch}" for p in predictions))
        raise ValueError(f"{name!r}: there is no such row; there are {known}")
    return found


def _of_member(p: Predictions, number: int) -> Predictions:
    """Return what one member answered: several rows, where they are draws from it; none, where it left off."""
    rows = [m for m, member in enumerate(p.members) if member == number]
    return replace(p, log_probs=p.log_probs[rows], members=(number,) * len(rows))


def in_common(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Return both on the labelled questions that both answered, in the order of the first.

    The same id with another number of choices, or another right one, is another question.
    """
    position = {question: n for n, question in enumerate(second.question_ids)}
    sizes, others = first.mask.sum(axis=1), second.mask.sum(axis=1)
    answered = np.zeros(len(first.question_ids), dtype=bool)
    for n, question in enumerate(first.question_ids):
        m = position.get(question)
        if m is not None:
            answered[n] = sizes[n] == others[m] and second.targets[m] in (-1, first.targets[n])
    first = first.select(first.labelled & answered)
    return first, second.select(np.array([position[question] for question in first.question_ids], dtype=np.int64))


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the same with p_holm over all of a data set, whatever methods they are of."""
    of_sets: dict[tuple[str, str], list[int]] = {}
    for i, c in enumerate(comparisons):
        of_sets.setdefault((c.dataset, c.split), []).append(i)
    adjusted = np.empty(len(comparisons))
    for index in of_sets.values():
        adjusted[index] = holm(np.array([comparisons[i].p for i in index]))
    return [replace(c, p_holm=float(p)) for c, p in zip(comparisons, adjusted, strict=True)]


def _with_temperature(p: Predictions, targets: NDArray[np.int64], fits: Temperatures) -> dict[str, Answerer]:
    found = {p.method: Answerer.pooled(p.log_probs, targets)}
    fit = fits.get(fitted_as(p))
    if fit is not None and fit.value is not None:
        scaled = apply_temperature(p.log_probs, p.mask, fit.value)
        found[f"{p.method}{SCALED}"] = Answerer.pooled(scaled, targets, scaled=True)
    return found


def _at_last(predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return the predictions to compare: of each data set and method but the base, the last epoch.

    Of several replicates the first counts: paired tests speak of these members, not of training again.
    """
    chosen: dict[tuple[str, str, str], Predictions] = {}
    for p in sorted(predictions, key=lambda p: p.replicate):
        key = (p.dataset, p.split, p.method)
        if p.method == BASE:
            continue
        if key not in chosen or (p.replicate == chosen[key].replicate and p.epoch > chosen[key].epoch):
            chosen[key] = p
    order = {id(p): n for n, p in enumerate(predictions)}
    return sorted(chosen.values(), key=lambda p: order[id(p)])
