"""A run that goes on in another folder under another config."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from commands import Done, files_of, ripieno, rows, works, write_config, write_rows


@pytest.fixture(scope="module")
def config(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fork")
    data = {role: [write_rows(folder / f"{role}.jsonl", rows(n, n))] for role, n in (("train", 8), ("test", 4))}
    return write_config(folder, base, data, training={"epochs": 1})


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    works("train", config, "--run", config.parent / "run")
    return config.parent / "run"


def forked(config: Path, run: Path, folder: Path, *settings: str) -> Done:
    options = [option for setting in settings for option in ("--set", setting)]
    return ripieno("train", config, "--run", run, "--fork", folder, *options)


def test_more_epochs_in_a_fork_are_those_of_one_run(config: Path, run: Path, tmp_path: Path) -> None:
    """The rate is constant, so the first epoch of one is that of three; and the run itself stays as it is."""
    before, longer = files_of(run), "training.epochs=3"
    refused = ripieno("train", config, "--run", run, "--set", longer)
    assert refused.code == 2
    assert "training.epochs: 1 | 3" in refused.err
    assert "go on from it in a new one with --fork" in refused.err
    done = forked(config, run, tmp_path / "fork", longer)
    assert (done.code, done.out) == (0, f"Trained: {tmp_path / 'fork'}. Next: ripieno evaluate {tmp_path / 'fork'}\n")
    assert files_of(run) == before
    works("train", config, "--run", tmp_path / "whole", "--set", longer)
    ours, theirs = files_of(tmp_path / "fork"), files_of(tmp_path / "whole")
    same = [name for name in theirs if name.startswith(("members/", "resume/", "questions/"))] + ["metrics.jsonl"]
    assert len(same) == 2 * 3 * 2 + 2 + 2 + 1
    assert [name for name in same if ours[name][1] != theirs[name][1]] == []
    facts = json.loads((tmp_path / "fork" / "forked_from.json").read_text())
    assert (facts["path"], facts["differing"]) == (str(run), ["training.epochs: 1 | 3"])
    # From here on it is a run like others, and the same command goes on.
    works("train", config, "--run", tmp_path / "fork", "--set", longer)
    assert forked(config, run, tmp_path / "fork", longer).code == 0
    works("status", tmp_path / "fork", "--verify")
    assert files_of(tmp_path / "fork").keys() == ours.keys()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("adapter.rank=3", "adapter.rank: 2 | 3"),
        ("training.batch_size=2", "training.batch_size: 4 | 2"),
        ("training.seed=7", "training.seed: 0 | 7"),
        ("data.train=[OTHER]", "trained_on_sha256: "),
    ],
)
@pytest.mark.fault("another config, base, data or library")
def test_what_a_members_state_belongs_to_cannot_change(
    setting: str, said: str, config: Path, run: Path, tmp_path: Path
) -> None:
    other = write_rows(tmp_path / "other.jsonl", rows(8, 77))
    done = forked(config, run, tmp_path / "fork", setting.replace("OTHER", other))
    assert done.code == 2
    assert done.err.startswith("ripieno: --fork: the members of ")
    assert said in done.err
    assert done.err.endswith("Train anew with --run\n")
    assert not (tmp_path / "fork" / "config.yaml").exists()


@pytest.mark.fault("kill -9 while a file is written")
def test_a_fork_that_was_cut_short_is_no_run(config: Path, run: Path, tmp_path: Path) -> None:
    """Its members' files are there before it says what they were trained with."""
    folder, longer = tmp_path / "fork", "training.epochs=2"
    assert forked(config, run, folder, longer).code == 0
    whole = files_of(folder)
    lines = (folder / "checksums.jsonl").read_text().splitlines()
    cut = next(n for n, line in enumerate(lines) if '"manifest.json"' in line)
    later = [folder / f"members/{member:03d}/epoch-002" for member in range(2)]
    subprocess.run(["rm", "-r", folder / "config.yaml", folder / "manifest.json", *later], check=True)
    (folder / "checksums.jsonl").write_text("".join(f"{line}\n" for line in lines[:cut]))
    done = ripieno("train", config, "--run", folder, "--set", longer)
    assert (done.code, done.err) == (2, f"ripieno: {folder}: a fork that was cut short; start it again with --fork\n")
    assert forked(config, run, folder, longer).code == 0
    again = files_of(folder)
    members = [name for name in whole if name.startswith("members/")]
    assert [name for name in members if again[name][1] != whole[name][1]] == []


def test_a_fork_may_begin_to_validate_and_stop_by_it(config: Path, run: Path, tmp_path: Path) -> None:
    """What was validated on other questions, or not at all, stops nobody."""
    settings = [f"data.validation=[{write_rows(tmp_path / 'v.jsonl', rows(4, 33))}]", "training.patience=1"]
    done = forked(config, run, tmp_path / "fork", *settings, "training.epochs=3")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "fork" / "metrics.jsonl").read_text().splitlines()]
    assert {line["epoch"] for line in lines if line["kind"] == "epoch"} <= {2, 3}
    assert all(line["epoch"] > 2 for line in lines if line["kind"] == "stopped")  # the second one's loss is the first


def test_only_a_run_can_be_forked(config: Path, tmp_path: Path) -> None:
    done = forked(config, tmp_path / "none", tmp_path / "fork")
    assert done.code == 2
    assert f"{tmp_path / 'none'}: not a run folder" in done.err


def test_a_run_is_no_fork_of_itself(config: Path, run: Path) -> None:
    done = forked(config, run, run, "training.epochs=2")
    assert (done.code, done.err) == (2, f"ripieno: --fork {run}: is the run itself; name a new folder\n")
