"""A csv of one's own goes the whole way: check, init, train, certify, predict."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from commands import WORDS, ripieno, rows, works

from ripieno import Ensemble
from ripieno.data.question import read_questions

LABELS = [f"{first} {second}" for first in WORDS[:3] for second in WORDS[8:18]]  # more than there are letters
SMALL = ("--set", "training.members=2", "--set", "training.epochs=1", "--set", "adapter.rank=2")


def write_csv(path: Path, columns: list[str], content: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *content])


def test_texts_of_30_unequal_labels(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    weights = [1 / (n + 1) for n in range(30)]  # a few labels have most of the texts, some have one
    labels = LABELS + draw.choices(LABELS, weights, k=170)
    texts = [[f"{n} {' '.join(draw.choices(WORDS, k=5))}", label] for n, label in enumerate(labels)]
    write_csv(Path("banking.csv"), ["text", "label"], texts)
    write_csv(Path("new.csv"), ["text"], [[f"new {n} {' '.join(draw.choices(WORDS, k=5))}"] for n in range(5)])
    said = works("datasets", "check", "banking.csv", "--labels", ",".join(LABELS))
    assert "200 questions of 30 choices, 200 with an answer" in said
    assert "200 questions with 30 labels" in works("init", "banking.csv")
    works("train", "banking.yaml", "--set", f"base.model={base}", *SMALL)
    said = works("certify", "runs/banking", "--risk", "0.1", "--sets", "aps", "--sets-by", "label")
    assert "Cannot be promised: at most 10% wrong" in said
    assert "Prediction sets: they hold the right choice for 95% of each label's questions on average" in said
    assert "; every choice" in said  # of labels with too few questions to say
    again = ripieno("certify", "runs/banking", "--risk", "0.1")
    assert (again.code, "--confidence 0.95 --sets aps --sets-by label`" in again.err) == (2, True)
    works("predict", "runs/banking", "--input", "new.csv", "--output", "decided.jsonl")
    decided = [json.loads(line) for line in Path("decided.jsonl").read_text().splitlines()]
    assert len(decided) == 5
    certificate = json.loads(Path("runs/banking/certificate.json").read_bytes())["certificate"]
    certified = {group["name"]: group for group in certificate["sets"]["groups"]}
    assert sum(group["questions"] for group in certified.values()) == certificate["questions"] == 40
    for row in decided:
        assert row["answer_text"] in LABELS
        for k, label in enumerate(sorted(LABELS, key=lambda label: (-labels.count(label), label))):
            if label not in certified or certified[label]["threshold"] is None:
                assert k in row["prediction_set"]  # of a label with too few questions nothing can be ruled out
    # The same file gives the same sets, random parts and all.
    twice = Ensemble.load("runs/banking").decide(read_questions(Path("new.csv"), certificate_labels()))
    assert [list(decision.prediction_set or ()) for decision in twice] == [row["prediction_set"] for row in decided]


def certificate_labels() -> tuple[str, ...]:
    """Return the labels as the run's config has them."""
    from ripieno.runs import RunFolder

    labels = RunFolder(Path("runs/banking")).config().data.labels
    assert labels is not None
    return labels


def test_a_csv_of_questions(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = rows(200, 0, (2, 3))
    cells = [[row["question"], json.dumps(row["choices"]), row["choices"][row["answer"]]] for row in asked]
    subjects = ["physics" if n % 3 else "law" for n in range(200)]
    write_csv(
        Path("quiz.csv"),
        ["question", "choices", "answer", "subject"],
        [[*row, subject] for row, subject in zip(cells, subjects, strict=True)],
    )
    write_csv(Path("new.csv"), ["question", "choices"], [row[:2] for row in cells[:3]])
    said = works("datasets", "check", "quiz.csv")
    assert "200 questions of 2 to 3 choices, 200 with an answer" in said
    works("init", "quiz.csv")
    works("train", "quiz.yaml", "--set", f"base.model={base}", *SMALL)
    by_label = ripieno("certify", "runs/quiz", "--sets-by", "label")
    assert (by_label.code, "--sets-by label is for questions that all have the same choices" in by_label.err) == (
        2,
        True,
    )
    said = works("certify", "runs/quiz", "--risk", "0.9", "--sets-by", "subject")
    assert "Promised: at most 90% wrong" in said
    assert "  physics: " in said
    assert "  law: " in said
    done = ripieno("predict", "runs/quiz", "--input", "new.csv", "--output", "decided.csv", "--max-risk", "0.9")
    assert done.out.startswith("decided.csv: 3 questions, ")
    assert "new.csv: 3 of 3 questions are of no subject that was certified; every choice is in" in done.err
