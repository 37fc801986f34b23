"""Where members are trained and asked: commands of this program, shared out by an engine that is there already.

Members are independent, and so are questions. A job is shared out as commands that anybody could type, `ripieno train
--members 0-4` or `ripieno evaluate --shard 2/8`: each holds what it works on, goes on where it stopped, and writes the
same whatever the others do. A launcher only starts them: on this machine, on a Ray cluster, or as a Slurm array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from ripieno.config import Launch
from ripieno.errors import UserError
from ripieno.launching import slurm
from ripieno.launching.local import Local

Command = Sequence[str]  # its words, behind `ripieno`
Do = Callable[[Command], None]  # does a command in this process


class Launcher(Protocol):
    """Starts commands somewhere."""

    @property
    def workers(self) -> int:
        """How many it does at once."""

    def run(self, name: str, steps: Sequence[Sequence[Command]]) -> str:
        """Do commands, all of a step before the next one; return as what they are queued, "" where they are done."""


def launcher(launch: Launch, run: Path, device: str, do: Do) -> Launcher | None:
    """Return what shares the work out as a config asks; None where this process does it alone.

    Args:
        launch: of the config.
        run: the run folder.
        device: `compute.device` of the config.
        do: does a command in this process.

    Raises:
        UserError: its engine is not installed, or cannot do it.
    """
    if launch.storage and launch.on == "slurm":
        raise UserError("launch.storage: is for --on ray; the jobs of Slurm share the run folder")
    if launch.on == "slurm":
        return slurm.Slurm(launch, run)
    if launch.on == "ray":
        from ripieno.launching.ray import Ray

        return Ray(launch, run, do)
    local = Local(launch, device)
    return local if local.workers > 1 else None


def words(name: str, of: Path, options: Mapping[str, Any]) -> list[str]:
    """Return the words of a command.

    Args:
        name: of the command.
        of: its argument.
        options: by their names: None or False where one is not given, True for a flag, a list for one given again.
    """
    found = [name, str(of)]
    for option, given in options.items():
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value is not False:
                found += [option] if value is True else [option, str(value)]
    return found


def train_commands(common: Command, members: Sequence[int], workers: int) -> list[Command]:
    """Return the commands that train members: groups of neighbours, as even as can be."""
    return [[*common, "--members", ",".join(map(str, group)), "--quiet"] for group in groups(members, workers)]


def evaluate_steps(common: Command, workers: int) -> list[list[Command]]:
    """Return the commands that answer questions, a shard each, and then the one that puts the answers together."""
    shards: list[Command] = [[*common, "--shard", f"{shard}/{workers}", "--quiet"] for shard in range(1, workers + 1)]
    return [shards, [[*common, "--on", "local", "--workers", "1", "--quiet"]]]


def groups(members: Sequence[int], count: int) -> list[Sequence[int]]:
    """Cut members into so many groups of neighbours, none empty, whose sizes differ by one at most."""
    count = min(count, len(members))
    cuts = [len(members) * n // count for n in range(count + 1)]
    return [members[first:end] for first, end in pairwise(cuts)]
