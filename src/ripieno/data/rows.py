"""Rows that a user takes away: a jsonl, csv or parquet file, by its ending."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ripieno.data.question import SUFFIXES
from ripieno.errors import EnvironmentFault, UserError
from ripieno.escaping import csv_cell
from ripieno.runs import write_atomically


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows as jsonl, csv or parquet, by the file's ending; whole or not at all.

    In csv lists are JSON in a cell, and no text starts a spreadsheet's formula.

    Args:
        path: see `check_output`.
        rows: with the schema's keys, in its order.
        schema: of the parquet file.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    if path.suffix == ".jsonl":
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    elif path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, schema.names)
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, tuple) else v for k, v in row.items()}
            writer.writerow({k: csv_cell(v) for k, v in cells.items()})
        data = text.getvalue().encode()
    else:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
        data = buffer.getvalue()
    try:
        write_atomically(path, data)
    except OSError as error:
        raise _unwritten(path, error) from error


def check_output(path: Path, source: Path) -> None:
    """Check where rows are to be written, before any work.

    Args:
        path: of them.
        source: of the questions that they speak of.

    Raises:
        UserError: no kind of file is known by its ending, its folder is not there, or it is the questions' own file.
        EnvironmentFault: no file can be written there.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output {path}: can be written as {', '.join(SUFFIXES)}; choose one of these endings")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}; make it, or choose another")
    if path.resolve() == source.resolve():
        raise UserError(f"--output {path}: is the file of the questions; choose another name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(f"{path}: cannot be written ({error.strerror or error}); choose another folder by --output")
