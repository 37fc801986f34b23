"""How uncertain an ensemble is about each question, and how much of that is its members disagreeing.

Arrays are `[member, question, choice]`; entropies and divergences are in nats. A choice that a question does not have
has probability 0 (log-probability -inf) and never counts. Probabilities of exactly 0 and 1 are fine everywhere:
0 ln 0 = 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.predictions import SUM_TOLERANCE

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The uncertainty of each question in two parts: `total = aleatoric + epistemic`.

    Args:
        total: [N], nats: entropy of the pooled prediction (predictive entropy).
        aleatoric: [N], nats: mean entropy of the members (expected entropy).
        epistemic: [N], nats: mutual information between the answer and the member; 0 where the members agree.
    """

    total: Floats
    aleatoric: Floats
    epistemic: Floats


def decompose(probs: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Decomposition:
    """Split each question's predictive entropy into expected entropy and mutual information.

        H[mean_m p_m] = mean_m H[p_m] + I(answer; member)

    Depeweg et al. 2018 (arXiv:1710.07283); the last term is BALD, Houlsby et al. 2011 (arXiv:1112.5745). It grows with
    M and is at most min(ln M, ln K): compare it at equal M only.

    Args:
        probs: [M, N, K], each row a distribution over its question's choices.
        mask: bool [N, K], whether the question has the choice: for arrays that hold anything but 0 where it has not.

    Returns:
        Total, aleatoric and epistemic uncertainty, [N] each, in nats. One member: epistemic is 0.

    Raises:
        ValueError: not three axes, no member, a value outside 0..1, or a row that does not sum to 1.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 3 or probs.shape[0] == 0:
        raise ValueError(f"probs has shape {probs.shape}, not [member, question, choice] with at least one member")
    if mask is not None:
        probs = np.where(mask, probs, 0.0)
    # Written so that NaN fails as well.
    if not np.all((probs >= 0.0) & (probs <= 1.0 + SUM_TOLERANCE)):
        raise ValueError("probs holds values outside 0..1; logits or log-probabilities are not probabilities")
    totals = probs.sum(axis=-1)
    if not np.all(np.abs(totals - 1.0) <= SUM_TOLERANCE):
        m, n = np.argwhere(np.abs(totals - 1.0) > SUM_TOLERANCE)[0]
        raise ValueError(f"probs of member {m}, question {n} sum to {totals[m, n]:.6g}, not 1")
    total, aleatoric = entropy(pool(probs)), mean_member(entropy(probs))
    return Decomposition(total, aleatoric, epistemic(total, aleatoric, probs.shape[0], probs.shape[2]))


def epistemic(total: Floats, expected: Floats, members: int, choices: int) -> Floats:
    """Return entropy less expected entropy, as exactly 0 where it is no more than rounding.

    Members that agree must tie: noise that is ranked looks like an uncertainty. The entropy of K choices sums K terms,
    each a few roundings off, the mean over M members M more; so much of 1 or of the entropy is no difference.

    Args:
        total, expected: [N], nats.
        members, choices: M and K.

    Returns:
        [N], nats, >= 0 (Jensen's inequality, which rounding does not know).
    """
    rounding = (2 * (members + choices) + 20) * np.finfo(np.float64).eps * np.maximum(total, 1.0)
    difference = total - expected
    return np.where(difference > rounding, difference, 0.0)


def mean_member(values: Floats) -> Floats:
    """Return the mean over members, the first axis, in an order of its own.

    A sum's rounding depends on its order, and would part questions that tie when members change places.

    Args:
        values: [M, ...].

    Returns:
        [...].
    """
    return np.sort(values, axis=0).mean(axis=0)


def pool(probs: Floats) -> Floats:
    """Return the ensemble's prediction: the mean of the members' probabilities.

        p = (1/M) sum_m p_m

    Lakshminarayanan et al. 2017 (arXiv:1612.01474).

    Args:
        probs: [M, N, K].

    Returns:
        [N, K]; the same, to the last bit, for the members in any order.
    """
    return mean_member(probs)


def pool_log(log_probs: Floats) -> Floats:
    """Return the logarithm of the ensemble's prediction, where `pool` of tiny probabilities would underflow.

        ln p = ln (1/M) sum_m exp(ln p_m)

    Args:
        log_probs: [M, N, K], -inf where a choice is absent or its probability is 0.

    Returns:
        [N, K], -inf where every member has -inf.
    """
    highest = log_probs.max(axis=0)
    nowhere = np.isneginf(highest)
    # -inf - -inf is NaN, so choices that no member has are shifted by 0 and put back at the end.
    shift = np.where(nowhere, 0.0, highest)
    mean = mean_member(np.exp(log_probs - shift))
    return np.where(nowhere, -np.inf, shift + np.log(np.where(nowhere, 1.0, mean)))


def pool_logits(log_probs: Floats) -> Floats:
    """Return the logarithm of the prediction from the mean of the members' logits (a normalised geometric mean).

        ln p_k = (1/M) sum_m ln p_mk - ln sum_j exp((1/M) sum_m ln p_mj)

    Log-probabilities serve as logits: they differ by a constant a member and question, which the softmax ignores. Its
    entropy can lie below the members' own mean, so "entropy less expected entropy" is no mutual information here
    (Wood et al. 2023, arXiv:2301.03962).

    Args:
        log_probs: [M, N, K], -inf where a choice is absent or its probability is 0.

    Returns:
        [N, K]; -inf where any member has -inf. Where that leaves no choice (members that rule each other out), each
        choice that some member allows has the same probability: in the limit nothing prefers any.
    """
    mean = mean_member(log_probs)
    nothing_left = np.isneginf(mean).all(axis=-1, keepdims=True)
    allowed = np.where(np.isneginf(log_probs).all(axis=0), -np.inf, 0.0)
    return log_softmax(np.where(nothing_left, allowed, mean))


def log_softmax(scores: Floats) -> Floats:
    """Return the log-probabilities of scores [..., K] (-inf where a choice is absent, never for all of a question)."""
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def entropy(probs: Floats) -> Floats:
    """Return the entropy of each distribution in the last axis.

        H[p] = -sum_k p_k ln p_k

    Shannon 1948.

    Args:
        probs: [..., K].

    Returns:
        [...], nats, between 0 and ln K.
    """
    # From 0.0, so that a certain prediction has entropy 0.0 and not -0.0.
    return 0.0 - (probs * np.log(np.where(probs > 0.0, probs, 1.0))).sum(axis=-1)


def normalised_entropy(probs: Floats, sizes: NDArray[np.int64]) -> Floats:
    """Return each entropy as a share of the highest possible one, so that questions of different K compare.

        H[p] / ln K

    Args:
        probs: [..., N, K].
        sizes: int [N], the number of choices of each question (`mask.sum(axis=1)`).

    Returns:
        [..., N], between 0 and 1; 0 for a question of one choice.
    """
    # A single choice has entropy 0, so any positive divisor does.
    return entropy(probs) / np.log(np.maximum(sizes, 2))


def mutual_information(probs: Floats) -> Floats:
    """Return the mutual information between answer and member: the epistemic part of `decompose`.

        I = H[mean_m p_m] - mean_m H[p_m]

    Houlsby et al. 2011 (arXiv:1112.5745).

    Args:
        probs: [M, N, K].

    Returns:
        [N], nats, between 0 and min(ln M, ln K).
    """
    return decompose(probs).epistemic


def pairwise_kl(log_probs: Floats) -> Floats:
    """Return the mean Kullback-Leibler divergence over ordered pairs of different members.

        1/(M (M-1)) sum_{m != m'} KL(p_m || p_m') = 1/(M-1) sum_m sum_k (p_mk - p_k) ln p_mk,  p = mean_m p_m

    The right-hand side needs no loop over pairs. Malinin and Gales 2021 (arXiv:2002.07650), without the pairs of a
    member with itself, so that it does not grow with M.

    Args:
        log_probs: [M, N, K], M >= 2; -inf where a choice is absent or its probability is 0.

    Returns:
        [N], nats; +inf where one member rules out (probability 0) what another does not.

    Raises:
        ValueError: one member alone makes no pair.
    """
    M = log_probs.shape[0]
    if M < 2:
        raise ValueError("pairwise_kl needs at least two members")
    probs = np.exp(log_probs)
    ruled_out = np.isneginf(log_probs)
    finite = np.where(ruled_out, 0.0, log_probs)
    mean = ((probs - pool(probs)) * finite).sum(axis=(0, 2)) / (M - 1)
    unbounded = (ruled_out.any(axis=0) & ~ruled_out.all(axis=0)).any(axis=-1)
    return np.where(unbounded, np.inf, np.maximum(mean, 0.0))


def disagreement(probs: Floats) -> Floats:
    """Return the share of members that do not vote for the most voted choice (variation ratio).

        1 - max_k votes_k / M

    Freeman 1965; Gal 2016, section 3.3. The mode is that of the votes, not the pooled prediction's argmax: the two can
    differ. A member with equal highest probabilities votes for the first of them.

    Args:
        probs: [M, N, K].

    Returns:
        [N], from 0 (all vote alike) to 1 - 1/min(M, K) at most.
    """
    return 1.0 - _votes(probs).max(axis=-1) / len(probs)


def pairwise_agreement(probs: Floats) -> Floats:
    """Return the share of pairs of different members that vote alike.

        sum_k votes_k (votes_k - 1) / (M (M - 1))

    One less it is the ensemble diversity of Fort et al. 2019 (arXiv:1912.02757, unnormalised). Unlike `disagreement`
    it has the same expectation whatever M, so ensembles of different size compare.

    Args:
        probs: [M, N, K], M >= 2.

    Returns:
        [N], between 0 and 1.

    Raises:
        ValueError: one member alone makes no pair.
    """
    M = len(probs)
    if M < 2:
        raise ValueError("pairwise_agreement needs at least two members")
    votes = _votes(probs)
    return (votes * (votes - 1)).sum(axis=-1) / (M * (M - 1))


def _votes(probs: Floats) -> NDArray[np.int64]:
    """Return int [N, K]: how many of the members [M, N, K] find the choice the likeliest, the first one where equal."""
    votes: NDArray[np.int64] = (probs.argmax(axis=-1)[..., None] == np.arange(probs.shape[-1])).sum(axis=0)
    return votes


def with_other(letter_log_probs: Floats) -> Floats:
    """Return the paper's variant: a fixed set of letters, whatever a question's choices, and everything else as one.

        p_other = 1 - sum_l p_l

    Balabanov and Linander 2024 (arXiv:2402.12264) measure entropy and mutual information over a-e and "other". A model
    that does not answer with a letter at all is certain here, and uncertain over the choices: never mix the two.

    Args:
        letter_log_probs: [M, N, L], of the whole vocabulary's distribution at the answer.

    Returns:
        [M, N, L + 1], log-probabilities; "other" is the last.
    """
    other = np.maximum(1.0 - np.exp(letter_log_probs).sum(axis=-1, keepdims=True), 0.0)
    log_other = np.where(other > 0.0, np.log(np.where(other > 0.0, other, 1.0)), -np.inf)
    everything = np.concatenate([letter_log_probs, log_other], axis=-1)
    # Letters rounded to float32 may sum to a little more than 1.
    return everything - np.log(np.exp(everything).sum(axis=-1, keepdims=True))


def over_vocabulary(tokens: NDArray[np.int64], log_probs: Floats) -> Decomposition | None:
    """Decompose the uncertainty over every token of the vocabulary at the answer, where all were stored.

    Args:
        tokens: int [M, N, T], ids, in each member's own order.
        log_probs: [M, N, T], theirs.

    Returns:
        As `decompose`, [N] each; None where the tokens stored do not hold all of the probability (`--store-top all`
        stores them).
    """
    if not np.all(np.abs(np.exp(log_probs).sum(axis=-1) - 1.0) <= SUM_TOLERANCE):
        return None
    M, N, _ = tokens.shape
    total, aleatoric, epistemic = np.empty((3, N))
    for n in range(N):  # a question at a time: members x vocabulary is much already
        probs = np.zeros((M, 1, int(tokens[:, n].max()) + 1))
        np.put_along_axis(probs[:, 0], tokens[:, n], np.exp(log_probs[:, n]), axis=-1)
        parts = decompose(probs)
        total[n], aleatoric[n], epistemic[n] = parts.total[0], parts.aleatoric[0], parts.epistemic[0]
    return Decomposition(total, aleatoric, epistemic)


def confidence(probs: Floats) -> Floats:
    """Return the highest probability of each distribution in the last axis: max_k p_k, [..., K] to [...]."""
    return probs.max(axis=-1)


def margin(probs: Floats) -> Floats:
    """Return how far the highest probability lies above the second highest.

        p_(1) - p_(2)

    Scheffer et al. 2001.

    Args:
        probs: [..., K].

    Returns:
        [...], between 0 (a tie) and 1; a question of one choice has 1.
    """
    if probs.shape[-1] == 1:
        return probs[..., 0]
    two = np.partition(probs, -2, axis=-1)
    return two[..., -1] - two[..., -2]
