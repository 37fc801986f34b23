from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from populations import log_softmax, random_predictions

from ripieno import measures
from ripieno.measures import About, Costs, Evidence
from ripieno.measures.ensemble_size import apart_by_members
from ripieno.measures.replicates import TRIVIAL
from ripieno.predictions import Predictions


def sets(*, replicate: int = 0) -> list[Predictions]:
    """Return the base and epochs 1 and 2 of two members, on a familiar set and on a foreign one."""
    found = []
    for i, name in enumerate(("home", "away")):
        found.append(random_predictions(1, 30, 4, seed=10 * i, dataset=name, method="base", replicate=replicate))
        found += [
            random_predictions(2, 30, 4, seed=10 * i + e + 100 * replicate, dataset=name, epoch=e, replicate=replicate)
            for e in (1, 2)
        ]
    return found


def test_the_whole_is_its_parts():
    parts = sets()
    calibration = [random_predictions(2, 20, 4, seed=9, epoch=2, dataset="cal")]
    evidence = Evidence(parts, out_of_domain=["away/test"], calibration=calibration)
    costs = Costs(error=5.0, handover=1.0)
    analysis = evidence.analyze(costs=costs, bins=7, resamples=50, seed=3)
    rows = measures.analyze(parts, calibration=calibration, costs=costs, bins=7, resamples=50, seed=3)
    own = [r for r in analysis.rows if r.against is None]
    assert own == rows
    pairs = [(parts[0], parts[3], 50), (parts[1], parts[4], 0), (parts[2], parts[5], 50)]
    apart = [r for a, b, B in pairs for r in measures.tell_apart(a, b, resamples=B, seed=3)]
    assert [r for r in analysis.rows if r.against] == apart
    references = measures.compare_with_references(parts, calibration=calibration, resamples=50, seed=3)
    assert analysis.comparisons == references
    last = [parts[2], parts[5]]
    sizes = [c for p in last for c in measures.by_members(p, bins=7, resamples=50, seed=3)]
    assert analysis.sizes == sizes + apart_by_members(*last, seed=3)
    assert analysis.flows == measures.flows(parts)
    assert analysis == evidence.analyze(costs=costs, bins=7, resamples=50, seed=3)


def test_only_the_last_epoch_of_a_set_has_intervals_of_telling_apart():
    analysis = Evidence(sets(), out_of_domain=["away/test"]).analyze(resamples=50)
    apart = [r for r in analysis.rows if r.measure == "ood_auroc_entropy" and r.variant is None]
    assert [(r.method, r.epoch, r.against, r.low is None) for r in apart] == [
        ("base", 0, "home/test", False),
        ("ensemble", 1, "home/test", True),
        ("ensemble", 2, "home/test", False),
    ]


def test_the_last_epoch_is_each_sets_own():
    parts = sets()
    analysis = Evidence([*parts[:3], parts[4]]).analyze(resamples=20)  # the foreign set was asked at epoch 1 alone
    assert {(c.dataset, c.epoch) for c in analysis.sizes} == {("home", 2), ("away", 1)}


def test_without_foreign_sets_nothing_is_told_apart():
    assert not [r for r in Evidence(sets()).analyze(resamples=20).rows if r.against]


def test_features_of_the_training_questions_make_a_detector():
    rng = np.random.default_rng(0)
    parts = [p for p in sets() if p.epoch == 2]
    about = {p.name: About(p.question_ids, hidden=rng.normal(size=(30, 3)) + 9 * i) for i, p in enumerate(parts)}
    for familiar, value in ((rng.normal(size=(50, 3)), 1.0), (rng.normal(size=(1, 3)), None), (None, None)):
        evidence = Evidence(parts, out_of_domain=["away/test"], about=about, familiar=familiar)
        rows = evidence.analyze(resamples=20).rows
        [found] = [r for r in rows if (r.measure, r.variant) == ("ood_auroc_mahalanobis", None)]
        assert found.value == value


def test_several_replicates_become_one_with_an_interval_of_training_again():
    parts = [*sets(), *sets(replicate=1)]
    analysis = Evidence(parts, out_of_domain=["away/test"]).analyze(resamples=20)
    # The base and the trivial baselines are not trained: each replicate has the same.
    for row in analysis.rows:
        assert (row.scope == "questions") == (row.method == "base" or row.measure in TRIVIAL), row
    keys = [(r.dataset, r.method, r.epoch, r.who, r.measure, r.pooling, r.variant, r.against) for r in analysis.rows]
    assert len(keys) == len(set(keys))
    # What is paired speaks of the first replicate's members.
    first = Evidence(sets(), out_of_domain=["away/test"]).analyze(resamples=20)
    assert (analysis.comparisons, analysis.sizes, analysis.flows) == (first.comparisons, first.sizes, first.flows)


def test_two_draws_of_one_member_and_uncertain_questions_say_no_nan():
    mask = np.ones((6, 3), dtype=bool)
    same = log_softmax(np.zeros((2, 6, 3)), mask)
    parts = [
        replace(p, log_probs=same, mask=mask, targets=np.zeros(6, dtype=np.int64), members=(0, 0))
        for p in (p.select(np.arange(6)) for p in sets() if p.epoch == 1)
    ]
    analysis = Evidence(parts, out_of_domain=["away/test"]).analyze(resamples=20)
    json.dumps(analysis.to_json(), allow_nan=False)
    for row in analysis.rows:
        assert (row.value is None) == (row.reason is not None), row
    [auroc] = [r for r in analysis.rows if (r.measure, r.variant) == ("ood_auroc_entropy", None)]
    assert (auroc.value, auroc.low, auroc.high) == (0.5, 0.5, 0.5)
