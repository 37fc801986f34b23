"""Data parallel: two real processes through torchrun come to what one does; a killed one costs nothing but time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import rows, works, write_config, write_rows
from tiny import BOUND, distance, stored_updates

from families import save_tiny
from ripieno.errors import UserError
from ripieno.runs import RunFolder
from ripieno.training import distributed
from ripieno.training.distributed import Ranks, joined

WORKER = Path(__file__).with_name("torchrun.py")
# Batches of 3 of 10 questions: the second process has one row of the first three, and none of the last.
ROWS, EPOCHS = 10, 5  # 20 steps
WAYS: dict[str, dict[str, Any]] = {
    "patience": {
        "adapter": {"dropout": 0.1},
        "training": {"bagging": True, "shuffle_choices": True, "patience": 1, "weight_decay": 0.1},
        "compute": {"batch_tokens": 128},
    },
    "driven apart": {
        "training": {"lora_l2": 0.1, "repulsion": {"weight": 5.0, "batch_size": 3}, "loss": "next_token"},
    },
    "variational": {
        "adapter": {"dropout": 0.1},
        "training": {"variational": {"initial_std": 0.05, "divergence_rate": 0.001}, "bagging": True},
    },
}


def torchrun(commands: Sequence[Sequence[str | Path]], number: int = 0, after: int = 0) -> subprocess.CompletedProcess:
    given = json.dumps([[[str(argument) for argument in command] for command in commands], number, after])
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", WORKER, given],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A config, and the run that one process makes of it."""

    config: Path
    alone: RunFolder

    def command(self, run: Path) -> list[str | Path]:
        return ["train", self.config, "--run", run, "--quiet"]

    def is_same(self, run: Path) -> None:
        """Check that a run came to the same adapters, in as many epochs of each member, and to the same metrics."""
        found, truth = (sorted(of.glob("members/*/*/*.safetensors")) for of in (run, self.alone.path))
        assert [file.relative_to(run) for file in found] == [file.relative_to(self.alone.path) for file in truth]
        for ours, theirs in zip(found, truth, strict=True):
            if ours.name == "adapter_model.safetensors":
                assert distance(stored_updates(ours), stored_updates(theirs)) < BOUND, ours
        ours, theirs = RunFolder(run).lines("metrics.jsonl"), self.alone.lines("metrics.jsonl")
        assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
        # A loss is a mean of sums of float32 log-likelihoods of size 6: 1e-5 + 1e-7 a unit (see test_loop.py).
        for key in ("member", "step", "loss", "validation_nll", "use_epoch"):
            values = [[line[key] for line in lines if line.get(key) is not None] for lines in (ours, theirs)]
            assert values[0] == pytest.approx(values[1], rel=1e-5, abs=2e-5), key


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Way]:
    folder = tmp_path_factory.mktemp("alone")
    base = save_tiny(folder / "base")
    data = {role: [write_rows(folder / f"{role}.jsonl", rows(n, seed))] for seed, (role, n) in enumerate(
        {"train": ROWS, "validation": 5, "test": 4}.items())}  # fmt: skip
    found = {}
    for name, sections in WAYS.items():
        training = {"members": 2, "epochs": EPOCHS, "batch_size": 3, **sections["training"]}
        if "repulsion" in training:
            training["repulsion"] = {**training["repulsion"], "questions": data["test"]}
        own = folder / name
        own.mkdir()
        kept = {role: files for role, files in data.items() if role != "test" or "repulsion" not in training}
        config = write_config(own, base, kept, **{**sections, "training": training})
        works("train", config, "--run", own / "run", "--quiet")
        found[name] = Way(config, RunFolder(own / "run"))
    return found


def test_two_processes_come_to_what_one_does(ways: dict[str, Way], tmp_path: Path) -> None:
    done = torchrun([way.command(tmp_path / name) for name, way in ways.items()])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trained: ") == len(ways)  # one of the two says so
    for name, way in ways.items():
        way.is_same(tmp_path / name)
        works("status", tmp_path / name, "--verify")
        assert not RunFolder(tmp_path / name).holders()
    stopped = [line for line in ways["patience"].alone.lines("metrics.jsonl") if line["kind"] == "stopped"]
    assert stopped  # else both would go on for want of any decision


@pytest.mark.fault("one of several processes killed, then signalled")
def test_killed_and_then_stopped_it_goes_on_in_any_number_of_processes(ways: dict[str, Way], tmp_path: Path) -> None:
    way, run = ways["variational"], tmp_path / "run"
    killed = torchrun([way.command(run)], signal.SIGKILL, after=6)  # amid the second epoch
    assert killed.returncode == 1
    assert re.search("ripieno: (another process of this training ended|terminated;)", killed.stderr)
    assert sorted(file.name for file in (run / "resume").iterdir()) == [
        f"00{m}-step-0000004.safetensors" for m in (0, 1)
    ]
    stopped = torchrun([way.command(run)], signal.SIGTERM, after=9)
    assert stopped.returncode == 1
    assert "ripieno: terminated; the same command goes on from what is saved" in stopped.stderr
    assert "Trained: " not in killed.stdout + stopped.stdout
    # Both stop after the step in which one of them is told to.
    assert sorted(file.name for file in (run / "resume").iterdir()) == [
        f"00{m}-step-0000010.safetensors" for m in (0, 1)
    ]
    works(*way.command(run))
    way.is_same(run)


# ---- in one process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_row_is_one_process_s(count: int) -> None:
    given = list(range(count))
    for world in (1, 2, 3):
        shares = [Ranks(rank, world).share(given) for rank in range(world)]
        assert sorted(row for share in shares for row in share) == given
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_device_that_each_process_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert not distributed.leads()
    for device, said in (
        ("cuda:1", "compute.device cuda:1: under torchrun"),
        ("mps", "compute.device mps: under torchrun"),
        ("cuda", "torchrun: --nproc-per-node is over the 2 GPUs of this machine"),
    ):
        with pytest.raises(UserError, match=re.escape(said)), joined(device):
            pass
