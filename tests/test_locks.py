"""Locks: one holder at a time, gone with its process, and seen from another host by nothing but its heartbeat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ripieno import locks
from ripieno.errors import EnvironmentFault
from ripieno.locks import Held, Holder, hold

pytestmark = pytest.mark.fault("locks")
HOLD = """
import sys
from pathlib import Path
from ripieno.locks import Held, hold
try:
    with hold(Path(sys.argv[1]), sys.argv[2:]):
        print("held", flush=True)
        sys.stdin.read()
except Held as error:
    print(error.holder.pid, flush=True)
"""


def start(folder: Path, *names: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *names], **pipes)  # type: ignore[call-overload]


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write(folder: Path, name: str, holder: Holder) -> Path:
    """Leave a lock as another holder would."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(asdict(holder)))
    return file


@contextmanager
def living(file: Path) -> Iterator[None]:
    """Touch a lock again and again, as its holder does."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(0.01):
            os.utime(file)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_lock_names_its_holder_and_goes_with_it_however_it_ends(tmp_path: Path) -> None:
    with start(tmp_path, "a") as other:
        assert said(other) == "held"
        with pytest.raises(Held) as caught, hold(tmp_path, ["a"]):
            pass
        assert (caught.value.name, caught.value.holder) == (
            "a",
            replace(Holder.here(), pid=other.pid, started=_of(other)),
        )
        with hold(tmp_path, ["b"]):  # another one is free
            pass
        other.kill()  # no chance to clean up, and nobody has waited for it yet
        while not _ended(other.pid):
            time.sleep(0.01)
        with hold(tmp_path, ["a"]):
            pass
    assert not list(tmp_path.glob("*.json"))


def _of(process: subprocess.Popen[str]) -> str:
    return locks._started(process.pid) or ""


def _ended(pid: int) -> bool:
    return locks._started(pid) is None


def test_of_many_that_start_at_once_one_holds_and_the_others_say_who(tmp_path: Path) -> None:
    processes = [start(tmp_path, "a", "b") for _ in range(6)]
    lines = [said(process) for process in processes]
    [holder] = [process for process, line in zip(processes, lines, strict=True) if line == "held"]
    assert sorted(lines) == sorted(["held", *[str(holder.pid)] * 5])
    for process in processes:
        process.communicate("", timeout=60)
    assert not list(tmp_path.glob("*.json"))


def test_all_locks_are_taken_or_none(tmp_path: Path) -> None:
    with start(tmp_path, "b") as other:
        assert said(other) == "held"
        with pytest.raises(Held), hold(tmp_path, ["a", "b", "c"]):
            pass
        assert [file.name for file in tmp_path.glob("*.json")] == ["b.json"]
        other.communicate("", timeout=60)


@pytest.mark.parametrize(
    "changed", [{"started": "1"}, {"boot": "an earlier one"}, {"pid": 2**22 + 1}], ids=["pid again", "rebooted", "gone"]
)
def test_on_this_host_a_dead_holder_is_seen_at_once(changed: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path, "a", replace(Holder.here(), **changed))  # type: ignore[arg-type]
    before = time.monotonic()
    with hold(tmp_path, ["a"]):
        pass
    assert time.monotonic() - before < locks.SILENT / 2


def test_a_lock_that_a_crash_cut_short_is_free(tmp_path: Path) -> None:
    file = write(tmp_path, "a", Holder.here())
    file.write_bytes(file.read_bytes()[:-5])
    with hold(tmp_path, ["a"]):
        assert json.loads(file.read_bytes()) == asdict(Holder.here())


def test_on_another_host_a_holder_is_dead_after_a_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SILENT", 0.5)
    elsewhere = replace(Holder.here(), host="elsewhere")
    file = write(tmp_path, "a", elsewhere)
    with living(file), pytest.raises(Held) as caught, hold(tmp_path, ["a"]):
        pass
    assert caught.value.holder == elsewhere
    before = time.monotonic()
    with hold(tmp_path, ["a"]):
        assert time.monotonic() - before >= 0.5


def test_a_holder_on_another_host_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    file = write(tmp_path, "a", replace(Holder.here(), host="elsewhere"))
    before = time.monotonic()
    threading.Timer(0.2, file.unlink).start()
    with hold(tmp_path, ["a"]):
        assert time.monotonic() - before < locks.SILENT / 2


def wait_for_a_beat(file: Path) -> None:
    first, deadline = file.stat().st_mtime_ns, time.monotonic() + 30
    while file.stat().st_mtime_ns == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_heartbeat_that_fails_is_followed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch, calls = os.utime, iter(range(10**9))

    def failing(file: Path) -> None:
        if next(calls) == 0:
            raise OSError(5, "Input/output error")
        touch(file)

    monkeypatch.setattr(locks, "BEAT", 0.02)
    monkeypatch.setattr(os, "utime", failing)
    with hold(tmp_path, ["a"]):
        wait_for_a_beat(tmp_path / "a.json")
    assert next(calls) > 1


def test_the_heartbeat_is_the_files_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    with hold(tmp_path, ["a"]):
        wait_for_a_beat(tmp_path / "a.json")


def test_a_process_whose_lock_was_taken_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a long sleep: another host has taken its work over."""
    monkeypatch.setattr(locks, "BEAT", 0.02)
    elsewhere = replace(Holder.here(), host="elsewhere")
    with hold(tmp_path, ["a"]):
        locks.check(tmp_path)
        file, deadline = write(tmp_path, "a", elsewhere), time.monotonic() + 30
        while tmp_path not in locks._lost:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(EnvironmentFault, match="another one took its work over"):
            locks.check(tmp_path)
    assert json.loads(file.read_bytes()) == asdict(elsewhere)  # which is the other's to remove
    locks.check(tmp_path)
