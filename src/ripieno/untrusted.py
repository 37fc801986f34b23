"""Packed files that anybody may have written: whatever one holds, it is read or refused, and fills no memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ripieno.errors import EnvironmentFault, UserError
from ripieno.userfiles import quoted, short

# Repeated texts and numbers pack well, but not 200 to 1; less than 16 MiB does no harm, however small it was packed.
DENSEST, HARMLESS = 200, 2**24
MEND_HEADER = "mend it, or take `ripieno` out of the schema's metadata"


def check_unpacked(path: Path, size: int) -> None:
    """Check that a packed file does not stand for far more than it holds.

    Args:
        path: the file.
        size: bytes, of what is to be read of it, unpacked.

    Raises:
        UserError: that is over 200 times the file, and over 16 MiB.
    """
    if size > most_unpacked(path):
        raise UserError(
            f"{path}: {path.stat().st_size:,} bytes that unpack to {size:,} or more would only fill the memory; "
            "if they are what you mean, write the file again without compression (parquet: and without dictionaries)"
        )


def most_unpacked(path: Path) -> int:
    """Return how many bytes a packed file may stand for."""
    return max(HARMLESS, DENSEST * path.stat().st_size)


@contextmanager
def parquet(
    path: Path, names: Sequence[str] | None = None, fault: type[Exception] = EnvironmentFault
) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; what pyarrow has to say about it inside the block is one error.

    Args:
        path: the file.
        names: of the columns that will be read; all where None.
        fault: the kind of the error.

    Raises:
        fault: the file, or a value in it, cannot be read.
        UserError: its columns would fill the memory.
    """
    with arrow(path, "a readable parquet file", fault), pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        check_unpacked(path, max(8 * file.metadata.num_rows, sum(group.total_byte_size for group in groups)))
        # Decodes every value, and keeps none. What is wrong with the description of a column is an error here; asking
        # for the description itself would end the process (pyarrow 26, "Definition level histogram size mismatch").
        file.scan_contents(names)
        columns = [group.column(n) for group in groups for n in range(group.num_columns)]
        # A list of equal numbers takes hardly a bit of a file.
        check_unpacked(path, sum(8 * c.num_values for c in columns if names is None or _name(c) in names))
        yield file


def _name(column: pq.ColumnChunkMetaData) -> str:
    name: str = column.path_in_schema.partition(".")[0]
    return name


@contextmanager
def arrow(path: Path, what: str, fault: type[Exception] = EnvironmentFault) -> Iterator[None]:
    """Turn whatever pyarrow has to say about a file inside the block into one error, "PATH: not WHAT (...); ..."."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: from values to Python's
        raise fault(f"{path}: not {what} ({short(error)}); write it again") from error


def check_inside(name: str, source: Path) -> None:
    """Check that a file's name in a folder, which another file gives, leads nowhere else.

    Args:
        name: relative to the folder.
        source: the file that gives it, for messages.

    Raises:
        EnvironmentFault: it is absolute, or goes up.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise EnvironmentFault(
            f"{source}: damaged, it names {quoted(name)}, which leaves the folder; take another copy"
        )


def read_header(path: Path, schema: pa.Schema, version: int) -> dict[str, Any]:
    """Read what a parquet file of ours says of itself: its metadata `ripieno`, {} where there is none.

    Args:
        path: the file.
        schema: of its table.
        version: the newest that can be read.

    Raises:
        UserError: it is not a JSON object, or of a newer version.
    """
    written = (schema.metadata or {}).get(b"ripieno", b"{}")
    try:
        header = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata `ripieno` is not JSON ({short(error)}); {MEND_HEADER}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: its metadata `ripieno` is not a JSON object; {MEND_HEADER}")
    found = header.get("schema", version)
    if type(found) is int and found > version:  # in which all else may mean something else
        raise UserError(
            f"{path}: written by a newer version of ripieno (schema {short(found)}); upgrade ripieno to read it"
        )
    return header
