"""Notes of work that goes on: whole or absent, rare, and of no weight."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ripieno import live
from ripieno.live import Pace, noting
from ripieno.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_note_is_due_every_two_seconds_at_most_and_tells_the_speed_of_the_last_thirty() -> None:
    """A step a second for 100 s, then two: 30 s later nothing else is seen of the first ones."""
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.per_second == 0
    due = []
    for second in range(1, 141):
        now = float(second)
        if pace.due(1 if second <= 100 else 2):
            due.append(second)
            assert second > 100 or pace.per_second == 1
    assert due == list(range(2, 141, 2))
    assert pace.per_second == 2
    now = 141.9
    assert not pace.due(1000)  # counted, and told later
    assert pace.per_second == 2


def test_notes_are_read_back_and_gone_at_the_end(run: RunFolder) -> None:
    with noting(run, ["answers", "member-001"]):
        live.note(run, "answers", done=3, total=7, per_second=0.5)
        live.note(run, "answers", done=4, total=7, per_second=0.5)
        live.note(run, live.of_member(1), epoch=1)
        found = live.read(run)
        assert [{k: v for k, v in note.items() if k != "when"} for note in found.values()] == [
            {"done": 4, "total": 7, "per_second": 0.5}, {"epoch": 1},
        ]  # fmt: skip
        assert sorted(os.listdir(run.path / ".progress")) == ["answers.json", "member-001.json"]
    assert live.read(run) == {}
    assert not os.listdir(run.path)


def test_notes_of_others_stay(run: RunFolder) -> None:
    with noting(run, ["member-000"]):
        live.note(run, "member-000", step=1)
        live.note(run, "member-001", step=1)
    assert list(live.read(run)) == ["member-001"]


def test_what_is_no_note_is_passed_over(run: RunFolder) -> None:
    live.note(run, "good", step=1)
    contents = (b"", b'{"step": 1', b"[1]", b'{"when": "now"}', b'{"when": NaN}', b'{"step": 1}', b"\xff", b"[" * 9999)
    for n, content in enumerate(contents):
        (run.path / ".progress" / f"bad-{n}.json").write_bytes(content)
    assert list(live.read(run)) == ["good"]


def test_a_disk_that_takes_no_note_stops_no_work(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    live.note(run, "kept", step=1)
    monkeypatch.setattr(os, "replace", full)
    live.note(run, "kept", step=2)
    assert live.read(run)["kept"]["step"] == 1
