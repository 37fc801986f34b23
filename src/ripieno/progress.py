"""One progress bar for a whole job, on stderr, in units of forward passes of one question."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tqdm import tqdm

from ripieno.escaping import terminal_line

TRAINING_COST = 2  # a backward pass through a frozen base costs about one forward pass: no gradients of weights


def unwatched(units: int) -> None:
    """Do nothing: nobody watches."""


class Progress:
    """Says what is happening, and how long the whole job will take.

    Args:
        quiet: show no bar.
        mute: say nothing either: another process of the same work does.
    """

    def __init__(self, quiet: bool = False, mute: bool = False):
        self.mute = mute
        self.watch: Callable[[int], object] = unwatched  # is told of all that is done
        form = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}, {remaining} left]"
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=0,
            disable=quiet or mute,
            bar_format=form,
            dynamic_ncols=True,
            smoothing=0.05,
            delay=1,  # what fails at once says so in one line, without an empty bar
            mininterval=0.2 if self.live else 30,  # in a log file a line now and then is enough
        )

    def describe(self, text: str) -> None:
        """Say what is happening now."""
        self.bar.set_description_str(terminal_line(text), refresh=self.live)

    def expect(self, units: int) -> None:
        """Say how long the whole job is, unless whoever began it has said so.

        Args:
            units: questions x members to score, plus `TRAINING_COST` times those to train on.
        """
        self.bar.total = self.bar.total or units

    def advance(self, units: int) -> None:
        """Note work done."""
        self.bar.update(units)
        self.watch(units)

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if not self.mute:
            tqdm.write(terminal_line(text), file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
