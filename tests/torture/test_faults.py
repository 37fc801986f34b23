"""Faults that a run survives with nothing lost: processes really killed, a disk really full, memory really short.

Each starts the same commands again, and has to come to the files of a run that nothing disturbed. A few of each are
tried here; with RIPIENO_TORTURE=1, as in `make torture`, many.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import files_of, rows, write_rows
from processes import NO_SPACE, AtWrite, Ended, Job, LessMemory, run
from undisturbed import Undisturbed

TORTURE = os.environ.get("RIPIENO_TORTURE") == "1"


def tries(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("n", range(many if TORTURE else few))


def moment(n: int, what: str) -> float:
    """Return a share of an undisturbed run's time, or of its changes; another one each time `make torture` runs."""
    return random.Random(None if TORTURE else f"{what} {n}").random()


def failure(ended: Ended, code: int) -> str:
    """Return the one line in which a command said why it ended."""
    said = [line for line in ended.err.splitlines() if line.startswith("ripieno: ")]
    assert (ended.code, len(said)) == (code, 1), ended
    assert "Traceback" not in ended.err
    return said[0]


def again(undisturbed: Undisturbed, folder: Path) -> None:
    """Start the same commands again, and compare what they come to."""
    ended = run(undisturbed.commands(folder), folder.parent / "said")
    assert ended.code == 0, ended.err
    undisturbed.is_same(folder)


# ---- kills and signals ------------------------------------------------------------------------------------------


def test_without_a_fault_another_process_makes_the_same_bytes(undisturbed: Undisturbed, tmp_path: Path) -> None:
    again(undisturbed, tmp_path / "run")


@tries(2, 30)
@pytest.mark.fault("kill -9 at a random moment")
def test_killed_at_a_random_moment(n: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    job = Job(undisturbed.commands(tmp_path / "run"), tmp_path / "said")
    job.send(signal.SIGKILL, moment(n, "kill") * undisturbed.seconds)
    assert job.ended().code in (-signal.SIGKILL, 0)
    again(undisturbed, tmp_path / "run")


@tries(3, 60)
@pytest.mark.fault("kill -9 while a file is written")
def test_killed_while_a_file_is_written(n: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    count = 1 + int(moment(n, "file") * undisturbed.changes)
    ended = run(undisturbed.commands(tmp_path / "run"), tmp_path / "said", AtWrite(tmp_path / "run", count))
    assert ended.code == -signal.SIGKILL
    again(undisturbed, tmp_path / "run")


@tries(1, 6)
@pytest.mark.parametrize(("number", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
@pytest.mark.fault("SIGTERM and Ctrl-C")
def test_a_signal_saves_what_was_done(
    number: str, code: int, word: str, n: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    training = undisturbed.commands(tmp_path / "run")[:1]
    job = Job(training, tmp_path / "said")
    sent = job.send(signal.Signals[number], moment(n, number) * 0.15 * undisturbed.seconds)
    since = time.monotonic()
    ended = job.ended()
    assert time.monotonic() - since < 10.0
    if sent:
        assert failure(ended, code) == f"ripieno: {word}; the same command goes on from what is saved"
    again(undisturbed, tmp_path / "run")


# ---- a full disk ------------------------------------------------------------------------------------------------


@tries(2, 60)
@pytest.mark.fault("no space for a file, and for none after it")
def test_no_space_for_a_file(n: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    count, folder = 1 + int(moment(n, "space") * undisturbed.changes), tmp_path / "run"
    ended = run(undisturbed.commands(folder), tmp_path / "said", AtWrite(folder, count, NO_SPACE))
    if ended.code:  # else only files were left to remove
        assert os.strerror(NO_SPACE) in failure(ended, 1)
    again(undisturbed, folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small disk takes root, to mount it")
    yield disk
    subprocess.run(["umount", disk], check=True)


@tries(1, 12)
@pytest.mark.fault("disk full (a small tmpfs)")
def test_a_disk_that_is_full(n: int, undisturbed: Undisturbed, small_disk: Path) -> None:
    """All but some of it is taken, at first; a run takes less than all."""
    needed = sum(len(content) for _, content in files_of(undisturbed.path).values())
    free = shutil.disk_usage(small_disk).free
    assert needed < 0.8 * free
    (small_disk / "taken").write_bytes(bytes(free - int(moment(n, "disk") * 0.9 * needed)))
    ended = run(undisturbed.commands(small_disk / "run"), small_disk.parent / "said")
    assert os.strerror(NO_SPACE) in failure(ended, 1)
    (small_disk / "taken").unlink()
    again(undisturbed, small_disk / "run")


# ---- damaged files ----------------------------------------------------------------------------------------------

LOGS = ("metrics.jsonl", "timing.jsonl")  # of what happened once; nothing makes them again


def damaged(content: bytes, how: str, draw: random.Random) -> bytes | None:
    if how == "deleted":
        return None
    at = draw.randrange(len(content))
    flipped = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    return {"cut short": content[:at], "emptied": b"", "a bit flipped": flipped}[how]


@tries(1, 30)
@pytest.mark.parametrize("how", ["cut short", "emptied", "a bit flipped", "deleted"])
@pytest.mark.fault("a file damaged, any of a finished run")
def test_any_file_damaged(how: str, n: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Made again to the same bytes by the commands that made it; a log, which tells of what was, is refused."""
    folder, draw = tmp_path / "run", random.Random(moment(n, how))
    shutil.copytree(undisturbed.path, folder)
    name = draw.choice(sorted(content_of_all(folder)))
    content = damaged((folder / name).read_bytes(), how, draw)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    verified = run([["status", folder, "--verify"]], tmp_path / "said")
    may_pass = name in ("checksums.jsonl", "config.yaml")  # a line that a later one replaced; what moves no result
    assert verified.code in ((0, 1) if may_pass else (1,)), name
    ended = run(undisturbed.commands(folder), tmp_path / "said")
    if name in LOGS or (name == "checksums.jsonl" and ended.code):
        assert f"{folder / name}: " in failure(ended, 1)
        return
    assert ended.code == 0, (name, ended.err)
    if name.startswith("resume/"):  # a state that nobody needs any more goes
        assert run([["status", folder, "--verify"]], tmp_path / "said").code == 0
        shutil.copy(undisturbed.path / name, folder / name)
    undisturbed.is_same(folder)


def content_of_all(folder: Path) -> list[str]:
    return [name for name in files_of(folder) if not name.startswith(".locks/")]


# ---- two at a time, and too little memory -----------------------------------------------------------------------


@tries(1, 10)
@pytest.mark.fault("two started at the same moment")
def test_of_two_that_start_at_the_same_moment_one_works(n: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    training = undisturbed.commands(tmp_path / "run")[:1]
    jobs = [Job(training, tmp_path / f"said-{name}") for name in "ab"]
    refused, done = sorted((job.ended() for job in jobs), key=lambda ended: -ended.code)
    assert done.code == 0, done.err
    said = failure(refused, 1)
    assert re.search(
        r"process \d+ on \S+ is training member 0 of this run; wait for it, stop it, or train others", said
    )
    again(undisturbed, tmp_path / "run")


@pytest.mark.fault("out of memory")
def test_what_to_lower_where_memory_is_short(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """As often as it says so, until it is enough; a step of all questions at once is too much at first."""
    questions, folder = write_rows(tmp_path / "many.jsonl", rows(400, 9)), tmp_path / "run"
    keys = {"compute.batch_tokens": 2**17, "compute.members_per_pass": 2}
    said = []
    for _ in range(16):
        given = {"data.train": f"[{questions}]", "training.batch_size": 400, "training.epochs": 1, **keys}
        settings = [option for key, value in given.items() for option in ("--set", f"{key}={value}")]
        command = ["train", undisturbed.config, "--run", folder, "--quiet", *settings]
        ended = run([command], tmp_path / "said", LessMemory(400 * 2**20))
        if ended.code == 0:
            break
        said.append(failure(ended, 1))
        lower = dict(re.findall(r"(compute\.\w+) from \d+ to (\d+)", said[-1]))
        assert lower, said
        keys |= {key: int(value) for key, value in lower.items()}
    assert ended.code == 0, ended.err
    assert said
