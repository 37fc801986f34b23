"""The examples run, on a base small enough for a test."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import rows, write_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run an example as `python examples/NAME/run.py ARGUMENTS` would; return what it printed."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        runpy.run_path(str(EXAMPLES / name / "run.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_data_and_noise(base: Path, tmp_path: Path, example: Callable[..., str]) -> None:
    train, test = (write_rows(tmp_path / f"{n}.jsonl", rows(count, n)) for n, count in ((1, 32), (2, 40)))
    said = example(
        *("data_and_noise", str(tmp_path / "out"), "--base", str(base), "--train", train, "--test", test),
        *("--questions", "32", "--members", "2", "--learning-rate", "0.02"),
    )
    table = (tmp_path / "out/table.md").read_text()
    assert table in said
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [tuple(line.split(" | ")[:2]) for line in lines]
    assert cells == [(f"| {n}", f"{noise}%") for noise in (0, 20, 40) for n in (4, 8, 16, 32)]
    assert re.search(r"Disentanglement error: \d\.\d\d ", table)
    # Samples are nested, and so are their wrong labels; a wrong answer is another choice of the question.
    truth = {row["id"]: row for row in rows(32, 1)}
    learned = {
        (share, noise): [
            json.loads(line) for line in (tmp_path / f"out/one-in-{share}-noise-{noise}.jsonl").read_text().splitlines()
        ]
        for share in (8, 4, 2, 1)
        for noise in (0, 20, 40)
    }
    for noise, count in ((0, 0), (20, 6), (40, 13)):
        changed = [row for row in learned[1, noise] if row["answer"] != truth[row["id"]]["answer"]]
        assert len(changed) == count
        assert all(0 <= row["answer"] < len(row["choices"]) for row in changed)
        for few, more in ((8, 4), (4, 2), (2, 1)):
            assert learned[few, noise] == learned[more, noise][: 32 // few]
    wrong = [
        {row["id"] for row in learned[1, noise] if row["answer"] != truth[row["id"]]["answer"]} for noise in (20, 40)
    ]
    assert wrong[0] < wrong[1]
    # Every ensemble took as many steps.
    steps = set()
    for folder in (path for path in (tmp_path / "out").iterdir() if path.is_dir()):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps.add(sum(line["kind"] == "step" for line in lines))
    assert steps == {2 * 32 // 4}


def test_label_next(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Callable[..., str]) -> None:
    data, test = (write_rows(tmp_path / f"{n}.jsonl", rows(count, n)) for n, count in ((1, 30), (2, 10)))
    monkeypatch.chdir(tmp_path)
    said = example(
        *("label_next", "out", "--base", str(base), "--data", data, "--test", test, "--start", "6", "--pool", "20"),
        *("--add", "4", "--seeds", "1", "--members", "2", "--epochs", "1", "--learning-rate", "0.02", "--by", "batch"),
    )
    out = tmp_path / "out"
    table = (out / "table.md").read_text()
    assert table in said
    assert re.findall(r"^\| (\d+) labels \|", table, re.MULTILINE) == ["6", "10", "14"] * 2
    assert re.findall(r"^- (\w+): accuracy [+-]", table, re.MULTILINE) == ["batch"]
    assert (out / "curves.svg").read_text().count('role="img"') == 2
    # What was chosen has its true label, is of the pool, and is never chosen twice.
    truth = {row["id"]: row["answer"] for row in rows(30, 1)}
    lines = {
        file.stem: [json.loads(line) for line in file.read_text().splitlines()] for file in out.glob("seed-0/*.jsonl")
    }
    assert {row["answer"] for row in lines["pool"]} == {None}
    pool, start = ({row["id"] for row in lines[name]} for name in ("pool", "start"))
    assert not pool & start
    both = {row["id"] for row in lines["random-1"]} & {row["id"] for row in lines["batch-1"]}
    assert f"In common in the first round, of 4, a number a seed:\n\n- random and batch: {len(both)}\n" in table
    for by in ("random", "batch"):
        chosen = lines[f"{by}-1"] + lines[f"{by}-2"]
        assert len({row["id"] for row in chosen} & pool) == 8
        assert all(row["answer"] == truth[row["id"]] for row in chosen)
