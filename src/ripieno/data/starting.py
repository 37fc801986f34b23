"""A first config that fits a user's file, with what each choice in it means."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ripieno.data import splits
from ripieno.data.question import read_rows
from ripieno.errors import UserError
from ripieno.escaping import terminal_line
from ripieno.runs import write_atomically, writing
from ripieno.userfiles import quoted

# Percent of the file. Certification is large, as a promise takes labels; validation says where to draw its line.
SHARES = {"train": 50, "validation": 15, "calibration": 5, "certification": 20, "test": 10}
MEANINGS = {
    "train": "the members learn these",
    "validation": "where the line between answering and handing over may be drawn",
    "calibration": "the temperature, which mends confidence that is too high or too low",
    "certification": "used once, for the promise (ripieno certify)",
    "test": "what the report is about",
}
FEWEST = 150  # questions: of fewer not even 10% wrong could be promised, which takes 29 in certification


@dataclass(frozen=True)
class Start:
    """A first config.

    Args:
        name: of the experiment.
        yaml: the config, with comments.
        questions: how many the file holds.
        labels: of a `text,label` file, else None.
    """

    name: str
    yaml: str
    questions: int
    labels: tuple[str, ...] | None


def start(path: Path) -> Start:
    """Read a file of questions, or of texts with labels, and write a config for it.

    Args:
        path: jsonl, csv or parquet.

    Raises:
        UserError: the file is not one of questions, something in it is wrong, or it holds too few.
    """
    labels = labels_of(path)
    if labels is not None and len(labels) < 2:
        raise UserError(f"{path}: every text has the label {quoted(labels[0])}; add texts with another")
    summary = splits.check(path, labels)
    if summary.texts:
        raise UserError(f"{path}: holds running text without labels; give questions, or columns text and label")
    if summary.answered < summary.questions:
        raise UserError(
            f"{path}: {summary.questions - summary.answered} of {summary.questions} rows have no answer; "
            "put those into a file of their own"
        )
    if summary.questions < FEWEST:
        raise UserError(
            f"{path}: holds {summary.questions} questions; five roles need {FEWEST} at least; add some, "
            "or write a config of fewer roles yourself"
        )
    if summary.repeats:
        raise UserError(
            f"{path}: {summary.repeats} rows repeat an earlier question; take them out, "
            "or the same question may be trained on and tested"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "experiment"
    return Start(name, _yaml(name, path, summary.questions, labels), summary.questions, labels)


def write(path: Path, started: Start) -> None:
    """Write a first config where no file is.

    Raises:
        UserError: one is.
        EnvironmentFault: it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path}: is there already; choose another name with --output")
    with writing(path):
        write_atomically(path, started.yaml.encode())


def labels_of(path: Path) -> tuple[str, ...] | None:
    """Return the labels of a file of texts with labels, the commonest first; None for any other file.

    Raises:
        UserError: the file cannot be read as what its suffix says, or a label is empty.
    """
    found: Counter[str] = Counter()
    for where, row in read_rows(path):
        if "question" in row or "choices" in row:
            return None
        if row.get("label") is not None:
            label = str(row["label"])
            if not label.strip():
                raise UserError(f"{where}: the label is empty; fill it in, or take the row out")
            found[label] += 1
    return tuple(label for label, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))) or None


def _yaml(name: str, path: Path, questions: int, labels: tuple[str, ...] | None) -> str:
    lines = [
        f"# Made by `ripieno init {terminal_line(str(path))}`. All keys and their defaults: src/ripieno/config.py.",
        f"name: {json.dumps(name)}",
        "base:",
        "  # A hub id, a folder or a .gguf file. This one is small and comes from the package registry;",
        "  # a larger one is right more often.",
        "  model: embedded:SmolLM2-135M-Instruct",
        "prompt:",
        "  # Each choice is scored as a continuation. Bases of a few billion parameters do better with `letters`",
        "  # (26 choices at most, and `normalisation: sum`).",
        "  template: text",
        "  normalisation: token",
        "data:",
        "  # Five disjoint parts, drawn by the seed and each question's content.",
    ]
    first = 0
    for role, share in SHARES.items():
        count = round(questions * share / 100)
        source = json.dumps(f"{path}[{first}%:{first + share}%]", ensure_ascii=False)
        lines.append(f"  {role}: [{source}] # about {count:,}: {MEANINGS[role]}")
        first += share
    if labels is not None:
        lines += ["  labels:  # the commonest first", *(f"    - {json.dumps(x, ensure_ascii=False)}" for x in labels)]
    lines += [
        "  seed: 0",
        "training:",
        "  members: 3    # more members are better, and take that much longer",
        "  epochs: 2",
        "  learning_rate: 4.0e-4",
        "  bagging: true # each member learns from its own sample, so that they differ where the data leave it open",
        "",
    ]
    return "\n".join(lines)
