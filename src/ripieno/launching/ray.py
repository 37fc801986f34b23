"""A Ray cluster: a task a command, on whatever node has room, and on another one when that dies."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ripieno.config import Launch
from ripieno.errors import EnvironmentFault, UserError
from ripieno.launching import storage
from ripieno.runs import RunFolder

GRACE = 15.0  # seconds that tasks have to save what they hold


@dataclass
class Ray:
    """Does commands as tasks of a cluster: one that runs (`launch.address`, RAY_ADDRESS), else one of this machine.

    Args:
        launch: of the config.
        folder: the run's; with `launch.storage` the workers have copies of it.
        do: does a command in the process that calls it; it can be pickled.

    Raises:
        UserError: Ray is not installed, or the cluster has no node that is large enough.
        EnvironmentFault: the cluster cannot be reached.
    """

    launch: Launch
    folder: Path
    do: Callable[[Sequence[str]], None]

    def __post_init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise UserError("--on ray: needs Ray; pip install 'ripieno[ray]'") from None
        if not ray.is_initialized():
            try:
                ray.init(self.launch.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                why = str(error).split("\n")[0]
                raise EnvironmentFault(
                    f"launch.address {self.launch.address}: no Ray cluster there ({why}); start it, or mend the address"
                ) from None
        self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = self._each
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in self._nodes):
            raise UserError(
                f"launch.cpus {cpus:g}, launch.gpus {gpus:g}: no node of the Ray cluster has as many; lower them"
            )

    @property
    def workers(self) -> int:
        """`launch.workers`, or the cluster's GPUs, or its nodes."""
        if self.launch.workers != "auto":
            return self.launch.workers
        return int(sum(node.get("GPU", 0) for node in self._nodes)) or len(self._nodes)

    @property
    def _each(self) -> tuple[float, float]:
        """CPUs and GPUs of a task."""
        with_gpus = any(node.get("GPU", 0) for node in self._nodes)
        on_a_node = math.ceil(self.workers / len(self._nodes))
        fewest = min(node.get("CPU", 0) for node in self._nodes)
        gpus = self.launch.gpus if self.launch.gpus is not None else int(with_gpus)
        return self.launch.cpus or max(1, fewest // on_a_node), gpus

    def run(self, name: str, steps: Sequence[Sequence[Sequence[str]]]) -> str:
        """Do commands; a task whose worker or node dies is done again, `launch.retries` times at most.

        Raises:
            UserError, EnvironmentFault: as the command did.
            EnvironmentFault: a task died too often.
        """
        import ray

        cpus, gpus = self._each
        task = ray.remote(_work).options(
            name=f"ripieno {name}",
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=self.launch.retries,
            scheduling_strategy="SPREAD",
        )
        with contextlib.redirect_stdout(sys.stderr):  # where Ray says that a worker died
            if self.launch.storage is None:
                for commands in steps:
                    self._do([task.remote(self.do, words, os.getcwd()) for words in commands], commands)
                return ""
            shared = storage.Storage(self.launch.storage)
            packed = storage.parcels(shared, self.folder, steps)
            with storage.lent(shared, RunFolder(self.folder), packed) as look:
                for commands, parcels in zip(steps, packed, strict=True):
                    self._do([task.remote(self.do, parcel, "") for parcel in parcels], commands, look)
        return ""

    def _do(self, tasks: list[Any], commands: Sequence[Sequence[str]], look: Callable[[], None] = lambda: None) -> None:
        import ray

        try:
            while ray.wait(tasks, num_returns=len(tasks), timeout=storage.EVERY)[1]:
                look()
        finally:  # some still run after a signal alone, which they get too
            if unfinished := ray.wait(tasks, num_returns=len(tasks), timeout=0)[1]:
                for one in unfinished:
                    ray.cancel(one)
                ray.wait(unfinished, num_returns=len(unfinished), timeout=GRACE)
        for one, command in zip(tasks, commands, strict=True):
            _result(one, command)


def _work(do: Callable[[Sequence[str]], None], given: Sequence[str] | storage.Parcel, folder: str) -> None:
    """Do a command in a worker, in the folder in which it was given, or one of its own."""
    if isinstance(given, storage.Parcel):
        storage.work(do, given)
    else:
        os.chdir(folder)
        do(given)


def _result(task: Any, command: Sequence[str]) -> None:
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        why = str(error).split("\n")[0]
        raise EnvironmentFault(f"`ripieno {' '.join(command)}` died on Ray ({why}); the same command goes on") from None
