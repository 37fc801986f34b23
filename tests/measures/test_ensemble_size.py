from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from populations import from_probs, log_softmax, predictions_of, random_predictions, rounding

from ripieno import measures
from ripieno.measures import About, SizePoint, by_members, enough_members
from ripieno.measures.ensemble_size import MOST_SUBSETS, apart_by_members, balanced_orders
from ripieno.measures.table import SELECTIVE, UNCERTAINTIES
from ripieno.predictions import Predictions

OF_ALL = (
    *("mean_confidence", "predictive_entropy", "normalised_entropy", "expected_entropy", "mutual_information"),
    *("disagreement", "margin"),
)
MEANS = ("accuracy", "nll", "brier", *OF_ALL)
NO_MEANS = ("ece", *(f"{measure}_{u}" for u in UNCERTAINTIES for measure in SELECTIVE))
MEASURES = (*MEANS, *NO_MEANS)


def exchangeable(members: int, questions: int, choices: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(questions, choices)) + rng.normal(size=(members, questions, choices))
    mask = np.ones((questions, choices), dtype=bool)
    targets = (logits.mean(axis=0) + rng.normal(size=(questions, choices))).argmax(axis=1)
    return predictions_of(log_softmax(logits, mask), mask, targets)


def unequal(members: int, questions: int, choices: int, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    truth, noise = 1.5 * rng.normal(size=(questions, choices)), rng.normal(size=(members, questions, choices))
    mask = np.ones((questions, choices), dtype=bool)
    targets = (truth + rng.gumbel(size=(questions, choices))).argmax(axis=1)
    return predictions_of(
        log_softmax(truth + np.linspace(0.3, 3.0, members)[:, None, None] * noise, mask), mask, targets
    )


def over_all_subsets(p: Predictions) -> dict[str, np.ndarray]:
    """Return the mean over all subsets of each size, from the 2^M pooled predictions."""
    M, N, K = p.probs.shape
    held = ((np.arange(1, 2**M)[:, None] >> np.arange(M)) & 1).astype(float)
    size = held.sum(axis=1)
    pooled = (held @ p.probs.reshape(M, -1)).reshape(len(held), N, K) / size[:, None, None]
    right = np.take_along_axis(pooled, p.targets[None, :, None], axis=2)[..., 0]
    of_subset = {
        "accuracy": (pooled.argmax(axis=2) == p.targets).mean(axis=1),
        "nll": -np.log(right).mean(axis=1),
        "brier": ((pooled**2).sum(axis=2) - 2 * right + 1).mean(axis=1),
        "predictive_entropy": -(pooled * np.log(pooled)).sum(axis=2).mean(axis=1),
    }
    return {name: np.array([v[size == m].mean() for m in range(1, M + 1)]) for name, v in of_subset.items()}


def course(points: list[SizePoint], measure: str) -> list[SizePoint]:
    return [point for point in points if point.measure == measure]


@pytest.mark.parametrize("members", [4, 7, 23])
def test_with_all_members_it_is_the_analysis_and_with_one_the_mean_member(members):
    p = random_predictions(members, 60, 5)
    points, rows = by_members(p), measures.analyze([p])
    of = {(r.who, r.measure): r for r in rows if r.pooling == "prob"}
    bound = rounding(members * 60 * 5, 10.0)
    for measure in MEASURES:
        last, first = course(points, measure)[-1], course(points, measure)[0]
        row = of["ensemble", measure]
        assert last.value == pytest.approx(row.value, abs=bound), measure
        assert (last.members, last.subsets, last.n) == (members, 1, row.n)
        if measure in MEANS:
            assert (last.low, last.high) == pytest.approx((row.low, row.high), abs=bound), measure
        if not measure.endswith("_mi"):
            assert (first.members, first.subsets) == (1, members)
        if ("members_mean", measure) in of:
            assert first.value == pytest.approx(of["members_mean", measure].value, abs=bound), measure
    assert course(points, "mutual_information")[0].value == 0.0
    assert course(points, "disagreement")[0].value == 0.0


def test_one_member_has_one_size():
    p = random_predictions(1, 30, 4)
    points = by_members(p)
    assert {c.measure for c in points} == {measure for measure in MEASURES if not measure.endswith("_mi")}
    assert {(c.members, c.subsets, c.gain, c.gain_low) for c in points} == {(1, 1, None, None)}
    rows = {r.measure: r.value for r in measures.analyze([p]) if r.pooling == "prob"}
    for measure in ("accuracy", "nll", "ece", "aurc_confidence"):
        assert course(points, measure)[0].value == pytest.approx(rows[measure], abs=rounding(30 * 4, 10.0))
    assert enough_members(course(points, "accuracy")) is None


def test_the_mean_over_subsets_by_hand():
    p = from_probs([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]]], [0], epoch=2)
    points = by_members(p)
    assert [(c.members, c.subsets) for c in course(points, "accuracy")] == [(1, 3), (2, 3), (3, 1)]
    values = {(c.measure, c.members): c.value for c in points}
    # Pairs: (.75, .25), (.55, .45), (.4, .6).
    assert values["accuracy", 1] == pytest.approx(2 / 3)
    assert values["accuracy", 2] == pytest.approx(2 / 3)
    assert values["accuracy", 3] == 1.0
    assert values["nll", 2] == pytest.approx(-(math.log(0.75) + math.log(0.55) + math.log(0.4)) / 3)
    assert values["mean_confidence", 2] == pytest.approx((0.75 + 0.55 + 0.6) / 3)
    assert values["ece", 2] == pytest.approx((0.25 + 0.45 + 0.6) / 3)
    assert ("error_auroc_confidence", 3) not in values  # the only answer is right
    # One question says nothing of others.
    assert {(c.low, c.high, c.gain_low, c.gain_high) for c in points} == {(None, None, None, None)}
    assert {(c.dataset, c.split, c.method, c.epoch, c.n) for c in points} == {("set", "test", "ensemble", 2, 1)}


def test_points_come_by_measure_then_size_with_gains():
    points = by_members(random_predictions(3, 40, 4))
    # One member has no mutual information to hand over by.
    sizes = {measure: (2, 3) if measure.endswith("_mi") else (1, 2, 3) for measure in MEASURES}
    assert [(c.measure, c.members) for c in points] == [(measure, m) for measure in MEASURES for m in sizes[measure]]
    for before, after in pairwise(points):
        if after.members == sizes[after.measure][0]:
            assert (after.gain, after.gain_low, after.gain_high) == (None, None, None)
            continue
        assert after.gain == after.value - before.value
        if after.measure in MEANS:
            assert after.low <= after.value <= after.high
            assert after.gain_low <= after.gain <= after.gain_high
        else:
            assert (after.low, after.high, after.gain_low, after.gain_high) == (None, None, None, None)


def test_mutual_information_grows_with_the_members_and_exchangeable_subsets_are_alike():
    p = exchangeable(8, 400, 4)
    points = by_members(p)
    found = [c.value for c in course(points, "mutual_information")]
    assert all(np.diff(found) > 0)
    # Each subset of 3 estimates the same value; the mean of all lies within the noise of the questions of any.
    for subset in ([0, 1, 2], [5, 6, 7]):
        u = measures.mutual_information(p.probs[subset])
        noise = 4 * float(u.std()) / math.sqrt(len(u))
        assert found[2] == pytest.approx(float(u.mean()), abs=noise)


def test_many_subsets_are_drawn_by_the_seed_and_differ():
    p = exchangeable(8, 20, 3)
    points = by_members(p, resamples=20)
    found = [c.subsets for c in course(points, "nll")]
    assert (found[0], found[6], found[7]) == (8, 8, 1)  # all there are
    assert all(MOST_SUBSETS / 2 < subsets <= MOST_SUBSETS for subsets in found[1:6])
    assert by_members(p, resamples=20) == points
    other = by_members(p, resamples=20, seed=1)
    assert course(other, "nll")[3].value != course(points, "nll")[3].value
    assert course(other, "nll")[0].value == course(points, "nll")[0].value
    few = exchangeable(6, 20, 3)
    assert [c.value for c in by_members(few, seed=1)] == [c.value for c in by_members(few)]


@pytest.mark.parametrize("members", [7, 10, 12, 50])
def test_chains_have_each_member_at_each_place_equally_often(members):
    orders = np.array(balanced_orders(members, MOST_SUBSETS, seed=3))
    assert orders.shape == (MOST_SUBSETS, members)
    assert (np.sort(orders, axis=1) == np.arange(members)).all()
    times = np.array([np.bincount(at_place, minlength=members) for at_place in orders.T])
    assert times.max() - times.min() <= 1
    assert len({tuple(order) for order in orders.tolist()}) == MOST_SUBSETS


@pytest.mark.parametrize(("distinct", "times"), [(1000, 1), (60, 20)])
def test_gains_and_their_noise_hold_the_mean_over_all_subsets(distinct, times):
    # With unequal members, whom an ensemble holds moves it more than how many: drawing anew at each size would show.
    # The same few questions again and again leave the noise of the questions small beside that of the subsets.
    missed, widths = [], []
    for seed in range(3):
        p = unequal(10, distinct, 3, seed)
        truth = over_all_subsets(p)
        again = p.select(np.tile(np.arange(distinct), times))
        points = by_members(
            replace(again, question_ids=tuple(f"q{n}" for n in range(distinct * times))), resamples=300, seed=seed
        )
        for measure, values in truth.items():
            found = course(points, measure)
            for point, gain in zip(found[1:], np.diff(values), strict=True):
                missed.append(not point.gain_low <= gain <= point.gain_high)
                widths.append((point.gain_high - point.gain_low) / (point.high - point.low))
    assert sum(missed) <= 0.05 * len(missed) + 3 * math.sqrt(len(missed) * 0.05 * 0.95)
    if times == 1:
        assert np.mean(widths) < 0.25  # not by being wide


def test_what_is_linear_in_the_members_is_the_same_at_each_size():
    # All prefer the first choice, so the mean confidence of any ensemble is the mean of its members' own. It is right,
    # so the calibration error is what the confidence lacks, in whatever bins.
    first = np.linspace(0.55, 0.95, 9)[:, None] + np.array([-0.04, 0.0, 0.03])
    p = from_probs(np.stack([first, 1 - first], axis=-1), [0, 0, 0])
    points = by_members(p)
    for point in course(points, "mean_confidence"):
        assert point.value == pytest.approx(0.75 - 0.01 / 3, abs=rounding(9 * 3 * MOST_SUBSETS, 10.0))
    for point in course(points, "ece"):
        assert point.value == pytest.approx(0.25 + 0.01 / 3, abs=rounding(9 * 3 * MOST_SUBSETS, 10.0))
    found = course(points, "expected_entropy")
    assert [c.value for c in found] == pytest.approx([found[0].value] * 9, abs=rounding(9 * 3 * MOST_SUBSETS, 10.0))
    assert {c.value for c in course(points, "accuracy")} == {1.0}


def test_ties_are_those_of_the_other_tables():
    probs = np.random.default_rng(1).multinomial(10, [0.4, 0.3, 0.3], size=(7, 80)) / 10
    p = from_probs(probs, np.random.default_rng(2).integers(0, 3, size=80))
    rows = {r.measure: r.value for r in measures.analyze([p]) if (r.who, r.pooling) == ("ensemble", "prob")}
    points = by_members(p, resamples=20)
    for measure in ("accuracy", *(f"error_auroc_{u}" for u in UNCERTAINTIES)):
        assert course(points, measure)[-1].value == rows[measure], measure


def test_the_order_of_the_members_does_not_matter_where_all_subsets_are_measured():
    # Probabilities in tenths: many questions tie, and sums of tenths round by their order.
    rng = np.random.default_rng(0)
    probs = rng.multinomial(10, [0.5, 0.3, 0.2], size=(5, 60)) / 10
    p = from_probs(probs, rng.integers(0, 3, size=60))
    points = [c for c in by_members(p, resamples=20) if not c.measure.startswith("nll")]
    for order in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        again = [c for c in by_members(from_probs(probs[order], p.targets), resamples=20) if c.measure != "nll"]
        assert [(c.measure, c.members) for c in again] == [(c.measure, c.members) for c in points]
        bound = rounding(5 * 60 * 3, 10.0)
        assert [c.value for c in again] == pytest.approx([c.value for c in points], abs=bound)
        ends = [[(c.low, c.high) for c in of if c.low is not None] for of in (points, again)]
        assert np.array(ends[1]) == pytest.approx(np.array(ends[0]), abs=bound)


def test_gains_are_paired():
    # What makes questions hard moves each size alike: gains are far surer than values.
    p = exchangeable(5, 300, 4)
    for point in course(by_members(p), "nll")[1:]:
        assert point.gain_high - point.gain_low < 0.3 * (point.high - point.low)
    # Along chains as well.
    for point in course(by_members(exchangeable(8, 300, 4)), "nll")[1:]:
        assert point.gain_high - point.gain_low < 0.3 * (point.high - point.low)


def test_what_is_not_known_is_left_out():
    unlabelled = random_predictions(3, 20, 4, targets=np.full(20, -1))
    assert [c.measure for c in by_members(unlabelled) if c.members == 1] == list(OF_ALL)
    assert by_members(unlabelled.select(np.arange(0))) == []
    impossible = from_probs([[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5]] * 2], [1, 0])
    assert "nll" not in {c.measure for c in by_members(impossible)}
    impossible = from_probs(np.repeat(impossible.probs, 4, axis=0), [1, 0])
    assert "nll" not in {c.measure for c in by_members(impossible)}
    assert [c.measure for c in by_members(random_predictions(8, 9, 3, targets=np.full(9, -1))) if c.members == 1] == [
        *OF_ALL
    ]
    partly = random_predictions(2, 20, 4)
    partly = replace(partly, targets=np.where(np.arange(20) < 5, partly.targets, -1))
    assert {c.measure: c.n for c in by_members(partly)}["nll"] == 5
    assert {c.measure: c.n for c in by_members(partly)}["disagreement"] == 20


@pytest.mark.parametrize("members", [2, 8])
def test_questions_of_one_passage_are_drawn_together(members):
    p = exchangeable(members, 40, 3)
    halves, one = ([f"passage {n // size}" for n in range(40)] for size in (20, 40))
    apart, together, single = (
        course(by_members(p, a), "nll")[0]
        for a in (None, About(p.question_ids, passages=halves), About(p.question_ids, passages=one))
    )
    assert (apart.low, apart.high) != (together.low, together.high)
    assert (single.value, single.low, single.high) == (apart.value, None, None)


def points_of(*gains: tuple[float, float]) -> list[SizePoint]:
    where = ("set", "test", "ensemble", 1, "nll")
    first = SizePoint(*where, 1, 1, 1.0, 0.9, 1.1, None, None, None, 10)
    rest = [SizePoint(*where, m, 1, 1.0, 0.9, 1.1, 0.0, *gain, 10) for m, gain in enumerate(gains, start=2)]
    return [first, *rest]


def test_enough_members_is_the_size_before_the_first_gain_within_the_noise():
    assert enough_members(points_of((-0.2, -0.1), (-0.1, -0.01), (-0.05, 0.02), (-0.03, 0.01))) == 3
    assert enough_members(points_of((-0.2, 0.1), (-0.1, -0.01))) == 1  # a later gain does not move it
    assert enough_members(points_of((-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1))) == 3  # nor is a loss noise
    assert enough_members(points_of((1e-17, 1e-16), (0.1, 0.2))) == 1  # rounding is no gain
    assert enough_members(points_of((0.0, 0.0))) == 1
    assert enough_members(points_of((-0.2, -0.1), (-0.1, -0.01))) is None
    assert enough_members(list(reversed(points_of((-0.2, -0.1), (-0.1, 0.1))))) == 2
    assert enough_members(points_of()) is None
    assert enough_members([]) is None


@pytest.mark.parametrize("members", [4, 9])
def test_equal_members_are_one_too_many(members):
    one = exchangeable(1, 50, 3)
    copies = replace(one, log_probs=np.repeat(one.log_probs, members, axis=0), members=tuple(range(members)))
    points = by_members(copies)
    for measure in MEANS:
        assert enough_members(course(points, measure)) == 1, measure
    assert {c.value for c in course(points, "mutual_information")} == {0.0}


@pytest.mark.parametrize("members", [4, 8])
def test_foreign_sets_are_told_apart_by_ensembles_of_each_size(members):
    inside, outside = exchangeable(members, 80, 5), replace(exchangeable(members, 60, 4, seed=1), dataset="away")
    points = apart_by_members(inside, outside)
    assert {(c.dataset, c.against, c.variant, c.n, c.low) for c in points} == {
        ("away", "set/test", "k_matched", 140, None)
    }
    sizes = {name: [c.members for c in course(points, f"ood_auroc_{name}")] for name in UNCERTAINTIES}
    every = list(range(1, members + 1))
    assert sizes == {"entropy": every, "mi": every[1:], "confidence": every}
    # The same ensembles as of the other measures.
    subsets = [c.subsets for c in course(by_members(inside, resamples=20), "nll")]
    assert [c.subsets for c in course(points, "ood_auroc_entropy")] == subsets
    rows = measures.tell_apart(inside, outside, resamples=0)
    whole = {r.measure: r.value for r in rows if r.variant == "k_matched"}
    for name in UNCERTAINTIES:
        last = course(points, f"ood_auroc_{name}")[-1]
        assert last.value == pytest.approx(whole[f"ood_auroc_{name}"], abs=rounding(140, 1.0))
    single = [
        measures.tell_apart(of_inside, of_outside, resamples=0)
        for of_inside, of_outside in (
            [replace(p, log_probs=p.log_probs[[m]], members=(m,)) for p in (inside, outside)] for m in range(members)
        )
    ]
    of_singles = [
        r.value for rows in single for r in rows if (r.variant, r.measure) == ("k_matched", "ood_auroc_entropy")
    ]
    first = course(points, "ood_auroc_entropy")[0]
    assert (first.value, first.subsets) == (pytest.approx(np.mean(of_singles), abs=rounding(140, 1.0)), members)
    unknown = replace(inside, targets=np.full(80, -1))
    assert apart_by_members(unknown, outside) == []  # no wrong choice can be dropped
