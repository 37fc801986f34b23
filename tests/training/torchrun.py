"""What torchrun starts in the tests of several processes: commands of ripieno, and a signal amid one of them."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import torch

from ripieno import cli
from ripieno.training.distributed import joined
from ripieno.training.loop import Trainer


def signalled(number: int, after: int) -> None:
    """Let the second process get a signal once it has taken so many steps of its first member."""
    step = Trainer._step

    def stepped(made: Trainer, p: int, *given: Any) -> bool:
        if p == 0 and made.steps[p] == after and os.environ["RANK"] == "1":
            os.kill(os.getpid(), number)
        return step(made, p, *given)

    Trainer._step = stepped  # type: ignore[method-assign]


if __name__ == "__main__":
    commands, number, after = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    if number:
        signalled(signal.Signals(number), after)
        sys.argv = ["ripieno", *commands[0]]
        cli.main()
    else:
        with joined("cpu"):  # once for all commands
            for arguments in commands:
                cli.do(arguments)
