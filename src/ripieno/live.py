"""How far work on a run is, live: a small file a work in RUN/.progress, written now and then, and gone at its end.

Nothing relies on these notes: they hold no result, are not on record, and a disk that takes none stops no work.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ripieno.runs import TEMPORARY, RunFolder

EVERY = 2.0  # seconds between two notes of a work, at least
RECENT = 30.0  # seconds of which a speed is the mean
Note = dict[str, float]


class Pace:
    """When work is to note how far it is, and how fast it has been of late.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._done = 0
        self._marks = deque([(clock(), 0)])

    def due(self, more: int) -> bool:
        """Count more that is done; return whether to note it, at most once in `EVERY` seconds."""
        self._done += more
        now = self._clock()
        if now - self._marks[-1][0] < EVERY:
            return False
        self._marks.append((now, self._done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - RECENT:
            self._marks.popleft()
        return True

    @property
    def per_second(self) -> float:
        """What was done a second, over the last `RECENT` seconds before `due` was true."""
        (begun, before), (now, done) = self._marks[0], self._marks[-1]
        return (done - before) / (now - begun) if now > begun else 0.0


def of_member(member: int) -> str:
    """Return the name of the note of a member's training: epoch, step, steps (of all epochs), steps_per_second."""
    return f"member-{member:03d}"


def note(run: RunFolder, name: str, **facts: float) -> None:
    """Write what a work says of itself, whole or not at all; `when` it did is added, in seconds since 1970."""
    file = _file(run, name)
    with suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".{file.name}{TEMPORARY}")  # one work, one writer
        part.write_text(json.dumps({**facts, "when": time.time()}))
        os.replace(part, file)


def read(run: RunFolder) -> dict[str, Note]:
    """Return the notes that are there, by name; also of works that were killed, whose locks nobody holds."""
    found = {}
    for file in sorted((run.path / ".progress").glob("[!.]*.json")):
        with suppress(OSError, ValueError, RecursionError):
            facts = json.loads(file.read_bytes())
            if isinstance(facts, dict) and all(_is_number(value) for value in facts.values()) and "when" in facts:
                found[file.stem] = facts
    return found


@contextmanager
def noting(run: RunFolder, names: Sequence[str]) -> Iterator[Pace]:
    """Give works a pace for their notes, and remove these at the end."""
    try:
        yield Pace()
    finally:
        with suppress(OSError):
            for name in names:
                _file(run, name).unlink(missing_ok=True)
            (run.path / ".progress").rmdir()


def _file(run: RunFolder, name: str) -> Path:
    return run.path / ".progress" / f"{name}.json"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
