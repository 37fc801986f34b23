"""Workers that share no folder with the launcher: files travel through an fsspec file system, and all come home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
from commands import results_of, rows, works, write_config, write_rows
from fsspec.implementations.local import LocalFileSystem

from ripieno import cli, live
from ripieno.errors import EnvironmentFault, UserError
from ripieno.launching import evaluate_steps, storage, train_commands
from ripieno.launching.storage import Parcel, Storage, lent, parcels
from ripieno.runs import RunFolder

URL = "memory://runs/here"


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config, and its run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    data = {
        "train": [write_rows(folder / "train.jsonl", rows(10, 1)) + "[0%:80%]"],
        "validation": [str(folder / "train.jsonl[80%:100%]")],
        "test": [write_rows(folder / "test.jsonl", rows(7, 2))],
    }
    launch = {"on": "ray", "storage": URL, "questions": 2}
    file = write_config(folder, base, data, training={"epochs": 2, "save_every": 1, "members": 3}, launch=launch)
    works("train", file, "--run", folder / "run", "--on", "local", "--workers", "1")
    works("evaluate", folder / "run", "--on", "local", "--workers", "1")
    return file, folder / "run"


def do(run: Path, steps: list[list[list[str]]]) -> None:
    """As the launcher does commands, each worker in this process."""
    there = Storage(URL)
    packed = parcels(there, run, steps)
    with lent(there, RunFolder(run), packed):
        for parcel in [parcel for step in packed for parcel in step]:
            storage.work(cli.do, parcel)


def test_a_run_comes_home_whole(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """Also when the worker of one member died before it, and its place was taken by one on another machine."""
    file, whole = alone
    run = tmp_path / "run"
    commands = train_commands(["train", str(file), "--run", str(run)], [0, 1, 2], 2)
    there, died = Storage(URL), []

    def dies(command: list[str]) -> None:
        """Save a step's state, and go no further."""
        from ripieno.training import loop

        def save(self: loop.Trainer, *of: object) -> None:
            saved(self, *of)
            died.append(command)
            raise KeyboardInterrupt

        saved = loop.Trainer._save
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Trainer, "_save", save)
            cli.do(command)

    [[first, second]] = parcels(there, run, [commands])
    with pytest.raises(KeyboardInterrupt), lent(there, RunFolder(run), [[first, second]]):
        storage.work(dies, first)
    assert len(died) == 1
    assert any(record["path"].startswith("resume/000") for record in there.records(first.name))
    do(run, [commands])
    do(run, evaluate_steps(["evaluate", str(run)], 2))
    assert results_of(run) == results_of(whole)
    for log in ("metrics.jsonl",):
        assert (run / log).read_bytes() == (whole / log).read_bytes()
    assert {path.name for path in (run / "resume").iterdir()} == {path.name for path in (whole / "resume").iterdir()}
    works("status", run, "--verify")
    assert not fsspec.filesystem("memory").store


def test_how_far_workers_are_is_seen_here(tmp_path: Path) -> None:
    worker, here, there = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"), Storage(URL)
    worker.path.mkdir()
    live.note(worker, live.of_member(2), step=3, steps=9)
    there.push_notes(worker, "0-0")
    with lent(there, here, [[Parcel(URL, "0-0", (), ("train", "x", "--members", "2"), here.path, "", {})]]) as look:
        look()
        assert live.read(here)["member-002"].items() >= {"step": 3, "steps": 9}.items()
    assert live.read(here) == {}


def test_two_workers_may_copy_the_same_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One copies all of it between the other's write and its rename."""
    one, two, pipe = Storage(tmp_path.as_uri()), Storage(tmp_path.as_uri()), LocalFileSystem.pipe_file

    def interrupted(fs: LocalFileSystem, path: str, content: bytes) -> None:
        pipe(fs, path, content)
        monkeypatch.setattr(LocalFileSystem, "pipe_file", pipe)
        two.put(content)

    monkeypatch.setattr(LocalFileSystem, "pipe_file", interrupted)
    assert one.get(one.put(b"the same")) == b"the same"


def test_a_file_of_the_home_folder_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "train.jsonl", rows(2, 1))
    config = tmp_path / "a.yaml"
    config.write_text('{name: a, data: {train: ["~/train.jsonl[0%:50%]"]}}')
    [[parcel]] = parcels(Storage(URL), tmp_path / "run", [[["train", str(config), "--run", str(tmp_path / "run")]]])
    assert list(parcel.files) == ["~/train.jsonl"]


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    run, there = RunFolder(tmp_path / "a"), Storage(URL)
    run.write(tmp_path / "a/report/page.html", "page")
    there.push(run, "one")
    [stored] = [path for path in fsspec.filesystem("memory").store if "objects" in path]
    fsspec.filesystem("memory").pipe_file(stored, b"gape")
    with pytest.raises(EnvironmentFault, match=r"objects/\w+: missing or damaged"):
        there.pull(RunFolder(tmp_path / "b"), "one")
    assert not (tmp_path / "b/report").exists()


def test_a_record_that_was_cut_short_is_no_traceback(tmp_path: Path) -> None:
    there = Storage(URL)
    there._write("records/one.jsonl", b'{"path": "repo')
    with pytest.raises(EnvironmentFault, match=r"records/one\.jsonl: missing or damaged"):
        there.pull(RunFolder(tmp_path / "run"), "one")


def test_a_record_leads_nowhere_else(tmp_path: Path) -> None:
    there, content = Storage(URL), b"content"
    record = {"path": "../outside.txt", "sha256": there.put(content)}
    there._write("records/one.jsonl", json.dumps(record).encode())
    with pytest.raises(EnvironmentFault, match=r"records/one\.jsonl: missing or damaged"):
        there.pull(RunFolder(tmp_path / "run"), "one")
    assert not (tmp_path / "outside.txt").exists()


def test_an_unknown_file_system_is_said() -> None:
    with pytest.raises(UserError, match=r"launch\.storage nowhere://x: cannot be used"):
        Storage("nowhere://x")


def test_a_run_on_another_mount(alone: tuple[Path, Path]) -> None:
    """Files are renamed within the folder they belong to, so it may lie anywhere."""
    file, whole = alone
    mount = Path("/dev/shm")
    if not mount.is_dir() or mount.stat().st_dev == whole.stat().st_dev:
        pytest.skip("no second mount here")
    with TemporaryDirectory(dir=mount) as folder:
        works("train", file, "--run", Path(folder) / "run", "--on", "local", "--workers", "1")
        works("evaluate", Path(folder) / "run", "--on", "local", "--workers", "1")
        assert results_of(Path(folder) / "run") == results_of(whole)
