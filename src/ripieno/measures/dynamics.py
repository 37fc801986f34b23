"""How questions move between right and wrong, and between little and much disagreement, from one epoch to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from ripieno.measures.table import Flow
from ripieno.measures.uncertainty import Floats, mutual_information, pool
from ripieno.predictions import BASE, Predictions

_Draw = tuple[int, int]  # a member, and which of the draws from it


def flows(predictions: Sequence[Predictions]) -> list[Flow]:
    """Return how many questions of each data set went from which state to which, from each epoch to the next.

    Between two epochs of a method the states are right or wrong, with low or high mutual information: the quadrants of
    the paper's figures (arXiv:2402.12264). "High" is above the median over that set's questions at the method's last
    epoch, the same boundary for all epochs. Mutual information grows with the number of members, so where one has left
    off (its training failed), it is taken over those that answered at every epoch; right or wrong is the whole
    ensemble. Of one such member or none, and from the base (epoch 0) to the last epoch, the states are right or wrong
    alone: what the base knew and the ensemble forgot, and what it learned.

    Args:
        predictions: of any data sets, methods and epochs, the base's among them (method "base"). Of several
            replicates the first counts.

    Returns:
        Flows of at least one question, by data set, method, epochs and states. Left out: questions without a known
        answer in both, and epochs that no question is in common with.
    """
    courses: dict[tuple[str, str, str], list[Predictions]] = {}
    bases: dict[tuple[str, str], Predictions] = {}
    for p in predictions:
        if p.method == BASE:
            bases.setdefault((p.dataset, p.split), p)
            continue
        course = courses.setdefault((p.dataset, p.split, p.method), [])
        if all(p.replicate == other.replicate and p.epoch != other.epoch for other in course):
            course.append(p)
    found = []
    for (dataset, split, _), course in courses.items():
        course.sort(key=lambda p: p.epoch)
        last = course[-1]
        throughout = set.intersection(*(set(_draws(p)) for p in course))
        boundary = None  # one member cannot disagree
        if len(throughout) > 1 and last.question_ids:
            boundary = float(np.median(_disagreement(last, throughout)))
        for before, after in pairwise(course):
            found += _between(before, after, throughout, boundary)
        base = bases.get((dataset, split))
        if base is not None:
            found += _between(base, last, throughout, None)
    return found


def _between(
    before: Predictions, after: Predictions, throughout: Collection[_Draw], boundary: float | None
) -> list[Flow]:
    first, second = _states(before, throughout, boundary), _states(after, throughout, boundary)
    pairs = [(first[question], state) for question, state in second.items() if question in first]
    counts = Counter(pairs)
    return [
        Flow(
            *(after.dataset, after.split, after.method, before.epoch, after.epoch, *states),
            count=count,
            n=len(pairs),
            boundary=boundary,
        )
        for states, count in sorted(counts.items())
    ]


def _states(p: Predictions, throughout: Collection[_Draw], boundary: float | None) -> dict[str, str]:
    """Return the state of each question with a known answer."""
    right = pool(p.probs).argmax(axis=1) == p.targets
    words = np.where(right, "right", "wrong")
    if boundary is not None:
        words = np.char.add(words, np.where(_disagreement(p, throughout) > boundary, ", high", ", low"))
    return {question: str(words[n]) for n, question in enumerate(p.question_ids) if p.labelled[n]}


def _draws(p: Predictions) -> list[_Draw]:
    return [(member, p.members[:m].count(member)) for m, member in enumerate(p.members)]


def _disagreement(p: Predictions, throughout: Collection[_Draw]) -> Floats:
    """Return the mutual information [N] of those members that answered at every epoch."""
    return mutual_information(p.probs[[m for m, who in enumerate(_draws(p)) if who in throughout]])
