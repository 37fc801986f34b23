"""What a command prints, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import typer

from ripieno.escaping import terminal_line


class Terminated(BaseException):
    """SIGTERM arrived."""


def print_line(result: str) -> None:
    """Print a line of results."""
    typer.echo(terminal_line(result))


def print_lines(results: Iterable[str]) -> None:
    """Print lines of results, each as it comes."""
    for result in results:
        print_line(result)


def print_json(content: Any) -> None:
    """Print JSON alone."""
    print_line(json.dumps(content, allow_nan=False))


def say(message: str) -> None:
    """Say something beside the results, on stderr."""
    typer.echo(terminal_line(message), err=True)


def fail(message: str, code: int) -> NoReturn:
    """Say in one line why the command ends, and end it."""
    say(f"ripieno: {message}")
    sys.exit(code)
