"""A run folder: its layout, atomic writes with checksums, its locks, the manifest, and what is already there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ripieno import config as configs
from ripieno import locks
from ripieno.config import Config
from ripieno.errors import EnvironmentFault, UserError

BASE = "base"  # the method of the base's own predictions: epoch 0, member 0
METHOD = "ensemble"
TRAINED, IMPORTED = "trained here", "imported"  # where a run's members come from
TEMPORARY, LEFT_OVER = ".part", 86400.0  # the end of an unfinished file's name; seconds after which nobody finishes it
VERSIONED = ("ripieno", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")
SCHEMA = 1  # of a run folder
DECISIVE = ("torch", "transformers", "tokenizers", "numpy")  # another version of which may change what is computed
IDENTITY = {"base_sha256", "questions_sha256", "members", *(f"versions.{name}" for name in DECISIVE)}
MADE = ("predictions", "parts", "rotations", "features", "tokens", "fitted")  # folders of what evaluate makes
FOLDERS = ("members", "resume", "questions", *MADE, "read", "report")
RECORDS = "checksums.jsonl"
FORKED = "forked_from.json"  # the first file of a fork; manifest and config are the last
# Of each log, the key that says of what kind a line is, and what each kind says besides.
LOGGED: dict[str, tuple[str, dict[str, set[str]]]] = {
    "metrics.jsonl": (
        "kind",
        {
            "step": {"epoch", "member", "step", "loss"},
            "epoch": {"epoch", "member", "validation_nll"},
            "stopped": {"epoch", "member", "step", "use_epoch", "reason"},
        },
    ),
    "timing.jsonl": (
        "what",
        {"train": {"epoch", "members", "seconds", "tokens"}, "evaluate": {"seconds"}, "features": {"seconds"}},
    ),
}
_known: dict[Path, tuple[tuple[int, int, int], dict[str, dict[str, Any]]]] = {}  # records as last read, and of when


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Every write is whole or absent, and its sha256 is kept in checksums.jsonl."""

    path: Path

    # Layout

    def adapter(self, member: int, epoch: int) -> Path:
        """Folder of a member's adapter after an epoch (1 is the first)."""
        return self.path / "members" / f"{member:03d}" / f"epoch-{epoch:03d}"

    def adapter_files(self, member: int, epoch: int) -> tuple[Path, Path]:
        """Return the two files of a member's adapter."""
        folder = self.adapter(member, epoch)
        return folder / "adapter_config.json", folder / "adapter_model.safetensors"

    def all_adapter_files(self, member: int, epoch: int) -> set[Path]:
        """Return the files of a member's adapter, and what was written beside them."""
        first = self._name(self.adapter(member, epoch)) + "/"
        return {self.path / name for name in self.recorded() if name.startswith(first)}.union(
            self.adapter_files(member, epoch)
        )

    def resume(self, member: int, step: int) -> Path:
        """File of a member's whole state after so many steps."""
        return self.path / "resume" / f"{member:03d}-step-{step:07d}.safetensors"

    def predictions(self, folder: str, file: str, method: str, epoch: int, choices: int | None = None) -> Path:
        """File of one method's predictions of a data set after an epoch (0 is the base), asked with fewer choices."""
        matched = "" if choices is None else f".k{choices}"
        return self.path / "predictions" / folder / file / f"{method}-epoch-{epoch:03d}{matched}.parquet"

    def part(self, predictions: Path, number: int, of: int) -> Path:
        """File of some questions' predictions, out of which (0 is the first) a whole file is made."""
        below = predictions.relative_to(self.path / "predictions")
        return self.path / "parts" / below.parent / f"{below.stem}.{number:05d}-of-{of:05d}.parquet"

    def parts(self, predictions: Path) -> list[Path]:
        """Return the files of parts that there are of a whole file, also those that a kill has left off record."""
        first = self.part(predictions, 0, 1)
        pattern = re.compile(re.escape(first.name.partition(".00000-of-")[0]) + r"\.\d{5}-of-\d{5}\.parquet")
        there = {*first.parent.glob("*.parquet"), *(self.path / name for name in self.recorded())}
        return sorted(file for file in there if file.parent == first.parent and pattern.fullmatch(file.name))

    def rotations(self, folder: str, file: str, method: str, epoch: int, rotation: int) -> Path:
        """File of one method's predictions of a data set asked under a rotation of its choices (0 is their order)."""
        return self.path / "rotations" / folder / file / f"{method}-epoch-{epoch:03d}.rotation-{rotation}.parquet"

    def features(self, folder: str, file: str) -> Path:
        """File of what the base alone computes on a data set's prompts."""
        return self.path / "features" / folder / f"{file}.parquet"

    def tokens(self, folder: str, file: str, method: str, epoch: int) -> Path:
        """File of what one method says of every token of a data set's solved questions after an epoch."""
        return self.path / "tokens" / folder / file / f"{method}-epoch-{epoch:03d}.parquet"

    def reading(self, stem: str, sha256: str, epoch: int) -> Path:
        """Folder of what was made of a text of the user's own after an epoch (0 is the base)."""
        return self.path / "read" / f"{stem}-{sha256[:8]}-epoch-{epoch:03d}"

    def questions(self, folder: str, file: str) -> Path:
        """File of a data set's questions, as they were asked."""
        return self.path / "questions" / folder / f"{file}.parquet"

    def fitted(self, label: str, member: int, epoch: int) -> Path:
        """File of what a method computed once from a member's training or validation questions."""
        return self.path / "fitted" / f"{label}-{member:03d}-epoch-{epoch:03d}.safetensors"

    @property
    def certificate(self) -> Path:
        """File of what was promised, which uses up the certification questions."""
        return self.path / "certificate.json"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    # Writing and reading

    def write(self, path: Path, content: bytes | str, **also: Any) -> None:
        """Write a file: to a temporary name, synced, renamed; then its sha256 is recorded, and what else is given."""
        data = content.encode() if isinstance(content, str) else content
        locks.check(self._locks)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        self._record(path, sha256=hashlib.sha256(data).hexdigest(), **also)

    def make(self, path: Path, written: Callable[[BinaryIO], None]) -> None:
        """As `write`, of a file that is not held in memory: `written` writes it."""
        locks.check(self._locks)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            make_atomically(path, written)
            digest = sha256_of(path)
        self._record(path, sha256=digest)

    def remove(self, path: Path) -> None:
        """Remove a file, on record: it is not missed."""
        if self._name(path) in self.recorded():
            self._record(path, sha256=None)
        path.unlink(missing_ok=True)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add a line to one of the run's jsonl files, in place of a last one that a crash cut short."""
        path = self.path / name
        locks.check(self._locks)
        with writing(path), locks.mutex(self._locks), path.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
            file.write((json.dumps(line) + "\n").encode())
            if name == RECORDS:  # else a power failure could keep a file, and lose the record by which it counts
                file.flush()
                os.fsync(file.fileno())

    def seal(self, name: str) -> None:
        """Record what one of the run's jsonl files holds so far."""
        path = self.path / name
        with writing(path), locks.mutex(self._locks):
            with path.open("rb") as file:
                os.fsync(file.fileno())  # else a power failure could keep the record, and lose what it is of
            self._record(path, **_sealed(_whole_lines(path.read_bytes())))

    def arrange(self, name: str, arranged: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """Replace the lines of one of the run's jsonl files by some of them, or by another order of them.

        Raises:
            EnvironmentFault: the file is damaged, or cannot be written.
        """
        path = self.path / name
        locks.check(self._locks)
        with writing(path), locks.mutex(self._locks):
            lines = self.lines(name)
            if (kept := arranged(lines)) != lines:
                data = "".join(json.dumps(line) + "\n" for line in kept).encode()
                if name in self.recorded():
                    # First: killed between the two, the file is what it was before, and no damage.
                    self._record(path, **_sealed(data), before=_sealed(_whole_lines(path.read_bytes())))
                write_atomically(path, data)

    def replace(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Replace one of the run's jsonl files, or make it, and record what it holds."""
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.write(self.path / name, data, bytes=len(data))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the whole lines of one of the run's jsonl files; a last line cut short by a crash is left out.

        Raises:
            EnvironmentFault: the file was sealed, and is missing or damaged.
        """
        path = self.path / name
        for _ in range(5):  # another process may have arranged it between the two readings
            record = self.recorded().get(name)
            content = path.read_bytes() if path.exists() else b""
            if record is None or _as_recorded(content, record):
                break
        else:
            raise self.damage(path)
        try:
            lines = [json.loads(line) for line in _whole_lines(content).split(b"\n") if line]
            key, kinds = LOGGED[name]
            for line in lines:
                if not isinstance(line, dict) or not line.keys() >= kinds.get(str(line.get(key)), {""}):
                    raise ValueError("a line is not one that was written")
            return lines
        except (ValueError, RecursionError) as error:
            raise EnvironmentFault(f"{path}: damaged ({error}); {self.mend(name)}") from None

    def recorded(self) -> dict[str, dict[str, Any]]:
        """Return what was recorded last of each file that was not removed: `sha256` and what else was given.

        A line that is no record any more is passed over, so that its file counts as never written.
        """
        path = self.path / RECORDS
        if not path.exists():
            return {}
        stat = path.stat()
        now = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if path not in _known or _known[path][0] != now:
            found = {}
            for line in _whole_lines(path.read_bytes()).split(b"\n"):
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if is_record(record):
                    found[record["path"]] = record
            _known[path] = now, {name: record for name, record in found.items() if record["sha256"] is not None}
        return _known[path][1]

    def whole(self, *paths: Path) -> bool:
        """Whether every file is there with the content that was written to it."""
        recorded = self.recorded()
        records = [recorded.get(self._name(path)) for path in paths]
        return all(
            record is not None and path.is_file() and _is_as_recorded(path, record)
            for path, record in zip(paths, records, strict=True)
        )

    def holds(self, path: Path) -> bool:
        """Whether a file was written.

        Raises:
            EnvironmentFault: it was, and is missing or damaged.
        """
        if self.whole(path):
            return True
        if self._name(path) in self.recorded():
            raise self.damage(path)
        return False

    def damaged(self) -> list[tuple[Path, str]]:
        """Return the files that are not as they were written, and what is wrong with each.

        A file that is not on record was cut off from its record: by a kill between the two, or by damage to
        checksums.jsonl. config.yaml may be edited in what moves no result (`edited`).
        """
        self.refuse_newer()
        found, recorded = [], self.recorded()
        for name, record in recorded.items():
            path = self.path / name
            if not path.is_file():
                found.append((path, "missing"))
            elif not _is_as_recorded(path, record) and (name != "config.yaml" or not self.edited):
                found.append((path, "damaged"))
        for folder in FOLDERS:
            for path in sorted((self.path / folder).rglob("*")):
                if path.is_file() and not path.name.startswith(".") and self._name(path) not in recorded:
                    found.append((path, "not on record"))
        return found

    def _check_unused(self, recorded: Mapping[str, Any], identity: Mapping[str, str]) -> None:
        """Check that a folder in which no run has started holds nothing that one would write over."""
        adapters = {self._name(file) for file in self.path.glob("members/*/*/*.safetensors")}
        if not recorded.keys() >= adapters:
            raise self.damage(self.path / RECORDS)
        if adapters and identity["members"] == TRAINED and FORKED not in recorded:
            raise UserError(f"{self.path}: an import that was cut short; start it again with `ripieno import`")
        if (self.path / "config.yaml").exists():
            raise UserError(
                f"{self.path}: holds a config.yaml, and no record of a run with it ({RECORDS}); choose another folder "
                "with --run, or take that file from a copy of the run"
            )

    @property
    def edited(self) -> bool:
        """Whether config.yaml is another text than at the start, and says the same of all that moves results."""
        recorded, path = self.recorded(), self.path / "config.yaml"
        return "config.yaml" in recorded and not self.whole(path) and self._as_started(recorded)

    def mend(self, name: str) -> str:
        """Return what makes a file of the run again, by its name in the folder."""
        first = name.partition("/")[0]
        if "compare.yaml" in self.recorded():
            return "`ripieno compare` with its config makes it again"
        if first == "resume":
            return "`ripieno train` with the run's config makes it again, or does without it"
        if first in ("config.yaml", "manifest.json", "questions", "members"):
            manifest = self.recorded().get("manifest.json")
            if manifest and manifest["identity"]["members"] == IMPORTED:
                return "`ripieno import` into another folder makes it again"
            where = ", or `ripieno evaluate --dataset` if that asked it" if first == "questions" else ""
            return f"`ripieno train` with the run's config makes it again{where}"
        if first in MADE:
            return "`ripieno evaluate` as before makes it again"
        if first == "report":
            return "`ripieno report` makes it again"
        if first == "read":
            return "`ripieno read` makes it again"
        return "it cannot be made again; take it from a copy of the run"

    def damage(self, path: Path) -> EnvironmentFault:
        """Return the error that a file is missing or damaged, with the mend."""
        return EnvironmentFault(f"{path}: missing or damaged; {self.mend(self._name(path))}")

    def _record(self, path: Path, **record: Any) -> None:
        self.append(RECORDS, {"path": self._name(path), **record})

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    @contextmanager
    def lock(self, members: Sequence[int] | None = None, *, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Hold some members, to train them, or by default what is made of the members, to answer: all of it or a shard.

        Raises:
            EnvironmentFault: another process holds it, or the folder cannot be written.
        """
        if members is not None:
            names = [f"member-{member}" for member in members]
        else:
            of_shards = [] if shard else [file.stem for file in self._locks.glob("answers-*.json")]
            names = [of_answers(shard), *of_shards]
        with ExitStack() as held:
            try:
                held.enter_context(locks.hold(self._locks, names))
            except locks.Held as error:
                what = "asking this run" if members is None else f"training {error.name.replace('-', ' ')} of this run"
                others = "" if members is None else ", or train others with --members"
                raise EnvironmentFault(
                    f"{self.path}: {error.holder or 'another process'} is {what}; wait for it, stop it{others}"
                ) from None
            except OSError as error:
                raise EnvironmentFault(
                    f"{self.path}: not a folder that can be written ({error.strerror}); choose another"
                ) from error
            if members is None:
                _sweep(self.path)
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is at the folder's files, and keep them away for a moment."""
        with writing(self.path), locks.mutex(self._locks):
            yield

    def holders(self) -> dict[int | str, str]:
        """Return which process holds which members, and which ones answer, all or a shard; see `locks.holders`."""
        found = {name: str(who) for name, who in locks.holders(self._locks).items()}
        return {name if name.startswith("answers") else int(name.partition("-")[2]): who for name, who in found.items()}

    @property
    def _locks(self) -> Path:
        return self.path / ".locks"

    # What the run is

    def config(self) -> Config:
        """Read the resolved config.

        Raises:
            UserError: the folder is not a run's.
            EnvironmentFault: the file is missing or damaged, or was changed in a key that moves results.
        """
        self.refuse_newer()
        path, recorded = self.path / "config.yaml", self.recorded()
        if not path.exists() and "config.yaml" not in recorded:
            raise UserError(f"{self.path}: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one")
        if not self._as_started(recorded):
            raise self.damage(path)
        return configs.load(path)

    def _as_started(self, recorded: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether config.yaml says what the run was started with; folders and what moves no result may change."""
        try:
            found = configs.load(self.path / "config.yaml").hash()
        except UserError:
            return False
        return "manifest.json" not in recorded or found == recorded["manifest.json"]["config_hash"]

    def refuse_newer(self) -> None:
        """Check that no newer version wrote the run, whose files may mean something else.

        Raises:
            UserError: one did.
        """
        manifest, records = self.path / "manifest.json", self.path / RECORDS
        try:
            content = manifest.read_bytes()
            schema = json.loads(content)["schema"]
            # Records of a version to come may look otherwise; a sum is a sum, and without it this is damage.
            whole = hashlib.sha256(content).hexdigest().encode() in records.read_bytes()
        except (OSError, ValueError, TypeError, KeyError):  # missing or damaged, which is said where it is read
            schema, whole = SCHEMA, False
        if whole and type(schema) is int and schema > SCHEMA:
            raise UserError(
                f"{self.path}: written by a newer version of ripieno (schema {schema}; this one reads {SCHEMA}); "
                "upgrade ripieno"
            )

    def manifest(self) -> dict[str, Any]:
        """Read the manifest.

        Raises:
            EnvironmentFault: the file is missing or damaged.
        """
        path = self.path / "manifest.json"
        if not self.whole(path):
            raise self.damage(path)
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content

    def start(self, config: Config, identity: dict[str, str], facts: dict[str, Any]) -> None:
        """Write the resolved config and the manifest of a new run, or check that a present one is the same.

        Args:
            config: with every `auto` decided.
            identity: sha256 of what must not change between starts: the base, the questions.
            facts: JSON of what else the manifest keeps.

        Raises:
            UserError: the folder holds a run of another config, base, questions or library; what differs is listed.
            EnvironmentFault: the config is damaged, and the given one is not what it was.
        """
        self.refuse_newer()
        versions = {name: metadata.version(name) for name in VERSIONED}
        _sweep(self.path)
        # One after the other: of two processes that start the same run, the second finds what the first one wrote.
        with writing(self.path), locks.mutex(self._locks):
            recorded, now = self.recorded(), identity | {f"versions.{name}": versions[name] for name in DECISIVE}
            if "manifest.json" in recorded:
                # The identity is on record too, for a manifest that is to be made again.
                old, there = recorded["manifest.json"]["identity"], self.path / "config.yaml"
                started = self._as_started(recorded)
                if not started and recorded["manifest.json"]["config_hash"] != config.hash():
                    raise EnvironmentFault(
                        f"{there}: missing or damaged, and the given config is another; go on with the one that the "
                        "run was started with"
                    )
                differing = configs.differences(configs.load(there), config) if started else []
                differing += [f"{key}: {old[key]} | {now[key]}" for key in now if old[key] != now[key]]
                if differing:
                    raise UserError(
                        f"{self.path} holds another run; what differs (there | now): {'; '.join(differing)}. "
                        "Choose another folder with --run, go on from it in a new one with --fork, or go back to what "
                        "it was"
                    )
                if started and self.whole(self.path / "manifest.json"):
                    if self.edited:  # or damaged, in a folder's name or a number of threads: as it is given now
                        self.write(there, config.to_yaml())
                    return
            else:
                self._check_unused(recorded, identity)
            manifest = {
                "schema": SCHEMA,
                "config_hash": config.hash(),
                **identity,
                **facts,
                "seeds": {"training": config.training.seed, "data": config.data.seed},
                "versions": versions,
                "python": platform.python_version(),
                "host": platform.node(),
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            self.write(self.path / "manifest.json", content, identity=now, config_hash=config.hash())
            self.write(self.path / "config.yaml", config.to_yaml())  # last: now it is a run


def _whole_lines(content: bytes) -> bytes:
    """Return the lines that are whole, without a last one that is cut short."""
    return content[: content.rfind(b"\n") + 1]


def _sealed(content: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def is_record(record: object) -> bool:
    """Whether a line of checksums.jsonl is one that `RunFolder` writes, of a file in the folder."""
    if not isinstance(record, dict) or not isinstance(record.get("path"), str) or not _is_sum(record):
        return False
    if record["path"] == "manifest.json":
        identity = record.get("identity")
        return isinstance(record.get("config_hash"), str) and isinstance(identity, dict) and identity.keys() >= IDENTITY
    name = PurePosixPath(record["path"])
    return not name.is_absolute() and ".." not in name.parts and _is_name(str(name))


def _is_name(text: str) -> bool:
    """Whether a system could have a file of that name."""
    try:
        name = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return b"\0" not in name and len(name) < 1000 and all(len(part) < 256 for part in name.split(b"/"))


def _is_sum(record: object) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("sha256", 0), str | None):
        return False
    return isinstance(record.get("bytes"), int | None) and ("before" not in record or _is_sum(record["before"]))


def _as_recorded(content: bytes, record: Mapping[str, Any]) -> bool:
    """Whether a file is what was recorded of it: all of it, or of one that grows its beginning."""
    beginning = content[: record.get("bytes")]
    if hashlib.sha256(beginning).hexdigest() == record["sha256"]:
        return True
    return "before" in record and _as_recorded(content, record["before"])


def _is_as_recorded(path: Path, record: Mapping[str, Any]) -> bool:
    """As `_as_recorded`, of a file that is there, which may be larger than the memory unless it is a log."""
    return _as_recorded(path.read_bytes(), record) if "bytes" in record else sha256_of(path) == record["sha256"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a disk that refuses which file it was.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error


def _sweep(folder: Path) -> None:
    """Remove temporary files of processes that were killed: a write takes minutes at most, and these are a day old."""
    for part in folder.glob(f"**/.*{TEMPORARY}"):
        with suppress(FileNotFoundError):  # another process has just finished it
            if time.time() - part.stat().st_mtime > LEFT_OVER:
                part.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new one, never a part."""
    make_atomically(path, lambda file: file.write(data))


def make_atomically(path: Path, written: Callable[[BinaryIO], object]) -> None:
    """As `write_atomically`, of a file that `written` writes."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            written(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:  # after the rename its name is gone already
        Path(temporary).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def of_answers(shard: tuple[int, int] | None) -> str:
    """Return the name of the lock, and of the live note, of who answers: all or a shard."""
    return "answers" if shard is None else "answers-{}-of-{}".format(*shard)


def stopped_members(run: RunFolder) -> dict[int, tuple[int, int | None]]:
    """Return, for each member that stopped early, the epoch in which it did and the epoch whose adapter it keeps."""
    lines = run.lines("metrics.jsonl")
    return {x["member"]: (x["epoch"], x["use_epoch"]) for x in lines if x["kind"] == "stopped"}


def failed_members(run: RunFolder) -> dict[int, int]:
    """Return in which epoch the training of members failed; from there on they are left out."""
    return {member: epoch for member, (epoch, kept) in stopped_members(run).items() if kept is None}


def adapter_epochs(run: RunFolder, members: Sequence[int], epoch: int) -> dict[int, int]:
    """Return which epoch's adapter each member answers with at an epoch; members that failed before are left out."""
    stopped = stopped_members(run)
    answering: dict[int, int] = {}
    for member in members:
        last, kept = stopped.get(member, (epoch, epoch))
        # A member out of patience finished its last epoch; one that failed did not.
        if epoch < last or (epoch == last and kept is not None):
            answering[member] = epoch
        elif kept is not None:
            answering[member] = kept
    return answering


def members_at(run: RunFolder, epoch: int) -> dict[int, int]:
    """Return which epoch's adapter each member answers with at an epoch, all of them whole; none at epoch 0, the base.

    Raises:
        UserError: there is no such epoch, or it is not trained.
        EnvironmentFault: an adapter is missing or damaged.
    """
    training = run.config().training
    if not 0 <= epoch <= training.epochs:
        raise UserError(f"--epoch {epoch}: {run.path} has epochs 0 (the base) to {training.epochs}")
    members = adapter_epochs(run, range(training.members), epoch) if epoch else {}
    if epoch and not members:
        raise UserError(
            f"{run.path}: no member is left at epoch {epoch}; `ripieno status` says why their training failed"
        )
    for member, at in members.items():
        require_adapter(run, member, at)
    return members


def require_adapter(run: RunFolder, member: int, epoch: int) -> None:
    """Check that a member's adapter of an epoch is there and whole.

    Raises:
        UserError: the member is not trained so far.
        EnvironmentFault: its files were written, and are missing or damaged.
    """
    if not all(run.holds(file) for file in run.all_adapter_files(member, epoch)):
        wanted = f"member {member} is not trained to epoch {epoch}"
        raise UserError(f"{run.path}: {wanted}; `ripieno train` with the run's config goes on")
