"""A run folder: its layout, atomic writes with checksums, its locks, the manifest, and what is already there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ripieno import config as configs
from ripieno import locks
from ripieno.config import Config
from ripieno.errors import EnvironmentFault, UserError

BASE = "base"  # the method of the base's own predictions: epoch 0, member 0
METHOD = "ensemble"
VERSIONED = ("ripieno", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")


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

    def resume(self, member: int, epoch: int) -> Path:
        """File of a member's optimizer state after an epoch."""
        return self.path / "resume" / f"{member:03d}-epoch-{epoch:03d}.safetensors"

    def predictions(self, folder: str, file: str, method: str, epoch: int, choices: int | None = None) -> Path:
        """File of one method's predictions of a data set after an epoch (0 is the base), asked with fewer choices."""
        matched = "" if choices is None else f".k{choices}"
        return self.path / "predictions" / folder / file / f"{method}-epoch-{epoch:03d}{matched}.parquet"

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

    def write(self, path: Path, content: bytes | str) -> None:
        """Write a file: to a temporary name, synced, renamed; then its sha256 is recorded."""
        data = content.encode() if isinstance(content, str) else content
        locks.check(self._locks)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        line = {"path": path.relative_to(self.path).as_posix(), "sha256": hashlib.sha256(data).hexdigest()}
        self.append("checksums.jsonl", line)

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Add a line to one of the run's jsonl files, in place of a last one that a crash cut short."""
        path = self.path / name
        locks.check(self._locks)
        with _writing(path), locks.mutex(self._locks), path.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.truncate(path.read_bytes().rfind(b"\n") + 1)
            file.write((json.dumps(line) + "\n").encode())

    def keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the lines of one of the run's jsonl files that are not wanted."""
        locks.check(self._locks)
        with _writing(self.path / name), locks.mutex(self._locks):
            lines = self.lines(name)
            kept = [line for line in lines if wanted(line)]
            if len(kept) < len(lines):
                write_atomically(self.path / name, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the whole lines of one of the run's jsonl files; a last line cut short by a crash is left out."""
        path = self.path / name
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines if line]

    def whole(self, *paths: Path) -> bool:
        """Whether every file is there with the content that was written to it."""
        recorded = {line["path"]: line["sha256"] for line in self.lines("checksums.jsonl")}
        return all(
            path.is_file() and recorded.get(path.relative_to(self.path).as_posix()) == sha256_of(path) for path in paths
        )

    def adapter_files(self, member: int, epoch: int) -> tuple[Path, Path]:
        """Return the two files of a member's adapter."""
        folder = self.adapter(member, epoch)
        return folder / "adapter_config.json", folder / "adapter_model.safetensors"

    @contextmanager
    def lock(self, members: Sequence[int] | None = None) -> Iterator[None]:
        """Hold some members, to train them, or by default what is made of the members, to answer.

        Raises:
            EnvironmentFault: another process holds it, or the folder cannot be written.
        """
        names = ["answers"] if members is None else [f"member-{member}" for member in members]
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
                raise EnvironmentFault(f"{self.path}: not a folder that can be written ({error.strerror})") from error
            yield

    @property
    def _locks(self) -> Path:
        return self.path / ".locks"

    # What the run is

    def config(self) -> Config:
        """Read the resolved config.

        Raises:
            UserError: the folder is not a run's.
        """
        if not (self.path / "config.yaml").exists():
            raise UserError(f"{self.path}: not a run folder (no config.yaml); `ripieno train CONFIG.yaml` makes one")
        return configs.load(self.path / "config.yaml")

    def manifest(self) -> dict[str, Any]:
        """Read the manifest."""
        path = self.path / "manifest.json"
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise EnvironmentFault(
                f"{path}: missing or damaged; `ripieno train` with the run's config mends it"
            ) from error
        return content

    def start(self, config: Config, identity: dict[str, str], facts: dict[str, Any]) -> None:
        """Write the resolved config and the manifest of a new run, or check that a present one is the same.

        Args:
            config: with every `auto` decided.
            identity: sha256 of what must not change between starts: the base, the questions.
            facts: JSON of what else the manifest keeps.

        Raises:
            UserError: the folder holds a run of another config, base or questions; the differing keys are listed.
        """
        # One after the other: of two processes that start the same run, the second finds what the first one wrote.
        with _writing(self.path), locks.mutex(self._locks):
            if (self.path / "config.yaml").exists() and (self.path / "manifest.json").exists():
                old = self.manifest()
                differing = configs.differences(self.config(), config)
                differing += [f"{key}: {old.get(key)} | {now}" for key, now in identity.items() if old.get(key) != now]
                if differing:
                    raise UserError(
                        f"{self.path} holds another run; what differs (there | now): {'; '.join(differing)}. "
                        "Choose another folder with --run, or go back to that config"
                    )
                return
            manifest = {
                "schema": 1,
                "config_hash": config.hash(),
                **identity,
                **facts,
                "seeds": {"training": config.training.seed, "data": config.data.seed},
                "versions": {name: metadata.version(name) for name in VERSIONED},
                "python": platform.python_version(),
                "host": platform.node(),
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            self.write(self.path / "config.yaml", config.to_yaml())
            self.write(self.path / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        # A signal may arrive just after the rename, when the temporary name is gone already.
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def stopped_members(run: RunFolder) -> dict[int, tuple[int, int | None]]:
    """Return, for each member that stopped early, the epoch in which it did and the epoch whose adapter it keeps."""
    lines = run.lines("metrics.jsonl")
    return {x["member"]: (x["epoch"], x["use_epoch"]) for x in lines if x["kind"] == "stopped"}


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
        raise UserError(f"--epoch: {run.path} has epochs 0 (the base) to {training.epochs}")
    members = adapter_epochs(run, range(training.members), epoch) if epoch else {}
    if epoch and not members:
        raise UserError(f"{run.path}: no member is left at epoch {epoch}; their training failed, see status")
    for member, at in members.items():
        require_adapter(run, member, at)
    return members


def require_adapter(run: RunFolder, member: int, epoch: int) -> None:
    """Check that a member's adapter of an epoch is there and whole.

    Raises:
        UserError: the member is not trained so far.
        EnvironmentFault: its files were written, and are missing or damaged.
    """
    files = run.adapter_files(member, epoch)
    if run.whole(*files):
        return
    written = {line["path"] for line in run.lines("checksums.jsonl")}
    if all(file.relative_to(run.path).as_posix() in written for file in files):
        raise EnvironmentFault(
            f"{files[1]}: missing or damaged; remove {run.adapter(member, 1).parent}, then `ripieno train` with the "
            "run's config trains that member again"
        )
    raise UserError(
        f"{run.path}: member {member} is not trained to epoch {epoch}; `ripieno train` with the run's config goes on"
    )
