"""What is gained by not answering the most uncertain questions: they are left to a person.

Everything takes `uncertainty` [N] (any real numbers; a high one should mean a wrong answer: an entropy, or the negated
confidence), `wrong` [N] (1 where the answer is wrong, else 0) and perhaps `weights` [..., N], how often each question
was drawn (`bootstrap.draw`): whole numbers. A question drawn w times counts as w questions of one uncertainty.

Questions of equal uncertainty are a tie. Which of them is answered first is left to chance, and every measure is the
exact mean over all their orders: it never depends on the order of the questions in a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.bootstrap import generator
from ripieno.measures.ranking import Ranking, Tally, at, aupr_of_high, auroc_from, positives_below, steps, whole_share
from ripieno.measures.uncertainty import Floats

# Of the measures `selective_accuracy_50` and so on, in percent.
COVERAGES = (50, 80, 90, 95)


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """What answering up to each threshold means: the risk-coverage curve.

    Args:
        coverage: [G], the share of questions that is answered: those of an uncertainty of at most the threshold.
        risk: [G], the error rate among the answered.
        threshold: [G], the distinct uncertainties, ascending.
    """

    coverage: Floats
    risk: Floats
    threshold: Floats


@dataclass(frozen=True, slots=True)
class Decision:
    """Which questions to answer, and what that costs; costs are means over all questions, in the unit they came in.

    Args:
        threshold: answer where the uncertainty is at most this; -inf: answer nothing.
        coverage: the share of questions that is answered.
        errors: the share of all questions that is answered, and wrongly.
        cost: a question's mean cost.
        cost_of_answering_all: the same, were every question answered.
        cost_of_handing_over_all: the same, were none: the price of a hand-over.
        saving: how much lower `cost` is than the lower of these two, >= 0.
    """

    threshold: float
    coverage: float
    errors: float
    cost: float
    cost_of_answering_all: float
    cost_of_handing_over_all: float
    saving: float


def risk_coverage(uncertainty: Floats, wrong: Floats) -> RiskCoverage:
    """Return the risk-coverage curve at all distinct thresholds.

        coverage(t) = P(U <= t),   risk(t) = P(wrong | U <= t)

    El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017 (arXiv:1705.08500).

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.

    Returns:
        The curve, from the lowest threshold to the highest (coverage 1, risk = error rate).

    Raises:
        ValueError: there is no question, an uncertainty is NaN, or the shapes do not fit.
    """
    ranking = Ranking.of(uncertainty)
    tally = ranking.tally(wrong)
    return RiskCoverage(
        coverage=tally.count_to / tally.questions,
        risk=tally.positive_to / tally.count_to,
        threshold=uncertainty[ranking.order[ranking.ends]],
    )


def aurc(uncertainty: Floats, wrong: Floats, weights: Floats | None = None) -> Floats:
    """Return the area under the risk-coverage curve: the error rate, averaged over how many questions are answered.

        1/N sum_{i=1..N} E_i / i,   E_i errors among the i most certain

    Geifman and El-Yaniv 2017 (arXiv:1705.08500); Geifman et al. 2018 (arXiv:1805.08206). A tie of n questions with e
    errors, after C questions with E errors, contributes its mean over all orders

        sum_{j=1..n} (E + j r) / (C + j) = (E - C r) (H_{C+n} - H_C) + e,   r = e / n, H harmonic numbers

    so an order that says nothing has the error rate. It weighs the few most certain questions most, and depends on the
    accuracy as much as on the order: compare it at equal accuracy only.

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], between 0 and 1, lower is better.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, a weight is no whole number, or the shapes do not fit.
    """
    return _areas(_tally(uncertainty, wrong, weights)).aurc


def excess_aurc(uncertainty: Floats, wrong: Floats, weights: Floats | None = None) -> Floats:
    """Return the AURC less that of the perfect order, which has all right answers first.

        AURC - AURC*,   AURC* = 1/N sum_{i=1..N} max(0, i - A) / i,   A right answers

    Geifman et al. 2018 (arXiv:1805.08206), with the exact sum where they approximate by r + (1 - r) ln(1 - r).

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], >= 0; 0 for the perfect order, and where all are right or all are wrong.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, a weight is no whole number, or the shapes do not fit.
    """
    return _areas(_tally(uncertainty, wrong, weights)).excess


def prediction_rejection_ratio(uncertainty: Floats, wrong: Floats, weights: Floats | None = None) -> Floats:
    """Return how far the order gets from a random one (0) to the perfect one (1), in terms of AURC.

        (r - AURC) / (r - AURC*),   r the error rate: the mean AURC of a random order

    After Malinin et al. 2017 and 2020 (arXiv:2002.07650). Theirs is the same ratio for the area under the errors that
    remain among *all* questions, where those handed over count as right. That area is AUGRC: r/2 for a random order,
    r^2/2 for the perfect one, so that their ratio is 2 AUROC - 1 of the errors, and says nothing that `error_auroc`
    does not. This one is about the error rate among the answered, which is what a reader of the answers meets.

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], at most 1; negative for an order worse than random. NaN where all drawn are right, or all are wrong.

    Raises:
        ValueError: all are right or all are wrong (without weights), there is no question, an uncertainty is NaN, a
            weight is no whole number, or the shapes do not fit.
    """
    tally = _tally(uncertainty, wrong, weights)
    if weights is None and not 0 < tally.positives < tally.questions:
        raise ValueError("all answers are right, or all are wrong: there is nothing to reject first")
    return _areas(tally).ratio


def augrc(uncertainty: Floats, wrong: Floats, weights: Floats | None = None) -> Floats:
    """Return the area under the generalised risk-coverage curve: the share of errors let through, over all thresholds.

        integral of P(wrong, U <= t) over P(U <= t), the points joined by straight lines from (0, 0)
        = (1 - AUROC) a (1 - a) + (1 - a)^2 / 2,   a the accuracy, AUROC that of the errors

    Traub et al. 2024 (arXiv:2407.01032). Half the error rate for an order that says nothing.

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], between 0 and 1/2 (all wrong), lower is better.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, a weight is no whole number, or the shapes do not fit.
    """
    tally = _tally(uncertainty, wrong, weights)
    return _augrc(tally, positives_below(tally))


def selective_accuracy(uncertainty: Floats, wrong: Floats, coverage: float, weights: Floats | None = None) -> Floats:
    """Return the accuracy of the most certain questions.

        1 - E_k / k,   k = ceil(coverage * N)

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        coverage: the share of questions that is answered, above 0 and at most 1.
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        [...], between 0 and 1. A tie that the k-th question stands in counts with its error rate.

    Raises:
        ValueError: `coverage` is outside (0, 1], there is no question, an uncertainty is NaN, a weight is no whole
            number, or the shapes do not fit.
    """
    if not 0.0 < coverage <= 1.0:
        raise ValueError(f"a coverage of {coverage} is not above 0 and at most 1")
    return _selective_accuracy(_tally(uncertainty, wrong, weights), coverage)


def selective_measures(uncertainty: Floats, wrong: Floats, weights: Floats | None = None) -> dict[str, Floats]:
    """Return every measure of selective prediction from one sort.

    `error_auroc`, `error_aupr`: `ranking.auroc` and `ranking.aupr` of the uncertainty as a sign of a wrong answer
    (Hendrycks and Gimpel 2017, arXiv:1610.02136). `aurc`, `eaurc`, `augrc`, `prr`: the functions here.
    `selective_accuracy_50`, `_80`, `_90`, `_95`: at that coverage in percent.

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        weights: [..., N], how often each question was drawn; None: each once.

    Returns:
        The measures, [...] each. `error_auroc`, `error_aupr` and `prr` are NaN where all are right or all are wrong.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, a weight is no whole number, or the shapes do not fit.
    """
    tally = _tally(uncertainty, wrong, weights)
    below = positives_below(tally)
    areas = _areas(tally)
    return {
        "error_auroc": auroc_from(tally, below),
        "error_aupr": aupr_of_high(tally),
        "aurc": areas.aurc,
        "eaurc": areas.excess,
        "augrc": _augrc(tally, below),
        "prr": areas.ratio,
    } | {f"selective_accuracy_{percent}": _selective_accuracy(tally, percent / 100) for percent in COVERAGES}


def cheapest_threshold(uncertainty: Floats, wrong: Floats, error_cost: float, handover_cost: float) -> Decision:
    """Return the threshold that would have been the cheapest on these questions.

        cost(t) = P(wrong, U <= t) error_cost + P(U > t) handover_cost

    over all distinct uncertainties t, and -inf (Chow 1970). Among equally cheap thresholds it is the highest, which
    hands over the fewest. Chosen and measured on the same questions, `cost` and `saving` are optimistic:
    `cross_fitted_costs` is not.

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        error_cost: of a wrong answer, > 0, in any unit.
        handover_cost: of a question that is not answered, > 0, in the same unit.

    Returns:
        The threshold, what it does and what it costs.

    Raises:
        ValueError: a cost is not a positive finite number, there is no question, an uncertainty is NaN, or the shapes
            do not fit.
    """
    _check_costs(error_cost, handover_cost)
    ranking = Ranking.of(uncertainty)
    tally = ranking.tally(wrong)
    cost = _costs(tally, error_cost, handover_cost)
    group = int(_cheapest(cost))
    return Decision(
        threshold=float(_thresholds(uncertainty, ranking)[group]),
        coverage=float(tally.count_to[group - 1] / tally.questions) if group else 0.0,
        errors=float(tally.positive_to[group - 1] / tally.questions) if group else 0.0,
        cost=float(cost[group]),
        cost_of_answering_all=float(cost[-1]),
        cost_of_handing_over_all=float(cost[0]),
        saving=float(min(cost[0], cost[-1]) - cost[group]),
    )


def cross_fitted_costs(
    uncertainty: Floats, wrong: Floats, error_cost: float, handover_cost: float, folds: int = 10, seed: int = 0
) -> Floats:
    """Return what each question costs under the threshold that was chosen without it.

    The questions are dealt into folds at random; each fold is decided by the `cheapest_threshold` of all others. The
    mean is an honest estimate of what a threshold costs on new questions that was chosen on (1 - 1/folds) N of them.
    Its bootstrap interval takes the thresholds as they are.

    Args:
        uncertainty: [N].
        wrong: [N], 0 or 1.
        error_cost: of a wrong answer, > 0, in any unit.
        handover_cost: of a question that is not answered, > 0, in the same unit.
        folds: 2 at least; more than N are N.
        seed: of the deal.

    Returns:
        [N]: `error_cost`, `handover_cost`, or 0 for a right answer.

    Raises:
        ValueError: fewer than two folds or questions, a cost is not a positive finite number, an uncertainty is NaN, or
            the shapes do not fit.
    """
    _check_costs(error_cost, handover_cost)
    N = len(uncertainty)
    folds = min(folds, N)
    if folds < 2:
        raise ValueError(f"{N} questions in {folds} folds leave none to choose a threshold on")
    fold = generator(seed, "cross_fitted_costs").permutation(N) % folds
    ranking = Ranking.of(uncertainty)
    tally = ranking.tally(wrong, (fold != np.arange(folds)[:, None]).astype(np.float64))
    cost = _costs(tally, error_cost, handover_cost)
    # Only uncertainties of the other folds are thresholds.
    cost[:, 1:][tally.count == 0.0] = np.inf
    threshold = _thresholds(uncertainty, ranking)[_cheapest(cost)][fold]
    return np.where(uncertainty <= threshold, wrong * error_cost, handover_cost)


@dataclass(frozen=True, slots=True)
class _Areas:
    """AURC, excess AURC and the prediction-rejection ratio (NaN where undefined), [...] each."""

    aurc: Floats
    excess: Floats
    ratio: Floats


def _tally(uncertainty: Floats, wrong: Floats, weights: Floats | None) -> Tally:
    return Ranking.of(uncertainty).tally(wrong, weights)


def _areas(tally: Tally) -> _Areas:
    N, E = tally.questions, tally.positives
    H = _harmonic_numbers(int(N.max()))
    # With C and E counted to the tie's end, E - C r is the same: both have grown by e = n r.
    slope = tally.positive_to * tally.count
    slope -= tally.count_to * tally.positive
    slope /= np.maximum(tally.count, 1.0)
    area = np.vecdot(slope, steps(H[tally.count_to.astype(np.int64)])) + E
    questions = np.where(N > 0.0, N, np.nan)
    right = N - E
    # Between the random and the perfect order: r - AURC* = a/N (H_N - H_a).
    room = right * (H[N.astype(np.int64)] - H[right.astype(np.int64)]) / questions
    # No order is better than the perfect one, but rounding may say so.
    excess = np.maximum(area / questions - (E / questions - room), 0.0)
    ratio = 1.0 - excess / np.where(room > 0.0, room, np.nan)
    return _Areas(aurc=area / questions, excess=excess, ratio=ratio)


def _harmonic_numbers(largest: int) -> Floats:
    """Return H_0, H_1 ... up to the largest, H_n = 1 + 1/2 + ... + 1/n."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, largest + 1))])


def _augrc(tally: Tally, below: Floats) -> Floats:
    # The trapezoids between thresholds: n_g / N wide, and E_g less half of e_g, over N, high.
    questions = np.where(tally.questions > 0.0, tally.questions, np.nan)
    return below / (questions * questions)


def _selective_accuracy(tally: Tally, coverage: float) -> Floats:
    answered = whole_share(coverage, tally.questions)
    group = (tally.count_to < answered[..., None]).sum(axis=-1)
    group = np.minimum(group, tally.count.shape[-1] - 1)  # beyond the last where no question was drawn
    drawn = at(group, tally.count)
    rate = at(group, tally.positive) / np.where(drawn > 0.0, drawn, np.nan)
    errors = at(group, tally.positive_to) - (at(group, tally.count_to) - answered) * rate
    return 1.0 - errors / answered


def _thresholds(uncertainty: Floats, ranking: Ranking) -> Floats:
    """Return all thresholds, [G + 1]: answer nothing, then each distinct uncertainty."""
    return np.concatenate([[-np.inf], uncertainty[ranking.order[ranking.ends]]])


def _costs(tally: Tally, error_cost: float, handover_cost: float) -> Floats:
    """Return a question's mean cost at each of the thresholds, [..., G + 1]."""
    N = tally.questions[..., None]
    answered = (tally.positive_to * error_cost + (N - tally.count_to) * handover_cost) / N
    return np.concatenate([np.full_like(N, handover_cost), answered], axis=-1)


def _cheapest(cost: Floats) -> NDArray[np.int64]:
    """Return the last of the lowest costs [..., G + 1]."""
    return cost.shape[-1] - 1 - cost[..., ::-1].argmin(axis=-1)


def _check_costs(error_cost: float, handover_cost: float) -> None:
    for name, cost in (("an error", error_cost), ("a hand-over", handover_cost)):
        if not 0.0 < cost < math.inf:
            raise ValueError(f"the cost of {name} is {cost}, not a positive number")
