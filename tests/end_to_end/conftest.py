"""What the end-to-end tests share: a tiny base, and a run of it that every command has gone over."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Experiment, rows, works, write_config, write_rows

from families import save_tiny


@pytest.fixture(autouse=True, scope="session")
def no_bars() -> None:
    """The command line turns the library's own bars off by its environment, which must be set before its import."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder."""
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def experiment(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Tests leave it as it is, but for what a command makes again to the same bytes."""
    folder = tmp_path_factory.mktemp("experiment")
    counts = {"train": 12, "validation": 4, "calibration": 6, "test": 8, "foreign": 6}
    files = {
        role: write_rows(folder / f"{role}.jsonl", rows(n, seed, (2, 6, 3) if role == "foreign" else (2, 3, 4, 5)))
        for seed, (role, n) in enumerate(counts.items())
    }
    data = {role: [files[role]] for role in ("train", "validation", "calibration", "test")}
    config = write_config(
        folder, base, {**data, "out_of_domain": [files["foreign"]]},
        training={"members": 3, "epochs": 2, "bagging": True, "shuffle_choices": True},
    )  # fmt: skip
    run = folder / "run"
    said = {
        "train": works("train", config, "--run", run),
        "evaluate": works("evaluate", run),
        "calibrate": works("calibrate", run),
        "report": works("report", run),
        "status": works("status", run),
    }
    return Experiment(config, run, files, said)
