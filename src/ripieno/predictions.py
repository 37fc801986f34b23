"""What members answered to questions, in memory: arrays `[member, question, choice]`.

One `Predictions` is one data set's split, as one method answered it at one epoch; `parquet` writes and reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = "base"  # the method of the base's own predictions: epoch 0, member 0
# How far from 1 the probabilities of a row may sum: 26 of them, each rounded by 6e-8 of a log-probability of at most
# about 100 (float32), stay well within.
SUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Predictions:
    """What M members answered to N questions of at most K choices.

    Args:
        log_probs: float64 [M, N, K], log p(choice), normalised over the question's own choices; -inf where absent.
        mask: bool [N, K], whether the question has the choice.
        question_ids: N ids.
        targets: int [N], index of the right choice; -1 where unknown.
        members: M numbers of members; a number that repeats is several samples (draws) from that member.
        dataset, split, method, epoch, replicate: which predictions these are.
        subjects: N subjects (None where there is none).
        scores: float64 [M, N, K], choice scores before any length normalisation, or None.
        tokens, bytes: int [N, K], the choices' lengths (text scoring), or None.
        unconditional: float64 [M, N, K], choice scores after the bare answer cue, without the question (text scoring,
            arXiv:2104.08315), in nats, 0 where absent; or None.
        outside_mass: float64 [M, N], letters only, or None.
        letter_log_probs: float64 [M, N, L], a fixed set of L letters, or None.
        top_tokens, top_log_probs: [M, N, T], the T likeliest tokens of the vocabulary at the answer, or None.
        metadata: what the file says of itself (method, config hash, base, prompt template, scoring rule).
    """

    log_probs: NDArray[np.float64]
    mask: NDArray[np.bool_]
    question_ids: tuple[str, ...]
    targets: NDArray[np.int64]
    members: tuple[int, ...]
    dataset: str = ""
    split: str = ""
    method: str = "ensemble"
    epoch: int = 0
    replicate: int = 0
    subjects: tuple[str | None, ...] = ()
    scores: NDArray[np.float64] | None = None
    tokens: NDArray[np.int64] | None = None
    bytes: NDArray[np.int64] | None = None
    unconditional: NDArray[np.float64] | None = None
    outside_mass: NDArray[np.float64] | None = None
    letter_log_probs: NDArray[np.float64] | None = None
    top_tokens: NDArray[np.int64] | None = None
    top_log_probs: NDArray[np.float64] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def probs(self) -> NDArray[np.float64]:
        """Float64 [M, N, K]: p(choice), 0 where the choice is absent."""
        return np.exp(self.log_probs)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Bool [N]: whether the right choice is known."""
        return self.targets >= 0

    @property
    def choices_kept(self) -> int | None:
        """To how many choices each question was reduced (the right one among them); None where it has all its own."""
        kept: int | None = self.metadata.get("choices")
        return kept

    @property
    def name(self) -> str:
        """`DATASET/SPLIT`, as configs name it."""
        return f"{self.dataset}/{self.split}" if self.split else self.dataset

    def select(self, questions: NDArray[Any]) -> Predictions:
        """Return the same predictions of some questions: a bool [N] mask or an array of indices."""
        index = np.arange(len(self.question_ids))[questions]

        def of_members(array: Any) -> Any:
            return None if array is None else array[:, index]

        return replace(
            self,
            log_probs=self.log_probs[:, index],
            mask=self.mask[index],
            question_ids=tuple(self.question_ids[i] for i in index),
            targets=self.targets[index],
            subjects=tuple(self.subjects[i] for i in index) if self.subjects else (),
            scores=of_members(self.scores),
            tokens=None if self.tokens is None else self.tokens[index],
            bytes=None if self.bytes is None else self.bytes[index],
            unconditional=of_members(self.unconditional),
            outside_mass=of_members(self.outside_mass),
            letter_log_probs=of_members(self.letter_log_probs),
            top_tokens=of_members(self.top_tokens),
            top_log_probs=of_members(self.top_log_probs),
        )


def unanswered(members: Sequence[int]) -> Predictions:
    """Return what members say to no question at all."""
    M = len(members)
    return Predictions(
        np.zeros((M, 0, 1)), np.zeros((0, 1), dtype=np.bool_), (), np.zeros(0, dtype=np.int64), tuple(members)
    )


def without_gaps(p: Predictions) -> Predictions:
    """Return the same predictions, each question's own choices before the absent ones, in their order.

    Whatever numbers choices by their place needs it: dropping some of them, a list in a file. Where choices moved, the
    rest is as by `reordered`.

    Raises:
        ValueError: a target is none of its question's choices.
    """
    known = np.flatnonzero(p.labelled)
    aimed = p.targets[known]
    there = aimed < p.mask.shape[1]
    there[there] = p.mask[known[there], aimed[there]]
    if not there.all():
        n = int(known[np.argmax(~there)])
        raise ValueError(f"question {p.question_ids[n]!r}: target {p.targets[n]} is none of its choices")
    order = np.argsort(~p.mask, axis=1, kind="stable")
    return p if (order == np.arange(p.mask.shape[1])).all() else reordered(p, order)


def reordered(p: Predictions, order: NDArray[np.int64]) -> Predictions:
    """Return the same predictions, each question's choices in another order: `order` [N, K] has their old places.

    The targets, and all that is stored for each choice, move along. The fixed letters are left out, since they are
    those of the old places.
    """

    def moved(array: Any) -> Any:
        """Reorder the choices of an array [N, K] or [M, N, K]."""
        return None if array is None else np.take_along_axis(array, np.broadcast_to(order, array.shape), -1)

    known = np.flatnonzero(p.labelled)
    place = np.argsort(order, axis=1)  # of each choice, by where it stood
    targets = p.targets.copy()
    targets[known] = place[known, p.targets[known]]
    return replace(
        p,
        log_probs=moved(p.log_probs),
        mask=moved(p.mask),
        targets=targets,
        scores=moved(p.scores),
        tokens=moved(p.tokens),
        bytes=moved(p.bytes),
        unconditional=moved(p.unconditional),
        letter_log_probs=None,
    )


def of_draws(parts: Sequence[Predictions]) -> Predictions:
    """Join answers to the same questions, one after the other, as rows of one; all that is optional in all or none."""

    def join(name: str) -> Any:
        arrays = [getattr(p, name) for p in parts]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    optional = ("scores", "unconditional", "outside_mass", "letter_log_probs", "top_tokens", "top_log_probs")
    members = tuple(member for p in parts for member in p.members)
    return replace(parts[0], members=members, **{name: join(name) for name in ("log_probs", *optional)})


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Join the same members' answers to different questions; all that is optional must be in every part or none."""
    K = max(p.mask.shape[1] for p in parts)

    def wide(array: NDArray[Any], fill: Any) -> NDArray[Any]:
        width = [(0, 0)] * (array.ndim - 1) + [(0, K - array.shape[-1])]
        return np.pad(array, width, constant_values=fill)

    def join(name: str, axis: int, fill: Any = None) -> Any:
        arrays = [getattr(p, name) for p in parts]
        if any(a is None for a in arrays):
            return None
        return np.concatenate([a if fill is None else wide(a, fill) for a in arrays], axis=axis)

    return replace(
        parts[0],
        log_probs=join("log_probs", 1, -np.inf),
        mask=join("mask", 0, False),
        question_ids=tuple(q for p in parts for q in p.question_ids),
        targets=join("targets", 0),
        subjects=tuple(s for p in parts for s in (p.subjects or (None,) * len(p.question_ids))),
        scores=join("scores", 1, 0.0),
        tokens=join("tokens", 0, 0),
        bytes=join("bytes", 0, 0),
        unconditional=join("unconditional", 1, 0.0),
        outside_mass=join("outside_mass", 1),
        letter_log_probs=join("letter_log_probs", 1),
        top_tokens=join("top_tokens", 1),
        top_log_probs=join("top_log_probs", 1),
    )
