"""This machine: a process a GPU, or several on the CPU's cores; one alone needs no launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from ripieno.config import Launch
from ripieno.errors import EnvironmentFault, UserError

FAILED = "ripieno: "  # how a command begins to say why it failed


@dataclass
class Local:
    """Starts commands as processes of this machine.

    Args:
        launch: of the config.
        device: of the config; a GPU that is named there is the only one used.
    """

    launch: Launch
    device: str

    @property
    def workers(self) -> int:
        """`launch.workers`, or the GPUs, or 1."""
        return self.launch.workers if self.launch.workers != "auto" else max(1, len(self._gpus))

    @property
    def _gpus(self) -> list[str]:
        """The GPUs that may be used, by the names that CUDA_VISIBLE_DEVICES gives them."""
        if self.device != "auto" or self.launch.gpus == 0:
            return []
        import torch

        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(n) for n in range(torch.cuda.device_count())]
        return names[: torch.cuda.device_count()]

    def run(self, name: str, steps: Sequence[Sequence[Sequence[str]]]) -> str:
        """Do commands; what they say passes through.

        A process that was killed is started again, `launch.retries` times at most, and goes on from what it had saved.

        Raises:
            UserError: a command failed by the user's mistake, with its words.
            EnvironmentFault: one failed otherwise.
        """
        gpus = self._gpus
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for commands in steps:
            threads = self.launch.cpus or max(1, cores // len(commands))
            started: list[_Process] = []
            try:
                for number, command in enumerate(commands):
                    own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
                    started.append(_Process(command, {"OMP_NUM_THREADS": str(threads), **own}))
                for process in started:
                    process.wait(self.launch.retries)
            finally:  # some still run after a signal alone: they save what they have, all at once
                for process in started:
                    process.terminate()
                for process in started:
                    process.wait(0)
            _raise_first(started)
        return ""


@dataclass
class _Process:
    command: Sequence[str]
    environment: Mapping[str, str]
    why: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        words = [sys.executable, "-m", "ripieno.cli", *self.command]
        self._running = subprocess.Popen(
            words,
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # a byte that is no text must not end the listening, on which the process would hang
        )
        assert self._running.stderr is not None
        self._listener = threading.Thread(target=self._listen, args=(self._running.stderr,), daemon=True)
        self._listener.start()

    def _listen(self, said: IO[str]) -> None:
        with said:
            for line in said:
                if line.startswith(FAILED):
                    self.why = line.removeprefix(FAILED).strip()
                else:
                    sys.stderr.write(line)

    def wait(self, retries: int) -> None:
        """Wait until it has ended, and start it again where it was killed."""
        while self._running.wait() < 0 and retries:
            self._listener.join()
            retries -= 1
            self._start()
        self._listener.join()

    def terminate(self) -> None:
        if self._running.poll() is None:
            self._running.terminate()

    @property
    def code(self) -> int:
        return self._running.wait()


def _raise_first(ended: Sequence[_Process]) -> None:
    for process in ended:
        if process.code:
            how = f"exit code {process.code}" if process.code > 0 else f"killed by signal {-process.code}"
            why = process.why or f"`ripieno {' '.join(process.command)}` failed ({how}); the same command goes on"
            raise (UserError if process.code == 2 else EnvironmentFault)(why)
