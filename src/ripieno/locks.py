"""Who works on what: locks that outlive no process, on one machine and between machines that share a folder.

A lock is a file that names its holder: host, boot, process, and when that started. Its modification time is a
heartbeat. On the holder's own host the lock is free as soon as that process is gone. From another host only the file
can be seen: one that has not changed for `SILENT` seconds, by the looker's own clock, is free.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock

from ripieno.errors import EnvironmentFault

BEAT = 10.0  # seconds
SILENT = 60.0  # seconds without a beat, after which a holder on another host is taken for dead
_lost: set[Path] = set()  # folders in which another process took a lock of this one's


@dataclass(frozen=True)
class Holder:
    """A process that holds locks.

    Args:
        host: its name.
        boot: of the host; process ids start anew with each.
        pid: of the process.
        started: when it did, in the system's own words; a process id may be given again.
    """

    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process."""
        return cls(platform.node(), _boot(), os.getpid(), _started(os.getpid()) or "")

    def alive(self, here: Holder) -> bool | None:
        """Whether it still runs; None from another host, where that cannot be seen."""
        if self.host != here.host:
            return None
        return self.boot == here.boot and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Held(Exception):
    """Another process holds a lock."""

    def __init__(self, name: str, holder: Holder | None):
        super().__init__(f"{name} is held by {holder or 'another process'}")
        self.name, self.holder = name, holder


@contextmanager
def hold(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Hold all of some locks, or none.

    Args:
        folder: of the lock files; the same for all who share them.
        names: of the files.

    Raises:
        Held: another process holds one: said at once where it is on this host, else after its next heartbeat.
        OSError: the folder cannot be written.
    """
    files, me = [folder / f"{name}.json" for name in names], Holder.here()
    content = json.dumps(asdict(me)).encode()
    dead: dict[Path, _Looks] = {}
    while foreign := _take(folder, files, me, content, dead):
        _watch(foreign)
        dead = foreign
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(folder, files, content, done), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        _lost.discard(folder)
        with mutex(folder):
            for file in files:
                if (looks := _look(file)) and looks.content == content:
                    file.unlink()


def holders(folder: Path) -> dict[str, Holder]:
    """Return who holds which lock; one on another host may have died since."""
    here, found = Holder.here(), {}
    for file in sorted(folder.glob("*.json")):
        holder = looks.holder() if (looks := _look(file)) else None
        if holder and holder.alive(here) is not False:
            found[file.stem] = holder
    return found


@contextmanager
def mutex(folder: Path) -> Iterator[None]:
    """Keep everybody else out for a moment.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".mutex", is_singleton=True):  # so that it may be entered again
        yield


def check(folder: Path) -> None:
    """Make sure that what this process holds in a folder is still its own; called before it writes.

    Raises:
        EnvironmentFault: while it slept, another process took its locks.
    """
    if folder in _lost:
        raise EnvironmentFault(
            f"{folder.parent}: this process stood still for {SILENT:g} s or more, and another one took its work over"
        )


def _take(
    folder: Path, files: Sequence[Path], me: Holder, content: bytes, dead: Mapping[Path, _Looks]
) -> dict[Path, _Looks]:
    """Take all locks, or none and return those that are held on other hosts, as they look now.

    Args:
        folder, files, me, content: of the locks, and of this process.
        dead: how files looked that did not change for long; they are free if they still look so.
    """
    with mutex(folder):
        foreign = {}
        for file in files:
            if (looks := _look(file)) is None:
                continue
            holder = looks.holder()
            alive = holder is not None and holder.alive(me)  # a file that was cut short has no holder
            if alive:
                raise Held(file.stem, holder)
            if alive is None and dead.get(file) != looks:
                foreign[file] = looks
        if foreign:
            return foreign
        try:
            for file in files:
                file.write_bytes(content)
        except OSError:
            for file in files:
                file.unlink(missing_ok=True)
            raise
        return {}


def _watch(foreign: Mapping[Path, _Looks]) -> None:
    """Return when files did not change for long, or are gone; one that changed has a living holder: `Held`."""
    since = time.monotonic()
    while time.monotonic() - since < SILENT:
        time.sleep(min(1.0, SILENT / 10))
        present = {file: now for file in foreign if (now := _look(file))}
        for file, now in present.items():
            if now != foreign[file]:
                raise Held(file.stem, now.holder())
        if not present:  # their holder has ended
            return


def _beat(folder: Path, files: Sequence[Path], content: bytes, done: threading.Event) -> None:
    """Touch lock files until `done`, or until one of them is another's."""
    while not done.wait(BEAT):
        for file in files:
            try:
                looks = _look(file)
                if looks is None or looks.content != content:
                    _lost.add(folder)
                    return
                os.utime(file)  # needs no space on the disk
            except OSError:  # a network's file system that does not answer: the next beat tells whether it was too long
                continue


@dataclass(frozen=True)
class _Looks:
    """What another host sees of a lock."""

    content: bytes
    modified: int

    def holder(self) -> Holder | None:
        """Return who wrote it; None for a file that a crash cut short."""
        try:
            return Holder(**json.loads(self.content))
        except (ValueError, TypeError):
            return None


def _look(file: Path) -> _Looks | None:
    """Open a lock, which makes a network's file system ask the server anew; None where there is none."""
    try:
        with file.open("rb") as opened:
            return _Looks(opened.read(), os.fstat(opened.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _boot() -> str:
    """Return what tells this boot of the machine from others."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    return subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=True).stdout.strip()


def _started(pid: int) -> str | None:
    """Return when a process started, as the system tells it; None where there is none, or it has ended."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # After the name, which may hold anything: the state, and 20 fields on the start in ticks since the boot.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
