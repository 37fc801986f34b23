"""The examples run, on a base small enough for a test."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from commands import rows, write_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_data_and_noise(base: Path, tmp_path: Path) -> None:
    train, test = (write_rows(tmp_path / f"{n}.jsonl", rows(count, n)) for n, count in ((1, 64), (2, 40)))
    command = [
        *(sys.executable, str(EXAMPLES / "data_and_noise/run.py"), str(tmp_path / "out"), "--base", str(base)),
        *("--train", train, "--test", test, "--questions", "64", "--members", "2", "--learning-rate", "0.02"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out/table.md").read_text()
    assert table in done.stdout
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    cells = [tuple(line.split(" | ")[:2]) for line in lines]
    assert cells == [(f"| {n}", f"{noise}%") for noise in (0, 20, 40) for n in (8, 16, 32, 64)]
    assert re.search(r"Disentanglement error: \d\.\d\d ", table)
    # Samples are nested, and so are their wrong labels; a wrong answer is another choice of the question.
    truth = {row["id"]: row for row in rows(64, 1)}
    learned = {
        (share, noise): [
            json.loads(line) for line in (tmp_path / f"out/one-in-{share}-noise-{noise}.jsonl").read_text().splitlines()
        ]
        for share in (8, 4, 2, 1)
        for noise in (0, 20, 40)
    }
    for noise, count in ((0, 0), (20, 13), (40, 26)):
        changed = [row for row in learned[1, noise] if row["answer"] != truth[row["id"]]["answer"]]
        assert len(changed) == count
        assert all(0 <= row["answer"] < len(row["choices"]) for row in changed)
        for few, more in ((8, 4), (4, 2), (2, 1)):
            assert learned[few, noise] == learned[more, noise][: 64 // few]
    wrong = [
        {row["id"] for row in learned[1, noise] if row["answer"] != truth[row["id"]]["answer"]} for noise in (20, 40)
    ]
    assert wrong[0] < wrong[1]
    # Every ensemble took as many steps.
    steps = set()
    for folder in (path for path in (tmp_path / "out").iterdir() if path.is_dir()):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps.add(sum(line["kind"] == "step" for line in lines))
    assert steps == {2 * 64 // 4}


def test_label_next(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, test = (write_rows(tmp_path / f"{n}.jsonl", rows(count, n)) for n, count in ((1, 30), (2, 10)))
    command = [
        *("run.py", "out", "--base", str(base), "--data", data, "--test", test, "--start", "6", "--pool", "20"),
        *("--add", "4", "--seeds", "1", "--members", "2", "--epochs", "1", "--learning-rate", "0.02", "--by", "batch"),
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(EXAMPLES / "label_next/run.py"), run_name="__main__")
    out = tmp_path / "out"
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
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
