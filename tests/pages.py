"""The pages that readers see, cut into their blocks of code."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/*/*.md")]
)
NAMES = [file.relative_to(ROOT).as_posix() for file in FILES]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: what page it is on, how many of the page's stand before it, and what is in it."""

    page: str
    place: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}, block {self.place} ({self.language})"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """Return a page without its blocks."""
    return FENCED.sub("", read(page))


def blocks(page: str, language: str | None = None) -> list[Block]:
    """Return a page's blocks, or those of one language, in order."""
    found = [Block(page, place, *match) for place, match in enumerate(FENCED.findall(read(page)))]
    return [block for block in found if language in (None, block.language)]


def command_lines(block: Block) -> list[list[str]]:
    """Return the words of each command of a console block, without comments."""
    return [words for line in block.code.splitlines() if (words := shlex.split(line, comments=True))]


def ripieno_commands(page: str) -> list[list[str]]:
    """Return the words behind `ripieno` of a page's commands, in order."""
    lines = [words for block in blocks(page, "console") for words in command_lines(block)]
    return [words[1:] for words in lines if words[0] == "ripieno"]


def run_python(block: Block, namespace: dict[str, Any]) -> str:
    """Run a block in a namespace that a page's blocks share; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.code, str(block), "exec"), namespace)
    return printed.getvalue()
