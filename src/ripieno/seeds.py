"""Named streams of random numbers: every draw is a pure function of a seed and of what it is drawn for.

So a run needs no random state to resume, and nothing that one member draws moves what another draws.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2^63) for a named purpose of another seed."""
    digest = hashlib.blake2b(repr((seed, *names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def key(name: str) -> int:
    """Return a name as a 64-bit integer with a sign: what an int64 tensor holds, to be mixed with other keys."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the stream of a named purpose of a seed."""
    return np.random.default_rng(derive(seed, *names))
