"""The guides do what they say: their files and commands, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import Experiment, rows, works, write_rows

from pages import ROOT, blocks, ripieno_commands, run_python
from ripieno import data as package
from ripieno.data import splits
from ripieno.data.question import read_questions
from ripieno.parquet import read_parquet


@pytest.fixture
def home(experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a copy of the run as runs/demo."""
    shutil.copytree(experiment.path, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page, questions = "docs/own-data.md", Path("questions.jsonl")
    check, of_labels, init = ripieno_commands(page)
    questions.write_text(blocks(page, "json")[0].code, encoding="utf-8")
    assert "2 questions of 2 to 3 choices, 2 with an answer" in works(*check)
    assert [q.answer for q in read_questions(questions)] == [0, 0]
    make = [sys.executable, str(ROOT / "examples/support_tickets/make_tickets.py"), "."]
    subprocess.run([*make, "--count", "200", "--new", "1"], check=True)
    assert "200 questions of 5 choices, 200 with an answer" in works(*of_labels)
    assert "200 questions with 5 labels" in works(*init)
    # The parts of the config hold every question once.
    write_rows(questions, rows(97, 0))
    config = yaml.safe_load(blocks(page, "yaml")[0].code)
    parts = [splits.load(name).questions for names in config["data"].values() for name in names]
    assert sorted(q.id for part in parts for q in part) == sorted(q.id for q in read_questions(questions))
    assert all(parts)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
def test_adapters_come_in_and_are_handed_on(experiment: Experiment, home: Path) -> None:
    page = "docs/adapters.md"
    for member, name in enumerate("ab"):
        shutil.copytree(experiment.path / f"members/{member:03d}/epoch-002", home / "adapters" / name)
    config = yaml.safe_load(blocks(page, "yaml")[0].code)
    config["base"] = yaml.safe_load(experiment.config.read_text(encoding="utf-8"))["base"]
    config["prompt"] = {"template": "text"}  # the tiny tokenizer has no letters
    (home / "experiment.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_rows(home / "seen.jsonl", rows(4, 1))
    write_rows(home / "held-out.jsonl", rows(20, 2))
    for words in ripieno_commands(page):
        works(*words)
    folders = {path.name for path in Path("handed-on").iterdir()}
    assert folders == {"member-000", "member-001", "mean"}
    assert json.loads(Path("handed-on-small/mean/adapter_config.json").read_bytes())["r"] == 4
    known: dict[str, Any] = {"questions": read_questions(home / "held-out.jsonl")[:3]}
    for block in blocks(page, "python"):
        # The base that the page names, as the tiny one.
        assert (
            run_python(replace(block, code=block.code.replace("Qwen/Qwen3-0.6B", config["base"]["model"])), known) == ""
        )
    assert known["p"].probs.shape[:2] == (2, 3)
    assert known["model"].peft_config["default"].r == 4  # of two members of rank 2


def test_a_data_set_is_added(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/add-a-data-set.md"
    (home / "hellaswag.py").write_text(blocks(page, "python")[0].code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.hellaswag", home / "hellaswag.py")
    assert spec
    assert spec.loader
    hellaswag = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hellaswag)
    monkeypatch.setitem(splits.SETS, hellaswag.NAME, hellaswag)
    row = json.loads(blocks(page, "json")[0].code)
    Path("released/others").mkdir(parents=True)
    write_rows(Path("released/hellaswag_val.jsonl"), [row, {**row, "ctx": "Another.", "label": "3"}])
    write_rows(Path("released/others/hellaswag_val.jsonl"), [{"question": "mine", "choices": ["a", "b"]}])
    listed, asked = ripieno_commands(page)
    assert re.search(r"^hellaswag +validation +released$", works(*listed), re.MULTILINE)
    works(*asked)
    [p] = read_parquet(home / "runs/demo/predictions/hellaswag/validation/ensemble-epoch-002.parquet")
    assert p.log_probs.shape == (3, 2, 4)
    assert p.targets.tolist() == [1, 3]
    assert p.subjects == (row["activity_label"],) * 2


def test_a_measure_is_added(tmp_path: Path) -> None:
    """To a copy of the program, which then gives its row; and its entry is one that the page of measures would take."""
    page = "docs/add-a-measure.md"
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    function = blocks(page, "python")[0].code.removeprefix("import numpy as np\n")
    with (tmp_path / "src/ripieno/measures/uncertainty.py").open("a", encoding="utf-8") as file:
        file.write(function)
    change = blocks(page, "diff")[0].code
    # Line numbers may have moved; a line that is not there any more is an error.
    subprocess.run(["git", "apply", "-"], input=change, text=True, cwd=tmp_path, check=True)
    probs = np.array([[[0.4, 0.6], [0.78, 0.22]], [[0.6, 0.4], [0.98, 0.02]]])
    np.savez(tmp_path / "theirs.npz", probs=probs, targets=np.array([0, 0]))
    [words] = ripieno_commands(page)
    done = subprocess.run(
        [sys.executable, "-m", "ripieno.cli", *words], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    found = [row for row in json.loads(done.stdout)["rows"] if row["measure"] == "spread"]
    assert {(row["who"], row["n"]) for row in found} == {("ensemble", 2)}
    assert [row["value"] for row in found] == pytest.approx([0.02] * len(found), abs=1e-6)  # float32 in between
    entry = blocks(page, "markdown")[0].code
    assert entry.startswith("### `spread`\n")
    assert re.search(r"\n\n    \S", entry)
    assert entry.count("Use it when ") == entry.count("misleads\nwhen ") + entry.count("misleads when ") == 1
