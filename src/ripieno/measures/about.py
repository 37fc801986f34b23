"""What is known of questions beside the answers: their passages, their choices' lengths, what the base alone makes of
them. All of it is optional: another program's predictions come without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions


@dataclass(frozen=True)
class About:
    """What is known of N questions of one data set.

    Args:
        question_ids: N ids.
        passages: N texts that questions are asked about, None where there is none; questions that share one are drawn
            together by the bootstrap.
        choice_bytes: int [N, K], the choices' lengths in bytes, 0 where a choice is absent.
        prompt_tokens: int [N], tokens of the prompt.
        prompt_nll: [N], nats a token: the base's mean negative log-likelihood of the prompt; exp of it: perplexity.
        hidden: [N, D], the base's last hidden state at the answer.
        distance: [N], how far that lies from those of the training questions (`ood.Detector`).
        read: bool [N], whether the base read the question (one that was too long it did not), so that the four before
            hold something; None: all of them.
    """

    question_ids: Sequence[str]
    passages: Sequence[str | None] | None = None
    choice_bytes: NDArray[np.int64] | None = None
    prompt_tokens: NDArray[np.int64] | None = None
    prompt_nll: Floats | None = None
    hidden: NDArray[Any] | None = None
    distance: Floats | None = None
    read: NDArray[np.bool_] | None = None
    _place: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", {question: n for n, question in enumerate(self.question_ids)})

    def of(self, question_ids: Sequence[str]) -> About:
        """Return the same of some questions, in their order.

        Nothing is known where one of them is missing here, and nothing that the base would say where it did not read
        one.
        """
        if self.read is None and tuple(question_ids) == tuple(self.question_ids):
            return self  # hidden states are large
        if not all(question in self._place for question in question_ids):
            return About(question_ids)
        index = np.array([self._place[question] for question in question_ids], dtype=np.int64)

        def some(array: Any) -> Any:
            return None if array is None else array[index]

        def of_base(array: Any) -> Any:
            return None if self.read is not None and not self.read[index].all() else some(array)

        return replace(
            self,
            question_ids=question_ids,
            passages=None if self.passages is None else [self.passages[i] for i in index],
            choice_bytes=some(self.choice_bytes),
            prompt_tokens=of_base(self.prompt_tokens),
            prompt_nll=of_base(self.prompt_nll),
            hidden=of_base(self.hidden),
            distance=of_base(self.distance),
            read=some(self.read),
        )

    @property
    def clusters(self) -> NDArray[np.int64] | None:
        """Int [N], equal where questions share a passage; None where each question stands alone."""
        if self.passages is None or not any(self.passages):
            return None
        number: dict[str, int] = {}
        labels = [number.setdefault(passage or f"\0alone {n}", len(number)) for n, passage in enumerate(self.passages)]
        return np.array(labels, dtype=np.int64) if len(number) < len(labels) else None


def about_of(about: Mapping[str, About] | None, p: Predictions) -> About:
    """Return what is known of the questions of `p`, in their order; `about` is by `Predictions.name`."""
    return (about or {}).get(p.name, About(())).of(p.question_ids)
