"""Entropies, divergences and votes of an ensemble."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oracles.samples import CHOICES, EPS64, M, of_unequal_size, population, rounding
from ripieno import measures
from ripieno.measures.uncertainty import pairwise_agreement, pool_logits


def samples(choices):
    """Members' log-probabilities over `choices`, or over 2 to 5 of 5 where it is "unequal"."""
    return of_unequal_size()[0] if choices == "unequal" else population(choices)[0]


@pytest.fixture(params=[*CHOICES, "unequal"])
def log_probs(request):
    return samples(request.param)


def bound(log_probs):
    # Sums over K choices and M members of p ln p, and the difference of two entropies of at most ln K.
    K = log_probs.shape[-1]
    return rounding(K * M, 1 + math.log(K))


def test_entropies_are_scipys(log_probs, stats):
    probs = np.exp(log_probs)
    u = measures.decompose(probs)
    assert u.total == pytest.approx(stats.entropy(probs.mean(axis=0), axis=-1), abs=bound(log_probs))
    assert u.aleatoric == pytest.approx(stats.entropy(probs, axis=-1).mean(axis=0), abs=bound(log_probs))
    # Mutual information is the members' mean divergence from the pooled prediction.
    divergences = stats.entropy(probs, probs.mean(axis=0)[None], axis=-1).mean(axis=0)
    assert u.epistemic == pytest.approx(divergences, abs=bound(log_probs))


def test_two_members_mutual_information_is_scipys_jensen_shannon_divergence(log_probs, distance):
    # Whose root scipy returns.
    probs = np.exp(log_probs[:2])
    theirs = distance.jensenshannon(probs[0], probs[1], axis=-1) ** 2
    assert measures.mutual_information(probs) == pytest.approx(theirs, abs=bound(log_probs))


def test_entropies_are_torch_uncertaintys(log_probs, torch, torch_uncertainty):
    # Its axes are [question, member, choice]; of three axes its entropy is the members' mean, of two the prediction's.
    probs = np.exp(log_probs)
    theirs = torch.tensor(probs.transpose(1, 0, 2))
    u = measures.decompose(probs)
    for metric, given, ours in (
        (torch_uncertainty.Entropy, theirs.mean(dim=1), u.total),
        (torch_uncertainty.Entropy, theirs, u.aleatoric),
        (torch_uncertainty.MutualInformation, theirs, u.epistemic),
    ):
        measure = metric(reduction="none")
        measure.update(given)
        assert ours == pytest.approx(measure.compute().numpy(), abs=bound(log_probs))


def test_pairwise_agreement_is_torch_uncertaintys_disagreement(log_probs, torch, torch_uncertainty):
    # Its "disagreement" is the share of pairs that vote differently; ours is one minus the mode's share of votes.
    probs = np.exp(log_probs)
    measure = torch_uncertainty.Disagreement(reduction="none")
    measure.update(torch.tensor(probs.transpose(1, 0, 2)))
    assert 1 - pairwise_agreement(probs) == pytest.approx(measure.compute().numpy(), abs=2 * EPS64)


@pytest.mark.filterwarnings("ignore:Metric `VariationRatio` will save all predictions:UserWarning")
def test_disagreement_is_torch_uncertaintys_variation_ratio_where_the_vote_is_the_pooled_answer(
    log_probs, torch, torch_uncertainty
):
    # It counts the members that differ from the pooled prediction's argmax, ours those that differ from the votes'
    # mode (Freeman's definition). The mode has the most votes of all, so ours is never above, and equal just where
    # the pooled answer has as many votes as any.
    probs = np.exp(log_probs)
    measure = torch_uncertainty.VariationRatio(probabilistic=False, reduction="none")
    measure.update(torch.tensor(probs))
    theirs = measure.compute().numpy()
    ours = measures.disagreement(probs)
    votes = (probs.argmax(axis=-1)[..., None] == np.arange(probs.shape[-1])).sum(axis=0)
    for_the_pooled = votes[np.arange(len(ours)), probs.mean(axis=0).argmax(axis=-1)]
    alike = for_the_pooled == votes.max(axis=-1)
    assert ours[alike] == pytest.approx(theirs[alike], abs=EPS64)
    assert np.all(ours[~alike] < theirs[~alike])
    assert alike.mean() > 0.5


@pytest.mark.filterwarnings("ignore:Metric `VariationRatio` will save all predictions:UserWarning")
def test_confidence_is_one_minus_torch_uncertaintys_probabilistic_variation_ratio(log_probs, torch, torch_uncertainty):
    probs = np.exp(log_probs)
    measure = torch_uncertainty.VariationRatio(probabilistic=True, reduction="none")
    measure.update(torch.tensor(probs))
    ours = measures.confidence(measures.pool(probs))
    assert ours == pytest.approx(1 - measure.compute().numpy(), abs=rounding(M, 1.0))


def test_pairwise_kl_is_scipys(log_probs, special):
    probs = np.exp(log_probs)
    pairs = [special.rel_entr(probs[a], probs[b]).sum(axis=-1) for a in range(M) for b in range(M) if a != b]
    highest = -float(log_probs[np.isfinite(log_probs)].min())
    terms = M * M * log_probs.shape[-1]
    assert measures.pairwise_kl(log_probs) == pytest.approx(np.mean(pairs, axis=0), abs=rounding(terms, highest))


def test_margin_and_disagreement_are_those_of_sorting_and_counting(log_probs, stats):
    probs = np.exp(log_probs)
    pooled = measures.pool(probs)
    assert pooled == pytest.approx(probs.mean(axis=0), abs=rounding(M, 1.0))  # members in another order
    ordered = np.sort(pooled, axis=-1)
    assert np.array_equal(measures.margin(pooled), ordered[:, -1] - ordered[:, -2])
    votes = stats.mode(probs.argmax(axis=-1), axis=0).count
    assert measures.disagreement(probs) == pytest.approx(1 - votes / M, abs=EPS64)


def test_both_ways_of_pooling_are_scipys(log_probs, special):
    pooled = special.logsumexp(log_probs, axis=0) - math.log(M)
    finite = np.isfinite(pooled)
    highest = -float(log_probs[np.isfinite(log_probs)].min())
    within = rounding(M + log_probs.shape[-1], 1 + highest)
    ours = measures.pool_log(log_probs)
    assert np.array_equal(np.isfinite(ours), finite)
    assert ours[finite] == pytest.approx(pooled[finite], abs=within)
    of_logits = special.log_softmax(log_probs.mean(axis=0), axis=-1)
    ours = pool_logits(log_probs)
    assert np.array_equal(np.isfinite(ours), finite)
    assert ours[finite] == pytest.approx(of_logits[finite], abs=within)
