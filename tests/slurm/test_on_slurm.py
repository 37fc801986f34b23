"""`--on slurm`: training and asking queued one behind the other, and the run of one process at the end."""

from __future__ import annotations

from pathlib import Path

from commands import files_of, one_line, ripieno, rows, works, write_config, write_rows
from engine import Cluster, Task
from tiny import finished


def test_a_whole_run(cluster: Cluster, base: Path, tmp_path: Path) -> None:
    data = {
        "train": [write_rows(tmp_path / "train.jsonl", rows(12, 1))],
        "test": [write_rows(tmp_path / "test.jsonl", rows(9, 2))],
    }
    launch = {"on": "slurm", "workers": 2, "cpus": 1, "gpus": 0, "questions": 2}
    config = write_config(tmp_path, base, data, training={"members": 3, "epochs": 2}, launch=launch)
    run, alone = tmp_path / "run", tmp_path / "alone"
    here = ("--on", "local", "--workers", "1")
    script = works("train", config, "--run", run, "--dry-run")
    assert not run.exists()
    queued = works("train", config, "--run", run)
    assert (run / "slurm" / "train.sh").read_text() == script.removesuffix("\n")
    [first] = queued.removeprefix("Queued: job ").partition(".")[0].split(", ")
    works("train", config, "--run", alone, *here)
    works("evaluate", alone, *here)
    # The run folder is one as soon as the first job has begun.
    assert cluster.ended(first, 2) == [Task("COMPLETED", 0)] * 2
    shards, together = works("evaluate", run).removeprefix("Queued: jobs ").partition(".")[0].split(", ")
    assert cluster.ended(shards, 2) == [Task("COMPLETED", 0)] * 2
    assert cluster.ended(together, 1) == [Task("COMPLETED", 0)]
    assert finished(run) == finished(alone)
    for top in ("predictions", "questions", "features"):
        one, other = ({name: content for name, (_, content) in files_of(x / top).items()} for x in (run, alone))
        assert one == other
    works("status", run, "--verify")


def test_what_slurm_cannot_do_is_said(base: Path, tmp_path: Path) -> None:
    data = {"train": [write_rows(tmp_path / "train.jsonl", rows(12, 1))]}
    config = write_config(tmp_path, base, data, launch={"on": "slurm"})
    assert "launch.workers: on Slurm say how many" in one_line(ripieno("train", config, "--run", tmp_path / "run"), 2)
    local = one_line(ripieno("train", config, "--run", tmp_path / "run", "--on", "local", "--dry-run"), 2)
    assert local == "ripieno: --dry-run: prints the batch scripts of --on slurm; give that too, or leave it out"
