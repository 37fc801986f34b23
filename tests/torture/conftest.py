from __future__ import annotations

import time
from pathlib import Path

import pytest
from commands import rows, write_config, write_rows
from processes import AtWrite, run
from undisturbed import Undisturbed

from families import save_tiny


@pytest.fixture(scope="session")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Dropout on, batches and a set in several parts, a state after each step, members that stop at different times."""
    folder = tmp_path_factory.mktemp("undisturbed")
    counts = {"train": 12, "validation": 4, "calibration": 4, "test": 6, "out_of_domain": 4}
    data = {
        role: [write_rows(folder / f"{role}.jsonl", rows(n, seed))] for seed, (role, n) in enumerate(counts.items())
    }
    training = {"members": 2, "epochs": 2, "save_every": 1, "shuffle_choices": True}
    config = write_config(
        folder,
        base,
        data,
        adapter={"dropout": 0.1},
        training=training,
        compute={"batch_tokens": 64, "threads": 1},
        launch={"questions": 4},
    )
    path, counted = folder / "run", folder / "changes"
    assert run((), folder / "said").code == 0  # torch is imported from now on
    begun, never = time.monotonic(), 10**9
    commands = Undisturbed(config, path, 0.0, 0).commands(path)
    ended = run(commands, folder / "said", AtWrite(path, never, counted=counted))
    assert ended.code == 0, ended.err
    return Undisturbed(config, path, time.monotonic() - begun, int(counted.read_text()))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder."""
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")
