"""What the README tells a reader to write and run does what it says."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import Experiment, ripieno, rows, works, write_rows

from pages import ROOT, blocks, command_lines, run_python
from ripieno.data.question import read_questions

CONSOLE = blocks("README.md", "console")
THREE, STEPS, THEIRS = (command_lines(block) for block in CONSOLE[1:])


def test_three_commands_lead_from_a_csv_to_a_refusal_or_decisions(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(ROOT / "examples/support_tickets/make_tickets.py"), "."]
    subprocess.run([*command, "--count", "400", "--new", "25"], check=True)
    init, train, predict = (command[1:] for command in THREE)
    assert (init[0], train[0], predict[0]) == ("init", "train", "predict")
    works(*init)
    works(*train, "--set", f"base.model={base}", "--set", "training.epochs=1", "--set", "adapter.rank=2")
    done = ripieno(*predict)
    # A tiny model of random weights routes no better than chance.
    assert "Cannot be promised: at most 5% wrong among the answered, at 95% confidence." in done.out
    assert done.code == 2
    assert "ripieno: --max-risk 0.05: was not promised; give 0." in done.err
    listed = re.findall(r"  at most ([\d.]+)% wrong", done.out)
    works(*predict[:-1], str(float(listed[-1]) / 100))
    assert len((tmp_path / "decided.csv").read_text(encoding="utf-8").splitlines()) == 26


def test_files_commands_and_python_of_the_readme_work(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its question and its config, with a tiny base and fewer steps, through its commands and its Python."""
    monkeypatch.chdir(tmp_path)
    shown = json.loads(blocks("README.md", "json")[0].code)
    write_rows(tmp_path / "questions.jsonl", [shown, *rows(49, seed=1)])
    config = yaml.safe_load(blocks("README.md", "yaml")[0].code)
    # A few of the foreign set's questions are enough here.
    config["data"]["out_of_domain"] = [f"{name}[0%:0.1%]" for name in config["data"]["out_of_domain"]]
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    small = [f"base.model={base}", "training.members=2", "training.epochs=1"]
    settings = [part for setting in small for part in ("--set", setting)]

    verbs = ["datasets", "train", "evaluate", "report", "analyze", "read", "certify", "predict", "serve", "acquire"]
    assert [command[1] for command in STEPS] == verbs
    (tmp_path / "notes.txt").write_text("A plant grows near the window.\n", encoding="utf-8")
    text = io.StringIO()
    new = [[row["question"], json.dumps(row["choices"])] for row in (shown, *rows(50, seed=2))]
    csv.writer(text).writerows([["question", "choices"], *new])
    (tmp_path / "new.csv").write_text(text.getvalue(), encoding="utf-8")
    *before, predict, serve, acquire = (command[1:] for command in STEPS)
    for command in before:
        said = works(*command, *(settings if command[0] == "train" else []))
    # Five questions certify nothing, so what keeps a promise is refused; without a risk it answers.
    assert "Cannot be promised: at most 10% wrong" in said
    for command in (predict, [*serve, "--port", "0"]):
        refused = ripieno(*command)
        assert (refused.code, "--max-risk 0.1: was not promised" in refused.err) == (2, True)
    works(*predict[: predict.index("--max-risk")])
    assert (tmp_path / "decided.csv").read_text(encoding="utf-8").startswith("id,answer,answer_text,probs")
    works(*acquire)
    assert len((tmp_path / "new-next.csv").read_text(encoding="utf-8").splitlines()) == 51
    assert (tmp_path / "runs/experiment/report/index.html").exists()
    assert list((tmp_path / "runs/experiment/read").glob("notes-*/index.html"))

    known = {"questions": read_questions(tmp_path / "questions.jsonl")[:3]}
    assert run_python(blocks("README.md", "python")[0], known) == ""
    assert known["p"].probs.shape[:2] == (2, 3)
    assert known["u"].total.shape == (3,)


def test_another_programs_file_is_analysed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the columns that docs/measures.md asks for, and no others."""
    monkeypatch.chdir(tmp_path)
    probs = np.random.default_rng(0).dirichlet(np.ones(4), size=(9, 2))  # [question, member, choice]
    np.savez("theirs.npz", probs=probs, targets=np.zeros(9, dtype=int))
    columns = {
        "question_id": [f"q{n}" for n in range(9) for _ in range(2)],
        "member": [0, 1] * 9,
        "choice_log_probs": np.log(probs).reshape(18, 4).tolist(),
        "target": [None] * 18,
    }
    pq.write_table(pa.table(columns), "foreign.parquet")
    [words] = THEIRS
    found = {row["measure"] for row in json.loads(works(*words[1:]))["rows"] if row["value"] is not None}
    assert {"accuracy", "mutual_information", "ood_auroc_entropy"} <= found


def test_python_of_the_page_of_public_names(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains nothing anew here: the run is there, and `train` finds it whole."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(experiment.path, tmp_path / "runs/tiny")
    shutil.copy(experiment.config, "experiment.yaml")
    known = {"questions": read_questions(Path(experiment.files["test"]))}
    assert run_python(blocks("docs/api.md", "python")[0], known) == ""
    assert known["p"].probs.shape[:2] == (3, 8)
    assert known["u"].total.shape == (8,)
