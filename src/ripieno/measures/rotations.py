"""How much the order of the choices moves the answer, beside how much the members do.

All members are asked each question once for each cyclic permutation of its choices, and their answers are put back into
its own order: `[rotation, member, question, choice]`. Answers that follow the choice are the same under all of them;
answers that follow the place are not (Pezeshkpour and Hruschka 2024, arXiv:2308.11483).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.accuracy import correct
from ripieno.measures.bootstrap import RESAMPLES
from ripieno.measures.estimates import NO_ANSWER, NO_QUESTION, Sample
from ripieno.measures.table import Estimate
from ripieno.measures.uncertainty import Floats, decompose, entropy, epistemic, mean_member, pool


@dataclass(frozen=True, slots=True)
class RotationParts:
    """The uncertainty of each question in three parts: `total = expected + members + prompts`.

    Args:
        total: [N], nats: entropy of the mean over rotations and members.
        expected: [N], nats: mean entropy of a member's answer to a prompt.
        members: [N], nats: mutual information between the answer and the member, the prompt being known.
        prompts: [N], nats: mutual information between the ensemble's answer and the prompt; 0 where no order of the
            choices moves it.
    """

    total: Floats
    expected: Floats
    members: Floats
    prompts: Floats


@dataclass(frozen=True, slots=True)
class RotationSummary:
    """What rotations say of a set of questions.

    Args:
        questions, members: how many.
        rotations: J, of the questions with the most choices.
        total, expected, of_members, of_prompts: means of the `RotationParts`, nats.
        accuracy: of the mean over members and rotations.
        single: mean accuracy of the ensemble under one rotation.
        by_rotation: J accuracies of the ensemble, rotation j of a question of K choices being its j mod K-th, so that
            each is of all labelled questions; () where no answer is known.
    """

    questions: int
    members: int
    rotations: int
    total: Estimate
    expected: Estimate
    of_members: Estimate
    of_prompts: Estimate
    accuracy: Estimate
    single: Estimate
    by_rotation: tuple[float, ...]


def decompose_rotations(probs: NDArray[Any], asked: NDArray[np.bool_] | None = None) -> RotationParts:
    """Split each question's predictive entropy into expected entropy, the members' part and the prompts' part.

        H[mean_jm p_jm] = mean_jm H[p_jm]
                        + mean_j (H[mean_m p_jm] - mean_m H[p_jm])      I(answer; member | prompt)
                        + H[mean_jm p_jm] - mean_j H[mean_m p_jm]       I(answer; prompt)

    The chain rule of mutual information (Cover and Thomas 2006, section 2.5), for a prompt and a member drawn evenly.
    An order that moves each member in a way of its own counts as the members'. Other prompts than rotations do as well.

    Args:
        probs: [J, M, N, K], each row a distribution over its question's choices, in the question's own order.
        asked: bool [J, N], whether the question was asked so: one of K choices has K rotations. Each question weighs
            its own evenly. None: all of them.

    Returns:
        [N] each, nats. One rotation: the prompts' part is 0, and the rest is `decompose`'s.

    Raises:
        ValueError: not four axes, a question that was asked in no way, or what `decompose` refuses.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 4 or probs.shape[0] == 0:
        raise ValueError(f"probs has shape {probs.shape}, not [rotation, member, question, choice] with one at least")
    J, _, N, K = probs.shape
    asked = np.ones((J, N), dtype=bool) if asked is None else asked
    if not asked.any(axis=0).all():
        raise ValueError(f"question {int(np.argmin(asked.any(axis=0)))} was asked under no rotation")
    # What was not asked may hold anything; a certain answer is a distribution, and weighs nothing below.
    probs = np.where(asked[:, None, :, None], probs, np.eye(K)[0])
    each = [decompose(of_rotation) for of_rotation in probs]
    pooled = np.array([pool(of_rotation) for of_rotation in probs])
    mean = _evenly(pooled, asked[:, :, None])
    total, of_ensemble = entropy(mean), _evenly(entropy(pooled), asked)
    return RotationParts(
        total=total,
        expected=_evenly(np.array([parts.aleatoric for parts in each]), asked),
        members=_evenly(np.array([parts.epistemic for parts in each]), asked),
        prompts=epistemic(total, of_ensemble, J, K),
    )


def summarise_rotations(
    probs: NDArray[Any],
    mask: NDArray[np.bool_],
    targets: NDArray[np.int64],
    *,
    clusters: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RotationSummary:
    """Return the mean parts of questions that were asked under all their rotations, and what averaging them gains.

    Args:
        probs: [J, M, N, K], J = K; of a question of fewer choices the first rotations count, as many as it has choices.
        mask: bool [N, K], whether the question has the choice.
        targets: int [N], index of the right choice in the question's own order; -1 where unknown.
        clusters: [N], a label a question; those of one label are drawn together. None: each alone.
        resamples: of the percentile bootstrap over questions.
        seed: of its draws.

    Raises:
        ValueError: as `decompose_rotations`.
    """
    J, M, N, _ = probs.shape
    sizes, known = mask.sum(axis=1), targets >= 0
    asked = np.arange(J)[:, None] < sizes
    parts = decompose_rotations(probs, asked)
    means = Sample.of(N, clusters, resamples, seed).means(
        {
            "total": parts.total,
            "expected": parts.expected,
            "of_members": parts.members,
            "of_prompts": parts.prompts,
        },
        NO_QUESTION,
    )
    pooled = np.array([pool(of_rotation) for of_rotation in probs])
    right = correct(pooled[:, known], targets[known])
    of_mean = correct(_evenly(pooled, asked[:, :, None])[known], targets[known])
    labelled = Sample.of(int(known.sum()), None if clusters is None else clusters[known], resamples, seed)
    means |= labelled.means({"accuracy": of_mean, "single": _evenly(right, asked[:, known])}, NO_ANSWER)
    wrapped = np.take_along_axis(right, np.arange(J)[:, None] % sizes[known], axis=0)
    return RotationSummary(
        questions=N,
        members=M,
        rotations=J,
        by_rotation=tuple(wrapped.mean(axis=1).tolist()) if known.any() else (),
        **means,
    )


def _evenly(values: Floats, asked: NDArray[np.bool_]) -> Floats:
    """Return the mean over each question's own rotations, [J, N, ...] to [N, ...]; the same for them in any order."""
    return mean_member(np.where(asked, values, 0.0)) * (len(asked) / asked.sum(axis=0))
