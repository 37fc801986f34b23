"""What one more member would bring: each measure against the number of members."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.about import About
from ripieno.measures.accuracy import brier, correct, nll
from ripieno.measures.bootstrap import RESAMPLES, draw, generator, percentiles, resampled_means, units
from ripieno.measures.calibration import BINS, ece
from ripieno.measures.ood import k_matched
from ripieno.measures.ranking import ood_measures
from ripieno.measures.selective import selective_measures
from ripieno.measures.table import UNCERTAINTIES, SizePoint
from ripieno.measures.uncertainty import Floats, confidence, entropy, epistemic, margin, mean_member, pool, pool_log
from ripieno.predictions import Predictions

MOST_SUBSETS = 20  # of one size; where a size has more, so many chains of growing ensembles are followed
OF_LABELLED = ("accuracy", "nll", "brier")
OF_ALL = (
    *("mean_confidence", "predictive_entropy", "normalised_entropy", "expected_entropy", "mutual_information"),
    *("disagreement", "margin"),
)


def by_members(
    p: Predictions, about: About | None = None, *, bins: int = BINS, resamples: int = RESAMPLES, seed: int = 0
) -> list[SizePoint]:
    """Return each measure of ensembles of 1 to M of the members, as the mean over subsets of that size.

    Mutual information, too, grows with the number of members, so two ensembles compare at equal size only: read both
    at the smaller one's.

    Where no size has more than `MOST_SUBSETS` subsets (M <= 6), all are measured, and intervals speak of other
    questions. Else all subsets of 1, M - 1 and M members are, and between them as many chains: each takes the members
    in an order of its own and adds one at a time, so a gain is what the next member brought to the same ones. Whom a
    chain starts with matters where members are unequal: that is taken out by regression on what each member does alone
    and what leaving it out of all does (see `_over_subsets`). Intervals then hold the mean over all subsets as well:
    each resample draws the questions and, apart from them, the chains,

        theta_b = theta + sum_n w_bn (v_n - theta) / sum_n w_bn + sum_c u_bc r_c / C

    v_n a question's mean, theta that of all, r_c a chain's residual of the regression, w and u how often each was
    drawn. A single answer's noise counts in both sums: the interval is rather too wide than too narrow.

    Points of one measure share their resamples, so a gain's interval is paired: where it holds 0, the gain of that
    member lies inside the noise.

    Args:
        p: predictions of M members.
        about: of the questions, for their passages, which are drawn together.
        bins: of ece.
        resamples: of the bootstrap.
        seed: of the bootstrap, and of the chains.

    Returns:
        Points by measure, then by size. Measures that are no means (ece, and those of handing over) have no interval,
        and no point at a size where a subset leaves them undefined; losses that are infinite are left out as well.
    """
    M, known = len(p.members), p.labelled
    if not len(known):
        return []
    clusters = None if about is None else about.of(p.question_ids).clusters
    plan = _Plan.of(M, seed)
    means, single = _measured(_Members.of(p), plan, bins)
    points = []

    def add(measure: str, values: Sequence[float], n: int, ends: Floats | None = None) -> None:
        """Add a measure's points, `ends` the interval's of its M values, then of its M - 1 gains: [2, 2 M - 1]."""
        for m in range(1, M + 1):
            if math.isnan(values[m - 1]):
                continue
            low, high = (None, None) if ends is None else ends[:, m - 1].tolist()
            gain_low, gain_high = (None, None) if ends is None or m == 1 else ends[:, M + m - 2].tolist()
            gain = None if m == 1 or math.isnan(values[m - 2]) else values[m - 1] - values[m - 2]
            where = (p.dataset, p.split, p.method, p.epoch, measure, m, plan.subsets[m - 1])
            points.append(SizePoint(*where, values[m - 1], low, high, gain, gain_low, gain_high, n))

    for measures, asked in ((OF_LABELLED, known), (OF_ALL, np.ones(len(known), dtype=bool))):
        n = int(asked.sum())
        finite = [measure for measure in measures if n and np.isfinite(means[measure]).all()]
        if not finite:
            continue
        estimates, residuals = zip(*(_over_subsets(plan, single[measure]) for measure in finite), strict=True)
        values = np.array([means[measure] for measure in finite])  # [measure, size, question]
        values += (np.array(estimates) - values.mean(axis=2))[:, :, None]
        ends: list[Floats | None] = [None] * len(finite)
        together = None if clusters is None else clusters[asked]
        if units(n, together) > 1:
            counts = draw(n, clusters=together, resamples=resamples, seed=seed)
            again = resampled_means(values.reshape(-1, n), counts).reshape(len(counts), len(finite), M)
            if plan.chains:
                shares = draw(plan.chains, resamples=resamples, seed=seed, purpose="chains") / plan.chains
                again += np.stack([shares @ of for of in residuals], axis=1)
            both = np.concatenate([again, np.diff(again, axis=2)], axis=2)
            ends = [np.array(percentiles(both[:, i])) for i in range(len(finite))]
        for i, measure in enumerate(finite):
            add(measure, values[i].mean(axis=1).tolist(), n, ends[i])
    for measure in single:
        if measure not in means:
            add(measure, _over_subsets(plan, single[measure])[0].tolist(), int(known.sum()))
    return points


def apart_by_members(
    inside: Predictions, outside: Predictions, *, matched: Sequence[Predictions] = (), seed: int = 0
) -> list[SizePoint]:
    """Return how well ensembles of 1 to M of the members tell a foreign set from the familiar one, K-matched.

    Args:
        inside, outside, matched: as in `ood.tell_apart`.
        seed: of the chains (the same as those of `by_members`), and of the choices that are dropped.

    Returns:
        Points of `ood_auroc_U`, as means over the subsets that `by_members` measures, without intervals; none where the
        two cannot be K-matched. One member has no mutual information, so its course begins at two.
    """
    pair = k_matched(inside, outside, matched, seed)
    if isinstance(pair, str):
        return []
    M, n = len(inside.members), sum(len(p.question_ids) for p in pair)
    plan = _Plan.of(M, seed)
    familiar, foreign = (_Members.of(p) for p in pair)
    aurocs: dict[str, list[list[float]]] = {name: [[] for _ in range(M)] for name in UNCERTAINTIES}
    for order, least in plan.orders:
        for first, second in zip(familiar.ensembles(order, least), foreign.ensembles(order, least), strict=True):
            low, high = first.uncertainties(), second.uncertainties()
            for name, of_sizes in aurocs.items():
                undefined = name == "mi" and first.members == 1
                found = math.nan if undefined else float(ood_measures(low[name], high[name])["ood_auroc"])
                of_sizes[first.members - 1].append(found)
    points: list[SizePoint] = []
    for name, of_sizes in aurocs.items():
        values = _over_subsets(plan, of_sizes)[0].tolist()
        for m, value in enumerate(values, start=1):
            if not math.isnan(value):
                gain = None if m == 1 or math.isnan(values[m - 2]) else value - values[m - 2]
                where = (outside.dataset, outside.split, outside.method, outside.epoch, f"ood_auroc_{name}", m)
                ends = (None, None, gain, None, None)
                points.append(SizePoint(*where, plan.subsets[m - 1], value, *ends, n, inside.name, "k_matched"))
    return points


def enough_members(points: Sequence[SizePoint]) -> int | None:
    """Return the least size whose next member's gain falls inside the noise; None where no gain does.

    That is where the course first stops being told from a level one. Each member up to there moved the measure beyond
    the noise, up or down. A later gain beyond the noise does not move it: of many gains that are none, one in twenty
    lies outside its interval by chance. Nor does it say that more members bring nothing: small gains, each inside the
    noise, may add up to one beyond it.

    Args:
        points: of one measure and data set, in any order; those whose gain has no interval are passed over.
    """
    for point in sorted(points, key=lambda point: point.members):
        if point.gain_low is None or point.gain_high is None:
            continue
        # Copies of one member differ by rounding alone: at most N eps of the value, 1e-9 of it for 4 million questions.
        rounding = 1e-9 * abs(point.value)
        if point.gain_low <= rounding and point.gain_high >= -rounding:
            return point.members - 1
    return None


@dataclass(frozen=True)
class _Plan:
    """Which ensembles are measured: of each order, the first `least` members, the first `least` + 1 ... all of it.

    Args:
        orders: (order, `least`), an order as the members' places in the predictions.
        chains: C, how many of the orders, the first ones, are chains, which hold the sizes 2 to M - 2. After them come
            each member alone, all but each member, and all. 0 where each order is one subset and all are there.
        subsets: for the sizes 1 to M, how many different ones are measured.
    """

    orders: list[tuple[tuple[int, ...], int]]
    chains: int
    subsets: list[int]

    @classmethod
    def of(cls, members: int, seed: int) -> _Plan:
        sizes, everyone = range(1, members + 1), tuple(range(members))
        if math.comb(members, members // 2) <= MOST_SUBSETS:
            chains = 0
            orders = [(order, m) for m in sizes for order in combinations(everyone, m)]
        else:
            chains = MOST_SUBSETS
            orders = [(order[: members - 2], 2) for order in balanced_orders(members, chains, seed)]
            orders += [((member,), 1) for member in everyone]
            orders += [(everyone[:member] + everyone[member + 1 :], members - 1) for member in everyone]
            orders.append((everyone, members))
        subsets = [len({frozenset(o[:m]) for o, least in orders if least <= m <= len(o)}) for m in sizes]
        return cls(orders, chains, subsets)


def balanced_orders(members: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """Return random orders of the members in which no member stands at a place more than once more than another.

    M of them are a Latin square: a random order, rotated M times, its places then put in a random order as well.
    Without the latter, the ensembles of neighbouring rotations would share nearly all members, and their chains err
    together. The last square is cut off where `number` is no multiple of M, and one may hold enough.
    """
    rng, orders = generator(seed, "orders of members"), list[tuple[int, ...]]()
    while len(orders) < number:
        order, places = rng.permutation(members), rng.permutation(members)
        orders += [tuple(np.roll(order, shift)[places].tolist()) for shift in range(members)]
    return orders[:number]


@dataclass(frozen=True)
class _Ensemble:
    """What an ensemble of some of the members answers.

    Args:
        members: m, how many it has.
        pooled: [N, K].
        entropy, expected, mutual_information: [N], nats.
        disagreement: [N].
        right_log_probs: [N'], of the right choices of the labelled questions.
    """

    members: int
    pooled: Floats
    entropy: Floats
    expected: Floats
    mutual_information: Floats
    disagreement: Floats
    right_log_probs: Floats

    @classmethod
    def of(cls, members: int, pooled: Floats, expected: Floats, votes: NDArray[np.int64], right: Floats) -> _Ensemble:
        total = entropy(pooled)
        # As `decompose` and `disagreement`, with the members' entropies and votes [N, K] at hand.
        parts = (total, expected, epistemic(total, expected, members, pooled.shape[1]))
        return cls(members, pooled, *parts, 1.0 - votes.max(axis=1) / members, right)

    def uncertainties(self) -> dict[str, Floats]:
        """Return each question's uncertainties, [N]."""
        return {"entropy": self.entropy, "mi": self.mutual_information, "confidence": -confidence(self.pooled)}


class _Sum:
    """A sum whose terms come one at a time, and which is the same in whatever order they come.

    A plain sum's rounding depends on the order, and would part questions that tie. What an addition rounds off is
    added to a sum of its own (Neumaier 1974; the exact error is Knuth's), which leaves the last rounding alone.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sum, self._rest = np.zeros(shape), np.zeros(shape)

    def add(self, term: Floats) -> None:
        total = self._sum + term
        added = total - self._sum
        self._rest += (self._sum - (total - added)) + (term - added)
        self._sum = total

    def mean(self, terms: int) -> Floats:
        return (self._sum + self._rest) / terms


@dataclass(frozen=True)
class _Members:
    """What is computed of each member once, whatever ensembles it is in.

    Args:
        probs: [M, N, K].
        entropies: [M, N], nats.
        votes: int [M, N], the likeliest choices.
        sizes: int [N], the questions' numbers of choices.
        right_log_probs: [M, N'], of the right choices of the N' labelled questions.
        targets, known: int [N'], bool [N].
    """

    probs: Floats
    entropies: Floats
    votes: NDArray[np.int64]
    sizes: NDArray[np.int64]
    right_log_probs: Floats
    targets: NDArray[np.int64]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, p: Predictions) -> _Members:
        probs, known = p.probs, p.labelled
        targets = p.targets[known]
        right_log_probs = -nll(p.log_probs[:, known], targets)
        return cls(probs, entropy(probs), probs.argmax(axis=2), p.mask.sum(axis=1), right_log_probs, targets, known)

    def ensembles(self, order: Sequence[int], least: int) -> Iterator[_Ensemble]:
        """Yield the ensembles of the first `least` members of an order, the first `least` + 1 ... all of it.

        A step adds one member to running sums, [N, K] at most, whatever the number of members so far.
        """
        M, N, K = self.probs.shape
        probs, entropies = _Sum((N, K)), _Sum((N,))
        votes, questions = np.zeros((N, K), dtype=np.int64), np.arange(N)
        right = np.full(len(self.targets), -np.inf)
        for m, member in enumerate(order, start=1):
            probs.add(self.probs[member])
            entropies.add(self.entropies[member])
            votes[questions, self.votes[member]] += 1
            right = np.logaddexp(right, self.right_log_probs[member])
            if m == M:  # to the last bit the ensemble of the other tables, so that all part the same ties
                means = (pool(self.probs), mean_member(self.entropies))
                yield _Ensemble.of(m, *means, votes, pool_log(self.right_log_probs))
            elif m >= least:
                yield _Ensemble.of(m, probs.mean(m), entropies.mean(m), votes, right - math.log(m))

    def columns(self, of: _Ensemble) -> dict[str, Floats]:
        """Return each question's values, of one of the ensembles."""
        answers = of.pooled[self.known]
        return {
            "accuracy": correct(answers, self.targets),
            "nll": 0.0 - of.right_log_probs,
            "brier": brier(answers, self.targets),
            "mean_confidence": confidence(of.pooled),
            "predictive_entropy": of.entropy,
            # As `normalised_entropy`, with the entropy at hand.
            "normalised_entropy": of.entropy / np.log(np.maximum(self.sizes, 2)),
            "expected_entropy": of.expected,
            "mutual_information": of.mutual_information,
            "disagreement": of.disagreement,
            "margin": margin(of.pooled),
        }

    def others(self, of: _Ensemble, bins: int) -> dict[str, float]:
        """Return the measures that are no means over questions; NaN where one is not defined, none without labels."""
        if not len(self.targets):
            return {}
        uncertainties = {name: values[self.known] for name, values in of.uncertainties().items()}
        wrong = 1.0 - correct(of.pooled[self.known], self.targets)
        found = {"ece": ece(-uncertainties["confidence"], 1.0 - wrong, bins=bins)}
        for name, uncertainty in uncertainties.items():
            one = name == "mi" and of.members == 1  # cannot disagree with itself
            for measure, value in selective_measures(uncertainty, wrong).items():
                found[f"{measure}_{name}"] = math.nan if one else float(value)
        return found


def _measured(members: _Members, plan: _Plan, bins: int) -> tuple[dict[str, Floats], dict[str, list[list[float]]]]:
    """Measure the plan's ensembles.

    Returns:
        By measure that is a mean over questions, its mean over the ensembles of each size, [M, N]; by measure, any, by
        size, the value of each ensemble in the plan's order.
    """
    M, _, _ = members.probs.shape
    means: dict[str, Floats] = {}
    single: dict[str, list[list[float]]] = {}
    for order, least in plan.orders:
        for ensemble in members.ensembles(order, least):
            size = ensemble.members - 1
            columns = members.columns(ensemble)
            for measure, values in columns.items():
                means.setdefault(measure, np.zeros((M, len(values))))[size] += values
            found = {measure: float(values.mean()) for measure, values in columns.items() if len(values)}
            for measure, value in (found | members.others(ensemble, bins)).items():
                single.setdefault(measure, [[] for _ in range(M)])[size].append(value)
    ensembles = np.array([[len(of_size)] for of_size in single[OF_ALL[0]]])
    return {measure: of / ensembles for measure, of in means.items()}, single


def _over_subsets(plan: _Plan, of_sizes: Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    """Estimate the mean over all subsets of each size.

        v_c = theta + beta . (mean over c's members i of x_i) + r_c,   x_i = (v({i}), v(all but i)) less their means

    The regression estimator of survey sampling (Cochran 1977, chapter 7), at the sizes of which there are chains: the
    mean of x over all subsets of a size is known to be 0, that over the chains is not, and x says what a member does
    among few and among many. What it leaves is what chains differ by.

    Args:
        plan: of the ensembles.
        of_sizes: by size, the value of each ensemble in the plan's order, none infinite; NaN where not defined.

    Returns:
        theta, [M], within what the ensembles have, NaN where one is not defined; and the residuals r_c, [C, M], scaled
        up for what the fit took of them, 0 at sizes of which all subsets are measured.
    """
    M, C = len(plan.subsets), plan.chains
    theta, residuals = np.array([np.mean(of_size) for of_size in of_sizes]), np.zeros((C, M))
    if not C:
        return theta, residuals
    of_members = [np.array(of_sizes[size]) for size in (0, M - 2)]
    x = np.array([of - of.mean() for of in of_members if np.isfinite(of).all()]).reshape(-1, M)
    sums = x[:, np.array([order for order, _ in plan.orders[:C]])].cumsum(axis=2)  # [x, chain, size]
    for m in range(2, M - 1):
        of_chains = np.array(of_sizes[m - 1])
        if np.isnan(of_chains).any():
            continue
        fitted = np.column_stack([np.ones(C), *sums[:, :, m - 1] / m])
        coefficients, _, rank, _ = np.linalg.lstsq(fitted, of_chains)
        theta[m - 1] = np.clip(coefficients[0], of_chains.min(), of_chains.max())
        residuals[:, m - 1] = (of_chains - fitted @ coefficients) * math.sqrt(C / (C - int(rank)))
    return theta, residuals
