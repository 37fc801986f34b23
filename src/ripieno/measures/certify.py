"""A promise that can be checked: at most so many wrong among the answered, at a stated confidence.

Everything takes `uncertainty` [N] and `wrong` [N] (see `selective`): a question is answered where its uncertainty is at
most a threshold, and handed over to a person elsewhere. The promise is about the *population* that the certification
questions were drawn from: new questions like them, drawn independently of one another. It says nothing of a single
answer, and nothing of questions of another kind.

Thresholds are fixed on the validation questions (`ladder`) before the certification questions are looked at; those are
used once. Geifman and El-Yaniv 2017 (arXiv:1705.08500); Angelopoulos et al. 2021 (Learn then Test, arXiv:2110.01052).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ripieno.measures.bootstrap import generator
from ripieno.measures.ranking import Ranking
from ripieno.measures.uncertainty import Floats

RUNGS = 20
POWER = 0.8  # how probable a promise shall be where labels are counted
MOST_LABELS = 1_000_000
_HALVINGS = 40  # to within 2^-40


@dataclass(frozen=True, slots=True)
class Promise:
    """Answer where the uncertainty is at most `threshold`: at most `risk` of those answers are wrong in the population.

    Args:
        risk: the promised share of wrong answers among the answered, at most.
        confidence: 1 - d: over draws of certification questions, a promise that does not hold is made at most with
            probability d. (Where no threshold is good enough, all the promises that chance lets through are false.)
        threshold: of the uncertainty; inf: every question is answered.
        questions: N, of the certification role.
        answered: how many of them are answered.
        errors: how many of those are wrong.
    """

    risk: float
    confidence: float
    threshold: float
    questions: int
    answered: int
    errors: int

    @property
    def coverage(self) -> float:
        """The share of the certification questions that is answered."""
        return self.answered / self.questions


def at_most(share: float) -> str:
    """Return a share as percent, rounded up to a hundredth of one: a promise must not sound better than it is."""
    return f"{math.ceil(round(share * 1e4, 6)) / 100:g}%"


def at_least(share: float) -> str:
    """Return a share as percent, rounded down to a hundredth of one."""
    return f"{math.floor(round(share * 1e4, 6)) / 100:g}%"


# ---- one binomial, exactly ------------------------------------------------------------------------------------------


def tail(errors: int, answered: int, risk: float) -> float:
    """Return how probable so few errors are where the risk is as high as it may be: the p-value of a higher one.

        P(X <= errors),   X ~ Binomial(answered, risk)

    Args:
        errors: 0 to `answered`.
        answered: n >= 0.
        risk: above 0 and below 1.

    Returns:
        Between 0 and 1; 1 where nothing is answered.

    Raises:
        ValueError: the risk is not between 0 and 1, or there are more errors than answers.
    """
    _check_share("risk", risk)
    if not 0 <= errors <= answered:
        raise ValueError(f"{errors} errors among {answered} answers")
    if errors == answered:
        return 1.0
    i = np.arange(1, errors + 1)
    # Binomial coefficients by their ratios: ln C(n, i) = sum ln((n - i + 1) / i).
    terms = np.concatenate([[0.0], np.cumsum(np.log(answered - i + 1) - np.log(i)) + i * math.log(risk / (1 - risk))])
    highest = terms.max()
    log_sum = highest + math.log(np.exp(terms - highest).sum())
    return min(1.0, math.exp(answered * math.log1p(-risk) + log_sum))


def upper_bound(errors: int, answered: int, confidence: float) -> float:
    """Return the exact upper confidence bound of a share (Clopper and Pearson 1934, one-sided).

        sup {p : P(X <= errors) >= 1 - confidence},   X ~ Binomial(answered, p)

    Args:
        errors, answered: of the certification questions.
        confidence: 1 - d, between 0 and 1.

    Returns:
        Between errors / answered and 1; 1 where nothing is answered or all is wrong.
    """
    _check_share("confidence", confidence)
    if errors == answered:
        return 1.0
    low, high = errors / answered, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(errors, answered, middle) >= 1 - confidence else (low, middle)
    return high


def most_errors(answered: int, risk: float) -> int:
    """Return the most errors that are no surprise: so many or fewer in 95% of all draws at that risk.

    min {k : P(X <= k) >= .95},   X ~ Binomial(answered, risk)
    """
    few, many = -1, answered
    while many - few > 1:  # `few` are not enough, `many` are
        middle = (few + many) // 2
        few, many = (few, middle) if tail(middle, answered, risk) >= 0.95 else (middle, many)
    return many


def fewest_answered(risk: float, confidence: float, errors: int = 0) -> int:
    """Return how many must be answered, with so many errors among them, before a risk can be promised.

    Without an error it is ln d / ln(1 - r), rounded up: 59 for 5% at 95%.
    """
    _check_share("risk", risk)
    _check_share("confidence", confidence)
    few, many = errors, max(2 * errors, 1)
    while tail(errors, many, risk) > 1 - confidence:
        few, many = many, 2 * many
    while many - few > 1:  # `few` are too few, `many` are enough
        middle = (few + many) // 2
        few, many = (few, middle) if tail(errors, middle, risk) <= 1 - confidence else (middle, many)
    return many


# ---- promises -------------------------------------------------------------------------------------------------------


def ladder(
    uncertainty: Floats, wrong: Floats, risk: float, confidence: float, questions: int, rungs: int = RUNGS
) -> Floats:
    """Return the thresholds that a risk is tested at, chosen on validation questions alone.

    Quantiles of the uncertainty, evenly spaced, up to all questions. The first one is where the validation questions
    give the promise its best chance: answering few leaves too few labels to tell, answering many lets more errors
    through. It answers at least ln d / ln(1 - r) of the certification questions, on average, and three standard
    deviations more: fewer could not be promised even without an error.

    Args:
        uncertainty, wrong: [n], of the validation questions.
        risk, confidence: that will be asked for.
        questions: N, how many certification questions there are; nothing else of them is known here.
        rungs: thresholds at most.

    Returns:
        [J] ascending, the last inf (everything is answered). One where all N questions are just enough, or too few.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, or a share is not between 0 and 1.
    """
    Ranking.of(uncertainty).tally(wrong)
    fewest = fewest_answered(risk, confidence)
    least = (fewest + 3 * math.sqrt(fewest)) / max(questions, 1)
    if least >= 1.0:
        return np.array([np.inf])
    thresholds = _quantiles(uncertainty, np.linspace(least, 1.0, rungs))
    chances = []
    for threshold in thresholds:
        inside = uncertainty <= threshold
        # One error more than was seen in two questions more: no error in few questions is not taken for none at all.
        rate = (wrong[inside].sum() + 1) / (inside.sum() + 2)
        answered = round(questions * inside.mean())
        chances.append(tail(min(round(rate * answered), answered), answered, risk))
    return thresholds[int(np.argmin(chances)) :]


def certify(uncertainty: Floats, wrong: Floats, thresholds: Floats, risk: float, confidence: float) -> Promise | None:
    """Return the promise that answers the most questions at a risk named beforehand, or None: it cannot be promised.

    The thresholds are tested in their order, each at level d = 1 - confidence against "its risk is higher than r" by
    the exact binomial tail, until one fails; the last that passed is promised. As the order is fixed beforehand,

        P(the promised threshold's risk > r) <= d

    with no division by their number: a wrong promise needs the *first* threshold of a risk above r to pass (fixed
    sequence testing; Learn then Test, proposition 6).

    Args:
        uncertainty, wrong: [N], of the certification questions.
        thresholds: [J], from `ladder`.
        risk: r, named before these questions were looked at.
        confidence: 1 - d.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, or a share is not between 0 and 1.
    """
    _check_share("confidence", confidence)
    Ranking.of(uncertainty).tally(wrong)
    promise = None
    for threshold in thresholds:
        inside = uncertainty <= threshold
        answered, errors = int(inside.sum()), int(wrong[inside].sum())
        if tail(errors, answered, risk) > 1 - confidence:
            break
        promise = Promise(risk, confidence, float(threshold), len(uncertainty), answered, errors)
    return promise


def promises(uncertainty: Floats, wrong: Floats, thresholds: Floats, confidence: float) -> list[Promise]:
    """Return every risk that can be promised from these questions, all of them at once.

    Each threshold has an upper bound at confidence 1 - d / J (Bonferroni), so all J bounds hold together with
    probability 1 - d, and one of them may be chosen afterwards. They are higher than what `certify` can promise, which
    has to be told the risk beforehand. A threshold is left out where another answers more at no higher a bound.

    Args:
        uncertainty, wrong: [N], of the certification questions.
        thresholds: [J], chosen without them (`even_ladder`).
        confidence: 1 - d, of all together.

    Returns:
        From the fewest answered to the most; risks below 1.

    Raises:
        ValueError: there is no question, an uncertainty is NaN, or the confidence is not between 0 and 1.
    """
    _check_share("confidence", confidence)
    Ranking.of(uncertainty).tally(wrong)
    found: list[Promise] = []
    lowest = 1.0
    for threshold in thresholds[::-1]:
        inside = uncertainty <= threshold
        answered, errors = int(inside.sum()), int(wrong[inside].sum())
        bound = upper_bound(errors, answered, 1 - (1 - confidence) / len(thresholds))
        if bound < lowest:
            lowest = bound
            found.append(Promise(bound, confidence, float(threshold), len(uncertainty), answered, errors))
    return found[::-1]


def even_ladder(uncertainty: Floats, rungs: int = RUNGS) -> Floats:
    """Return thresholds that answer 1/J, 2/J ... of the validation questions, and all: [J] or fewer, ascending.

    Args:
        uncertainty: [n], of the validation questions.
        rungs: J.
    """
    Ranking.of(uncertainty)
    return _quantiles(uncertainty, np.arange(1, rungs + 1) / rungs)


def _quantiles(uncertainty: Floats, coverages: Floats) -> Floats:
    """Return the least uncertainties that reach the coverages; for the last, which is 1, inf."""
    at = np.quantile(uncertainty, coverages[:-1], method="inverted_cdf")
    return np.append(np.unique(at), np.inf)


# ---- how many labels ------------------------------------------------------------------------------------------------


def labels_needed(
    uncertainty: Floats, wrong: Floats, risk: float, confidence: float, power: float = POWER
) -> int | None:
    """Return how many certification questions would let a risk be promised, judged by the validation questions.

    Over the thresholds of `even_ladder`: the fewest questions of which so many are answered that, were the error rate
    there what validation shows, the exact test would pass with a probability of at least `power`.

    Args:
        uncertainty, wrong: [n], of the validation questions.
        risk, confidence: as asked.
        power: between 0 and 1.

    Returns:
        N, or None: at no threshold are so few wrong, or more than a million would be needed.
    """
    needed = []
    for threshold in even_ladder(uncertainty):
        inside = uncertainty <= threshold
        rate = float((wrong[inside].sum() + 1) / (inside.sum() + 2))
        answered = _answers_needed(rate, risk, confidence, power)
        if answered is not None:
            needed.append(math.ceil(answered / float(inside.mean())))
    return min(needed, default=None)


def _answers_needed(rate: float, risk: float, confidence: float, power: float) -> int | None:
    if rate >= risk:
        return None
    errors = 0
    while True:
        answered = fewest_answered(risk, confidence, errors)
        if answered > MOST_LABELS:
            return None
        if tail(errors, answered, rate) >= power:
            return answered
        errors += max(1, errors // 20)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a number of labelled questions is likely to give, from simulated draws.

    Args:
        labels: certification questions; validation has as many.
        promised: the share of draws in which the risk can be promised.
        answered: the mean share of questions answered where it can; NaN where it never can.
        broken: the share of draws whose promise does not hold in the population: at most 1 - confidence, up to chance.
    """

    labels: int
    promised: float
    answered: float
    broken: float


def plan(
    risk: float,
    confidence: float,
    accuracy: float,
    error_auroc: float,
    labels: Sequence[int],
    draws: int = 500,
    seed: int = 0,
) -> list[Plan]:
    """Simulate what can be promised with so many labels, before there is a model.

    The population is made up: the confidence is calibrated and Beta-distributed, with the accuracy as its mean and as
    much spread as ranks a wrong answer below a right one with the given probability. Each draw has new validation and
    certification questions, and goes the whole way: `ladder`, then `certify`.

    Args:
        risk, confidence: to be promised.
        accuracy: of the model, were it to answer everything; between 0 and 1.
        error_auroc: how well its confidence tells wrong from right answers; above 0.5 and below 1.
        labels: numbers of certification questions to try.
        draws: for each number.
        seed: of the draws.

    Returns:
        One plan a number of labels.

    Raises:
        ValueError: a share is not between 0 and 1, or no calibrated confidence ranks that well or that badly.
    """
    _check_share("accuracy", accuracy)
    a, b = _beta_of(accuracy, error_auroc)
    population = _grid(a, b)
    plans = []
    for count in labels:
        rng = generator(seed, f"plan {count}")
        coverages, broken = [], 0
        for _ in range(draws):
            sides = rng.beta(a, b, size=(2, count))
            wrong = (rng.random((2, count)) >= sides).astype(np.float64)
            thresholds = ladder(1 - sides[0], wrong[0], risk, confidence, count)
            promise = certify(1 - sides[1], wrong[1], thresholds, risk, confidence)
            if promise is not None:
                mass = population.mass * (1 - population.at <= promise.threshold)
                coverages.append(float(mass.sum()))
                broken += bool(mass @ (1 - population.at) > risk * mass.sum())
        plans.append(
            Plan(count, len(coverages) / draws, float(np.mean(coverages)) if coverages else math.nan, broken / draws)
        )
    return plans


def plans(risk: float, confidence: float, accuracy: float, error_auroc: float) -> list[Plan]:
    """Return `plan` of more and more labels, each twice as many, up to a number that is nearly sure to do.

    Raises:
        ValueError: as `plan`.
    """
    labels, found = fewest_answered(risk, confidence), list[Plan]()
    for _ in range(8):
        found += plan(risk, confidence, accuracy, error_auroc, [labels])
        if found[-1].promised > 0.95:
            break
        labels *= 2
    return found


@dataclass(frozen=True, slots=True)
class _Grid:
    """A Beta distribution of confidence on a grid: places [G] in (0, 1) and their masses, which sum to 1."""

    at: Floats
    mass: Floats


def _grid(a: float, b: float) -> _Grid:
    # Evenly spaced on the logistic scale, where a Beta of any shape has no pole: dp = p (1 - p) dx.
    x = np.linspace(-30.0, 30.0, 4000)
    log_p, log_q = -np.logaddexp(0.0, -x), -np.logaddexp(0.0, x)
    density = a * log_p + b * log_q
    mass = np.exp(density - density.max())
    return _Grid(np.exp(log_p), mass / mass.sum())


def _beta_of(accuracy: float, error_auroc: float) -> tuple[float, float]:
    """Return the Beta of that mean whose draws, taken for calibrated confidences, have that AUROC of errors."""

    def auroc(size: float) -> float:
        grid = _grid(accuracy * size, (1 - accuracy) * size)
        right, wrong = grid.mass * grid.at, grid.mass * (1 - grid.at)
        right, wrong = right / right.sum(), wrong / wrong.sum()
        above = np.cumsum(right[::-1])[::-1] - right / 2
        return float(wrong @ above)

    low, high = 0.05, 1e4  # the smaller, the more spread, and the better told apart
    if not auroc(high) < error_auroc < auroc(low):
        raise ValueError(
            f"no calibrated confidence of mean {accuracy:g} has an AUROC of {error_auroc:g}; "
            f"give one between {auroc(high):.2f} and {auroc(low):.2f}"
        )
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if auroc(middle) > error_auroc else (low, middle)
    return accuracy * low, (1 - accuracy) * low


def _check_share(name: str, share: float) -> None:
    if not 0.0 < share < 1.0:
        raise ValueError(f"{name} {share} is not between 0 and 1")
