"""A multiple-choice question, and the files (jsonl, csv, parquet) that hold them.

Whatever a user's file gets wrong is a `UserError` that names the file, the line and the mend: a question read wrongly
would pass for a model that answers wrongly.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ripieno.errors import UserError
from ripieno.untrusted import parquet
from ripieno.userfiles import json_lines, nearest, parse_json, quoted, read_text, require_file, short

SUFFIXES = (".jsonl", ".csv", ".parquet")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("context", pa.string()),
        ("subject", pa.string()),
        ("answer", pa.int32()),
    ]
)
COLUMNS = (*SCHEMA.names, "text", "label")

Row = dict[str, Any]


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

    @property
    def has_equal_choices(self) -> bool:
        """Whether two choices are the same text, so that one of them can only be right or wrong by its place."""
        return len(set(self.choices)) < len(self.choices)


@dataclass(frozen=True, slots=True)
class Text:
    """A row of running text: trains under the `next_token` loss, and is never evaluated as a question."""

    id: str
    text: str


def default_id(question: str, choices: tuple[str, ...], context: str | None = None, subject: str | None = None) -> str:
    """Return the first 16 hex digits of sha256 of the canonical JSON [subject, context, question, choices]."""
    canonical = json.dumps([subject, context, question, list(choices)], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def content_key(row: Question | Text) -> str:
    """Return what is asked, normalised (NFKC, case and white space): equal where two rows are the same question.

    A context belongs to what is asked: "What is the main idea?" about two passages is two questions.
    """
    parts = [row.text] if isinstance(row, Text) else [row.context or "", row.question, *row.choices]
    return "\n".join(" ".join(unicodedata.normalize("NFKC", part).casefold().split()) for part in parts)


def number_repeats(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with the n-th repeat of an id renamed to "ID-n"."""
    ids = _Ids()
    return [replace(question, id=ids.take(None, question.id, "")) for question in questions]


def read_questions(path: Path, labels: Sequence[str] | None = None) -> list[Question]:
    """Read the questions of a jsonl, csv or parquet file (DESIGN.md, "Contract: a question").

    Args:
        path: the file; its suffix says how it is read.
        labels: for classification: a row with columns `text` and `label` asks `text` with these as its choices.

    Raises:
        UserError: naming the file, the line (parquet: the row) and the mend.
    """
    return questions_of_rows(read_rows(path), labels)


def questions_of_rows(rows: Iterable[tuple[str, Row]], labels: Sequence[str] | None = None) -> list[Question]:
    """As `read_questions`, of rows that are at hand, each with where it stands for messages."""
    if labels is not None:
        _check_labels(labels)
    ids = _Ids()
    questions = []
    for where, row in rows:
        _check_columns(row, where)
        labelled = "question" not in row and (labels is not None or "text" in row or "label" in row)
        question = _classification(row, labels, where) if labelled else _question(row, where)
        default = default_id(question.question, question.choices, question.context, question.subject)
        questions.append(replace(question, id=ids.take(row.get("id"), default, where)))
    return questions


def read_texts(path: Path) -> list[Text]:
    """Read the `{"text": ...}` rows of a jsonl, csv or parquet file.

    Raises:
        UserError: naming the file, the line (parquet: the row) and the mend.
    """
    ids = _Ids()
    texts = []
    for where, row in read_rows(path):
        _check_columns(row, where)
        text = _required(row, "text", where)
        texts.append(Text(id=ids.take(row.get("id"), default_id(text, ()), where), text=text))
    return texts


def holds_texts(path: Path) -> bool:
    """Return whether a file's first row is running text: a `text`, and neither a question nor a label."""
    _, row = next(read_rows(path))
    return "text" in row and "question" not in row and "label" not in row


def questions_to_parquet(questions: Sequence[Question]) -> bytes:
    """Return a parquet file of the questions, which `read_questions` reads back as they are."""
    columns = {name: [getattr(question, name) for question in questions] for name in SCHEMA.names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), buffer)
    return buffer.getvalue()


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each row of a jsonl, csv or parquet file, with where it stands ("FILE, line 3") for messages.

    In csv an empty cell is an absent one, and `choices` is a JSON array.

    Raises:
        UserError: the file cannot be read as what its suffix says.
    """
    readers = {".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise UserError(f"{path}: questions are read from {', '.join(SUFFIXES)}; rename or convert the file")
    require_file(path)
    where = ""
    try:
        for where, row in readers[path.suffix](path):
            yield where, row
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not where:
        raise UserError(f"{path}: holds no rows; add some, or take the file out")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for number, row in json_lines(path):
        where = f"{path}, line {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object; write one {{...}} a line")
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1  # where the next row begins: its cells may hold line breaks
        try:
            header = [name.strip() for name in next(reader, [])]
            if len(set(header)) < len(header):
                raise UserError(f"{path}, line 1: two columns have the same name; rename one")
            line = reader.line_num + 1
            for cells in reader:
                where = f"{path}, line {line}"
                line = reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(
                        f"{where}: {len(cells)} cells under {len(header)} column names; "
                        'put a cell that holds a comma, a quote or a line break in "double quotes"'
                    )
                row: Row = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
                if "choices" in row:
                    row["choices"] = _choices_of(row["choices"], where)
                if "answer" in row:
                    row["answer"] = _Cell(row["answer"])
                yield where, row
        except csv.Error as error:
            raise UserError(
                f"{path}, line {line}: not csv ({error}); end every quote and double those inside of a cell, "
                "or use jsonl"
            ) from None
        except UnicodeDecodeError:
            read_text(path)  # says in which line
            raise


def _choices_of(cell: str, where: str) -> Any:
    """Read the choices in a csv cell."""
    try:
        return parse_json(cell, where)
    except UserError:
        example = '"[""yes"", ""no""]"'
        raise UserError(f"{where}: `choices` {quoted(cell)} is not a JSON list; write the cell as {example}") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    with parquet(path, fault=UserError) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


class _Cell(str):
    """An answer's cell in csv, where a number cannot be told from a text by its type."""


def _question(row: Row, where: str) -> Question:
    question = _required(row, "question", where)
    choices = row.get("choices")
    if choices is None:
        raise UserError(f"{where}: has no `choices`; give 2 or more (columns: {short(', '.join(row)) or 'none'})")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        example = '["yes", "no"]'
        raise UserError(f"{where}: `choices` must be a list of texts, such as {example} (in csv: as JSON in one cell)")
    if len(choices) < 2:
        raise UserError(f"{where}: a question needs 2 choices at least, and this one has {len(choices)}; add some")
    for number, choice in enumerate(choices):
        if not choice.strip():
            raise UserError(f"{where}: choice {number} is empty; fill it in or take it out")
    context, subject = _optional(row, "context", where), _optional(row, "subject", where)
    return Question("", question, tuple(choices), _answer(row.get("answer"), choices, where), context, subject)


def _classification(row: Row, labels: Sequence[str] | None, where: str) -> Question:
    if labels is None:
        raise UserError(
            f"{where}: `text` and `label` are fixed-label classification, which needs `labels:` in the config, or "
            "--labels of `ripieno datasets check`; rows of `text` alone only train (loss next_token)"
        )
    text = _required(row, "text", where)
    label = None if row.get("label") is None else str(row["label"])
    if label is not None and label not in labels:
        meant = nearest(label, labels, 0)
        raise UserError(f"{where}: label {quoted(label)} is not one of `labels:`; the nearest is {quoted(meant)}")
    answer = None if label is None else list(labels).index(label)
    context, subject = _optional(row, "context", where), _optional(row, "subject", where)
    return Question("", text, tuple(labels), answer, context, subject)


def _answer(value: Any, choices: Sequence[str], where: str) -> int | None:
    """Return the index that an answer stands for: a number, the text of exactly one choice, or else a letter."""
    if value is None or value != value:  # NaN: how other programs write a missing number to parquet
        return None
    if isinstance(value, str):
        return _spelled_answer(value, choices, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        said = quoted(value)
        raise UserError(f"{where}: `answer` {said} is no whole number, text or letter; null where it is unknown")
    return _inside(int(value), quoted(value), choices, where)


def _spelled_answer(value: str, choices: Sequence[str], where: str) -> int:
    hits = [index for index, choice in enumerate(choices) if choice == value]
    if len(hits) > 1:
        raise UserError(
            f"{where}: `answer` {quoted(str(value))} is the text of choices {hits[0]} and {hits[1]} alike; "
            "give its index"
        )
    word = value.strip()
    number = re.fullmatch(r"([+-]?[0-9]+)(\.0*)?", word) if isinstance(value, _Cell) else None
    letter = ord(word.upper()) - ord("A") if re.fullmatch("[A-Za-z]", word) else None
    other = int(number[1]) if number else letter
    if hits:
        # Only a csv cell can mean two things; in JSON and parquet the text of a choice comes first.
        if isinstance(value, _Cell) and other is not None and 0 <= other < len(choices) and other != hits[0]:
            raise UserError(
                f"{where}: `answer` {quoted(str(value))} is the text of choice {hits[0]}, and also the "
                f"{'index' if number else 'letter'} of choice {other} ({quoted(choices[other])}); "
                f"write {hits[0]} or {other} in a jsonl file, or reword the choice"
            )
        return hits[0]
    if other is None:
        meant = nearest(value, choices, 0)
        raise UserError(
            f"{where}: `answer` {quoted(str(value))} is neither the text of a choice (the nearest is {quoted(meant)}) "
            "nor a letter; write an index as a number"
        )
    return _inside(other, quoted(str(value)), choices, where)


def _inside(index: int, written: str, choices: Sequence[str], where: str) -> int:
    if not 0 <= index < len(choices):
        raise UserError(
            f"{where}: `answer` {written} is none of the {len(choices)} choices; "
            f"they count from 0 to {len(choices) - 1} (leave it out where the answer is unknown)"
        )
    return index


def _required(row: Row, key: str, where: str) -> str:
    value = _optional(row, key, where)
    if value is None or not value.strip():
        raise UserError(
            f"{where}: has no `{key}`; fill it in, or rename a column (columns: {short(', '.join(row)) or 'none'})"
        )
    return value


def _optional(row: Row, key: str, where: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: `{key}` must be a text, not {quoted(value)}")
    return value


def _check_columns(row: Row, where: str) -> None:
    for column, meant in _slips(frozenset(row)):
        raise UserError(f"{where}: column `{short(column)}` is not known; is it `{meant}`? Rename it or take it out")


@lru_cache(maxsize=64)  # the rows of a file nearly always have the same columns
def _slips(columns: frozenset[str]) -> list[tuple[str, str]]:
    """Other columns are welcome; one that is almost the name of a missing one is a slip, and would pass silently."""
    missing = [name for name in COLUMNS if name not in columns and name != "id"]  # "idx" and "uid" are no slips
    meant = {name: nearest(name, missing, 0.8) for name in columns - set(COLUMNS)}
    return sorted((name, match) for name, match in meant.items() if match)


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise UserError(f"labels: {list(labels)}; give 2 or more different texts")


class _Ids:
    """Gives each row of a file its id: its own, or the default one with "-n" for the n-th repeat."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self.repeats: Counter[str] = Counter()

    def take(self, given: Any, default: str, where: str) -> str:
        if isinstance(given, int) and not isinstance(given, bool):
            given = str(given)
        if given is not None and (not isinstance(given, str) or not given.strip()):
            raise UserError(f"{where}: `id` must be a text, not {quoted(given)}; fill it in or take it out")
        if given is None:
            count = self.repeats[default]
            self.repeats[default] += 1
            given = f"{default}-{count}" if count else default
        if given in self.places:
            raise UserError(
                f"{where}: id {quoted(given)} is also that of {self.places[given]}; change one, or leave both out"
            )
        self.places[given] = where
        return given
