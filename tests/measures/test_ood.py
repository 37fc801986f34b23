from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from populations import from_probs, log_softmax, predictions_of, random_predictions, rounding
from scipy import stats

from ripieno import measures
from ripieno.measures import About, Detector, Row, tell_apart
from ripieno.measures.ood import NO_FEATURES, NO_REFERENCE, ONE_MEMBER
from ripieno.measures.table import BASELINES, OOD, UNCERTAINTIES
from ripieno.predictions import Predictions


def normal(questions: int, choices: int, seed: int, name: str, members: int = 2, noise: float = 0.5) -> Predictions:
    """Return members around an opinion of standard normal logits."""
    rng = np.random.default_rng([seed, *name.encode()])
    logits = rng.normal(size=(questions, choices)) + noise * rng.normal(size=(members, questions, choices))
    mask = np.ones((questions, choices), dtype=bool)
    return predictions_of(log_softmax(logits, mask), mask, rng.integers(0, choices, size=questions), dataset=name)


def row(rows: list[Row], measure: str, variant: str | None = None) -> Row:
    [found] = [r for r in rows if (r.measure, r.variant) == (measure, variant)]
    return found


# The number of choices.


def test_the_number_of_choices_alone_moves_entropy():
    # The same standard normal logits (scale 1) at K = 5 and at K = 4: entropy at K = 4 is higher in .21 of the pairs
    # only, so with K = 5 as the foreign set the AUROC is .79.
    five, four = (normal(20_000, K, seed, "set", members=1, noise=0.0) for seed, K in ((0, 5), (1, 4)))
    five, four = (measures.entropy(p.probs[0]) for p in (five, four))
    # The standard error of an AUROC of n against n is at most sqrt(.25 / n) (Birnbaum and Klose 1957).
    slack = 4 * math.sqrt(0.25 / 20_000)
    assert measures.ood_measures(five, four)["ood_auroc"] == pytest.approx(0.21, abs=slack)
    assert measures.ood_measures(four, five)["ood_auroc"] == pytest.approx(0.79, abs=slack)


def test_one_of_two_samples_reduced_to_fewer_choices_is_not_told_apart_once_matched():
    trials, covered, as_it_is = 40, 0, []
    for seed in range(trials):
        inside, outside = normal(100, 5, seed, "in"), measures.match_choices(normal(100, 5, seed, "out"), 4, seed + 1)
        outside = replace(outside, metadata={})
        rows = tell_apart(inside, outside, resamples=200, seed=seed)
        matched = row(rows, "ood_auroc_entropy", "k_matched")
        covered += matched.low <= 0.5 <= matched.high
        as_it_is.append(row(rows, "ood_auroc_entropy").value)
        assert row(rows, "ood_auroc_choices", "k_matched").value == 0.5
        assert row(rows, "ood_auroc_choices").value == 0.0
    # 95% nominal, less four standard deviations of a binomial share.
    assert covered / trials >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)
    assert max(as_it_is) < 0.4


def test_matched_values_are_those_of_the_reduced_sets():
    inside, outside = normal(50, 5, 0, "in"), normal(40, 3, 1, "out")
    rows = tell_apart(inside, outside, seed=3)
    cut = measures.match_choices(inside, 3, 3)
    for score, of in (
        ("entropy", lambda p: measures.entropy(measures.pool(p.probs))),
        ("mi", lambda p: measures.mutual_information(p.probs)),
        ("confidence", lambda p: -measures.confidence(measures.pool(p.probs))),
    ):
        for variant, familiar in ((None, inside), ("k_matched", cut)):
            expected = measures.ood_measures(of(familiar), of(outside))
            for measure, value in expected.items():
                assert row(rows, f"{measure}_{score}", variant).value == value
    assert {(r.n, r.who, r.against, r.dataset) for r in rows} == {(90, "ensemble", "in/test", "out")}
    assert [(r.measure, r.variant) for r in rows] == [
        (f"{measure}_{score}", variant)
        for variant in (None, "k_matched")
        for score in (*UNCERTAINTIES, *BASELINES)
        for measure in OOD
    ]


def test_sets_of_equal_size_are_matched_as_they_are():
    rows = tell_apart(normal(30, 4, 0, "in"), normal(30, 4, 1, "out"), resamples=50)
    half = len(rows) // 2
    assert [replace(r, variant="k_matched") for r in rows[:half]] == rows[half:]


def listed(p: Predictions, **metadata: object) -> Predictions:
    return replace(p, metadata={"template": {"name": "letters"}, **metadata})


def test_where_the_prompt_lists_the_choices_they_have_to_be_asked_again():
    inside, outside = listed(normal(30, 5, 0, "in")), listed(normal(30, 4, 1, "out"))
    other_epoch = listed(replace(normal(30, 4, 2, "in"), epoch=9), choices=4)
    other_size = listed(normal(30, 3, 2, "in"), choices=3)
    for matched in ((), (other_epoch, other_size, listed(normal(30, 4, 2, "in", members=3), choices=4))):
        rows = tell_apart(inside, outside, matched=matched, resamples=50)
        of_matched = [r for r in rows if r.variant == "k_matched"]
        assert {(r.value, r.low, r.high, r.n) for r in of_matched} == {(None, None, None, 0)}
        assert {r.reason for r in of_matched} == {
            "the choices stand in the prompt; `ripieno evaluate RUN --choices 4 --epoch 0` asks again with fewer"
        }
        assert all(r.reason is None for r in rows if r.variant is None and "entropy" in r.measure)
    again = listed(normal(25, 4, 2, "in"), choices=4)
    rows = tell_apart(inside, outside, matched=[other_epoch, again], resamples=50)
    expected = measures.ood_measures(*(measures.entropy(measures.pool(p.probs)) for p in (again, outside)))
    found = row(rows, "ood_auroc_entropy", "k_matched")
    assert (found.value, found.n) == (expected["ood_auroc"], 55)


def test_what_cannot_be_matched_says_why():
    unlabelled = replace(normal(20, 5, 0, "in"), targets=np.full(20, -1))
    rows = tell_apart(unlabelled, normal(20, 4, 1, "out"), resamples=50)
    assert "no question can be cut to 4 choices" in row(rows, "ood_auroc_entropy", "k_matched").reason
    # A question of one choice is left out of the matched table, since nothing can be reduced to it.
    lone = random_predictions(2, 20, 3)
    mask = lone.mask.copy()
    mask[0] = [True, False, False]
    lone = replace(
        lone, mask=mask, log_probs=log_softmax(np.where(mask, 0.1 * np.arange(3), 0.0) + 0 * lone.probs, mask)
    )
    lone = replace(lone, targets=np.zeros(20, dtype=np.int64), dataset="out")
    found = row(tell_apart(normal(20, 4, 1, "in"), lone, resamples=50), "ood_auroc_entropy", "k_matched")
    assert (found.n, found.reason) == (39, None)


# Both sets are resampled.


def test_coverage_of_a_known_auroc():
    # Confidence of two choices is a monotone function of |logit|, so any scores may be dressed up as predictions.
    trials, n, shift, covered = 200, 60, 1.0, 0
    truth = stats.norm.cdf(shift / math.sqrt(2))  # binormal
    rng = np.random.default_rng(0)
    for trial in range(trials):
        sets = []
        for name, mean in (("in", 0.0), ("out", shift)):
            sure = 0.5 + 0.5 * stats.norm.sf(rng.normal(mean, 1.0, size=n))
            sets.append(from_probs(np.stack([sure, 1 - sure], axis=1)[None], np.zeros(n, dtype=int), dataset=name))
        found = row(tell_apart(*sets, resamples=200, seed=trial), "ood_auroc_entropy")
        covered += found.low <= truth <= found.high
    # The percentile interval of an AUROC is nearly that of a normal mean of n values (divisor n, 1.96 not t): 94.4%.
    # Two more percent off for its skew near 1 (the interval is centred on the estimate, not on the truth).
    expected = 2 * stats.t.cdf(1.96 * math.sqrt((n - 1) / n), n - 1) - 1
    slack = 4 * math.sqrt(expected * (1 - expected) / trials)
    assert expected - 0.02 - slack <= covered / trials <= expected + slack


def test_both_sets_are_resampled_and_apart():
    few, many = normal(20, 4, 0, "in"), normal(500, 4, 1, "out")
    wide = row(tell_apart(few, normal(20, 4, 1, "out"), seed=1), "ood_auroc_entropy")
    half = row(tell_apart(few, many, seed=1), "ood_auroc_entropy")
    narrow = row(tell_apart(normal(500, 4, 0, "in"), many, seed=1), "ood_auroc_entropy")
    assert wide.high - wide.low > half.high - half.low > 2 * (narrow.high - narrow.low)
    # A set against a copy of itself: paired draws would leave the AUROC near .5 in every resample.
    copy = replace(few, dataset="out")
    found = row(tell_apart(few, copy), "ood_auroc_entropy")
    assert found.value == 0.5
    assert found.high - found.low > 0.2


def test_questions_of_one_passage_are_drawn_together():
    inside, outside = normal(40, 4, 0, "in"), normal(40, 4, 1, "out")
    ids = inside.question_ids
    pairs = {p.name: About(ids, passages=[f"passage {n // 20}" for n in range(40)]) for p in (inside, outside)}
    alone, together = (row(tell_apart(inside, outside, about=a), "ood_auroc_entropy") for a in (None, pairs))
    assert (alone.low, alone.high) != (together.low, together.high)
    one = {inside.name: About(ids, passages=["the same"] * 40)}
    found = row(tell_apart(inside, outside, about=one), "ood_auroc_entropy")
    assert (found.value, found.low, found.high) == (alone.value, None, None)  # one passage says nothing of others


def test_no_resamples_give_no_intervals():
    rows = tell_apart(normal(30, 4, 0, "in"), normal(30, 4, 1, "out"), resamples=0)
    assert {(r.low, r.high) for r in rows} == {(None, None)}
    assert row(rows, "ood_auroc_entropy").value is not None


# Baselines.


def test_baselines_measure_what_is_known_of_the_questions():
    inside, outside = normal(3, 4, 0, "in"), normal(2, 4, 1, "out")
    about = {
        "in/test": About(
            ("q2", "q1", "q0"),
            prompt_tokens=np.array([30, 20, 10]),
            prompt_nll=np.array([1.0, 2.0, 3.0]),
            distance=np.array([0.0, 1.0, 2.0]),
        ),
        "out/test": About(
            ("q0", "q1"),
            prompt_tokens=np.array([20, 40]),
            prompt_nll=np.array([2.5, 0.5]),
            distance=np.array([3.0, 1.5]),
        ),
    }
    rows = tell_apart(inside, outside, about=about)
    assert row(rows, "ood_auroc_prompt_length").value == (1.5 + 3) / 6
    assert row(rows, "ood_auroc_perplexity").value == (2 + 0) / 6
    assert row(rows, "ood_auroc_mahalanobis").value == (3 + 2) / 6
    assert row(rows, "ood_auroc_choices").value == 0.5
    states = {
        name: replace(of, distance=None, hidden=np.zeros((len(of.question_ids), 2))) for name, of in about.items()
    }
    without = tell_apart(inside, outside, about=states)
    assert row(without, "ood_auroc_mahalanobis").reason == NO_REFERENCE
    nothing = tell_apart(inside, outside, about={"in/test": about["in/test"]})
    for score in ("prompt_length", "perplexity", "mahalanobis"):
        assert row(nothing, f"ood_auroc_{score}").reason == NO_FEATURES


def test_one_member_and_no_questions_say_why():
    rows = tell_apart(normal(9, 4, 0, "in", members=1), normal(9, 4, 1, "out", members=1), resamples=20)
    assert row(rows, "ood_auroc_mi").reason == ONE_MEMBER
    empty = normal(9, 4, 0, "in").select(np.arange(0))
    rows = tell_apart(empty, normal(9, 4, 1, "out"))
    assert {(r.value, r.reason) for r in rows} == {(None, "no questions")}
    alone = tell_apart(normal(9, 4, 0, "in"), normal(1, 4, 1, "out"))
    assert row(alone, "ood_auroc_entropy").value is not None
    assert row(alone, "ood_auroc_entropy").low is None


def test_other_members_do_not_compare():
    with pytest.raises(ValueError, match="in/test and out/test were answered by different members"):
        tell_apart(normal(9, 4, 0, "in"), normal(9, 4, 1, "out", members=3))


# Mahalanobis.


def share_of(hidden: np.ndarray) -> tuple[float, np.ndarray]:
    """Return scikit-learn's Ledoit-Wolf share and covariance (sklearn.covariance.ledoit_wolf), entry by entry."""
    N, D = hidden.shape
    x = hidden - hidden.mean(axis=0)
    covariance = sum(np.outer(row, row) for row in x) / N
    mu = sum(covariance[i, i] for i in range(D)) / D
    delta = sum((covariance[i, j] - mu * (i == j)) ** 2 for i in range(D) for j in range(D)) / D
    beta = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in x) / N**2 / D
    share = min(beta, delta) / delta
    return share, (1 - share) * covariance + share * mu * np.eye(D)


@pytest.mark.parametrize(("questions", "dimensions"), [(40, 3), (6, 5), (5, 12), (2, 4)])
def test_distance_is_that_of_the_shrunk_covariance(questions, dimensions):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(questions, dimensions)) @ np.diag(np.arange(1, dimensions + 1))
    share, covariance = share_of(hidden)
    assert 0 <= share <= 1
    asked = rng.normal(size=(7, dimensions))
    if share < 1e-12:  # two questions span one direction, and nothing is shrunk: the others say nothing
        away = asked - hidden.mean(axis=0)
        line = (hidden[0] - hidden[1]) / np.linalg.norm(hidden[0] - hidden[1])
        expected = np.abs(away @ line) / (np.linalg.norm(hidden[0] - hidden[1]) / 2)
    else:
        away = asked - hidden.mean(axis=0)
        expected = np.sqrt(np.einsum("nd,de,ne->n", away, np.linalg.inv(covariance), away))
    found = Detector.fit(hidden).distance(asked)
    condition = 1.0 if share < 1e-12 else np.linalg.cond(covariance)
    assert found == pytest.approx(expected, rel=rounding(dimensions**2, 10 * condition))


def test_isotropic_states_give_the_euclidean_distance():
    # Unit vectors and their negatives: mean 0, covariance I / D exactly, so that no shrinking changes it.
    D = 6
    detector = Detector.fit(np.vstack([np.eye(D), -np.eye(D)]))
    assert detector.distance(np.zeros((0, D))).tolist() == []
    asked = np.random.default_rng(0).normal(size=(9, D))
    expected = math.sqrt(D) * np.linalg.norm(asked, axis=1)
    assert detector.distance(asked) == pytest.approx(expected, rel=rounding(D, 4.0))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_dimensions_and_states_that_never_vary_do_not_blow_up(kind):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(50, 4)).astype(kind)
    hidden[:, 2] = 0.1
    moved = hidden.copy()
    moved[:, 2] += 0.1
    detector = Detector.fit(hidden)
    assert np.isfinite(detector.distance(moved)).all()
    assert detector.distance(moved).max() < 100
    alike = Detector.fit(np.full((7, 3), 0.1, dtype=kind))
    assert alike.distance(moved[:, :3]).tolist() == [0.0] * 50
