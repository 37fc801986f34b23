import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from populations import any_predictions, from_probs, random_predictions, rounding

from ripieno import measures
from ripieno.predictions import Predictions

OF_THE_ENSEMBLE = [
    *("accuracy", "nll", "brier", "ece", "ece_null_mean", "ece_null_q95", "mean_confidence"),
    *("predictive_entropy", "normalised_entropy", "expected_entropy", "mutual_information", "pairwise_kl"),
    *("disagreement", "margin"),
]
OF_A_MEMBER = ["accuracy", "nll", "brier", "ece", "mean_confidence"]
WITHOUT_INTERVAL = {"ece", "ece_null_mean", "ece_null_q95", "temperature"}


def value_of(rows: list[measures.Row], who: str | int, measure: str, variant: str | None = None) -> float | None:
    [row] = [r for r in rows if (r.who, r.measure, r.variant) == (who, measure, variant)]
    return row.value


def small() -> Predictions:
    """Two members, two questions, of two and three choices; pooled (.7, .3) and (.3, .5, .2)."""
    probs = [[[0.9, 0.1, 0.0], [0.5, 0.3, 0.2]], [[0.5, 0.5, 0.0], [0.1, 0.7, 0.2]]]
    mask = np.array([[True, True, False], [True, True, True]])
    return from_probs(probs, [0, 1], mask=mask, epoch=2)


def test_by_hand():
    rows = measures.analyze([small()])
    h = [
        -(0.7 * math.log(0.7) + 0.3 * math.log(0.3)),
        -(0.3 * math.log(0.3) + 0.5 * math.log(0.5) + 0.2 * math.log(0.2)),
    ]
    expected = {
        ("ensemble", "accuracy"): 1.0,
        ("members_mean", "accuracy"): 0.75,
        (0, "accuracy"): 0.5,
        (1, "accuracy"): 1.0,  # the tie of .5 and .5 goes to the first choice
        ("ensemble", "nll"): -(math.log(0.7) + math.log(0.5)) / 2,
        ("members_mean", "nll"): -(math.log(0.9) + math.log(0.3) + math.log(0.5) + math.log(0.7)) / 4,
        ("ensemble", "brier"): (0.18 + 0.38) / 2,
        (0, "brier"): (0.02 + 0.78) / 2,
        ("ensemble", "ece"): (0.3 + 0.5) / 2,
        (0, "ece"): (0.1 + 0.5) / 2,
        (1, "ece"): (0.5 + 0.3) / 2,
        ("members_mean", "ece"): (0.3 + 0.4) / 2,
        ("ensemble", "mean_confidence"): 0.6,
        ("members_mean", "mean_confidence"): 0.65,
        ("ensemble", "predictive_entropy"): (h[0] + h[1]) / 2,
        ("ensemble", "normalised_entropy"): (h[0] / math.log(2) + h[1] / math.log(3)) / 2,
        ("ensemble", "disagreement"): 0.25,
        ("ensemble", "margin"): (0.4 + 0.2) / 2,
    }
    for (who, measure), value in expected.items():
        assert value_of(rows, who, measure) == pytest.approx(value, abs=rounding(12, 3.0)), (who, measure)
    by_who = {who: [r.measure for r in rows if r.who == who] for who in ("ensemble", "members_mean", 0, 1)}
    assert by_who == {"ensemble": OF_THE_ENSEMBLE, "members_mean": OF_A_MEMBER, 0: OF_A_MEMBER, 1: OF_A_MEMBER}
    assert {(r.dataset, r.split, r.method, r.epoch, r.pooling, r.n) for r in rows} == {
        ("set", "test", "ensemble", 2, "prob", 2)
    }


def test_means_carry_an_interval_and_errors_of_calibration_none():
    p = random_predictions(3, 80, 5)
    for row in measures.analyze([p], calibration=[p]):
        if row.measure in WITHOUT_INTERVAL:
            assert row.low is row.high is None
        else:
            assert row.low <= row.value <= row.high, row
    [nll] = [r for r in measures.analyze([p]) if (r.who, r.measure) == ("ensemble", "nll")]
    values = measures.nll(measures.pool_log(p.log_probs), p.targets)
    bound = rounding(80, float(values.max()))
    assert (nll.low, nll.high) == pytest.approx(measures.interval(values), abs=bound)


def test_the_same_call_gives_the_same_bytes():
    p = random_predictions(3, 80, 5)

    def text(seed: int) -> str:
        return json.dumps(measures.to_json(measures.analyze([p], calibration=[p], seed=seed)))

    assert text(0) == text(0) != text(1)


def test_json_has_the_keys_of_the_contract_in_order():
    ensemble, base = random_predictions(2, 30, 4, epoch=1), random_predictions(1, 30, 4, seed=1, method="base")
    comparisons = measures.compare_with_references([ensemble, base])
    content = json.loads(json.dumps(measures.to_json(measures.analyze([ensemble]), comparisons), allow_nan=False))
    assert list(content) == ["schema", "rows", "comparisons"]
    assert content["schema"] == 1
    keys = ["dataset", "split", "method", "epoch", "who", "pooling", "variant", "against", "measure", "value"]
    assert {tuple(row) for row in content["rows"]} == {(*keys, "low", "high", "scope", "n", "reason")}
    keys = ["dataset", "split", "measure", "first", "second", "difference", "low", "high", "n"]
    assert {tuple(row) for row in content["comparisons"]} == {tuple(keys)}
    assert {type(row["value"]) for row in content["rows"]} == {float}


def test_temperature_is_fitted_to_the_same_method_and_epoch():
    p = random_predictions(3, 60, 4, epoch=2)
    first, second = random_predictions(3, 40, 4, seed=1, epoch=2), random_predictions(3, 30, 5, seed=2, epoch=2)
    other_epoch = random_predictions(3, 40, 4, seed=3, epoch=1)
    rows = measures.analyze([p], calibration=[first, other_epoch, second])
    variant = [r for r in rows if r.variant == "temperature"]
    assert [r.measure for r in variant] == ["temperature", *OF_THE_ENSEMBLE]
    assert {r.who for r in variant} == {"ensemble"}
    assert variant[0].n == 70
    log_probs = np.concatenate(
        [np.pad(first.log_probs, [(0, 0), (0, 0), (0, 1)], constant_values=-np.inf), second.log_probs], axis=1
    )
    fitted = measures.fit_temperature(
        log_probs, log_probs[0] > -np.inf, np.concatenate([first.targets, second.targets])
    )
    assert variant[0].value == fitted
    scaled = measures.apply_temperature(p.log_probs, p.mask, fitted)
    nll = measures.nll(measures.pool_log(scaled), p.targets).mean()
    assert value_of(rows, "ensemble", "nll", "temperature") == nll
    assert not [r for r in measures.analyze([p], calibration=[other_epoch]) if r.variant]


def test_no_answers_give_null_with_a_reason():
    p = random_predictions(2, 20, 4, targets=np.full(20, -1))
    rows = measures.analyze([p], calibration=[p])
    null = {r.measure for r in rows if r.value is None}
    assert null == {"accuracy", "nll", "brier", "ece", "ece_null_mean", "ece_null_q95", "temperature"}
    assert all(r.reason and r.n == 0 and r.low is None for r in rows if r.value is None)
    assert all(r.n == 20 for r in rows if r.value is not None)
    assert [r.measure for r in rows if r.who == "ensemble" and r.variant is None] == OF_THE_ENSEMBLE
    assert [r.measure for r in rows if r.who == 1] == OF_A_MEMBER


def test_measures_that_need_answers_leave_out_questions_without():
    p = random_predictions(2, 20, 4)
    targets = np.where(np.arange(20) < 15, p.targets, -1)
    rows = measures.analyze([random_predictions(2, 20, 4, targets=targets)])
    known = measures.analyze([p.select(np.arange(15))])
    for measure in ("accuracy", "nll", "brier", "ece", "ece_null_q95"):
        assert value_of(rows, "ensemble", measure) == value_of(known, "ensemble", measure)
    assert {r.n for r in rows if r.measure == "nll"} == {15}
    assert {r.n for r in rows if r.measure == "mean_confidence"} == {20}


def test_outside_mass_is_a_row_where_it_is_known():
    outside = np.array([[0.1, 0.2], [0.3, 0.2]])
    rows = measures.analyze([from_probs(np.full((2, 2, 2), 0.5), [0, 1], outside_mass=outside)])
    assert value_of(rows, "ensemble", "outside_mass") == pytest.approx(0.2, abs=rounding(4, 0.8))


DEGENERATE = {
    "one question": from_probs([[[0.7, 0.3]], [[0.6, 0.4]]], [0]),
    "one member": random_predictions(1, 10, 4, method="base"),
    "one of each": from_probs([[[0.7, 0.3]]], [1]),
    "all right, certain": from_probs([[[1.0, 0.0]] * 3] * 2, [0, 0, 0]),
    "all wrong, certain": from_probs([[[1.0, 0.0]] * 3] * 2, [1, 1, 1]),
    "certain of different choices": from_probs([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3], [0, 1, 1]),
    "indifferent": from_probs(np.full((3, 4, 5), 0.2), [0, 1, 2, 3]),
    "no answers": random_predictions(2, 5, 3, targets=np.full(5, -1)),
    "no questions": random_predictions(2, 5, 3).select(np.arange(0)),
    "draws of one member": random_predictions(3, 5, 3, members=(0, 0, 1)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_every_value_is_a_number_or_null_with_a_reason(name):
    check_defined(DEGENERATE[name])


@settings(deadline=None, max_examples=40)
@given(any_predictions())
def test_any_predictions_give_numbers_or_null_with_a_reason(p: Predictions):
    check_defined(p)


def check_defined(p: Predictions) -> None:
    rows = measures.analyze([p], calibration=[p], resamples=20)
    comparisons = measures.compare_with_references([p], calibration=[p], resamples=20)
    json.dumps(measures.to_json(rows, comparisons), allow_nan=False)
    for row in rows:
        assert (row.value is None) == (row.reason is not None), row
        assert (row.low is None) == (row.high is None), row
        assert row.value is not None or row.low is None, row
    assert len([r for r in rows if r.variant is None]) == len(OF_THE_ENSEMBLE) + (len(p.members) + 1) * len(OF_A_MEMBER)


def test_infinite_losses_are_null_and_say_so():
    rows = measures.analyze([DEGENERATE["certain of different choices"]])
    reasons = {(r.who, r.measure): r.reason for r in rows if r.reason}
    assert reasons == {
        ("ensemble", "pairwise_kl"): "infinite: a probability is exactly 0 on 3 of 3 questions",
        ("members_mean", "nll"): "infinite: a probability is exactly 0 on 3 of 3 questions",
        (0, "nll"): "infinite: a probability is exactly 0 on 2 of 3 questions",
        (1, "nll"): "infinite: a probability is exactly 0 on 1 of 3 questions",
    }
    assert value_of(rows, "ensemble", "mutual_information") == pytest.approx(math.log(2), abs=rounding(2, 1.0))


def test_one_question_has_no_interval():
    assert all(r.low is None for r in measures.analyze([DEGENERATE["one question"]]))


def test_comparisons_by_hand():
    ensemble = small()
    # The base answers another question first, the same two the other way round, and without the answers.
    probs = [[[0.2, 0.3, 0.5], [0.2, 0.2, 0.6], [0.4, 0.6, 0.0]]]
    mask = np.array([[True] * 3, [True] * 3, [True, True, False]])
    base = from_probs(probs, [-1, -1, -1], mask=mask, question_ids=("other", "q1", "q0"), method="base")
    found = {(c.first, c.second, c.measure): c for c in measures.compare_with_references([base, ensemble])}
    nll = -(math.log(0.7) + math.log(0.5)) / 2
    expected = {
        ("ensemble", "uniform guess", "accuracy"): 1 - (1 / 2 + 1 / 3) / 2,
        ("ensemble", "uniform guess", "nll"): nll - (math.log(2) + math.log(3)) / 2,
        ("ensemble", "uniform guess", "brier"): 0.28 - (1 / 2 + 2 / 3) / 2,
        ("ensemble", "base", "accuracy"): 1.0,
        ("ensemble", "base", "nll"): nll + (math.log(0.4) + math.log(0.2)) / 2,
        ("ensemble", "base", "brier"): 0.28 - ((0.36 + 0.36) + (0.04 + 0.64 + 0.36)) / 2,
        ("ensemble", "mean member", "accuracy"): 0.25,
        ("ensemble", "mean member", "nll"): nll + (math.log(0.9) + math.log(0.3) + math.log(0.5) + math.log(0.7)) / 4,
        ("ensemble", "mean member", "brier"): 0.28 - ((0.02 + 0.78) + (0.5 + 0.14)) / 4,
    }
    assert list(found) == list(expected)
    for key, difference in expected.items():
        assert found[key].difference == pytest.approx(difference, abs=rounding(12, 3.0)), key
        assert found[key].n == 2
        assert found[key].low <= found[key].high


def test_comparisons_after_temperature_scaling():
    p, base = random_predictions(3, 50, 4, epoch=1), random_predictions(1, 50, 4, seed=1, method="base")
    calibration = [random_predictions(3, 40, 4, seed=2, epoch=1), random_predictions(1, 40, 4, seed=3, method="base")]
    found = measures.compare_with_references([p, base], calibration=calibration)
    ours, scaled, reference = "ensemble", "ensemble, temperature-scaled", "base, temperature-scaled"
    assert list(dict.fromkeys((c.first, c.second) for c in found)) == [
        *((ours, "uniform guess"), (ours, "base"), (ours, reference), (ours, "mean member")),
        *((scaled, "uniform guess"), (scaled, reference), (scaled, ours)),
    ]
    temperature = measures.fit_temperature(calibration[1].log_probs, calibration[1].mask, calibration[1].targets)
    log_probs = measures.apply_temperature(base.log_probs, base.mask, temperature)[0]
    first = measures.nll(measures.pool_log(p.log_probs), p.targets)
    second = measures.nll(log_probs, p.targets)
    [row] = [c for c in found if (c.first, c.second, c.measure) == (ours, reference, "nll")]
    bound = rounding(50, float(np.abs(first - second).max()))
    assert row.difference == pytest.approx((first - second).mean(), abs=bound)
    assert (row.low, row.high) == pytest.approx(measures.paired_interval(first, second), abs=bound)


def test_the_epoch_compared_is_the_last_or_the_one_asked_for():
    parts = [random_predictions(2, 30, 4, seed=epoch, epoch=epoch) for epoch in (1, 3, 2)]
    last, second = measures.compare_with_references(parts), measures.compare_with_references(parts, epoch=2)
    assert last == measures.compare_with_references(parts[1:2])
    assert second == measures.compare_with_references(parts[2:])
    assert measures.compare_with_references(parts, epoch=9) == []


def test_the_ensemble_is_never_worse_than_its_mean_member():
    found = measures.compare_with_references([random_predictions(3, 100, 5)])
    for row in found:
        if row.second == "mean member" and row.measure != "accuracy":
            assert row.high < 0
