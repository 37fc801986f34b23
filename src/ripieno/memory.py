"""Memory that runs out, and memory that is given back."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ripieno.errors import EnvironmentFault

_SAID = re.compile("out of memory|can't allocate memory|ALLOC_FAILED")  # torch's own words, on a GPU and on a CPU


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SAID.search(str(error))))


@contextmanager
def enough(members: int, batch_tokens: int) -> Iterator[None]:
    """Say by how much to lower what, where the passes inside take more memory than there is.

    Args:
        members: that share a pass.
        batch_tokens: most tokens in a pass, of all its members.

    Raises:
        EnvironmentFault: there was no memory left.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        keys = {"compute.batch_tokens": batch_tokens, "compute.members_per_pass": members}
        halves = [f"{key} from {value} to {value // 2}" for key, value in keys.items() if value > 1]
        raise EnvironmentFault(
            f"out of memory: lower {' or '.join(halves) or 'the length of the questions'}, with --set in training, "
            "later in the run's config.yaml"
        ) from error


def give_back() -> None:
    """Give the machine back what this process has freed, on any of its threads.

    glibc keeps it, in pieces between what is still in use: a process that answers questions of many lengths for hours
    would hold more than any of its passes takes. Other C libraries have no such call; there nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
