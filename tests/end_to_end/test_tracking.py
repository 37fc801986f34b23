"""What trackers hold, read by their own programs, is what metrics.jsonl says; no start shows a step twice."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from commands import one_line, ripieno, rows, works, write_config, write_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from wandb.proto.wandb_internal_pb2 import Record

from ripieno.runs import RunFolder
from ripieno.tracking import numbers
from ripieno.training import checkpoints

STEPS = 6  # of each of two members, in two epochs


@pytest.fixture
def config(base: Path, tmp_path: Path) -> Path:
    files = {role: [write_rows(tmp_path / f"{role}.jsonl", rows(12, n))] for n, role in enumerate(("train", "test"))}
    return write_config(tmp_path, base, {"train": files["train"], "validation": files["test"]}, training={"epochs": 2})


class Killed(BaseException):
    """The process ends here."""


def train(config: Path, tracker: str) -> tuple[RunFolder, str]:
    """Train with a tracker, by a start that ends in the second epoch, between steps and adapters, and another one."""
    run, arguments = (
        config.parent / "run",
        ("train", config, "--set", f"track={tracker}", "--run", config.parent / "run"),
    )
    save = checkpoints.save_adapter

    def dying(*given: Any) -> None:
        if given[-1] == 2:
            raise Killed
        save(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save_adapter", dying)
        with pytest.raises(Killed):
            ripieno(*arguments)
    works(*arguments)
    return RunFolder(run), works("status", run, "--verify")


def said(run: RunFolder, member: int) -> dict[int, dict[str, float]]:
    """Return what metrics.jsonl says of a member, by step."""
    found = numbers(run.lines("metrics.jsonl"), member)
    assert list(found) == list(range(1, STEPS + 1))
    assert "validation_nll" in found[3]
    assert "validation_nll" not in found[4]
    return found


def test_tensorboard_shows_what_metrics_say(config: Path) -> None:
    run, verified = train(config, "tensorboard")
    assert "as they were written" in verified
    for member in (0, 1):
        read = EventAccumulator(str(run.path / f"track/tensorboard/member-00{member}"), {"scalars": 0})
        read.Reload()
        shown: dict[int, dict[str, float]] = {}
        for name in read.Tags()["scalars"]:
            for event in read.Scalars(name):
                assert name not in shown.setdefault(event.step, {})
                shown[event.step][name] = event.value
        # Its numbers are float32.
        assert shown == {s: {k: float(np.float32(v)) for k, v in of.items()} for s, of in said(run, member).items()}


def records(file: Path) -> Iterator[Record]:
    """Yield the records of a .wandb file: LevelDB's log format (wandb reads it in Go alone)."""
    content, at, parts = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        if 32768 - at % 32768 < 7:  # the rest of a block is too short for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_offline_holds_what_metrics_say(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    try:
        run, verified = train(config, "wandb")
    finally:
        wandb.teardown()
    assert "as they were written" in verified
    ids = set()
    for member in (0, 1):
        started = []
        for file in (run.path / "track/wandb").glob("offline-run-*/run-*.wandb"):
            read = list(records(file))
            [about] = [record.run for record in read if record.WhichOneof("record_type") == "run"]
            if about.display_name == f"run-member-00{member}":
                started.append((file.parent.name, about, [r.history for r in read if r.HasField("history")]))
        (_, first, earlier), (_, second, later) = sorted(started, key=lambda start: start[0])
        assert first.run_id == second.run_id
        assert (second.project, second.run_group) == ("ripieno", "run")
        ids.add(second.run_id)
        shown = [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in h.item} for h in later]
        expected = said(run, member)
        assert {row["_step"]: {k: v for k, v in row.items() if k[0] != "_"} for row in shown} == expected
        assert len(shown) == STEPS
        assert len(earlier) == STEPS // 2
    assert len(ids) == 2


def test_a_tracker_that_is_not_there_is_said_first(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = ripieno("train", config, "--set", "track=wandb", "--run", config.parent / "run")
    assert "wandb is not installed; pip install 'ripieno[track]'" in one_line(done, 2)
    assert not (config.parent / "run/manifest.json").exists()


def test_a_tracker_that_does_not_know_who_asks_is_said_before_the_first_step(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("NETRC", str(config.parent / "netrc"))
    try:
        done = ripieno("train", config, "--set", "track=wandb", "--run", config.parent / "run")
    finally:
        wandb.teardown()
    assert "No API key configured" in done.err.splitlines()[-1]
    assert done.code == 2
    assert not RunFolder(config.parent / "run").lines("metrics.jsonl")


def test_what_could_not_be_sent_is_sent_after_the_next_epoch(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = SummaryWriter.add_scalar, []

    def failing(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        add(*given)

    monkeypatch.setattr(SummaryWriter, "add_scalar", failing)
    run = config.parent / "run"
    done = ripieno("train", config, "--set", "track=tensorboard", "--run", run)
    assert done.code == 0
    assert done.err.count("track: tensorboard cannot be reached") == 1
    for member in (0, 1):
        read = EventAccumulator(str(run / f"track/tensorboard/member-00{member}"), {"scalars": 0})
        read.Reload()
        assert {event.step for event in read.Scalars("gradient_norm")} == set(range(1, STEPS + 1))
