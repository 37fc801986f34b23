"""A first config fits the file it was made for."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ripieno import config as configs
from ripieno.data import splits
from ripieno.data.question import read_questions
from ripieno.data.starting import labels_of, start
from ripieno.errors import UserError

ROLES = ("train", "validation", "calibration", "certification", "test")


def labelled(path: Path, labels: int, count: int) -> Path:
    """Write a csv of texts whose labels are as unequal as a support desk's."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for n in range(count):
            label = min(int((n % 97) ** 2 / 97**2 * labels), labels - 1) if n >= labels else n
            writer.writerow([f'ticket {n}: it does not work, "again"', f"topic {label}"])
    return path


def test_a_file_of_texts_and_77_labels(tmp_path: Path) -> None:
    file = labelled(tmp_path / "my tickets.csv", 77, 1000)
    started = start(file)
    assert (started.name, started.questions) == ("my-tickets", 1000)
    assert started.labels is not None
    assert len(started.labels) == 77
    config = configs.parse(yaml.safe_load(started.yaml))
    assert config.data.labels == started.labels
    roles = splits.assign(
        {role: getattr(config.data, role) for role in ROLES}, seed=config.data.seed, labels=config.data.labels
    )
    counts = {role: len(roles.questions(role)) if role != "train" else len(roles.train) for role in ROLES}
    assert sum(counts.values()) == 1000
    assert counts == {"train": 500, "validation": 150, "calibration": 50, "certification": 200, "test": 100}
    for role, count in counts.items():
        assert f"  {role}: [" in started.yaml
        assert f"] # about {count}: " in started.yaml


def test_the_tickets_of_the_example(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "examples/support_tickets/make_tickets.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), "--count", "200", "--new", "20"], check=True)
    started = start(tmp_path / "tickets.csv")
    assert started.questions == 200
    assert set(started.labels or ()) == {"billing", "delivery", "returns", "account", "technical"}
    new = read_questions(tmp_path / "new.csv", started.labels)
    assert len(new) == 20
    assert {question.answer for question in new} == {None}


def test_a_file_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    rows = [{"question": f"{n}?", "choices": ["a", "b"], "answer": n % 2} for n in range(160)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.parse(yaml.safe_load(start(file).yaml))
    assert config.data.labels is None
    assert config.name == "questions"
    assert labels_of(file) is None


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"question": "?", "choices": ["a", "b"], "answer": 0}], "holds 1 questions; five roles need 150 at least"),
        ([{"text": f"{n}"} for n in range(200)], "running text without labels"),
        ([{"question": f"{n}", "choices": ["a", "b"], "answer": n or None} for n in range(2)], "1 of 2 rows have no"),
        ([{"question": "?", "choices": ["a", "b"], "answer": 0}] * 160, "159 rows repeat an earlier question"),
        ([{"text": f"{n}", "label": "a"} for n in range(200)], "f.jsonl: every text has the label 'a'; add texts"),
        ([{"text": "b", "label": "a"}, {"text": "c", "label": " "}], "f.jsonl, line 2: the label is empty; fill it in"),
        ([{"question": "?", "choices": ["a"], "answer": 0}], "needs 2 choices at least"),
    ],
)
def test_what_no_config_fits_is_refused(tmp_path: Path, rows: list[dict[str, object]], match: str) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=match):
        start(file)
