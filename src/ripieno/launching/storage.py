"""A run whose folder the workers do not share: its files travel through a folder that all reach, by an fsspec URL.

There `objects/SHA256` holds the files, each under the sum of what is in it, and `records/NAME.jsonl` what the launcher
and each worker have: the lines of checksums.jsonl, by which a run knows its files. Whatever is read is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ripieno import config as configs
from ripieno import live
from ripieno.config import Config
from ripieno.data.splits import PATH_NAME
from ripieno.errors import EnvironmentFault, UserError
from ripieno.runs import LOGGED, RunFolder, is_record
from ripieno.training.loop import in_order

EVERY = 30.0  # seconds between two copies of what a worker has made
LAUNCHER = "launcher"  # whose records the workers begin with
STARTED = ("config.yaml", "manifest.json")  # each worker writes its own, which say the same of all that counts
_MEMBER = re.compile(r"(?:members|resume)/(\d+)")  # whose a file is


@dataclass
class Storage:
    """The folder between the machines.

    Args:
        url: of fsspec, such as s3://bucket/runs/demo; of this run alone.

    Raises:
        UserError: no file system is of that kind, or its package is not installed.
    """

    url: str
    _copied: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        try:
            self._fs, self._root = url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UserError(f"launch.storage {self.url}: cannot be used ({error}); mend it") from None

    # Files

    def push(self, run: RunFolder, name: str) -> None:
        """Copy what a run has on record, its logs as they are now, and then the record of it."""
        records = []
        for path, record in list(run.recorded().items()):
            if path not in LOGGED and record["sha256"] in self._copied:
                records.append(record)
                continue
            file = run.path / path
            content = file.read_bytes() if file.exists() else b""
            digest = hashlib.sha256(content).hexdigest()
            if path in LOGGED:
                record = {"path": path, "sha256": digest}
            if record["sha256"] == digest:  # else it has just been removed, or written anew: the next copy has it
                self.put(content)
                records.append(record)
        self._write(f"records/{name}.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())

    def pull(self, run: RunFolder, name: str, members: Sequence[int] = ()) -> None:
        """Write what somebody has of a run into it, but for its logs, and what it holds already.

        Of members, where some are given, only theirs.
        """
        for record in self.records(name):
            path, held = record["path"], run.recorded()
            if members and (of := _MEMBER.match(path)) and int(of[1]) not in members:
                continue
            ours = path in LOGGED or (path in STARTED and path in held)
            if ours or held.get(path, {}).get("sha256") == record["sha256"]:
                continue
            also = {key: value for key, value in record.items() if key not in ("path", "sha256")}
            run.write(run.path / path, self.get(record["sha256"]), **also)

    def push_notes(self, run: RunFolder, name: str) -> None:
        """Copy how far the work on a run is."""
        self._write(f"notes/{name}.json", json.dumps(live.read(run)).encode())

    def pull_notes(self, run: RunFolder, name: str, works: Sequence[str]) -> None:
        """Note in a run how far works on it are elsewhere."""
        path = f"{self._root}/notes/{name}.json"
        notes = self._parsed(path, self._fs.cat_file(path)) if self._fs.exists(path) else [{}]
        for work, facts in notes[0].items():
            if work in works:
                live.note(run, work, **facts)

    def records(self, name: str) -> list[dict[str, Any]]:
        """Return what somebody has; nothing before they have begun."""
        path = f"{self._root}/records/{name}.jsonl"
        if not self._fs.exists(path):
            return []
        found = self._parsed(path, self._fs.cat_file(path))
        if not all(map(is_record, found)):  # whose paths lie in the run's folder, and nowhere else
            raise self._damage(path)
        return found

    def lines(self, log: str, name: str) -> list[dict[str, Any]]:
        """Return the lines of a log that somebody has."""
        sums = [record["sha256"] for record in self.records(name) if record["path"] == log]
        content = self.get(sums[0]) if sums else b""
        return self._parsed(log, content[: content.rfind(b"\n") + 1])

    def put(self, content: bytes) -> str:
        """Copy a file, and return its sum."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._copied:
            if not self._fs.exists(f"{self._root}/objects/{digest}"):
                self._write(f"objects/{digest}", content)
            self._copied.add(digest)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the file of a sum.

        Raises:
            EnvironmentFault: it is missing or damaged.
        """
        path = f"{self._root}/objects/{digest}"
        content: bytes = self._fs.cat_file(path) if self._fs.exists(path) else b""
        if hashlib.sha256(content).hexdigest() != digest:
            raise self._damage(path)
        self._copied.add(digest)
        return content

    def _parsed(self, path: str, content: bytes) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in content.splitlines()]
        except (ValueError, RecursionError):
            raise self._damage(path) from None

    def _damage(self, path: str) -> EnvironmentFault:
        name = path.removeprefix(f"{self._root}/")
        return EnvironmentFault(f"{self.url}/{name}: missing or damaged; remove the folder and start again")

    def remove(self) -> None:
        """Remove the folder: all is where it belongs."""
        if self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)

    def _write(self, name: str, content: bytes) -> None:
        """Write a file so that a reader finds none, or all of it."""
        path = f"{self._root}/{name}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if isinstance(self._fs, LocalFileSystem):  # others have a file when it is closed, and not before
            part = f"{path}.{uuid4().hex}.part"  # workers may write the same file at once
            self._fs.pipe_file(part, content)
            self._fs.mv(part, path)
        else:
            self._fs.pipe_file(path, content)


# ---- the launcher's side --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """A command for a worker that shares no folder with the launcher.

    Args:
        url: of the storage.
        name: of what the worker makes there.
        after: names of what others made, which it reads.
        command: as the launcher would do it.
        run: the run folder, as the command names it.
        config: the experiment as YAML.
        files: files of questions as they are named, and their sums.
    """

    url: str
    name: str
    after: tuple[str, ...]
    command: tuple[str, ...]
    run: Path
    config: str
    files: Mapping[str, str]

    @property
    def members(self) -> list[int]:
        """Which members it trains."""
        words = self.command
        return [int(m) for m in words[words.index("--members") + 1].split(",")] if "--members" in words else []


def parcels(storage: Storage, run: Path, steps: Sequence[Sequence[Sequence[str]]]) -> list[list[Parcel]]:
    """Copy the files that commands read, and return the commands for workers."""
    packed: list[list[Parcel]] = []
    for number, commands in enumerate(steps):
        after = tuple(one.name for step in packed for one in step)
        packed.append([_parcel(storage, run, words, f"{number}-{n}", after) for n, words in enumerate(commands)])
    return packed


def _parcel(storage: Storage, run: Path, command: Sequence[str], name: str, after: tuple[str, ...]) -> Parcel:
    training = command[0] == "train"
    settings = [command[n + 1] for n, word in enumerate(command) if word == "--set"]
    config = configs.load(command[1], settings) if training else RunFolder(run).config()
    texts = [*_texts(config.model_dump(mode="json")), *command[2:]]
    named = {match["path"] for text in texts if (match := PATH_NAME.fullmatch(text))}
    found = {path: Path(path).expanduser() for path in sorted(named)}
    files = {path: storage.put(file.read_bytes()) for path, file in found.items() if file.is_file()}
    # What is made of one command is found again by it, after a launcher that died.
    name = f"{name}-{hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:8]}"
    return Parcel(storage.url, name, after, tuple(command), run, config.to_yaml(), files)


@contextmanager
def lent(storage: Storage, run: RunFolder, packed: Sequence[Sequence[Parcel]]) -> Iterator[Callable[[], None]]:
    """Copy a run to the storage, and back at the end what workers have made of it: in the last step all of it.

    What they made in an earlier start, whose launcher died, is fetched first. What is given fetches how far the workers
    are, and is to be called now and then.
    """
    every, made = [parcel for parcels in packed for parcel in parcels], packed[-1]
    members = sorted({member for parcel in made for member in parcel.members})
    works = [live.of_member(member) for member in members]

    def look() -> None:
        for parcel in every:
            storage.pull_notes(run, parcel.name, works)

    with run.lock(members or None), live.noting(run, works):
        _fetch(storage, run, made)
        storage.push(run, LAUNCHER)
        yield look
        _fetch(storage, run, made)
        storage.remove()


def _fetch(storage: Storage, run: RunFolder, made: Sequence[Parcel]) -> None:
    """Write into a run what workers have made of it, and what their logs say of that."""
    for parcel in made:
        new = "config.yaml" not in run.recorded()
        storage.pull(run, parcel.name, parcel.members)
        if new and "config.yaml" in run.recorded():
            run.write(run.path / "config.yaml", _at_home(run.config(), parcel.files).to_yaml())
        there = {record["path"] for record in storage.records(parcel.name)}
        for name in [name for name in run.recorded() if there and name not in there]:
            if name.startswith("resume/") and (of := _MEMBER.match(name)) and int(of[1]) in parcel.members:
                run.remove(run.path / name)  # one that its member has left behind
        metrics = storage.lines("metrics.jsonl", parcel.name)
        if metrics and parcel.members:
            own = [line for line in metrics if line["member"] in parcel.members]
            others = [line for line in run.lines("metrics.jsonl") if line["member"] not in parcel.members]
            run.replace("metrics.jsonl", in_order(others + own))
        held = run.lines("timing.jsonl")
        known = set(map(json.dumps, held))
        more = [line for line in storage.lines("timing.jsonl", parcel.name) if json.dumps(line) not in known]
        if more:
            run.replace("timing.jsonl", held + more)


# ---- a worker's side ------------------------------------------------------------------------------------------------


def work(do: Callable[[Sequence[str]], None], parcel: Parcel) -> None:
    """Do a command on this machine, in a folder of its own that is gone afterwards.

    What it makes is copied to the storage every `EVERY` seconds, so that another worker can go on where this one died.
    """
    storage = Storage(parcel.url)
    with TemporaryDirectory(prefix="ripieno-") as folder:
        run = RunFolder(Path(folder) / parcel.run.name)
        there = {}
        for path, digest in parcel.files.items():
            there[path] = Path(folder) / _place(path, digest)
            there[path].parent.mkdir(parents=True, exist_ok=True)
            there[path].write_bytes(storage.get(digest))
        for name in (LAUNCHER, *parcel.after, parcel.name):
            storage.pull(run, name, parcel.members)
        for log in LOGGED:
            newest = [lines for name in (LAUNCHER, *parcel.after, parcel.name) if (lines := storage.lines(log, name))]
            if newest:
                run.replace(log, newest[-1])
        config = _relocated(parcel.config, there)
        if run.whole(run.path / "config.yaml"):
            run.write(run.path / "config.yaml", config.to_yaml())
        (Path(folder) / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        words = {str(parcel.run): str(run.path), **{path: str(file) for path, file in there.items()}}
        command = [parcel.command[0], *(_moved(word, words) for word in parcel.command[1:])]
        if command[0] == "train":
            command = ["train", str(Path(folder) / "config.yaml"), *_without_settings(command[2:])]
        with _copied(storage, run, parcel.name):
            do(command)


@contextmanager
def _copied(storage: Storage, run: RunFolder, name: str) -> Iterator[None]:
    """Copy what is made of a run now and then, and at the end, a bad one too."""
    done = threading.Event()

    def copy() -> None:
        while not done.wait(EVERY):
            try:
                storage.push(run, name)
                storage.push_notes(run, name)
            except OSError:  # a network that does not answer: the next copy has all, and the last one says so
                continue

    copying = threading.Thread(target=copy, daemon=True)
    copying.start()
    try:
        yield
    finally:
        done.set()
        copying.join()
        if run.recorded():
            storage.push(run, name)


def _without_settings(words: Sequence[str]) -> list[str]:
    """Leave out `--set KEY=VALUE`, which the config has been given already."""
    return [word for n, word in enumerate(words) if word != "--set" and (n == 0 or words[n - 1] != "--set")]


def _relocated(yaml: str, there: Mapping[str, Path]) -> Config:
    """Return a config whose files of questions lie elsewhere."""
    moved = {path: str(file) for path, file in there.items()}

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: change(inside) for key, inside in value.items()}
        if isinstance(value, list):
            return [change(inside) for inside in value]
        return _moved(value, moved) if isinstance(value, str) else value

    return configs.parse(change(configs.parse_yaml(yaml)))


def _place(path: str, digest: str) -> str:
    """Return where a worker has a file of questions, in its folder."""
    return f"questions/{digest[:8]}/{Path(path).name}"


def _at_home(config: Config, files: Mapping[str, str]) -> Config:
    """Return a worker's config with the launcher's names of the files."""
    home = {_place(path, digest): Path(path) for path, digest in files.items()}
    named = {match["path"] for text in _texts(config.model_dump(mode="json")) if (match := PATH_NAME.fullmatch(text))}
    places = {path: "/".join(Path(path).parts[-3:]) for path in named}
    return _relocated(config.to_yaml(), {path: home[place] for path, place in places.items() if place in home})


def _moved(word: str, moved: Mapping[str, str]) -> str:
    """Return a word of a command, or a name of a config, where it is the name of what lies elsewhere now."""
    match = PATH_NAME.fullmatch(word)
    if match and match["path"] in moved:
        return moved[match["path"]] + (match["range"] or "")
    return moved.get(word, word)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _texts(inside)
