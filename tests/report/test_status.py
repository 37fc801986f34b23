"""What `ripieno status` says: who works, how fast and how long yet, in closed form."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import pytest

from ripieno import live
from ripieno.config import Config, Data, Training
from ripieno.report.status import Status, fitted, follow, left
from ripieno.runs import TRAINED, RunFolder, of_answers

HERE = f"process {os.getpid()} on {platform.node()}"
NOTE = {"epoch": 2, "step": 57, "steps": 120, "steps_per_second": 1.4}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Three members of three epochs; the second one has the first epoch's adapter, the third one failed."""
    folder = RunFolder(tmp_path)
    config = Config(name="tiny", data=Data(train=("unread.jsonl",)), training=Training(members=3, epochs=3))
    folder.start(config, {"base_sha256": "b" * 64, "questions_sha256": "c" * 64, "members": TRAINED}, {})
    for file in folder.adapter_files(1, 1):
        folder.write(file, "content")
    stopped = {"kind": "stopped", "epoch": 1, "member": 2, "step": 4, "use_epoch": None, "reason": "too large"}
    folder.append("metrics.jsonl", stopped)
    return folder


def lines(run: RunFolder, after: float = 0.0) -> list[str]:
    return list(Status(run).lines(time.time() + after))


def test_speed_and_time_left_of_members_that_are_held(run: RunFolder) -> None:
    for member in range(3):
        live.note(run, live.of_member(member), **NOTE)
    of_nobody = ["member 0: epoch 0 of 3", "member 1: epoch 1 of 3", "member 2: epoch 0 of 3, stopped: too large"]
    assert lines(run) == of_nobody
    with run.lock([0, 2]):
        # 63 steps at 1.4 a second: 45 s.
        doing = ", step 57 of 120, 1.4 steps/s, 45 s left"
        assert lines(run) == [
            f"member 0: epoch 2 of 3{doing}, held by {HERE}", of_nobody[1], f"{of_nobody[2]}, held by {HERE}",
        ]  # fmt: skip
        assert lines(run, after=59)[0] == f"member 0: epoch 2 of 3{doing}, held by {HERE}"
        assert lines(run, after=61)[0] == f"member 0: epoch 0 of 3, held by {HERE}"
        # At a step in 20 s the next note takes its time: ten steps of it.
        live.note(run, live.of_member(0), **NOTE | {"steps_per_second": 0.05})
        slow = "member 0: epoch 2 of 3, step 57 of 120, 0.05 steps/s, 21 min left"
        assert lines(run, after=199)[0] == f"{slow}, held by {HERE}"
        assert lines(run, after=201)[0] == f"member 0: epoch 0 of 3, held by {HERE}"


def test_how_far_asking_is(run: RunFolder) -> None:
    live.note(run, of_answers(None), done=400, total=400, per_second=14)
    live.note(run, of_answers((2, 3)), done=120, total=400, per_second=14)
    live.note(run, of_answers((3, 3)), finished=3)
    assert len(lines(run)) == 3
    with run.lock():
        assert lines(run)[3:] == [f"answers, 400 of 400, 14/s, 0 s left, held by {HERE}"]
    with run.lock(shard=(2, 3)), run.lock(shard=(3, 3)):
        assert lines(run)[3:] == [
            f"answers 2 of 3, 120 of 400, 14/s, 20 s left, held by {HERE}", f"answers 3 of 3, held by {HERE}",
        ]  # fmt: skip


def test_files_that_are_there_and_damage(run: RunFolder) -> None:
    file = run.predictions("set", "all", "ensemble", 1)
    run.write(file, "content")
    status = Status(run)
    assert list(status.lines(0))[3:] == ["predictions/set/all/ensemble-epoch-001.parquet"]
    file.write_text("damaged")
    assert list(status.lines(0))[3:] == [
        "predictions/set/all/ensemble-epoch-001.parquet  (damaged: the same evaluate makes it again)"
    ]


def test_time_left_is_rounded_to_what_matters() -> None:
    spans = {
        99.4: "99 s",
        99.6: "2 min",
        99.4 * 60: "99 min",
        6000: "1 h 40 min",
        172_000: "47 h 47 min",
        200_000: "2 d 7 h",
    }
    assert {seconds: left(seconds, 1.0) for seconds in spans} == {s: f", {text} left" for s, text in spans.items()}
    assert left(63, 0.5) == ", 2 min left"
    assert left(-1, 1.0) == ", 0 s left"


@pytest.mark.parametrize(("in_place", "between"), [(True, "\x1b[3F\x1b[J"), (False, "\n")])
def test_it_is_shown_until_nobody_holds_anything(run: RunFolder, in_place: bool, between: str) -> None:
    shown: list[str] = []
    work = run.lock([1])
    work.__enter__()

    def wait(seconds: float) -> None:
        assert seconds == 2
        if len(shown) == 2:
            work.__exit__(None, None, None)

    follow(Status(run), shown.append, in_place=in_place, wait=wait, size=lambda: (200, 50))
    first, again, last = shown
    assert f"member 1: epoch 1 of 3, held by {HERE}\n" in first
    assert again == between + first
    assert last == between + "".join(f"{line}\n" for line in lines(run))


def test_what_a_terminal_has_no_room_for_is_counted() -> None:
    given = [f"line {n}" for n in range(10)]
    assert fitted(given, 80, 11) == given
    assert fitted(given, 80, 10) == [*given[:8], "... and 2 more lines"]
    assert fitted(given[:2], 6, 24) == ["line ", "line "]
