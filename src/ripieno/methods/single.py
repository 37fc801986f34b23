"""One member, by maximum likelihood: what everything else is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained


class Single(Method):
    """The first member as it is."""

    of_members: ClassVar[bool] = True

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Load the first member, once: there is nothing to draw."""
        trained.load(trained.member)
        yield None
