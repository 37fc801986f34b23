"""Freed memory goes back to the machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from ripieno import memory

PIECE, PIECES = 64 * 1024, 2000  # bytes; pieces of this size glibc takes from its heap, which only shrinks from its end


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_stands_between_pieces_in_use_is_given_back() -> None:
    pieces = [b"x" * PIECE for _ in range(PIECES)]
    held = resident()
    kept = pieces[::100]
    del pieces
    memory.give_back()
    assert held - resident() > 0.9 * PIECE * PIECES
    assert len(kept) == 20


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
