"""What the benchmarks share: ours and theirs in turn in one process, and the file of results.

A round is one run of each. The two alternate and swap who goes first, so that a machine that warms up or is shared
slows both. The ratio is taken in each round; its median is what is reported, the smallest and largest stand beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "lm_eval", "ripieno")
SPREAD = 1.5  # largest over smallest ratio of a machine that does nothing else


class _Parser(argparse.ArgumentParser):
    """Fills in what follows from other arguments: the rounds from --quick."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # as argparse has it
        arguments, rest = super().parse_known_args(args, namespace)
        if arguments.rounds is None:
            arguments.rounds = 3 if arguments.quick else 5
        return arguments, rest


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark; what it parses holds no None.

    Args:
        description: the script's docstring.
    """
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer questions, 3 rounds: under 2 minutes")
    made.add_argument("--threads", type=int, default=_cores(), help="threads of both sides (all cores: %(default)s)")
    made.add_argument("--output", type=Path, default=HERE / "results.json", help="file of results: %(default)s")
    made.add_argument("--rounds", type=int, help="counted rounds (5, or 3 with --quick)")
    return made


def use_threads(args: argparse.Namespace) -> None:
    """Give torch the threads that were asked for."""
    import torch  # here, so that a script may read its arguments first

    torch.set_num_threads(args.threads)


def named(name: str, args: argparse.Namespace) -> str:
    """Return a result's name: `NAME` with all cores, `NAME_1_thread` with one of several."""
    if args.threads == _cores():
        return name
    return f"{name}_{args.threads}_thread{'s' if args.threads > 1 else ''}"


@dataclass(frozen=True)
class Result:
    """One line of the table; `ratio` > 1: ours is better.

    Args:
        name: what is compared.
        ours, theirs: medians over the rounds, in `unit`.
        ratio, ratio_low, ratio_high: median, smallest and largest of the rounds' ratios.
        unit: of `ours` and `theirs`.
        note: what a reader must know beside it.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    ratio_low: float
    ratio_high: float
    unit: str
    note: str = ""

    def as_rate(self, count: float, unit: str) -> Self:
        """Return a result in seconds as things a second; the ratio stays that of the times."""
        return replace(self, ours=count / self.ours, theirs=count / self.theirs, unit=unit)

    def with_note(self, note: str) -> Self:
        """Return the result with a note."""
        return replace(self, note=note)


def compare(name: str, unit: str, ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Result:
    """Time both sides in turn.

    Args:
        name: of the result.
        unit: "s", as both return seconds (see `Result.as_rate` for questions a second).
        ours, theirs: do their work once and return the seconds it took; what they leave out is set-up.
        rounds: that count; one more comes before them, uncounted.
    """
    sides = {"ours": ours, "theirs": theirs}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in list(sides) if number % 2 else reversed(sides):
            gc.collect()  # neither side pays for the other's garbage
            took = sides[side]()
            if number:
                seconds[side].append(took)
        said = ", ".join(f"{side} {taken[-1]:.3g}" for side, taken in seconds.items() if taken)
        print(f"{name}: round {number}/{rounds} {said or '(uncounted)'}", file=sys.stderr, flush=True)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    middle = {side: statistics.median(taken) for side, taken in seconds.items()}
    ratio = statistics.median(ratios)
    return Result(name, middle["ours"], middle["theirs"], ratio, min(ratios), max(ratios), unit)


def record(results: Sequence[Result], args: argparse.Namespace) -> None:
    """Print a table, and put the results into the file of results in place of older ones of the same names."""
    width = max((len(result.name) for result in results), default=0)
    for r in results:
        spread = f"{r.ratio:7.2f}x  ({r.ratio_low:.2f} to {r.ratio_high:.2f})"
        line = f"{r.name:<{width}}  ours {r.ours:9.4g}  theirs {r.theirs:9.4g} {r.unit:<12} {spread}  {r.note}"
        print(line.rstrip(), flush=True)
        if r.ratio_high > SPREAD * r.ratio_low:
            print(f"{r.name}: rounds differ widely; was the machine busy with something else?", file=sys.stderr)
    machine, versions = _machine(args.threads), _versions()
    new = {r.name: asdict(r) | {"quick": args.quick, "machine": machine, "versions": versions} for r in results}
    old = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else []
    merged = {line["name"]: line for line in old} | new
    temporary = args.output.with_name(f".{args.output.name}.{os.getpid()}")
    temporary.write_text(json.dumps(list(merged.values()), indent=1) + "\n", encoding="utf-8")
    temporary.replace(args.output)


def fail(message: str) -> None:
    """End the script: the sides do not compute the same, so no time of theirs or ours means anything."""
    print(f"FAILED: {message}", file=sys.stderr, flush=True)
    sys.exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine(threads: int) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = lines[0] if lines else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": _cores(), "memory_gib": round(memory, 1), "threads": threads}


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    versions["commit"] = _git("rev-parse", "--short=10", "HEAD")
    if versions["commit"] and _git("status", "--porcelain", "--", "../src", "*.py"):
        versions["commit"] += "+changes"
    return versions


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return None  # no git here
    return done.stdout.strip() if done.returncode == 0 else None
