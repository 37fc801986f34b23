"""Ways to get answers, and how sure they are, out of trained members: a method a file, all with the same verbs.

    refusal   why a run cannot be answered for in this way, and what would mend it
    fit       what has to be computed once from the training or validation questions; stored with the run
    draws     put one weight sample after the other in place
    answer    the rows of one `Predictions`, [draw, question, choice]: by default, what each draw answers

A method is a frozen section of settings, such as `Laplace(predictive="sampled")`. Its file is named as it is: adding
one is adding a file (docs/add-a-method.md).
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import ValidationError
from torch import Tensor

from ripieno.config import Config, Section, explain
from ripieno.errors import UserError
from ripieno.methods.trained import Trained
from ripieno.model.prediction import Asked
from ripieno.predictions import Predictions, of_draws

Fitted = Mapping[str, Tensor]
FREE = 100  # answers where they cost nothing


class Method(Section, ABC):
    """A way to answer; its fields are what may be chosen about it."""

    of_members: ClassVar[bool] = False
    """Whether it answers with the members after the epoch, who are asked anyway."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """Return why a run of this config cannot give so many draws after an epoch, and what would; None if it can."""
        return None

    def stands_on(self, members: Sequence[int]) -> Sequence[int]:
        """Return which members of an ensemble it needs: the first alone, by default."""
        return members[:1]

    @property
    def free(self) -> bool:
        """Whether any number of answers costs as much as one; by default it does not."""
        return False

    def count(self, members: int) -> int:
        """Return how many answers it gives where nobody says: as many as an ensemble has members.

        At least `FREE`, in whole groups of so many, where they are free: few are a noisy mean of what they are drawn
        from.
        """
        return math.ceil(FREE / members) * members if self.free else members

    def said(self, fitted: Fitted) -> str:
        """Return what was fitted in a few words, such as "prior precision 35"; "" where nothing was."""
        return ""

    def fit(self, trained: Trained) -> Fitted:
        """Return what is computed once, before any question is answered, as named tensors.

        Raises:
            UserError: the run's questions do not do for it.
            EnvironmentFault: an adapter is missing or damaged.
        """
        return {}

    @abstractmethod
    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[int | None]:
        """Put each of `count` draws in place, and yield the seed of its dropout masks, if any.

        Raises:
            UserError: a member is not trained so far.
            EnvironmentFault: an adapter is missing or damaged.
        """

    def answer(self, trained: Trained, fitted: Fitted, asked: Asked, count: int) -> Predictions:
        """Return what each draw answers, [draw, question, choice]."""
        # One after the other: the next draw takes the place of the last one.
        return of_draws([trained.ask(asked, seed) for seed in self.draws(trained, fitted, count)])


def names() -> list[str]:
    """Return the methods that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "trained")


def named(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Return a method by its name, with some of its settings changed.

    Raises:
        UserError: there is none of that name, or it has no such setting.
    """
    if name not in names():
        raise UserError(f"method {name}: there is none of that name; there are {', '.join(names())}")
    kind: type[Method] = getattr(importlib.import_module(f"{__name__}.{name}"), name.capitalize())
    try:
        return kind.model_validate(settings or {})
    except ValidationError as error:
        raise UserError(f"method {name}: {explain(error, kind)}") from None
