"""A real Ray cluster of two workers: the run of one process, whatever is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import one_line, results_of, ripieno, rows, works, write_config, write_rows

from ripieno import locks


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs, so two workers; started with what this process has, one thread a worker."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config, and its run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    data = {
        "train": [write_rows(folder / "train.jsonl", rows(24, 1))],
        "test": [write_rows(folder / "test.jsonl", rows(24, 2))],
    }
    file = write_config(
        folder, base, data, training={"epochs": 2, "save_every": 1}, launch={"on": "ray", "workers": 2, "questions": 2}
    )
    works("train", file, "--run", folder / "run", "--on", "local", "--workers", "1")
    works("evaluate", folder / "run", "--on", "local", "--workers", "1")
    return file, folder / "run"


def killer(run: Path, name: str, when: Callable[[], bool], killed: list[int]) -> threading.Thread:
    """Kill whoever holds a lock of a run as soon as something is seen there."""

    def wait_and_kill() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            holder = locks.holders(run / ".locks").get(name)
            if holder and when():
                assert holder.pid != os.getpid()
                os.kill(holder.pid, signal.SIGKILL)
                killed.append(holder.pid)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def test_workers_killed_in_training_and_in_asking(cluster: None, alone: tuple[Path, Path], tmp_path: Path) -> None:
    """Each is started again, goes on from what was saved, and the run ends as that of one process, to the byte."""
    file, whole = alone
    run, killed = tmp_path / "run", list[int]()
    waiting = killer(run, "member-1", lambda: any((run / "resume").glob("001-step-*")), killed)
    assert works("train", file, "--run", run) == f"Trained: {run}. Next: ripieno evaluate {run}\n"
    waiting.join()
    waiting = killer(run, "answers-2-of-2", lambda: any((run / "parts").rglob("*.parquet")), killed)
    works("evaluate", run)
    waiting.join()
    assert len(killed) == 2
    assert results_of(run) == results_of(whole)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert not list((run / "parts").rglob("*.parquet"))
    works("status", run, "--verify")


def test_workers_that_share_no_folder(cluster: None, alone: tuple[Path, Path], tmp_path: Path) -> None:
    """The files go through another folder, by its URL."""
    file, whole = alone
    run, url = tmp_path / "run", f"launch.storage=file://{tmp_path}/between"
    works("train", file, "--run", run, "--set", url)
    works("evaluate", run)
    assert results_of(run) == results_of(whole)
    assert not (tmp_path / "between").exists()


def test_what_fails_there_is_said_here(cluster: None, alone: tuple[Path, Path], tmp_path: Path) -> None:
    file, _ = alone
    wrong = one_line(ripieno("train", file, "--run", tmp_path / "run", "--set", "adapter.targets=[nothing]"), 2)
    assert "nothing" in wrong
    large = one_line(ripieno("train", file, "--run", tmp_path / "run", "--set", "launch.cpus=99"), 2)
    assert large == "ripieno: launch.cpus 99, launch.gpus 0: no node of the Ray cluster has as many; lower them"
