"""A multiple-choice question, and the files (jsonl, csv, parquet) that hold them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question.

    Args:
        id: unique within its data set.
        question: what is asked.
        choices: the K >= 2 options, in order; K differs between questions.
        answer: 0-based index of the right choice, None where unknown.
        context: a passage to read first, or None.
        subject: a group to report by, or None.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None = None
    context: str | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A row of running text: trains under the `next_token` loss, and is never evaluated as a question."""

    id: str
    text: str


def default_id(question: str, choices: tuple[str, ...], context: str | None = None, subject: str | None = None) -> str:
    """Return the first 16 hex digits of sha256 of the canonical JSON [subject, context, question, choices]."""
    canonical = json.dumps([subject, context, question, list(choices)], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
