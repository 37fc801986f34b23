import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from populations import any_predictions, from_probs, random_predictions, rounding

from ripieno import measures
from ripieno.predictions import Predictions

SELECTIVE = [
    f"{measure}_{uncertainty}"
    for uncertainty in ("entropy", "mi", "confidence")
    for measure in (
        *("error_auroc", "error_aupr", "aurc", "eaurc", "augrc", "prr"),
        *(f"selective_accuracy_{coverage}" for coverage in (50, 80, 90, 95)),
    )
]
WITHOUT_INTERVAL = {
    *("ece", "ece_null_mean", "ece_null_q95", "adaptive_ece", "smooth_ece", "debiased_ce", "temperature"),
    *("brier_reliability", "brier_resolution", "brier_uncertainty"),
}
OF_ANSWERS = ["accuracy", "nll", "brier", "brier_reliability", "brier_resolution", "brier_uncertainty"]
OF_ANSWERS += ["ece", "ece_null_mean", "ece_null_q95", "adaptive_ece", "smooth_ece", "debiased_ce"]
OF_THE_ENSEMBLE = [
    *OF_ANSWERS,
    *(
        "mean_confidence",
        "confidence_gap",
        "predictive_entropy",
        "normalised_entropy",
        "expected_entropy",
        "mutual_information",
    ),
    *("pairwise_kl", "disagreement", "pairwise_agreement", "error_correlation", "margin"),
    *SELECTIVE,
]
OF_A_MEMBER = ["accuracy", "nll", "brier", "ece", "mean_confidence", "predictive_entropy", "normalised_entropy"]
OF_A_MEMBER += ["margin"]


def positions(choices: int) -> list[str]:
    return [f"position_{k}_{of}" for k in range(choices) for of in ("answered", "right")]


def value_of(
    rows: list[measures.Row], who: str | int, measure: str, variant: str | None = None, pooling: str = "prob"
) -> float | None:
    wanted = (who, measure, variant, pooling)
    [row] = [r for r in rows if (r.who, r.measure, r.variant, r.pooling) == wanted]
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
        ("ensemble", "confidence_gap"): 0.6 - 1.0,
        ("ensemble", "disagreement"): 0.25,
        ("ensemble", "margin"): (0.4 + 0.2) / 2,
    }
    for (who, measure), value in expected.items():
        assert value_of(rows, who, measure) == pytest.approx(value, abs=rounding(12, 3.0)), (who, measure)
    by_who = {
        who: [r.measure for r in rows if r.who == who and r.pooling == "prob"]
        for who in ("ensemble", "members_mean", 0, 1)
    }
    of_ensemble = OF_THE_ENSEMBLE + positions(3)
    assert by_who == {"ensemble": of_ensemble, "members_mean": OF_A_MEMBER, 0: OF_A_MEMBER, 1: OF_A_MEMBER}
    assert [r.measure for r in rows if r.pooling == "logit"] == OF_THE_ENSEMBLE
    assert {(r.dataset, r.split, r.method, r.epoch, r.n) for r in rows} == {("set", "test", "ensemble", 2, 2)}


def test_means_carry_an_interval_and_errors_of_calibration_none():
    p = random_predictions(3, 80, 5)
    for row in measures.analyze([p], calibration=[p]):
        if row.measure in WITHOUT_INTERVAL or row.value is None:
            assert row.low is row.high is None
        elif row.measure.startswith(("eaurc", "prr", "error")):
            assert row.low < row.high, row  # no mean: the percentiles need not hold the value
        else:
            assert row.low <= row.value <= row.high, row
    [nll] = [r for r in measures.analyze([p]) if (r.who, r.measure, r.pooling) == ("ensemble", "nll", "prob")]
    values = measures.nll(measures.pool_log(p.log_probs), p.targets)
    bound = rounding(80, float(values.max()))
    assert (nll.low, nll.high) == pytest.approx(measures.interval(values), abs=bound)


def test_the_same_call_gives_the_same_bytes():
    p = random_predictions(3, 80, 5)

    def text(seed: int) -> str:
        rows = measures.analyze([p], calibration=[p], seed=seed)
        return json.dumps(measures.Analysis(rows).to_json())

    assert text(0) == text(0) != text(1)


def test_json_has_the_keys_of_the_contract_in_order():
    ensemble, base = random_predictions(2, 30, 4, epoch=1), random_predictions(1, 30, 4, seed=1, method="base")
    analysis = measures.Evidence([base, ensemble]).analyze()
    content = json.loads(json.dumps(analysis.to_json(), allow_nan=False))
    assert measures.Analysis.from_json(content) == analysis
    assert list(content) == ["schema", "rows", "comparisons", "ensemble_sizes", "flows"]
    assert content["schema"] == 1
    keys = ["dataset", "split", "method", "epoch", "who", "pooling", "variant", "against", "measure", "value"]
    assert {tuple(row) for row in content["rows"]} == {(*keys, "low", "high", "scope", "n", "reason")}
    keys = ["dataset", "split", "measure", "first", "second", "difference", "low", "high", "n", "p", "p_holm"]
    assert {tuple(row) for row in content["comparisons"]} == {tuple(keys)}
    for row in content["rows"]:
        assert type(row["value"]) is (float if row["reason"] is None else type(None)), row


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
    null = {r.measure for r in rows if r.value is None and r.pooling == "prob"}
    right = {f"position_{k}_right" for k in range(4)}
    assert null == {*OF_ANSWERS, "confidence_gap", "error_correlation", *SELECTIVE, *right, "temperature"}
    assert all(r.reason and r.low is None for r in rows if r.value is None)
    assert {r.n for r in rows if r.value is None and r.pooling == "prob"} == {0}
    assert all(r.n == 20 for r in rows if r.value is not None)
    assert [r.measure for r in rows if (r.who, r.variant, r.pooling) == ("ensemble", None, "prob")] == [
        *OF_THE_ENSEMBLE, *positions(4),
    ]  # fmt: skip
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
    other = replace(p, dataset="other")
    costs = measures.Costs(5.0, 1.0)
    evidence = measures.Evidence([p, other], out_of_domain=["other/test"], calibration=[p])
    analysis = evidence.analyze(costs=costs, resamples=20)
    json.dumps(analysis.to_json(), allow_nan=False)
    for row in analysis.rows:
        assert (row.value is None) == (row.reason is not None), row
        assert (row.low is None) == (row.high is None), row
        assert row.value is not None or row.low is None, row
    of_ensemble = [r.measure for r in rows if (r.who, r.pooling, r.variant) == ("ensemble", "prob", None)]
    assert of_ensemble == OF_THE_ENSEMBLE + positions(p.mask.shape[1])
    drawn = len(set(p.members)) < len(p.members)  # several draws from one member have no rows of their own
    assert not drawn or all(isinstance(r.who, str) for r in rows)
    for who in ("members_mean", *(() if drawn else p.members)):
        assert {r.measure for r in rows if r.who == who} == set(OF_A_MEMBER)


def test_infinite_losses_are_null_and_say_so():
    rows = measures.analyze([DEGENERATE["certain of different choices"]])
    reasons = {(r.who, r.measure): r.reason for r in rows if r.reason and r.pooling == "prob"}
    assert reasons == {
        ("ensemble", "pairwise_kl"): "infinite: a probability is exactly 0 on 3 of 3 questions",
        ("members_mean", "nll"): "infinite: a probability is exactly 0 on 3 of 3 questions",
        (0, "nll"): "infinite: a probability is exactly 0 on 2 of 3 questions",
        (1, "nll"): "infinite: a probability is exactly 0 on 1 of 3 questions",
    }
    assert value_of(rows, "ensemble", "mutual_information") == pytest.approx(math.log(2), abs=rounding(2, 1.0))


def test_pooled_by_logits():
    rows = measures.analyze([small()])
    # Members (.9, .1) and (.5, .5): logits ln 9 and 0, mean ln 3, so (.75, .25); then (.5, .3, .2) and (.1, .7, .2).
    second = np.sqrt([0.05, 0.21, 0.04])
    second /= second.sum()
    nll = -(math.log(0.75) + math.log(second[1])) / 2
    assert value_of(rows, "ensemble", "nll", pooling="logit") == pytest.approx(nll, abs=rounding(12, 3.0))
    entropy = measures.entropy(np.array([[0.75, 0.25, 0.0], second])).mean()
    found = value_of(rows, "ensemble", "predictive_entropy", pooling="logit")
    assert found == pytest.approx(entropy, abs=rounding(12, 3.0))
    null = {r.measure: r.reason for r in rows if r.pooling == "logit" and r.value is None}
    assert set(null) >= {"mutual_information", "aurc_mi", "error_auroc_mi"}
    assert "can turn negative" in null["mutual_information"]


def test_entropy_less_expected_entropy_does_turn_negative_when_pooled_by_logits():
    """The reason given for the null is true: two members, sure of the same and unsure, pool to a sharp prediction."""
    probs = np.array([[[0.999, 0.001]], [[0.5, 0.5]]])
    pooled = np.exp(measures.pool_logits(np.log(probs)))
    assert measures.entropy(pooled)[0] < measures.entropy(probs).mean()


def test_the_papers_variant():
    """Letters a to e and everything else; the right choice f of a question with six is "other"."""
    letters = np.log([[[0.5, 0.2, 0.1, 0.1, 0.0625]] * 2, [[0.1, 0.2, 0.1, 0.1, 0.25]] * 2])
    p = from_probs(np.full((2, 2, 6), 1 / 6), [0, 5], letter_log_probs=letters)
    rows = measures.analyze([p])
    pooled = [0.3, 0.2, 0.1, 0.1, 0.15625, 0.14375]
    found = value_of(rows, "ensemble", "predictive_entropy", "other")
    assert found == pytest.approx(measures.entropy(np.array(pooled)), abs=rounding(12, 3.0))
    nll = -(math.log(0.3) + math.log(0.14375)) / 2
    assert value_of(rows, "ensemble", "nll", "other") == pytest.approx(nll, abs=rounding(12, 3.0))
    assert {r.n for r in rows if r.variant == "other" and r.value is not None} == {2}


def test_over_the_vocabulary_where_all_of_it_was_stored():
    """Tokens come in each member's own order; the measure is that of the whole distributions."""
    rng = np.random.default_rng(0)
    M, N, V = 3, 4, 50
    probs = rng.dirichlet(np.ones(V), size=(M, N))
    order = np.argsort(-probs, axis=-1)
    stored = np.log(np.take_along_axis(probs, order, axis=-1))
    p = random_predictions(M, N, 5, top_tokens=order, top_log_probs=stored)
    rows = measures.analyze([p])
    parts = measures.decompose(probs)
    bound = rounding(2 * M * V, math.log(V))
    for measure, values in (
        ("predictive_entropy", parts.total),
        ("expected_entropy", parts.aleatoric),
        ("mutual_information", parts.epistemic),
    ):
        assert value_of(rows, "ensemble", measure, "vocabulary") == pytest.approx(values.mean(), abs=bound)
    cut = replace(p, top_tokens=order[..., :10], top_log_probs=stored[..., :10])
    assert not [r for r in measures.analyze([cut]) if r.variant == "vocabulary"]


def test_the_shortest_choice_and_the_places_of_answers():
    probs = [[[0.6, 0.4, 0.0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]]
    mask = np.array([[True, True, False], [True] * 3, [True] * 3, [True] * 3])
    lengths = np.array([[4, 4, 0], [9, 5, 7], [3, 2, 2], [8, 6, 5]])
    rows = measures.analyze([from_probs(probs, [1, 1, 0, -1], mask=mask, bytes=lengths)])
    # Answers 0, 2, 1, 0; the shortest are {0, 1}, {1}, {1, 2}, {2}.
    assert value_of(rows, "ensemble", "shortest_answered") == 0.5
    assert value_of(rows, "ensemble", "shortest_right") == pytest.approx(2 / 3)
    assert [value_of(rows, "ensemble", f"position_{k}_answered") for k in range(3)] == [0.5, 0.25, 0.25]
    right = [value_of(rows, "ensemble", f"position_{k}_right") for k in range(3)]
    assert right == pytest.approx([1 / 3, 2 / 3, 0.0])


def test_fixed_labels():
    probs = np.eye(3)[[0, 1, 1, 0]][None] * 0.7 + 0.1
    p = from_probs(probs, [0, 1, 0, -1], metadata={"labels": ["no", "yes", "maybe"]})
    rows = measures.analyze([p])
    assert value_of(rows, "ensemble", "macro_f1") == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert value_of(rows, "ensemble", "recall_no") == 0.5
    assert value_of(rows, "ensemble", "recall_yes") == 1.0
    [maybe] = [r for r in rows if r.measure == "recall_maybe"]
    assert (maybe.value, maybe.n) == (None, 0)
    assert not [r for r in measures.analyze([replace(p, metadata={})]) if r.measure.startswith(("macro", "recall"))]


def test_error_correlation():
    rng = np.random.default_rng(0)
    N, M = 4000, 4
    targets = np.zeros(N, dtype=np.int64)

    def members(wrong: np.ndarray) -> Predictions:
        return from_probs(np.where(wrong[..., None], [0.2, 0.8], [0.8, 0.2]), targets)

    alike = members(np.repeat(rng.random((1, N)) < 0.3, M, axis=0))
    # As many errors each, so that the ratio of means and the mean of the pairs' correlations are the same.
    apart = members(np.array([rng.permutation(N) < 0.3 * N for _ in range(M)]))
    bound = rounding(N, 1.0)
    assert value_of(measures.analyze([alike]), "ensemble", "error_correlation") == pytest.approx(1.0, abs=10 * bound)
    found = value_of(measures.analyze([apart]), "ensemble", "error_correlation")
    # The mean of 6 pairs' correlations, each of standard error 1 / sqrt(N).
    assert abs(found) < 4 / math.sqrt(N * 6)
    correlations = np.corrcoef((apart.probs.argmax(axis=-1) != 0).astype(float))
    pairs = correlations[np.triu_indices(M, 1)].mean()
    # Both divide by a variance of .21, off by the rounding of means of N terms.
    assert found == pytest.approx(pairs, abs=10 * bound)


def test_costs():
    """Confidences .9 (right) and .6 (wrong): with errors dearer than hand-overs, answer down to .9 and hand over .6."""
    probs = np.array([[[0.9, 0.1]] * 40 + [[0.6, 0.4]] * 20])
    p = from_probs(probs, [0] * 40 + [1] * 20)
    rows = measures.analyze([p], costs=measures.Costs(10.0, 1.0))
    assert value_of(rows, "ensemble", "decision_threshold_confidence") == pytest.approx(0.9)
    assert value_of(rows, "ensemble", "decision_coverage_confidence") == pytest.approx(2 / 3)
    assert value_of(rows, "ensemble", "decision_cost_confidence") == pytest.approx(1 / 3)
    # Handing over all costs 1 a question, answering all 10/3.
    assert value_of(rows, "ensemble", "decision_saving_confidence") == pytest.approx(2 / 3)
    assert not [r for r in measures.analyze([p]) if r.measure.startswith("decision")]
    dear = measures.analyze([p], costs=measures.Costs(1.0, 10.0))
    assert value_of(dear, "ensemble", "decision_coverage_confidence") == 1.0


def test_questions_of_one_passage_are_one_cluster():
    """Ten questions a passage, all alike: the intervals are those of a tenth of the questions."""
    few = random_predictions(2, 40, 4)
    many = few.select(np.repeat(np.arange(40), 10))
    many = replace(many, question_ids=tuple(f"q{n}" for n in range(400)))
    passages = [f"passage {n // 10}" for n in range(400)]
    clustered = measures.analyze([many], about={"set/test": measures.About(many.question_ids, passages=passages)})
    apart = measures.analyze([few])

    def ends(rows: list[measures.Row], measure: str) -> tuple[float | None, float | None]:
        [row] = [r for r in rows if (r.who, r.measure, r.pooling) == ("ensemble", measure, "prob")]
        return row.low, row.high

    for measure in ("nll", "accuracy", "predictive_entropy", "error_auroc_entropy"):
        assert ends(clustered, measure) == pytest.approx(ends(apart, measure), abs=rounding(400, 10.0)), measure
        low, high = ends(measures.analyze([many]), measure)
        assert high - low < 0.5 * (ends(apart, measure)[1] - ends(apart, measure)[0])


def test_one_question_has_no_interval():
    assert all(r.low is None for r in measures.analyze([DEGENERATE["one question"]]))


@pytest.mark.parametrize("members", [3, 5, 7])
def test_members_that_agree_tie(members: int):
    """Rounding in an entropy's sums must not be ranked as if it were disagreement."""
    one = random_predictions(1, 500, 5)
    p = replace(one, log_probs=np.repeat(one.log_probs, members, axis=0), members=tuple(range(members)))
    rows = measures.analyze([p], resamples=50)
    assert value_of(rows, "ensemble", "mutual_information") == 0.0
    assert value_of(rows, "ensemble", "pairwise_agreement") == 1.0
    [row] = [r for r in rows if (r.measure, r.pooling) == ("error_auroc_mi", "prob")]
    assert (row.value, row.low, row.high) == (0.5, 0.5, 0.5)


def test_members_in_another_order_change_nothing():
    """To the last bit, where confidences tie: whole weights of 1 to 3 make many of them equal."""
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 4, size=(7, 400, 4)).astype(float)
    probs = weights / weights.sum(axis=-1, keepdims=True)
    targets = rng.integers(0, 4, size=400)
    order = rng.permutation(7)
    rows, other = (measures.analyze([from_probs(of, targets)], resamples=50) for of in (probs, probs[order]))
    for a, b in zip(rows, other, strict=True):
        if a.who == "ensemble" and a.measure not in (
            "pairwise_kl",
            "error_correlation",
        ):  # of members, and never ranked
            assert (a.measure, a.value, a.low, a.high) == (b.measure, b.value, b.low, b.high)
