"""Commands in this process, and the small files they work on."""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ripieno import cli
from ripieno.data.splits import DatasetName
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions

TEXT = "a plant near window of the house cat bird fish New York City season day one two three four five"
WORDS = TEXT.split()


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it said."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Experiment:
    """A run of three members and two epochs, and what the commands said."""

    config: Path
    path: Path
    files: dict[str, str]  # role -> file
    said: dict[str, str]

    def folder(self, role: str) -> str:
        return DatasetName.parse(self.files[role]).folder

    def predictions(self, role: str, epoch: int) -> Predictions:
        method = "ensemble" if epoch else "base"
        [p] = read_parquet(
            self.path / "predictions" / self.folder(role) / "all" / f"{method}-epoch-{epoch:03d}.parquet"
        )
        return p


def ripieno(*arguments: str | Path) -> Done:
    """Run a command as `ripieno ARGUMENTS` would, without the seconds that a new process takes to import torch."""
    out, err, terminated = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ripieno", *map(str, arguments)])
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, terminated)
    assert isinstance(caught.value.code, int)
    return Done(caught.value.code, out.getvalue(), err.getvalue())


def works(*arguments: str | Path) -> str:
    """Run a command that must succeed; return what it printed."""
    done = ripieno(*arguments)
    assert done.code == 0, done.err
    return done.out


def one_line(done: Done, code: int) -> str:
    """Return the one line that a failed command said, on stderr alone."""
    assert done.code == code, done
    assert done.out == ""
    [line] = [line for line in done.err.splitlines() if line]
    assert line.startswith("ripieno: ")
    return line


def rows(count: int, seed: int, choices: Sequence[int] = (2, 3, 4, 5)) -> list[dict[str, Any]]:
    """Return questions of random words, as a user's file has them; K takes the given values in turn."""
    draw = random.Random(seed)
    found = []
    for n in range(count):
        texts: dict[str, None] = {}
        while len(texts) < choices[n % len(choices)]:
            texts[" ".join(draw.choices(WORDS, k=draw.randint(1, 3)))] = None
        question = f"{seed} {n} " + " ".join(draw.choices(WORDS, k=draw.randint(2, 9))) + "?"
        answer = draw.randrange(len(texts))
        found.append({"id": f"s{seed}-{n}", "question": question, "choices": list(texts), "answer": answer})
    return found


def write_rows(path: Path, content: Sequence[dict[str, Any]]) -> str:
    """Write a jsonl file; return its path as a config names it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def write_config(folder: Path, base: Path, data: dict[str, Any], **sections: Any) -> Path:
    """Write the config of a small experiment."""
    content = {
        "name": "tiny",
        "base": {"model": str(base)},
        "adapter": {"rank": 2, "alpha": 4},
        "data": data,
        "training": {"members": 2, "epochs": 1, "learning_rate": 0.01, "batch_size": 4},
    }
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return every file below a folder, with when it was last written and what it holds."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def results_of(run: Path, *folders: str) -> dict[str, bytes]:
    """Return what a run came to: every file below some of its folders, by default below all that hold results."""
    below = folders or ("members", "predictions", "questions", "features")
    return {f"{top}/{name}": content for top in below for name, (_, content) in files_of(run / top).items()}
