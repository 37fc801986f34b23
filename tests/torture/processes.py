"""Commands in processes of their own, which can be killed: each is forked from one that has imported torch already."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["processes", "ripieno.experiment", "ripieno.evaluation", "ripieno.report.run"])
WAIT = 120.0  # seconds; a command of these tests takes a few
Commands = Sequence[Sequence[str | Path]]
Before = Callable[[], None]  # what a process does to itself first


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal that killed it, and what it said."""

    code: int
    err: str


class Job:
    """Commands, one after the other, in one process; it ends with the first that fails."""

    def __init__(self, commands: Commands, said: Path, before: Before | None = None) -> None:
        """Start them; `said` is the file for what they say on stderr."""
        self._said, self._begun = said, _CONTEXT.Event()
        texts = [[str(argument) for argument in command] for command in commands]
        self._process = _CONTEXT.Process(target=_work, args=(texts, said, before, self._begun))
        self._process.start()

    def send(self, number: signal.Signals, after: float) -> bool:
        """Send a signal some seconds after the first command began; return whether it was still running by then."""
        self._begun.wait(WAIT)
        self._process.join(after)
        running = self._process.is_alive()
        if running:
            assert self._process.pid
            os.kill(self._process.pid, number)
        return running

    def ended(self) -> Ended:
        """Wait for its end."""
        self._process.join(WAIT)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise AssertionError(f"still running after {WAIT:g} s")
        return Ended(code, self._said.read_text(encoding="utf-8") if self._said.exists() else "")


def run(commands: Commands, said: Path, before: Before | None = None) -> Ended:
    """Run commands to their end."""
    return Job(commands, said, before).ended()


def _work(commands: Sequence[Sequence[str]], said: Path, before: Before | None, begun: Event) -> None:
    import torch
    from matplotlib.figure import Figure

    from ripieno import cli

    stderr = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(stderr, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell started in its background
    # Drawing takes most of a report's time, and its figures are in the page alone, which no test of these compares.
    Figure.savefig = lambda _, file, **__: file.write("<svg></svg>")  # type: ignore[method-assign]
    if before:
        before()
    begun.set()
    for arguments in commands:
        sys.argv = ["ripieno", *arguments]
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise


@dataclass(frozen=True)
class AtWrite:
    """At a change of a folder's files, and from then on: die (without a number of an error), or fail with that error.

    Args:
        folder: whose files.
        count: at which change: a file opened to be written, renamed or removed, or a folder made.
        error: of the system, such as `errno.ENOSPC`.
        counted: file to which the number of changes so far is written; None for none.
    """

    folder: Path
    count: int
    error: int | None = None
    counted: Path | None = None

    def __call__(self) -> None:
        """Watch this process from now on."""
        changes, folder = 0, str(self.folder)

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal changes
            if not arguments or not str(arguments[0]).startswith(folder):
                return
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            # Locks are no content, and removing needs no space.
            needs_space = (writes or event in ("os.rename", "os.mkdir")) and ".locks" not in str(arguments[0])
            if not needs_space and event != "os.remove":
                return
            changes += 1
            if self.counted:
                self.counted.write_text(str(changes))
            if changes < self.count:
                return
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            if needs_space:
                raise OSError(self.error, os.strerror(self.error or 0), str(arguments[0]))

        sys.addaudithook(watch)


@dataclass(frozen=True)
class LessMemory:
    """Have no more than so many bytes of memory beyond what the process takes at its start."""

    more: int

    def __call__(self) -> None:
        """Limit this process."""
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + self.more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


NO_SPACE = errno.ENOSPC
