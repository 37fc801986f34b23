"""How far a run is, as lines of text: its members, who works on it at what speed, what was evaluated."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ripieno import live
from ripieno.errors import EnvironmentFault, UserError
from ripieno.escaping import terminal_line
from ripieno.runs import RunFolder

STALE = 60.0  # seconds after which a note tells no speed any more, or after which `STEPS` of it were due
STEPS = 10


@dataclass(frozen=True)
class Status:
    """What can be said of a run, now and later again.

    Args:
        run: the run.
    """

    run: RunFolder
    _seen: set[tuple[Path, int, int]] = field(default_factory=set)  # files that were whole, and how they looked

    def lines(self, now: float) -> Iterator[str]:
        """Yield a line a member, on who asks, and on what is there.

        Args:
            now: seconds since 1970.

        Raises:
            UserError: the folder is not a run's.
            EnvironmentFault: its config or its metrics are damaged.
        """
        training = self.run.config().training
        working, notes, metrics = self.run.holders(), live.read(self.run), self.run.lines("metrics.jsonl")
        reasons = {line["member"]: line["reason"] for line in metrics if line["kind"] == "stopped"}
        for member in range(training.members):
            epochs = [e for e in range(1, training.epochs + 1) if self._whole(*self.run.adapter_files(member, e))]
            epoch, doing = max(epochs, default=0), ""
            why = f", stopped: {reasons[member]}" if member in reasons else ""
            by = f", held by {working[member]}" if member in working else ""
            note = notes.get(live.of_member(member))
            if by and not why and note and note.keys() >= {"epoch", "step", "steps", "steps_per_second"}:
                rate = note["steps_per_second"]
                if fresh(note, rate, now):
                    epoch = int(note["epoch"])
                    doing = f", step {note['step']:g} of {note['steps']:g}, {rate:.2g} steps/s"
                    doing += left(note["steps"] - note["step"], rate)
            yield f"member {member}: epoch {epoch} of {training.epochs}{why}{doing}{by}"
        for name, holder in working.items():
            if not isinstance(name, str):
                continue
            note, doing = notes.get(name), ""
            if note and note.keys() >= {"done", "total", "per_second"} and fresh(note, note["per_second"], now):
                rate, remaining = note["per_second"], note["total"] - note["done"]
                doing = f", {note['done']:.0f} of {note['total']:.0f}, {rate:.2g}/s{left(remaining, rate)}"
            yield f"{name.replace('-', ' ')}{doing}, held by {holder}"
        for what in ("predictions", "rotations", "features", "tokens"):
            for file in sorted((self.run.path / what).rglob("*.parquet")):
                state = "" if self._whole(file) else "  (damaged: the same evaluate makes it again)"
                yield f"{file.relative_to(self.run.path)}{state}"

    def _whole(self, *files: Path) -> bool:
        """Whether files are as they were written; one that has not changed since the last look is not read again."""
        return all(self._is_whole(file) for file in files)

    def _is_whole(self, file: Path) -> bool:
        if not file.is_file():
            return False
        stat = file.stat()
        looks = (file, stat.st_size, stat.st_mtime_ns)
        if looks not in self._seen and self.run.whole(file):
            self._seen.add(looks)
        return looks in self._seen


def fresh(note: live.Note, rate: float, now: float) -> bool:
    """Whether a note still tells a speed: the next one is not long overdue."""
    return rate > 0 and now - note["when"] < max(STALE, STEPS / rate)


def left(remaining: float, rate: float) -> str:
    """Return how long what remains takes at a rate a second, as `, 2 min left`."""
    seconds = max(remaining, 0) / rate
    if seconds < 99.5:
        return f", {seconds:.0f} s left"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f", {minutes} min left"
    hours = minutes // 60
    return f", {hours} h {minutes % 60} min left" if hours < 48 else f", {hours // 24} d {hours % 24} h left"


def follow(
    status: Status,
    write: Callable[[str], object],
    *,
    in_place: bool,
    wait: Callable[[float], None] = time.sleep,
    size: Callable[[], tuple[int, int]] = shutil.get_terminal_size,
) -> None:
    """Show a status again and again, until nobody works on the run any more.

    Args:
        status: of the run.
        write: a text as it is, at once.
        in_place: over the last one, as a terminal can; else one after the other, an empty line between them.
        wait: for so many seconds.
        size: columns and rows of the terminal.
    """
    before = ""
    while True:
        held = status.run.holders()  # first: what was done until the end is shown once more
        lines = [terminal_line(line) for line in status.lines(time.time())]
        if in_place:
            lines = fitted(lines, *size())
        write(before + "".join(f"{line}\n" for line in lines))
        if not held:
            return
        before = f"\x1b[{len(lines)}F\x1b[J" if in_place else "\n"
        wait(live.EVERY)


def verified(run: RunFolder) -> Iterator[str]:
    """Check every file of a run, and yield a line on each that is not as it was written, or that all are.

    Raises:
        UserError: the folder is no run's, or of a newer version.
        EnvironmentFault: a file is missing or damaged; after the lines.
    """
    run.refuse_newer()
    config = (run.path / "config.yaml").exists()
    if not run.recorded() and not config:
        raise UserError(f"{run.path}: not a run folder; `ripieno train CONFIG.yaml` makes one")
    if config and "manifest.json" not in run.recorded():
        raise run.damage(run.path / "checksums.jsonl")
    damaged = run.damaged()
    for path, why in damaged:
        name = path.relative_to(run.path).as_posix()
        yield f"{name}: {why}; {run.mend(name)}"
    if run.edited:
        yield "config.yaml: edited, in nothing that moves results"
    if damaged:
        count = "1 file is" if len(damaged) == 1 else f"{len(damaged)} files are"
        raise EnvironmentFault(f"{run.path}: {count} missing or damaged")
    yield f"{run.path}: all {len(run.recorded())} files are as they were written"


def fitted(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """Return lines that fit a terminal, the last row of which stays empty."""
    kept = [line[: columns - 1] for line in lines]
    most = max(rows - 1, 2)
    return kept if len(kept) <= most else [*kept[: most - 1], f"... and {len(kept) - most + 1} more lines"]
