"""The same numbers again, on the embedded SmolLM2: to the byte, or to float32 rounding (docs/reproducibility.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import files_of, works, write_config
from tiny import stored_updates

from ripieno.parquet import read_parquet

# Two float32 computations of 30 layers are off by some 1e-5 each, in log-probabilities (see test_real_model.py) as in
# what a few steps of an optimizer make of gradients.
ROUNDED = 1e-4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = {"train": ["commonsense_qa/validation[50%:50.4%]"], "test": ["commonsense_qa/validation[0%:0.3%]"]}
    return write_config(
        tmp_path_factory.mktemp("small"), Path("embedded:SmolLM2-135M-Instruct"), data,
        adapter={"rank": 4, "alpha": 8, "dropout": 0.05}, training={"batch_size": 2, "learning_rate": 1e-3},
    )  # fmt: skip


def made(config: Path, run: Path, **compute: int) -> Path:
    """Train and evaluate; return the run."""
    settings = [text for key, value in compute.items() for text in ("--set", f"compute.{key}={value}")]
    works("train", config, "--run", run, "--quiet", *settings)
    works("evaluate", run, "--quiet")
    return run


def updates(run: Path, member: int) -> torch.Tensor:
    return stored_updates(run / f"members/{member:03d}/epoch-001/adapter_model.safetensors")


def log_probs(run: Path) -> np.ndarray:
    [file] = (run / "predictions").rglob("ensemble-epoch-001.parquet")
    [p] = read_parquet(file)
    return p.log_probs


def test_the_same_bytes_and_elsewhere_the_same_to_rounding(config: Path, tmp_path: Path) -> None:
    first = made(config, tmp_path / "first", threads=1, members_per_pass=1)
    again = made(config, tmp_path / "again", threads=1, members_per_pass=1)
    before, after = files_of(first), files_of(again)
    same = [name for name in before if name.startswith(("members/", "predictions/", "resume/", "questions/"))]
    assert len(same) > 8
    assert [name for name in [*same, "metrics.jsonl"] if before[name][1] != after[name][1]] == []
    other = made(config, tmp_path / "other", threads=2, members_per_pass=2, batch_tokens=100_000)
    torch.set_num_threads(1)
    for member in range(2):
        truth, rounded, sibling = updates(first, member), updates(other, member), updates(first, 1 - member)
        assert (rounded - truth).norm() <= ROUNDED * truth.norm()
        assert (sibling - truth).norm() > truth.norm()  # members differ by ten thousand times as much
    assert np.abs(log_probs(other) - log_probs(first)).max() <= ROUNDED
