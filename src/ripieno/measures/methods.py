"""Ways to be uncertain about one adapter, side by side: one long table, and which of its differences hold.

Everything was trained R times, from other seeds, and every row answered the same N questions. A measure's value is the
mean of its R values, theta = 1/R sum_r theta_r, and its interval speaks of training again *and* of other questions:

    theta +- t_{nu, .975} sqrt(V),   V = V_R + V_N,   V_R = s^2 / R,   nu = V^2 / (V_R^2 / (R - 1) + V_N^2 / (N - 1))

s is the standard deviation of the R values (divisor R - 1); V_N the variance of theta over resampled questions, the
same draws for every row and replicate, so that differences are paired in both. With theta_r a mean over questions of
mu + a_r + b_n + e_rn,

    var theta = var(a)/R + var(b)/N + var(e)/(R N),   E V_R = var(a)/R + var(e)/(R N),   E V_N = var(b)/N + var(e)/(R N)

so V counts what a seed does to a single question twice: it is too large by var(e)/(R N) on average, never too small. A
percentile interval of crossed resamples (Owen 2007, "The pigeonhole bootstrap") would count that three times, and yet
with R = 5 be too narrow where seeds matter: the variance of a resampled mean of R values is (R - 1)/R of V_R, and 2.8
of its roots (t, 4 degrees of freedom) are needed where it takes 2. nu is Satterthwaite's (1946), rounded down. Limits:
it takes the R values for normal; an interval is cut where the measure ends; questions count as
independent; temperatures and settings are taken as they were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ripieno.comparison import Answers, Compared, Index, MethodRow
from ripieno.measures.about import About
from ripieno.measures.accuracy import brier, correct, nll
from ripieno.measures.analysis import NO_FIT
from ripieno.measures.bootstrap import MOST_UNDEFINED, RESAMPLES, Counts, draw, holm, resampled
from ripieno.measures.calibration import ece, ece_null
from ripieno.measures.estimates import NO_ANSWER, NO_ERROR, NO_PAIR, NO_SUCCESS, TURNS_NEGATIVE, View, infinite
from ripieno.measures.ood import k_matched, of_prompt, with_distances
from ripieno.measures.ranking import auroc
from ripieno.measures.replicates import t_p_value, t_quantile
from ripieno.measures.table import BASELINES, Estimate
from ripieno.measures.temperature import apply_temperature, fit_temperature
from ripieno.measures.uncertainty import Floats, confidence, decompose, entropy, pool_logits
from ripieno.predictions import Predictions, concatenate

SIGNIFICANT = 0.05
FEWEST_REPLICATES = 5  # below, the table describes these trainings and claims nothing
OOD = ("ood_auroc_entropy", "ood_auroc_mi")
# What knows nothing of the answers; without their number of choices, as both sets have as many.
TRIVIAL = tuple(name for name in BASELINES if name != "choices")
HIGHER_IS_BETTER = ("accuracy", "error_auroc_entropy", "error_auroc_mi", *OOD)
LOWER_IS_BETTER = ("nll", "brier")
ROUNDING = 1e-12  # of means of a few thousand numbers around 1
NO_CALIBRATION = "no calibration questions were named"

# A measure for many resamples at once, weights [b, N] to [b]; or why it is not defined.
Statistic = Callable[[Floats], Floats] | str


@dataclass(frozen=True, slots=True)
class Difference:
    """The row less another one, paired in replicates and questions, with its 95% interval and corrected p-value."""

    value: float
    low: float
    high: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table.

    Args:
        row: the row's name.
        dataset: a data set's name, or those of all test sets joined by " + ", pooled as one.
        measure: its name in the contract of `analyze`; ood_auroc_* tell the data set from the pooled test sets.
        variant: None for the predictions as they are, "temperature" after the row's own temperature.
        value: the mean over replicates; None where it is not defined in one of them, and `reason` says why.
        n: the questions it was measured on (of both sets, where two are compared).
        low, high: 95% interval; None where there is none (an ECE has no honest one).
        best: whether it is the best of its column; None where the measure has no better and worse, or is not tested.
        to_best: its difference to the best row, None for that row; p_holm over all rows of the column. The best is
            found by the same numbers, so a low p-value says that the row is not the best, and no more (Hsu 1984): the
            truly best row keeps its mark in 95% of tables at least. Of ten rows that are exactly equal, one or another
            loses it in up to a fifth of them.
        to_reference: its difference to the reference, None for that row; p_holm over all rows of the column.
        reason: why value is None.
    """

    row: str
    dataset: str
    measure: str
    variant: str | None
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    best: bool | None = None
    to_best: Difference | None = None
    to_reference: Difference | None = None
    reason: str | None = None

    @property
    def not_worse(self) -> bool | None:
        """Whether it is the best, or not significantly worse than that; None where that was not tested."""
        if self.best:
            return True
        return None if self.to_best is None else self.to_best.p_holm >= SIGNIFICANT


@dataclass(frozen=True, slots=True)
class Ratios:
    """What a row cost, as multiples of the reference's; None where that cost nothing."""

    training: float | None
    evaluation: float | None
    stored: float | None


@dataclass(frozen=True)
class MethodsTable:
    """Every number of every row.

    Args:
        index: what was compared.
        domain: the name of the pooled test sets in cells.
        cells: of the rows that were not refused; column by column.
        ratios: by the row's name, refused ones among them.
        trivial: by foreign set and name in `TRIVIAL`, the AUROC of telling it from the pooled test sets without any
            answer, by the prompts with all choices. Nothing of it was trained, so its interval speaks of other
            questions alone. Empty where the folder holds no features.
    """

    index: Index
    domain: str
    cells: tuple[Cell, ...]
    ratios: Mapping[str, Ratios]
    trivial: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)

    @property
    def descriptive(self) -> bool:
        """Whether there are too few replicates to say more than what these trainings gave."""
        return self.index.replicates < FEWEST_REPLICATES

    @property
    def reference(self) -> MethodRow:
        """The row that others are compared with."""
        return _reference(self.index)

    def column(self, measure: str, variant: str | None, dataset: str | None = None) -> dict[str, Cell]:
        """Return a column's cells by row; of the pooled test sets where no data set is named."""
        wanted = (self.domain if dataset is None else dataset, measure, variant)
        return {cell.row: cell for cell in self.cells if (cell.dataset, cell.measure, cell.variant) == wanted}


@dataclass(frozen=True)
class _Measured:
    """A number before it is compared: its values in the replicates [R], and of resampled questions [B] if it has any.

    The latter are means over the replicates. `reason` is why it is not defined.
    """

    n: int
    values: Floats | None = None
    draws: Floats | None = None
    reason: str | None = None


_Key = tuple[str, str, str | None]  # data set, measure, variant


def tabulate(compared: Compared, *, resamples: int = RESAMPLES, seed: int = 0) -> MethodsTable:
    """Measure every row in and out of domain, as it is and after its own temperature, and compare the rows.

    The temperature is fitted in each replicate, to the row's own answers to the calibration questions: to the NLL of
    its pooled prediction, or (`tuned` "member") for each member to its own. Sets are told apart with as many choices in
    both (`ood.k_matched`). Mutual information grows with the number of answers, so a row's is the mean over its groups
    of as many as an ensemble has members (`Index.members`), one after the other; fewer stay as they are.

    Args:
        compared: the folder's content.
        resamples: of the questions.
        seed: of the draws.
    """
    index = compared.index
    domain = " + ".join(index.test)
    columns: dict[_Key, dict[str, _Measured]] = {}
    for row in index.answered:
        for key, measured in _measured(index, domain, row, compared.answers[row.slug], resamples, seed).items():
            columns.setdefault(key, {})[row.name] = measured
    reference = _reference(index)
    cells = [cell for key, column in columns.items() for cell in _compared(key, column, reference.name)]
    ratios = {row.name: _ratios(row, reference) for row in index.rows}
    return MethodsTable(index, domain, tuple(cells), ratios, _trivial(compared, resamples, seed))


def standard_error(values: Floats, draws: Floats, questions: int) -> tuple[float, int]:
    """Return the standard error of a mean over R replicates, and its degrees of freedom (see the module).

    Args:
        values: [R], of the replicates. For R = 1 the error speaks of other questions alone.
        draws: [B], the mean over replicates of resampled questions; NaN where it is not defined.
        questions: N, 2 at least.
    """
    R = len(values)
    over_replicates = float(values.var(ddof=1)) / R if R > 1 else 0.0
    over_questions = float(np.nanvar(draws)) * questions / (questions - 1)  # a bootstrap's has the divisor N
    whole = over_replicates + over_questions
    if whole == 0.0:
        return 0.0, max(1, R - 1)
    freedom = whole**2 / (over_replicates**2 / max(1, R - 1) + over_questions**2 / (questions - 1))
    return math.sqrt(whole), max(1, math.floor(freedom))


def _reference(index: Index) -> MethodRow:
    return next(row for row in index.rows if index.reference in (row.name, row.slug))


def _ratios(row: MethodRow, reference: MethodRow) -> Ratios:
    def ratio(of: int, by: int) -> float | None:
        return of / by if by else None

    return Ratios(
        ratio(row.training_tokens, reference.training_tokens),
        ratio(row.evaluation_tokens, reference.evaluation_tokens),
        ratio(row.stored_bytes, reference.stored_bytes),
    )


# Measuring one row.


def _temperatures(row: MethodRow, calibration: Sequence[Sequence[Predictions]]) -> list[Floats] | str:
    """Return each replicate's temperatures, [1] or one a member [M], or why there are none."""
    if not calibration:
        return NO_CALIBRATION
    fits = []
    for parts in zip(*calibration, strict=True):
        p = concatenate(parts)
        alone = row.tuned == "member"
        # A mean of logits over T is the mean of the logits over T, so the pooled prediction alone tells the best T.
        scores = pool_logits(p.log_probs)[None] if row.pooling == "logit" and not alone else p.log_probs
        of = [scores[m : m + 1] for m in range(len(scores))] if alone else [scores]
        try:
            fits.append(np.array([fit_temperature(log_probs, p.mask, p.targets) for log_probs in of]))
        except ValueError:
            return NO_FIT
    return fits


def _view(p: Predictions, temperatures: Floats | None, pooling: str) -> View:
    """Read predictions as they are, or after temperatures [1] or [M]."""
    log_probs = p.log_probs
    if temperatures is not None:
        each = np.broadcast_to(temperatures, len(log_probs)).tolist()
        scaled = [apply_temperature(log_probs[m : m + 1], p.mask, T) for m, T in enumerate(each)]
        log_probs = np.concatenate(scaled)
    return View.of(log_probs, p.mask, p.targets, pooling)


def _measured(
    index: Index, domain: str, row: MethodRow, answers: Answers, resamples: int, seed: int
) -> dict[_Key, _Measured]:
    """Measure one row: each number by its column."""
    fits = _temperatures(row, [answers.sets[name] for name in index.calibration])
    sets = {domain: [concatenate([answers.sets[name][r] for name in index.test]) for r in range(index.replicates)]}
    sets |= {name: list(answers.sets[name]) for name in (*index.test, *index.out_of_domain)}
    pairs = {
        name: [_matched(index, answers, p, q, r, seed) for r, (p, q) in enumerate(zip(sets[domain], of, strict=True))]
        for name, of in sets.items()
        if name in index.out_of_domain
    }
    draws = {
        name: _draw(len(of[0].question_ids), "outside" if name in pairs else "inside", resamples, seed)
        for name, of in sets.items()
    }

    def one_way(temperatures: Sequence[Floats | None]) -> dict[tuple[str, str], _Measured]:
        found: dict[tuple[str, str], _Measured] = {}
        for name, of in sets.items():
            views = [_view(p, T, row.pooling) for p, T in zip(of, temperatures, strict=True)]
            measured = _of_set(views, index.members, draws[name], resamples, seed)
            found |= {(name, measure): x for measure, x in measured.items()}
        for name, of_pairs in pairs.items():
            apart = _apart(of_pairs, temperatures, row.pooling, index.members, resamples, seed)
            found |= {(name, measure): x for measure, x in apart.items()}
        return found

    plain = one_way([None] * index.replicates)
    found: dict[_Key, _Measured] = {(*key, None): x for key, x in plain.items()}
    if isinstance(fits, str):
        return found | {(*key, "temperature"): _Measured(x.n, reason=fits) for key, x in plain.items()}
    n = sum(int(answers.sets[name][0].labelled.sum()) for name in index.calibration)
    key = (" + ".join(index.calibration), "temperature", "temperature")
    found[key] = _Measured(n, np.array([of.mean() for of in fits]))
    return found | {(*key, "temperature"): x for key, x in one_way(fits).items()}


def _draw(questions: int, purpose: str, resamples: int, seed: int) -> Counts | None:
    """Resample the questions of a set; None where there are too few to draw from."""
    return draw(questions, resamples=resamples, seed=seed, purpose=purpose) if questions > 1 else None


def _draw_both(inside: int, outside: int, resamples: int, seed: int) -> Counts | None:
    """Resample the questions of the own set and of a foreign one, one after the other."""
    own, foreign = _draw(inside, "inside", resamples, seed), _draw(outside, "outside", resamples, seed)
    return None if own is None or foreign is None else np.concatenate([own, foreign], axis=1)


def _of_set(
    views: Sequence[View], members: int, counts: Counts | None, resamples: int, seed: int
) -> dict[str, _Measured]:
    """Measure one set, in all replicates."""
    of_replicates = [_statistics(view, members) for view in views]
    known, everything = int(views[0].labelled.sum()), len(views[0].targets)
    found = {
        measure: _estimate(
            [of[measure] for of in of_replicates],
            everything if measure == "mutual_information" else known,
            counts,
            everything,
        )
        for measure in of_replicates[0]
    }
    for measure in ("ece", "ece_null_mean"):
        found[measure] = _Measured(known, reason=NO_ANSWER)
    if known:
        answers = [
            (confidence(v.pooled[v.labelled]), correct(v.pooled[v.labelled], v.targets[v.labelled])) for v in views
        ]
        found["ece"] = _Measured(known, np.array([ece(sure, right) for sure, right in answers]))
        nulls = [ece_null(sure, draws=resamples, seed=seed)[0] for sure, _ in answers]
        found["ece_null_mean"] = _Measured(known, np.array(nulls))
    return found


def _statistics(view: View, members: int) -> dict[str, Statistic]:
    """Return the measures of a set that have an interval."""
    known = view.labelled
    answers, targets = view.pooled[known], view.targets[known]
    right = correct(answers, targets)
    disagreement = _disagreement(view, members)
    mutual: Statistic = disagreement if isinstance(disagreement, str) else _mean(disagreement, np.ones_like(known))
    of_mi = disagreement if isinstance(disagreement, str) else disagreement[known]
    return {
        "accuracy": _mean(right, known),
        "nll": _mean(nll(view.pooled_log[known], targets), known),
        "brier": _mean(brier(answers, targets), known),
        "mutual_information": mutual,
        "error_auroc_entropy": _of_errors(entropy(answers), right == 0.0, known),
        "error_auroc_mi": _of_errors(of_mi, right == 0.0, known),
    }


def _disagreement(view: View, members: int) -> Floats | str:
    """Return the mutual information of each question among so many answers, or why there is none."""
    if len(view.log_probs) < 2:
        return NO_PAIR
    if view.pooling == "logit":
        return TURNS_NEGATIVE
    size = min(max(members, 2), len(view.probs))
    groups = np.split(view.probs[: len(view.probs) // size * size], len(view.probs) // size)
    return np.mean([decompose(group).epistemic for group in groups], axis=0)


def _mean(values: Floats, where: NDArray[np.bool_]) -> Statistic:
    """Return the mean of values that the questions `where` have."""
    if not len(values):
        return NO_ANSWER
    reason = infinite(values)
    if reason:
        return reason

    def mean(weights: Floats) -> Floats:
        own = weights[:, where]
        drawn = own.sum(axis=1)
        return own @ values / np.where(drawn > 0.0, drawn, np.nan)

    return mean


def _of_errors(uncertainty: Floats | str, wrong: NDArray[np.bool_], where: NDArray[np.bool_]) -> Statistic:
    """Return how well an uncertainty tells wrong answers from right ones."""
    if isinstance(uncertainty, str):
        return uncertainty
    if not len(wrong):
        return NO_ANSWER
    if wrong.all() or not wrong.any():
        return NO_SUCCESS if wrong.all() else NO_ERROR
    return lambda weights: auroc(uncertainty, wrong, weights[:, where])


def _matched(
    index: Index, answers: Answers, inside: Predictions, outside: Predictions, replicate: int, seed: int
) -> tuple[Predictions, Predictions] | str:
    """Return the pooled test sets and a foreign one with as many choices in both, or why that cannot be had."""
    asked = []
    for choices in sorted({choices for _, choices in answers.matched}):
        for names in (index.test, (outside.name,)):
            again = [answers.matched[name, choices] for name in names if (name, choices) in answers.matched]
            if len(again) == len(names):
                asked.append(concatenate([of[replicate] for of in again]))
    pair = k_matched(inside, outside, asked, seed)
    # How to mend it is told for a run, and this is none.
    return pair.split("; ")[0] if isinstance(pair, str) else pair


def _apart(
    pairs: Sequence[tuple[Predictions, Predictions] | str],
    temperatures: Sequence[Floats | None],
    pooling: str,
    members: int,
    resamples: int,
    seed: int,
) -> dict[str, _Measured]:
    """Measure how well a foreign set is told from the own, in all replicates.

    A temperature and the choice of some choices change places freely: both divide and normalise again.
    """
    reason = next((pair for pair in pairs if isinstance(pair, str)), None)
    if reason is not None:
        return {measure: _Measured(0, reason=reason) for measure in OOD}
    whole = [pair for pair in pairs if not isinstance(pair, str)]
    inside, outside = (len(p.question_ids) for p in whole[0])
    counts = _draw_both(inside, outside, resamples, seed)
    by_entropy, by_mi = [], []
    for pair, T in zip(whole, temperatures, strict=True):
        views = [_view(p, T, pooling) for p in pair]
        by_entropy.append(_told_apart(*(entropy(view.pooled) for view in views)))
        by_mi.append(_told_apart(*(_disagreement(view, members) for view in views)))
    n = inside + outside
    return {measure: _estimate(of, n, counts, n) for measure, of in zip(OOD, (by_entropy, by_mi), strict=True)}


def _told_apart(inside: Floats | str, outside: Floats | str) -> Statistic:
    """Return how well an uncertainty tells two sets apart; the weights are those of both, one after the other."""
    if isinstance(inside, str) or isinstance(outside, str):
        return inside if isinstance(inside, str) else str(outside)
    scores = np.concatenate([inside, outside])
    is_outside = np.repeat([False, True], [len(inside), len(outside)])
    return lambda weights: auroc(scores, is_outside, weights)


def _trivial(compared: Compared, resamples: int, seed: int) -> dict[tuple[str, str], Estimate]:
    """Tell each foreign set from the pooled test sets by what the base makes of their prompts."""
    index, features = compared.index, compared.features
    evaluated = (*index.test, *index.out_of_domain)
    if not features:
        return {}
    hidden = [features[name].hidden for name in index.train if name in features]
    about = with_distances(
        {
            name: About(of.question_ids, prompt_tokens=of.prompt_tokens, prompt_nll=of.prompt_nll, hidden=of.hidden)
            for name, of in features.items()
            if name in evaluated
        },
        np.concatenate(hidden) if hidden else None,
    )
    # Every row answered the same questions.
    asked = {name: of[0].question_ids for name, of in compared.answers[index.answered[0].slug].sets.items()}
    known = {name: about.get(name, About(())).of(asked[name]) for name in evaluated}
    n_inside = sum(len(asked[name]) for name in index.test)
    found = {}
    for baseline in TRIVIAL:
        scores = {name: of_prompt(baseline, of) for name, of in known.items()}
        inside = _joined([scores[name] for name in index.test])
        for name in index.out_of_domain:
            n = n_inside + len(asked[name])
            counts = _draw_both(n_inside, len(asked[name]), resamples, seed)
            found[name, baseline] = _alone(_estimate([_told_apart(inside, scores[name])], n, counts, n))
    return found


def _joined(parts: Sequence[Floats | str]) -> Floats | str:
    """Return the scores of several sets as those of one, or why one of them has none."""
    defined = [part for part in parts if not isinstance(part, str)]
    return np.concatenate(defined) if len(defined) == len(parts) else next(p for p in parts if isinstance(p, str))


def _alone(x: _Measured) -> Estimate:
    """Return an AUROC that is compared with no other."""
    if x.values is None:
        # How to mend it is told for a run, and this is none.
        return Estimate(None, x.n, reason=None if x.reason is None else x.reason.split("; ")[0])
    ends = (None, None) if x.draws is None else _possible(OOD[0], *_Tested(x.values, x.draws, x.n).interval())
    return Estimate(float(x.values.mean()), x.n, *ends)


def _estimate(statistics: Sequence[Statistic], n: int, counts: Counts | None, questions: int) -> _Measured:
    """Return a measure's values in all replicates, and of resampled questions."""
    defined = [statistic for statistic in statistics if not isinstance(statistic, str)]
    if len(defined) < len(statistics):
        return _Measured(n, reason=next(statistic for statistic in statistics if isinstance(statistic, str)))
    once = np.ones((1, questions))
    values = np.array([float(statistic(once)[0]) for statistic in defined])
    if counts is None or n < 2:
        return _Measured(n, values)
    draws = np.mean([resampled(statistic, counts) for statistic in defined], axis=0)
    # As for any interval of ours, nearly every resample must leave the measure defined.
    return _Measured(n, values, draws if np.isnan(draws).mean() <= MOST_UNDEFINED else None)


# Comparing the rows of a column.


def _compared(key: _Key, column: Mapping[str, _Measured], reference: str) -> list[Cell]:
    """Return a column's cells, compared with its best and with the reference."""
    dataset, measure, variant = key
    values = {row: float(x.values.mean()) for row, x in column.items() if x.values is not None}
    tested = {
        row: _Tested(x.values, x.draws, x.n)
        for row, x in column.items()
        if x.values is not None and x.draws is not None
    }
    way = (measure in HIGHER_IS_BETTER) - (measure in LOWER_IS_BETTER)
    best = max(tested, key=lambda row: way * values[row]) if way and tested else None
    to_best = {} if best is None else _differences(tested, best)
    to_reference = _differences(tested, reference) if reference in tested else {}
    cells = []
    for row, x in column.items():
        low, high = _possible(measure, *tested[row].interval()) if row in tested else (None, None)
        is_best = row == best if best is not None and row in tested else None
        cells.append(
            Cell(
                *(row, dataset, measure, variant, values.get(row), x.n, low, high, is_best),
                to_best=to_best.get(row),
                to_reference=to_reference.get(row),
                reason=x.reason,
            )
        )
    return cells


def _possible(measure: str, low: float, high: float) -> tuple[float, float]:
    """Return an interval without what the measure cannot be: below 0, or above 1 where it is a share."""
    return max(low, 0.0), min(high, 1.0) if measure in HIGHER_IS_BETTER else high


@dataclass(frozen=True, slots=True)
class _Tested:
    """A number, or a paired difference of two, in the replicates [R] and of resampled questions [B]."""

    values: Floats
    draws: Floats
    n: int

    def less(self, other: _Tested) -> _Tested:
        """Return the paired difference.

        Two ways to compute the same number differ by rounding, which is no difference and would look like a sure one.
        """
        values, draws = self.values - other.values, self.draws - other.draws
        values, draws = (np.where(np.abs(d) > ROUNDING, d, 0.0) for d in (values, draws))
        return _Tested(values, draws, min(self.n, other.n))

    def interval(self) -> tuple[float, float]:
        """Return its 95% interval."""
        error, freedom = standard_error(self.values, self.draws, self.n)
        half = t_quantile(freedom) * error
        return float(self.values.mean()) - half, float(self.values.mean()) + half

    def p_value(self) -> float:
        """Return the two-sided p-value of 0; without any spread the sign test's over the replicates, 2^(1 - R)."""
        value, (error, freedom) = float(self.values.mean()), standard_error(self.values, self.draws, self.n)
        if value == 0.0:
            return 1.0
        # Equal values differ by rounding alone, as in `bootstrap.p_value`.
        return t_p_value(value / error, freedom) if error > 1e-9 * abs(value) else 0.5 ** (len(self.values) - 1)


def _differences(tested: Mapping[str, _Tested], against: str) -> dict[str, Difference]:
    """Return every other row less one of them, with p-values corrected for all of these tests (Holm)."""
    differences = {row: x.less(tested[against]) for row, x in tested.items() if row != against}
    corrected = holm(np.array([d.p_value() for d in differences.values()])).tolist()
    return {
        row: Difference(float(d.values.mean()), *d.interval(), p)
        for (row, d), p in zip(differences.items(), corrected, strict=True)
    }
