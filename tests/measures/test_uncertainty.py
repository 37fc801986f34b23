import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import EPS, any_predictions, random_predictions, rounding

from ripieno import measures
from ripieno.predictions import Predictions


def test_equal_members_do_not_disagree():
    one = random_predictions(1, 50, 5)
    log_probs = np.repeat(one.log_probs, 4, axis=0)
    u = measures.decompose(np.exp(log_probs))
    bound = rounding(4 * 5, math.log(5))
    assert u.epistemic == pytest.approx(0.0, abs=bound)
    assert u.total == pytest.approx(measures.entropy(one.probs[0]), abs=bound)
    # Each of the K terms is (p - mean p) ln p: a rounding of p, times ln p.
    assert measures.pairwise_kl(log_probs) == pytest.approx(
        0.0, abs=rounding(20, float(-one.log_probs[one.log_probs > -np.inf].min()))
    )
    assert not measures.disagreement(np.exp(log_probs)).any()


@pytest.mark.parametrize("members", [1, 2, 3, 7])
def test_disjoint_certain_members_disagree_by_ln_m(members):
    M = members
    probs = np.eye(M, 8)[:, None, :]
    u = measures.decompose(probs)
    assert u.total == pytest.approx(math.log(M), abs=rounding(M, math.log(8)))
    assert u.aleatoric == 0.0
    assert u.epistemic == pytest.approx(math.log(M), abs=rounding(M, math.log(8)))
    assert measures.disagreement(probs) == pytest.approx(1 - 1 / M, abs=EPS)


def test_uniform_guess_has_entropy_ln_k():
    mask = np.arange(6) < np.arange(2, 7)[:, None]
    probs = mask / mask.sum(axis=1, keepdims=True)
    sizes = mask.sum(axis=1)
    assert measures.entropy(probs) == pytest.approx(np.log(sizes), abs=rounding(6, math.log(6)))
    assert measures.normalised_entropy(probs, sizes) == pytest.approx(1.0, abs=rounding(6, 1.0))
    assert measures.margin(probs) == pytest.approx(0.0, abs=0.0)
    assert measures.confidence(probs) == pytest.approx(1 / sizes, abs=0.0)


def test_certainty_has_entropy_zero_and_no_sign():
    for probs in (np.array([[0.0, 1.0, 0.0]]), np.array([[1.0]])):
        entropy = measures.entropy(probs)
        assert entropy[0] == 0.0
        assert not np.signbit(entropy[0])
        assert measures.normalised_entropy(probs, np.array([probs.shape[1]]))[0] == 0.0
        assert measures.margin(probs)[0] == 1.0


def test_pairwise_kl_is_the_mean_over_ordered_pairs():
    p = random_predictions(4, 30, 5)
    expected = np.zeros(30)
    for a in range(4):
        for b in set(range(4)) - {a}:
            gap = np.where(p.mask, p.log_probs[a], 0) - np.where(p.mask, p.log_probs[b], 0)
            expected += (p.probs[a] * gap).sum(axis=1) / 12
    largest = float(-p.log_probs[np.isfinite(p.log_probs)].min())
    assert measures.pairwise_kl(p.log_probs) == pytest.approx(expected, abs=rounding(4 * 5 * 4, largest))


def test_pairwise_kl_is_infinite_where_one_member_rules_out_what_another_does_not():
    log_probs = np.array([[[0.0, -np.inf], [0.0, -np.inf]], [[math.log(0.5)] * 2, [0.0, -np.inf]]])
    assert measures.pairwise_kl(log_probs).tolist() == [np.inf, 0.0]


def test_one_member_makes_no_pair():
    with pytest.raises(ValueError, match="two members"):
        measures.pairwise_kl(np.zeros((1, 1, 1)))


def test_disagreement_counts_against_the_mode_of_the_votes():
    # Two of three vote for choice 0; the third is so sure of choice 1 that the pooled argmax is 1.
    probs = np.array([[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]])
    assert measures.pool(probs).argmax() == 1
    assert measures.disagreement(probs) == pytest.approx(1 / 3, abs=EPS)


@settings(deadline=None)
@given(any_predictions(min_members=2))
def test_bounds(p: Predictions):
    M, _, K = p.log_probs.shape
    sizes = p.mask.sum(axis=1)
    u = measures.decompose(p.probs, p.mask)
    bound = rounding(M * K, 1 + math.log(K))
    assert (u.epistemic >= 0).all()
    assert (u.epistemic <= u.total + bound).all()
    assert (u.epistemic <= math.log(M) + bound).all()
    assert (u.total <= np.log(sizes) + bound).all()
    assert u.total == pytest.approx(u.aleatoric + u.epistemic, abs=bound)
    pooled = measures.pool(p.probs)
    assert (measures.normalised_entropy(pooled, sizes) <= 1 + bound / math.log(2)).all()
    assert (measures.margin(pooled) <= measures.confidence(pooled)).all()
    assert (measures.pairwise_kl(p.log_probs) >= 0).all()
    assert (measures.disagreement(p.probs) <= 1 - 1 / np.minimum(M, sizes) + EPS).all()


@settings(deadline=None)
@given(any_predictions(min_members=2), st.randoms(use_true_random=False))
def test_the_order_of_members_and_choices_changes_nothing(p: Predictions, random):
    M, _, K = p.log_probs.shape
    members, choices = random.sample(range(M), M), random.sample(range(K), K)
    shuffled = p.log_probs[members][:, :, choices]
    bound = rounding(M * K, 1 + math.log(K))
    before, after = measures.decompose(p.probs), measures.decompose(np.exp(shuffled))
    assert after.total == pytest.approx(before.total, abs=bound)
    assert after.epistemic == pytest.approx(before.epistemic, abs=bound)
    largest = float(-p.log_probs[np.isfinite(p.log_probs)].min())
    kl = measures.pairwise_kl(p.log_probs)
    assert measures.pairwise_kl(shuffled) == pytest.approx(kl, abs=rounding(M * K, M * K * max(largest, 1.0)))
    assert measures.pool_log(shuffled) == pytest.approx(
        measures.pool_log(p.log_probs)[:, choices], abs=bound * max(largest, 1.0)
    )
    if (np.partition(p.log_probs, -2)[..., -1] > np.partition(p.log_probs, -2)[..., -2]).all():  # no tied votes
        assert measures.disagreement(np.exp(shuffled)).tolist() == measures.disagreement(p.probs).tolist()


def test_pool_log_does_not_underflow():
    log_probs = np.array([[[0.0, -1000.0, -np.inf]], [[0.0, -1001.0, -np.inf]]])
    pooled = measures.pool_log(log_probs)
    assert pooled[0, 1] == pytest.approx(-1000.0 + math.log((1 + math.exp(-1)) / 2), abs=1000 * 4 * EPS)
    assert pooled[0, 2] == -np.inf


def test_absent_choices_never_count():
    p = random_predictions(3, 20, 4)
    rubbish = np.where(p.mask, p.probs, 0.3)
    assert measures.decompose(rubbish, p.mask).total.tolist() == measures.decompose(p.probs).total.tolist()
    assert measures.mutual_information(p.probs).tolist() == measures.decompose(p.probs).epistemic.tolist()


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (np.full((2, 2), 0.5), "shape"),
        (np.zeros((0, 2, 2)), "at least one member"),
        (np.array([[[2.0, -1.0]]]), "outside 0..1"),
        (np.array([[[np.nan, 1.0]]]), "outside 0..1"),
        (np.array([[[0.5, 0.5], [0.5, 0.4]]]), "member 0, question 1 sum to 0.9"),
    ],
)
def test_what_is_no_distribution_is_an_error(probs, message):
    with pytest.raises(ValueError, match=message):
        measures.decompose(probs)


# The mean of logits.


def test_mean_of_logits_by_hand():
    probs = np.array([[[0.9, 0.1]], [[0.5, 0.5]]])
    a, b = math.sqrt(0.9 * 0.5), math.sqrt(0.1 * 0.5)
    pooled = np.exp(measures.pool_logits(np.log(probs)))
    assert pooled[0] == pytest.approx([a / (a + b), b / (a + b)], abs=16 * EPS)


def test_mean_of_logits_is_the_softmax_of_the_mean_of_any_logits():
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(4, 20, 5)) + 50 * rng.normal(size=(4, 20, 1))
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    mean = logits.mean(axis=0)
    expected = np.exp(mean) / np.exp(mean).sum(axis=-1, keepdims=True)
    bound = rounding(4 * 5, float(np.abs(logits).max()))
    assert np.exp(measures.pool_logits(log_probs)) == pytest.approx(expected, abs=bound)


def test_mean_of_logits_where_members_rule_choices_out():
    inf = np.inf
    log_probs = np.array(
        [
            [[0.0, -inf, -inf], [math.log(0.5), math.log(0.5), -inf], [0.0, -inf, -inf]],
            [[-inf, 0.0, -inf], [0.0, -inf, -inf], [0.0, -inf, -inf]],
        ]
    )
    # Of two that rule each other out each is as good; a choice that one alone allows has nothing left.
    assert np.exp(measures.pool_logits(log_probs)) == pytest.approx(
        np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), abs=2 * EPS
    )


@settings(deadline=None)
@given(any_predictions())
def test_mean_of_logits_is_a_distribution_and_one_members_is_its_own(p: Predictions):
    M, _, K = p.log_probs.shape
    pooled = measures.pool_logits(p.log_probs)
    assert np.exp(pooled).sum(axis=1) == pytest.approx(1.0, abs=rounding(K, 1.0))
    assert np.isneginf(pooled[~p.mask]).all()
    largest = float(-p.log_probs[np.isfinite(p.log_probs)].min())
    bound = rounding(M * K, max(largest, 1.0))
    first = p.log_probs[:1]
    assert measures.pool_logits(first) == pytest.approx(first[0], abs=bound)
    assert measures.pool_logits(np.repeat(first, 3, axis=0)) == pytest.approx(first[0], abs=3 * bound)


@settings(deadline=None)
@given(any_predictions(), st.randoms(use_true_random=False))
def test_the_order_of_members_and_choices_leaves_the_mean_of_logits(p: Predictions, random):
    M, _, K = p.log_probs.shape
    shuffled = p.log_probs[random.sample(range(M), M)]
    choices = random.sample(range(K), K)
    largest = float(-p.log_probs[np.isfinite(p.log_probs)].min())
    bound = rounding(M * K, M * max(largest, 1.0))
    pooled = measures.pool_logits(p.log_probs)
    assert measures.pool_logits(shuffled[:, :, choices]) == pytest.approx(pooled[:, choices], abs=bound)


# Pairs that vote alike.


def test_pairwise_agreement_counts_pairs():
    p = random_predictions(5, 30, 4)
    votes = p.probs.argmax(axis=-1)
    pairs = [votes[a] == votes[b] for a in range(5) for b in range(5) if a != b]
    assert measures.pairwise_agreement(p.probs) == pytest.approx(np.mean(pairs, axis=0), abs=4 * EPS)
    assert measures.pairwise_agreement(np.repeat(p.probs[:1], 3, axis=0)).tolist() == [1.0] * 30
    assert measures.pairwise_agreement(np.eye(3, 4)[:, None]).tolist() == [0.0]
    with pytest.raises(ValueError, match="two members"):
        measures.pairwise_agreement(p.probs[:1])


def test_pairwise_agreement_does_not_depend_on_the_number_of_members():
    p = random_predictions(6, 40, 4)
    pairs = [measures.pairwise_agreement(p.probs[[a, b]]) for a in range(6) for b in range(a)]
    assert measures.pairwise_agreement(p.probs) == pytest.approx(np.mean(pairs, axis=0), abs=rounding(15, 1.0))


# Other outcomes than the choices.


def test_with_other_by_hand():
    with np.errstate(divide="ignore"):
        letters = np.log(np.array([[[0.5, 0.25], [0.0, 0.0], [0.5, 0.5], [1.0, 0.0]]]))
    found = np.exp(measures.with_other(letters))
    assert found[0] == pytest.approx(
        np.array([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), abs=8 * EPS
    )


def test_letters_that_sum_to_more_than_one_by_rounding_are_normalised():
    letters = np.log(np.array([[[0.7, 0.3]]]).astype(np.float32)) + np.float32(1e-6)
    found = measures.with_other(letters.astype(np.float64))
    assert np.exp(found).sum() == pytest.approx(1.0, abs=8 * EPS)
    assert found[0, 0, 2] == -np.inf
    assert measures.decompose(np.exp(found)).epistemic[0] == 0.0


def test_over_vocabulary_by_hand():
    # Two members name the same four tokens in their own orders.
    tokens = np.array([[[7, 2, 0, 5]], [[0, 7, 5, 2]]])
    probs = np.array([[[0.5, 0.3, 0.2, 0.0]], [[0.6, 0.1, 0.1, 0.2]]])
    with np.errstate(divide="ignore"):
        found = measures.over_vocabulary(tokens, np.log(probs))
    dense = np.zeros((2, 1, 8))
    for m in range(2):
        dense[m, 0, tokens[m, 0]] = probs[m, 0]
    assert dense[:, 0, 7].tolist() == [0.5, 0.1]
    expected = measures.decompose(dense)
    bound = rounding(8, math.log(8))
    for name in ("total", "aleatoric", "epistemic"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=bound)


def test_over_vocabulary_is_not_known_from_a_part_of_it():
    tokens = np.array([[[1, 0], [1, 0]]])
    assert measures.over_vocabulary(tokens, np.log([[[0.7, 0.3], [0.7, 0.2]]])) is None
    assert measures.over_vocabulary(tokens, np.log([[[0.7, 0.3], [0.7, 0.3]]])) is not None
    nothing = measures.over_vocabulary(tokens[:, :0], np.zeros((1, 0, 2)))
    assert nothing.total.shape == nothing.aleatoric.shape == nothing.epistemic.shape == (0,)
