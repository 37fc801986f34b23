from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from populations import EPS, random_predictions
from scipy import stats

from ripieno import measures
from ripieno.measures import Row
from ripieno.measures.replicates import over_replicates, t_quantile


def table(accuracy: float | None, member: float = 0.5) -> list[Row]:
    where = ("set", "test", "ensemble", 1)
    reason = None if accuracy is not None else "no question has a known answer"
    return [
        Row(*where, "ensemble", "accuracy", accuracy, 10, reason=reason),
        Row(*where, "ensemble", "accuracy", 0.25, 10, variant="temperature"),
        Row(*where, "members_mean", "accuracy", 0.5, 10),
        Row(*where, 0, "accuracy", member, 10),
    ]


def test_one_replicate_is_left_as_it_is():
    rows = table(0.7)
    assert over_replicates([rows]) == rows


def test_two_and_three_replicates_by_hand():
    ensemble, variant, mean = over_replicates([table(0.6), table(0.8)])
    # s = sqrt(2) * .1, so s / sqrt(2) = .1
    assert (ensemble.value, ensemble.low, ensemble.high) == pytest.approx(
        (0.7, 0.7 - 12.706 * 0.1, 0.7 + 12.706 * 0.1), abs=8 * EPS
    )
    assert (variant.value, variant.low, variant.high, variant.variant) == (0.25, 0.25, 0.25, "temperature")
    assert mean.who == "members_mean"
    assert {row.scope for row in (ensemble, variant, mean)} == {"training"}

    row = over_replicates([table(0.6), table(0.7), table(0.8)])[0]
    half = 4.303 * 0.1 / math.sqrt(3)
    assert (row.value, row.low, row.high) == pytest.approx((0.7, 0.7 - half, 0.7 + half), abs=8 * EPS)


def test_null_in_one_is_null_in_all_with_its_reason():
    row = over_replicates([table(0.6), table(None), table(0.8)])[0]
    assert (row.value, row.low, row.high) == (None, None, None)
    assert row.reason == "no question has a known answer"
    assert row.scope == "training"


def test_what_was_not_trained_keeps_its_own_interval():
    """The base and the trivial baselines are the same in each replicate: no spread, which is no certainty either."""
    where = ("away", "test", "ensemble", 1, "ensemble")
    base = Row("set", "test", "base", 0, "ensemble", "accuracy", 0.5, 10, low=0.25, high=0.75)
    length = Row(*where, "ood_auroc_prompt_length", 0.9, 20, low=0.8, high=0.95, against="set/test")
    unknown = Row(*where, "ood_fpr95_mahalanobis", None, 20, against="set/test", reason="nothing is known")
    entropy = Row(*where, "ood_auroc_entropy", 0.75, 20, low=0.7, high=0.8, against="set/test")
    untrained = [base, length, unknown]
    found = over_replicates([[*untrained, entropy], [*untrained, replace(entropy, value=0.8)]])
    assert found[:3] == untrained
    assert [row.scope for row in found] == ["questions"] * 3 + ["training"]


def test_an_analysis_of_replicates_has_no_interval_without_width():
    sets = [(name, r) for r in range(2) for name in ("home", "away")]
    parts = [
        replace(random_predictions(2, 30, 3, seed=r + 5 * (name == "away"), dataset=name), replicate=r, epoch=1)
        for name, r in sets
    ]
    base = [replace(random_predictions(1, 30, 3, seed=9, dataset="home"), method="base", replicate=r) for r in range(2)]
    rows = measures.Evidence([*base, *parts], ["away/test"]).analyze(resamples=20).rows
    scopes = {row.method: {r.scope for r in rows if r.method == row.method and r.against is None} for row in rows}
    assert scopes == {"base": {"questions"}, "ensemble": {"training"}}
    choices = [row for row in rows if row.measure == "ood_auroc_choices" and row.variant is None]
    assert [(row.scope, row.low is None) for row in choices] == [("questions", False)]
    [accuracy] = [row for row in rows if (row.method, row.who, row.measure) == ("base", "ensemble", "accuracy")]
    assert accuracy.low < accuracy.value < accuracy.high  # type: ignore[operator]


def test_rows_that_one_replicate_lacks_are_left_out():
    assert [row.who for row in over_replicates([table(0.6)[:1], table(0.8)])] == ["ensemble"]


def test_quantiles_are_those_of_students_t():
    for freedom in (*range(1, 40), 200, 10_000):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-4)


def test_an_analysis_of_replicates_speaks_of_training_again():
    parts = [replace(random_predictions(2, 30, 3, seed=r, epoch=1), replicate=r) for r in range(3)]
    rows = measures.analyze(parts)
    assert {row.scope for row in rows} == {"training"}
    assert {row.who for row in rows} == {"ensemble", "members_mean"}
    each = [measures.analyze([p]) for p in parts]
    [merged] = [r for r in rows if (r.who, r.measure, r.pooling) == ("ensemble", "nll", "prob")]
    values = [r.value for t in each for r in t if (r.who, r.measure, r.pooling) == ("ensemble", "nll", "prob")]
    assert merged.value == pytest.approx(np.mean(values), abs=8 * EPS)
