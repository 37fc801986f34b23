"""Files that a user names: what is no file, no text or no JSON is said with its place and the mend, and briefly."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ripieno.errors import UserError

SHOWN = 200  # characters of a file's own that an error quotes at most


def require_file(path: Path) -> None:
    """Check that a path is a file's.

    Raises:
        UserError: it is a folder's, or nothing is there.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; mend the path")


def read_text(path: Path) -> str:
    """Read a UTF-8 file whole, as it stands but for a byte-order mark.

    Raises:
        UserError: it is not UTF-8; the first line that is not is named.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise UserError(f"{path}, line {line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line of a jsonl file and what it holds; blank lines are skipped.

    Raises:
        UserError: a line is not UTF-8 or not JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_json(line, f"{path}, line {number}")
    except UnicodeDecodeError:
        read_text(path)  # says in which line
        raise


def parse_json(text: str, where: str) -> Any:
    """Read JSON; `where` names its place in errors.

    Raises:
        UserError: it is not JSON, or holds what is no character.
    """
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair fails here, not in mid-run
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at")
        raise UserError(f"{where}: not JSON ({problem} at character {error.pos + 1}); mend it") from None
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start]).strip("'")
        raise UserError(f"{where}: not JSON ({half} is half of a surrogate pair, and no character); mend it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({short(error)}); mend it") from None
    return value


def quoted(value: object) -> str:
    """Return a value of a file as a message shows it."""
    return short(repr(value))


def short(text: object) -> str:
    """Return what a file holds, or what another library says of it, as part of a one-line message."""
    said = " ".join(str(text).split())
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return which of the known words is most like one that is not known, None where none is like it.

    Args:
        word: what was written; of a long one only the beginning is compared, as the time grows with its square.
        known: what it might have meant.
        cutoff: the least likeness, from 0 to 1 (difflib's ratio).
    """
    shown = {one[:SHOWN]: one for one in known}
    matches = difflib.get_close_matches(word[:SHOWN], shown, n=1, cutoff=cutoff)
    return shown[matches[0]] if matches else None
