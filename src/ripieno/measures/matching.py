"""Predictions reduced to the same number of choices, so that sets of different K can be compared.

For templates that do not list the choices in the prompt a choice's score does not depend on the others, so dropping
columns and normalising again is what asking with fewer choices would have given. Where the choices are listed the
questions have to be asked again (`ripieno evaluate --choices K`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.data.matching import kept_choices
from ripieno.measures.uncertainty import log_softmax
from ripieno.predictions import Predictions, without_gaps


def match_choices(p: Predictions, choices: int, seed: int) -> Predictions:
    """Drop wrong choices at random to K a question, those that `data.matching.drop_choices` drops, and normalise again.

        p'(k) = p(k) / sum over the kept j of p(j)

    A member that gave all its probability to dropped choices says nothing of the kept ones: it answers uniformly.

    Args:
        p: predictions of questions of any numbers of choices.
        choices: K, 2 at least.
        seed: of the draw.

    Returns:
        Predictions [M, N', K] with targets by their new index; `choices_kept` is K. Questions with fewer than K
        choices, and those with more and no known answer, are left out, and counted in the metadata. Questions of K
        choices stay exactly as they are, but for absent choices between theirs (`without_gaps`). The fixed letters are
        left out where choices were dropped, since they are those of the old places.

    Raises:
        ValueError: K is below 2, or a target is none of its question's choices.
    """
    if choices < 2:
        raise ValueError(f"choices must be 2 at least, not {choices}")
    p = without_gaps(p)  # the draw numbers a question's own choices from 0
    sizes = p.mask.sum(axis=1)
    asked = zip(p.question_ids, sizes.tolist(), p.targets.tolist(), strict=True)
    kept = [kept_choices(q, size, None if target < 0 else target, choices, seed) for q, size, target in asked]
    index = np.array([n for n, columns in enumerate(kept) if columns is not None], dtype=np.int64)
    columns = np.array([row for row in kept if row is not None], dtype=np.int64).reshape(len(index), choices)
    left_out = {"fewer_choices": int((sizes < choices).sum())}
    left_out["no_answer"] = len(kept) - len(index) - left_out["fewer_choices"]
    dropped = sizes[index] > choices
    part = p.select(index)

    def take(array: Any) -> Any:
        """Keep the columns of an array [N', K0] or [M, N', K0]."""
        return None if array is None else np.take_along_axis(array, np.broadcast_to(columns, shape_of(array)), -1)

    def shape_of(array: NDArray[Any]) -> tuple[int, ...]:
        return (*array.shape[:-2], *columns.shape)

    log_probs = take(part.log_probs)
    log_probs[:, dropped] = _normalised(log_probs[:, dropped])
    is_right = columns == part.targets[:, None]  # in no column where the right choice is unknown
    return replace(
        part,
        log_probs=log_probs,
        mask=np.ones(columns.shape, dtype=bool),
        targets=np.where(is_right.any(axis=1), is_right.argmax(axis=1), -1),
        scores=take(part.scores),
        tokens=take(part.tokens),
        bytes=take(part.bytes),
        unconditional=take(part.unconditional),
        outside_mass=_outside(part, dropped, take(part.scores)),
        letter_log_probs=None if dropped.any() else part.letter_log_probs,
        metadata={**p.metadata, "choices": choices, "choices_left_out": left_out},
    )


def _normalised(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities normalised over the last axis; uniform where all are -inf."""
    nothing = np.isneginf(log_probs).all(axis=-1, keepdims=True)
    return log_softmax(np.where(nothing, 0.0, log_probs))


def _outside(
    p: Predictions, dropped: NDArray[np.bool_], scores: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Return the mass outside the letters [M, N'], which the dropped letters join; None where their mass is unknown."""
    if p.outside_mass is None or (scores is None and dropped.any()):
        return None
    if scores is None:
        return p.outside_mass
    inside = np.exp(scores).sum(axis=-1)
    return np.where(dropped, np.clip(1 - inside, 0.0, 1.0), p.outside_mass)
