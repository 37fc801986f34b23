"""Reads files for the fuzzer in a process of its own, which has little memory, and can be killed.

A request is a line `READER<tab>PATH`, an answer one line of JSON: [outcome, what was said,
seconds of processor time].
"""

from __future__ import annotations

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ripieno import comparison, comparison_config, config, features, tokens
from ripieno.arrays import read_predictions
from ripieno.data import arc, boolq, mmlu, starting, winogrande
from ripieno.data.question import read_questions, read_texts
from ripieno.data.splits import check
from ripieno.errors import EnvironmentFault, UserError
from ripieno.runs import RunFolder

MEMORY = 2**30  # bytes above what the program takes before it reads anything

READERS: dict[str, Callable[[Path], object]] = {
    "questions": read_questions,
    "labelled": lambda path: read_questions(path, ["yes", "no"]),
    "texts": read_texts,
    "check": check,
    "init": starting.start,
    "predictions": read_predictions,
    "mnk": lambda path: read_predictions(path, "mnk"),
    "nmk": lambda path: read_predictions(path, "nmk"),
    "features": features.read_features,
    "tokens": tokens.read_parquet,
    "config": config.load,
    "comparison": comparison_config.load,
    "settings": lambda path: config.settings([f"a.b={path.read_bytes().decode(errors='replace')}"], "--set"),
    "records": lambda path: RunFolder(path.parent).damaged(),
    "log": lambda path: RunFolder(path.parent).lines(path.name),
    "rows": lambda path: comparison.read_index(path.parent),
    "arc": arc.read,
    "boolq": boolq.read,
    "mmlu": mmlu.read,
    "winogrande": winogrande.read,
}


def answer(reader: str, path: Path) -> tuple[str, str]:
    try:
        READERS[reader](path)
    except (UserError, EnvironmentFault) as error:
        return "refused", str(error)
    except Exception:
        return "crashed", traceback.format_exc()
    return "read", ""


def main() -> None:
    for name in sys.argv[1:]:  # valid files: what reading takes once, such as threads, is no file's fault
        for reader in READERS:
            answer(reader, Path(name))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        reader, _, path = line.rstrip("\n").partition("\t")
        before = time.process_time()
        outcome, said = answer(reader, Path(path))
        print(json.dumps([outcome, said, time.process_time() - before]), flush=True)


if __name__ == "__main__":
    main()
