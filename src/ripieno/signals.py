"""Ctrl-C and SIGTERM wait until what is half done can be saved, but not for long."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

PATIENCE = 5.0  # seconds; whoever sent the signal may kill the process after ten
ECHO = 1.0  # seconds in which a second SIGTERM is the first one's echo: Slurm sends two when another job takes over
WAITING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Held:
    """A signal that may have arrived."""

    arrived: int | None = field(default=None, init=False)


@contextmanager
def held() -> Iterator[Held]:
    """Keep the first signal of `WAITING` until the block ends, or for `PATIENCE` seconds; a second one comes at once.

    It then takes the way that it would have taken. A SIGTERM within `ECHO` of another is the same one. Outside of the
    main thread, where no signal arrives, nothing is kept.
    """
    kept, since = Held(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield kept
        return
    before = {number: signal.getsignal(number) for number in (*WAITING, signal.SIGALRM)}

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            if handler is not None:  # one that is not Python's cannot be put back, and was not taken away
                signal.signal(number, handler)

    def deliver(number: int, frame: FrameType | None) -> None:
        if number == kept.arrived == signal.SIGTERM and time.monotonic() - since < ECHO:
            return
        restore()
        signal.raise_signal(number if kept.arrived is None else kept.arrived)

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal since
        kept.arrived, since = number, time.monotonic()
        for other in taken:
            signal.signal(other, deliver)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)

    signal.signal(signal.SIGALRM, deliver)
    # What a job in the background ignores stays ignored.
    taken = [number for number in WAITING if before[number] not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, keep)
    try:
        yield kept
    finally:
        restore()
    if kept.arrived is not None:
        signal.raise_signal(kept.arrived)
