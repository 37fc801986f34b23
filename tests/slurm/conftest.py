"""A real Slurm for the session.

`make test-slurm` installs it and sets RIPIENO_SLURM=1: there a missing one is a failure, else the tests skip.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import PROGRAMS, Cluster, started

from families import save_tiny


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node of two cores; this process, and what it starts, finds it by its environment."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing or os.getuid():
        why = f"{', '.join(missing)}: not installed" if missing else "a Slurm of one's own takes root"
        (pytest.fail if os.environ.get("RIPIENO_SLURM") == "1" else pytest.skip)(f"{why}; run `make test-slurm`")
    with started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder."""
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")
