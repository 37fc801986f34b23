import math
from dataclasses import replace

import numpy as np
import pytest
from populations import from_probs, random_predictions, rounding
from scipy import stats

from ripieno import measures
from ripieno.measures import About, bootstrap
from ripieno.measures.comparisons import Answerer
from ripieno.predictions import Predictions


def small() -> Predictions:
    """Two members, two questions, of two and three choices; pooled (.7, .3) and (.3, .5, .2)."""
    probs = [[[0.9, 0.1, 0.0], [0.5, 0.3, 0.2]], [[0.5, 0.5, 0.0], [0.1, 0.7, 0.2]]]
    mask = np.array([[True, True, False], [True, True, True]])
    return from_probs(probs, [0, 1], mask=mask, epoch=2)


def test_comparisons_by_hand():
    ensemble = small()
    # The base answers another question first, the same two the other way round, and without the answers.
    probs = [[[0.2, 0.3, 0.5], [0.2, 0.2, 0.6], [0.4, 0.6, 0.0]]]
    mask = np.array([[True] * 3, [True] * 3, [True, True, False]])
    base = from_probs(probs, [-1, -1, -1], mask=mask, question_ids=("other", "q1", "q0"), method="base")
    comparisons = measures.compare_with_references([base, ensemble])
    found = {(c.first, c.second, c.measure): c for c in comparisons if c.measure in ("accuracy", "nll", "brier")}
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


def test_the_epoch_compared_is_the_last():
    parts = [random_predictions(2, 30, 4, seed=epoch, epoch=epoch) for epoch in (1, 3, 2)]
    assert measures.compare_with_references(parts) == measures.compare_with_references(parts[1:2]) != []


def test_the_ensemble_is_never_worse_than_its_mean_member():
    found = measures.compare_with_references([random_predictions(3, 100, 5)])
    for row in found:
        if row.second == "mean member" and row.measure != "accuracy":
            assert row.high < 0


# Between any two.


def answerer(p: Predictions) -> Answerer:
    return Answerer.pooled(p.log_probs, p.targets)


def test_equal_answerers_do_not_differ():
    p = random_predictions(3, 40, 4)
    found = measures.compare({"a": answerer(p), "b": answerer(replace(p))}, [("a", "b")], "set", "test")
    assert [c.measure for c in found] == ["accuracy", "nll", "brier", "aurc_confidence", "error_auroc_confidence"]
    for c in found:
        assert (c.difference, c.low, c.high, c.p, c.p_holm) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_each_difference_is_that_of_the_two_measured_apart():
    a, b = random_predictions(3, 60, 4), random_predictions(2, 60, 4, seed=1)
    found = {c.measure: c for c in measures.compare({"a": answerer(a), "b": answerer(b)}, [("a", "b")], "set", "test")}
    counts = bootstrap.draw(60).astype(np.float64)
    for measure, of in (("aurc", measures.aurc), ("error_auroc", measures.auroc)):
        ends = []
        for weights in (None, counts):
            of_each = []
            for p in (a, b):
                pooled = measures.pool(p.probs)
                wrong = 1.0 - measures.correct(pooled, p.targets)
                of_each.append(of(-measures.confidence(pooled), wrong, weights))
            ends.append(of_each[0] - of_each[1])
        c = found[f"{measure}_confidence"]
        assert c.difference == pytest.approx(ends[0], abs=rounding(60, 1.0))
        assert (c.low, c.high) == pytest.approx(np.quantile(ends[1], [0.025, 0.975]), abs=rounding(60, 1.0))
    swapped = measures.compare({"a": answerer(a), "b": answerer(b)}, [("b", "a")], "set", "test")
    for c in swapped:
        assert c.difference == -found[c.measure].difference
        assert c.p == pytest.approx(found[c.measure].p, rel=1e-9)


def test_p_is_uniform_where_the_two_are_exchanged_at_random():
    # Under the null each question's two predictions are drawn from one distribution: who is who is a coin's toss.
    N, trials = 200, 100
    rng = np.random.default_rng(0)
    p_values: dict[str, list[float]] = {}
    a, b = random_predictions(1, N, 4), random_predictions(1, N, 4, seed=1)
    for trial in range(trials):
        swap = rng.random(N) < 0.5
        one, two = (np.where(swap[:, None], *pair) for pair in ((a.log_probs, b.log_probs), (b.log_probs, a.log_probs)))
        of = {name: Answerer.pooled(log_probs, a.targets) for name, log_probs in (("one", one), ("two", two))}
        for c in measures.compare(of, [("one", "two")], "set", "test", resamples=200, seed=trial):
            p_values.setdefault(c.measure, []).append(c.p)
    for measure, values in p_values.items():
        # 1.95 / sqrt(n) is Kolmogorov's bound at 1 in 1,000; the spread of 200 resamples is off by a share of
        # 1 / sqrt(2 * 200) = .05 of itself, which moves a p by at most .05 * 2 z phi(z) <= .025.
        bound = 1.95 / math.sqrt(trials) + 0.025
        assert stats.kstest(values, "uniform").statistic < bound, measure


def test_holm_is_applied_over_a_data_set_and_not_beyond():
    both = [random_predictions(2, 50, 4, seed=s, dataset=name) for s, name in enumerate("ab")]
    found = measures.compare_with_references(both)
    for name in "ab":
        own = [c for c in found if c.dataset == name]
        assert [c.p_holm for c in own] == bootstrap.holm(np.array([c.p for c in own])).tolist()
    alone = measures.compare_with_references(both[1:])
    assert alone == [c for c in found if c.dataset == "b"]
    # Two methods on one data set are looked at together.
    other = random_predictions(2, 50, 4, seed=2, dataset="a", method="dropout")
    found = measures.compare_with_references([both[0], other])
    assert {c.first for c in found} == {"ensemble", "dropout"}
    assert [c.p_holm for c in found] == bootstrap.holm(np.array([c.p for c in found])).tolist()


def test_what_is_not_defined_is_left_out():
    sure, vague = (from_probs([[[p, 1 - p]] * 30], np.arange(30) % 2) for p in (1.0, 0.6))
    pairs = [("sure", "vague"), ("sure", "nobody")]
    found = measures.compare({"sure": answerer(sure), "vague": answerer(vague)}, pairs, "set", "test")
    assert {c.measure for c in found} == {"accuracy", "brier", "aurc_confidence", "error_auroc_confidence"}
    right = replace(sure, targets=np.zeros(30, dtype=np.int64))
    vague = replace(vague, targets=right.targets)
    found = measures.compare({"sure": answerer(right), "vague": answerer(vague)}, pairs[:1], "set", "test")
    assert {c.measure for c in found} == {"accuracy", "nll", "brier", "aurc_confidence"}  # no error to find
    [nll] = [c for c in found if c.measure == "nll"]
    # All thirty questions differ by the same: the sign test's p.
    assert (nll.low, nll.high) == pytest.approx((math.log(0.6), math.log(0.6)), abs=rounding(30, 30.0))
    assert nll.p == 2.0**-29


def test_one_question_or_one_passage_compares_nothing():
    p = random_predictions(2, 20, 4)
    of = {"a": answerer(p), "b": answerer(replace(p, log_probs=p.log_probs[::-1, ::-1]))}
    assert measures.compare(of, [("a", "b")], "set", "test", clusters=np.zeros(20, dtype=np.int64)) == []
    one = p.select(np.arange(1))
    assert measures.compare_with_references([one]) == []
    about = {p.name: About(p.question_ids, passages=[f"passage {n // 5}" for n in range(20)])}
    alone, together = (measures.compare_with_references([p], about=a) for a in (None, about))
    assert [c.difference for c in alone] == [c.difference for c in together]
    assert [c.low for c in alone] != [c.low for c in together]


# Two runs.


def test_two_runs_compare_on_the_questions_that_both_answered():
    first = random_predictions(2, 40, 4, epoch=3).select(np.arange(30))
    second = random_predictions(3, 40, 4, seed=1, epoch=2).select(np.arange(10, 40))
    second = replace(second, targets=np.full(30, -1))
    earlier = random_predictions(3, 30, 4, seed=2, epoch=1)
    base = random_predictions(1, 30, 4, seed=3, method="base")
    elsewhere = random_predictions(2, 30, 4, dataset="other")
    found = measures.compare_runs([base, first], [earlier, base, second, elsewhere], ("one", "two"))
    assert {(c.dataset, c.first, c.second, c.n) for c in found} == {("set", "one", "two", 20)}
    a, b = first.select(np.arange(10, 30)), second.select(np.arange(20))
    nll = [measures.nll(measures.pool_log(p.log_probs), a.targets) for p in (a, b)]
    assert {c.measure: c.difference for c in found}["nll"] == pytest.approx(
        float((nll[0] - nll[1]).mean()), abs=rounding(20, float(max(map(np.max, nll))))
    )
    assert {c.measure for c in found} >= {"accuracy", "nll", "brier", "aurc_confidence"}
    unlabelled = replace(first, targets=second.targets)
    assert measures.compare_runs([unlabelled], [second], ("one", "two")) == []
    assert measures.compare_runs([first], [elsewhere], ("one", "two")) == []


def test_each_method_is_compared_with_each_in_one_table_of_tests():
    one = random_predictions(3, 60, 4, epoch=1)
    two = random_predictions(3, 60, 4, seed=1, epoch=1, method="dropout")
    found = measures.compare_with_references([one, two])
    between = [c for c in found if {c.first, c.second} == {"ensemble", "dropout"}]
    assert [c.measure for c in between] == ["accuracy", "nll", "brier", "aurc_confidence", "error_auroc_confidence"]
    alone = measures.compare_runs([one], [two], ("ensemble", "dropout"))
    assert [(c.difference, c.low, c.high, c.p) for c in between] == [(c.difference, c.low, c.high, c.p) for c in alone]
    # Corrected for the comparisons with references as well: all of this data set.
    assert [c.p_holm for c in found] == pytest.approx(list(measures.holm(np.array([c.p for c in found]))))


def test_the_same_id_with_another_answer_or_other_choices_is_another_question():
    p = random_predictions(2, 30, 4)
    targets = p.targets.copy()
    targets[3] = (targets[3] + 1) % p.mask[3].sum()
    other = replace(p, targets=targets)
    [accuracy] = [c for c in measures.compare_runs([p], [other], ("a", "b")) if c.measure == "accuracy"]
    assert (accuracy.n, accuracy.difference) == (29, 0.0)
    fewer = measures.match_choices(p, 2, seed=0)
    kept = sum(int(size) == 2 for size in p.mask.sum(axis=1))
    found = measures.compare_runs([p], [fewer], ("a", "b"))
    assert {c.n for c in found} == {kept}


def test_any_two_rows_by_their_names():
    parts = [random_predictions(3, 50, 4, seed=e, epoch=e) for e in (1, 2)]
    base = random_predictions(1, 50, 4, seed=7, method="base")
    pairs = [("ensemble@2", "ensemble@1"), ("ensemble:0", "base"), ("ensemble@1:2", "ensemble")]
    found = measures.compare_rows([base, *parts], pairs)
    assert list(dict.fromkeys((c.first, c.second) for c in found)) == pairs

    def loss(p: Predictions, *members: int) -> np.ndarray:
        chosen = p.log_probs[list(members) or slice(None)]
        return measures.nll(measures.pool_log(chosen), p.targets)

    one, two = parts
    expected = [loss(two) - loss(one), loss(two, 0) - loss(base), loss(one, 2) - loss(two)]
    of_nll = [c for c in found if c.measure == "nll"]
    for c, difference in zip(of_nll, expected, strict=True):
        bound = rounding(50, float(np.abs(difference).max()))
        assert c.difference == pytest.approx(difference.mean(), abs=bound)
        assert (c.low, c.high) == pytest.approx(measures.interval(difference), abs=bound)
    # In one table with the references: corrected for all of them together.
    analysis = measures.Evidence([base, *parts]).analyze(pairs=pairs, resamples=50)
    assert [c.p_holm for c in analysis.comparisons] == pytest.approx(
        list(measures.holm(np.array([c.p for c in analysis.comparisons])))
    )
    for name, said in (("dropout", "no such row; there are base@0, ensemble@1"), ("a@b", "write METHOD")):
        with pytest.raises(ValueError, match=said):
            measures.compare_rows([base, *parts], [(name, "base")])
    # A member that left off before the last epoch has no row there, and its earlier one is not taken for it.
    left_off = [one, replace(two, log_probs=two.log_probs[:2], members=two.members[:2])]
    with pytest.raises(ValueError, match="no such row"):
        measures.compare_rows([base, *left_off], [("ensemble:2", "base")])
    assert measures.compare_rows([base, *left_off], [("ensemble@1:2", "base")])
