"""Which questions to label next: those of the highest uncertainty, or a batch of uncertain ones that differ.

Each question is scored by an uncertainty of the members about it (`entropy`, `mutual_information`). The questions of
the highest scores are often alike, and the label of one says what the others would have said; `diverse_batch` looks at
that as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.bootstrap import generator
from ripieno.measures.uncertainty import Floats

# A share of a state that is no news: far above the rounding of float32 states, far below a difference of questions.
NO_NEWS = 1e-6


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions to label, the first one first.

    Args:
        chosen: int [n], their places.
        scores: [n], nats, what each was chosen for.
    """

    chosen: NDArray[np.int64]
    scores: Floats


def highest(scores: Floats, count: int, seed: int = 0) -> Batch:
    """Return the questions of the highest scores; which of those that tie is drawn by lot.

    Where all tie, it is a uniform draw without replacement: the control that every other way has to beat. By
    uncertainty: Lewis and Gale 1994; by mutual information: Houlsby et al. 2011 (arXiv:1112.5745).

    Args:
        scores: [N], higher where a label is worth more.
        count: n of them, N at most.
        seed: of the lot.

    Raises:
        ValueError: there are fewer, or a score is NaN.
    """
    lot = _lot(scores, count, seed)
    chosen = lot[np.argsort(-scores[lot], kind="stable")[:count]]
    return Batch(chosen, scores[chosen])


def diverse_batch(scores: Floats, states: NDArray[Any], count: int, seed: int = 0) -> Batch:
    """Return uncertain questions that differ, one after the other: of each, how uncertain, times how new.

        gain(n | B) = u_n (1 - |the part of x_n in the span of x_b, b in B|^2),   |x_n| = 1

    It is the greedy way to the batch of the largest determinant of sqrt(u_i u_j) x_i . x_j, the mode of a
    determinantal point process (Biyik et al. 2019, arXiv:1906.07975; fast: Chen et al. 2018, arXiv:1709.05135). The
    first one is that of the highest score, and a copy of a chosen one has gain 0. The x are the states, each dimension
    standardised over these questions, or a few would decide alone (Timkey and van Schijndel 2021, arXiv:2109.04404),
    and then scaled to length 1.

    More questions than a state has dimensions span everything. From there on, and where no uncertain question is left,
    nothing is new: the rest comes by score, with gain 0.

    Why not BatchBALD (Kirsch et al. 2019, arXiv:1906.08158), the joint mutual information of a batch: M members are M
    hypotheses, so it ends at ln M, after which no label is worth anything; and to members that are unsure a copy of a
    question is worth nearly as much as the question, as if another answer could come.

    Args:
        scores: [N], >= 0, in nats: the members' mutual information, say.
        states: [N, D], what is alike where questions are: the base's hidden states (`Features.hidden`).
        count: n of them, N at most.
        seed: of the lot that decides between those that tie.

    Returns:
        Scores are gains, in nats.

    Raises:
        ValueError: there are fewer questions, a score is NaN, or there is not one state a question.
    """
    if states.ndim != 2 or len(states) != len(scores):
        raise ValueError(f"states has shape {states.shape}, not [{len(scores)}, D]: one state a question")
    lot = _lot(scores, count, seed)
    worth, directions = scores[lot], _directions(states[lot])
    news = np.ones(len(lot))
    known = np.zeros((count, len(lot)))  # each question's part along each chosen one's own direction
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < count:
        gain = worth * np.where(news > NO_NEWS, news, 0.0)
        gain[chosen] = 0.0
        best = int(gain.argmax())
        if gain[best] == 0.0:
            break
        i = len(chosen)
        own = (directions @ directions[best] - known[:i].T @ known[:i, best]) / np.sqrt(news[best])
        known[i], news = own, np.maximum(news - own**2, 0.0)
        chosen.append(best)
        gains.append(float(gain[best]))
    rest = np.setdiff1d(np.arange(len(lot)), chosen)  # in the order of the lot
    rest = rest[np.argsort(-worth[rest], kind="stable")][: count - len(chosen)]
    return Batch(lot[[*chosen, *rest]], np.array([*gains, *np.zeros(len(rest))]))


def _lot(scores: Floats, count: int, seed: int) -> NDArray[np.int64]:
    """Return the questions in an order drawn by lot."""
    if not 0 < count <= len(scores):
        raise ValueError(f"{count} questions of {len(scores)} cannot be chosen")
    if np.isnan(scores).any():
        raise ValueError(f"the score of question {int(np.isnan(scores).argmax())} is NaN")
    return generator(seed, "label next").permutation(len(scores))


def _directions(states: NDArray[Any]) -> Floats:
    """Return states of length 1, each dimension standardised; one in the very middle has length 0, like no other."""
    values = states.astype(np.float64)
    spread = values.std(axis=0)
    varies = spread > np.finfo(np.float32).eps * np.abs(values).max(axis=0)  # more than float32 rounds them
    standard = (values - values.mean(axis=0))[:, varies] / spread[varies]
    length = np.linalg.norm(standard, axis=1, keepdims=True)
    directions: Floats = standard / np.where(length > 0.0, length, 1.0)
    return directions
