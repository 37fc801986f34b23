"""A run folder holds whole files or none, knows its own, and belongs to one process and one config."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ripieno.config import Base, Compute, Config, Data, Training
from ripieno.errors import EnvironmentFault, UserError
from ripieno.runs import TRAINED, RunFolder, write_atomically

IDENTITY = {"base_sha256": "b" * 64, "questions_sha256": "c" * 64, "members": TRAINED}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def line(step: int) -> dict[str, Any]:
    return {"kind": "step", "epoch": 1, "member": 0, "step": step, "loss": 0.5}


def config(**sections: Any) -> Config:
    return Config(**{"name": "tiny", "data": Data(train=("commonsense_qa/train",)), **sections})


# ---- writing ----------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_file_and_nothing_beside_it(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def crash(*_: Any) -> None:
        assert path.read_bytes() == b"old"
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, step, crash)
        with pytest.raises(Crash):
            write_atomically(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_content_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave the new name with an empty file."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_atomically(tmp_path / "file", b"new")
    assert [Path(calls[0]).name.startswith(".file."), *calls[1:]] == [True, "replace", str(tmp_path)]


def test_a_full_disk_is_the_environments_fault(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        run.append("metrics.jsonl", line(1))
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            EnvironmentFault, match=r"report/index\.html: cannot be written \(No space left on device\)"
        ):
            run.write(run.report / "index.html", "page")
        with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl: cannot be written \(No space"):
            run.arrange("metrics.jsonl", lambda lines: [])
    (run.path / "timing.jsonl").symlink_to("/dev/full")
    with pytest.raises(EnvironmentFault, match=r"timing\.jsonl: cannot be written"):
        run.append("timing.jsonl", {"what": "train"})
    assert not run.whole(run.report / "index.html")


# ---- what is whole ----------------------------------------------------------------------------------------------


def test_whole_sees_every_damage(run: RunFolder) -> None:
    path = run.predictions("set", "test", "ensemble", 1)
    content = bytes(range(256)) * 4
    run.write(path, content)
    assert run.whole(path)
    damages = {
        "cut": content[:-1],
        "longer": content + b"\0",
        "emptied": b"",
        "one bit flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
    }
    for name, damaged in damages.items():
        path.write_bytes(damaged)
        assert not run.whole(path), name
    path.unlink()
    assert not run.whole(path)
    path.mkdir()
    assert not run.whole(path)
    path.rmdir()
    run.write(path, content)
    assert run.whole(path)


def test_whole_needs_every_file_and_knows_its_own_alone(run: RunFolder) -> None:
    a, b = run.adapter_files(0, 1)
    run.write(a, "{}")
    assert run.whole(a)
    assert not run.whole(a, b)
    b.write_bytes(b"copied in from elsewhere")
    assert not run.whole(a, b)


def test_whole_goes_by_what_was_written_last(run: RunFolder) -> None:
    path = run.report / "metrics.json"
    run.write(path, "first")
    run.write(path, "second")
    assert run.whole(path)
    path.write_text("first")
    assert not run.whole(path)


# ---- jsonl ------------------------------------------------------------------------------------------------------


def test_a_line_cut_short_is_left_out_and_the_next_one_takes_its_place(run: RunFolder) -> None:
    assert run.lines("metrics.jsonl") == []
    run.append("metrics.jsonl", line(1))
    whole = (run.path / "metrics.jsonl").read_bytes()
    for torn in (b"{", b'{"step": 2', b'{"step": 2}', '{"é'.encode()[:-1]):  # a line is whole with its line break
        (run.path / "metrics.jsonl").write_bytes(whole + torn)
        assert run.lines("metrics.jsonl") == [line(1)]
        run.append("metrics.jsonl", line(3))
        assert run.lines("metrics.jsonl") == [line(1), line(3)]
    (run.path / "metrics.jsonl").write_bytes(b'{"st')
    run.append("metrics.jsonl", line(1))
    assert (run.path / "metrics.jsonl").read_bytes() == whole


def test_lines_are_arranged_anew(run: RunFolder) -> None:
    for step in range(4):
        run.append("metrics.jsonl", line(step))
    run.arrange("metrics.jsonl", lambda lines: [x for x in reversed(lines) if x["step"] % 2])
    assert run.lines("metrics.jsonl") == [line(3), line(1)]


def test_a_sealed_log_grows_and_what_was_sealed_is_not_changed_unseen(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.append("metrics.jsonl", line(1))
    run.seal("metrics.jsonl")
    run.append("metrics.jsonl", line(2))
    assert run.lines("metrics.jsonl") == [line(1), line(2)]
    file = run.path / "metrics.jsonl"
    content = file.read_bytes()
    for damaged in (content.replace(b"1", b"7"), content[:5], content[content.index(b"\n") + 1 :]):
        file.write_bytes(damaged)
        with pytest.raises(EnvironmentFault, match=r"metrics\.jsonl: missing or damaged; it cannot be made again"):
            run.lines("metrics.jsonl")
        file.write_bytes(content)
    # Killed after the new content was recorded and before it was written: the old one is no damage.
    with monkeypatch.context() as patch:
        patch.setattr("ripieno.runs.write_atomically", lambda *_: (_ for _ in ()).throw(Crash))
        with pytest.raises(Crash):
            run.arrange("metrics.jsonl", lambda lines: lines[1:])
    assert run.lines("metrics.jsonl") == [line(1), line(2)]
    run.arrange("metrics.jsonl", lambda lines: lines[1:])
    assert run.lines("metrics.jsonl") == [line(2)]
    file.write_bytes(content.replace(b"1", b"7"))
    with pytest.raises(EnvironmentFault, match="missing or damaged"):
        run.lines("metrics.jsonl")


# ---- the lock ---------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from ripieno.runs import RunFolder
with RunFolder(Path(sys.argv[1])).lock([0, 1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_members_that_another_process_trains_are_refused_and_others_are_free(run: RunFolder) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        said = rf"process {other.pid} on .* is training member 1 of this run; .* or train others with --members"
        with pytest.raises(EnvironmentFault, match=said), run.lock([1, 2]):
            pass
        with run.lock([2, 3]), run.lock():  # nor does it keep anybody from asking
            pass
        other.kill()  # no chance to clean up
    with run.lock([0, 1, 2]):
        pass


def test_a_folder_that_cannot_be_one_is_the_environments_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(EnvironmentFault, match="not a folder that can be written"), RunFolder(path).lock():
            pass


# ---- start ------------------------------------------------------------------------------------------------------


def test_start_writes_the_config_and_a_manifest(run: RunFolder) -> None:
    run.start(config(), IDENTITY, {"counts": {"train": 3}})
    assert run.config() == config()
    manifest = run.manifest()
    assert manifest["config_hash"] == config().hash()
    assert manifest["counts"] == {"train": 3}
    assert manifest["base_sha256"] == "b" * 64
    assert set(manifest) >= {"schema", "versions", "host", "started", "seeds", "python"}
    assert manifest["versions"]["torch"]
    assert run.whole(run.path / "config.yaml", run.path / "manifest.json")


def test_start_again_with_the_same_or_what_changes_no_result_keeps_everything(run: RunFolder) -> None:
    run.start(config(), IDENTITY, {})
    before = [(run.path / name).read_bytes() for name in ("config.yaml", "manifest.json")]
    run.start(config(), IDENTITY, {})
    run.start(config(compute=Compute(device="cuda", members_per_pass=2, batch_tokens=9, threads=1)), IDENTITY, {})
    run.start(config(name="another"), IDENTITY, {})
    assert [(run.path / name).read_bytes() for name in ("config.yaml", "manifest.json")] == before


@pytest.mark.fault("another config, base, data or library")
def test_start_refuses_another_config_with_the_keys_side_by_side(run: RunFolder) -> None:
    run.start(config(), IDENTITY, {})
    other = config(training=Training(epochs=7, learning_rate=0.5), base=Base(dtype="bfloat16"))
    with pytest.raises(UserError) as caught:
        run.start(other, IDENTITY, {})
    message = str(caught.value)
    assert "\n" not in message
    for line in ("training.epochs: 3 | 7", "training.learning_rate: 0.0001 | 0.5", "base.dtype: float32 | bfloat16"):
        assert line in message
    assert message.count(" | ") == 4  # these three and the legend: keys that agree are left out
    assert run.config() == config()


@pytest.mark.parametrize("key", IDENTITY)
@pytest.mark.fault("another config, base, data or library")
def test_start_refuses_another_base_or_other_questions(run: RunFolder, key: str) -> None:
    run.start(config(), IDENTITY, {})
    with pytest.raises(UserError, match=rf"{key}: {IDENTITY[key]} \| {'d' * 64}"):
        run.start(config(), {**IDENTITY, key: "d" * 64}, {})


@pytest.mark.fault("another config, base, data or library")
def test_start_refuses_another_version_of_what_computes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    run.start(config(), IDENTITY, {})
    for name, refused in (("torch", True), ("tokenizers", True), ("pyarrow", False)):
        monkeypatch.setattr(metadata, "version", lambda of, name=name: "0.1" if of == name else version(of))
        with pytest.raises(UserError, match=rf"versions\.{name}: .* \| 0\.1") if refused else nullcontext():
            run.start(config(), IDENTITY, {})


@pytest.mark.fault("a file damaged, any of a finished run")
@pytest.mark.parametrize(
    "line", ['{"path": "a", "sha357": "0"}', '{"path": "a", "sha256": "0", "before": {}}', "[]", "7"]
)
def test_what_is_no_record_is_passed_over(line: str, run: RunFolder) -> None:
    run.start(config(), IDENTITY, {})
    recorded = run.recorded()
    with (run.path / "checksums.jsonl").open("a") as file:
        file.write(line + "\n")
    assert run.recorded() == recorded
    assert run.damaged() == []


@pytest.mark.fault("a hostile input")
@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "questions/../../secret"])
def test_a_record_names_no_file_outside_of_the_folder(name: str, run: RunFolder) -> None:
    """It is none of ours, and the file that it names is neither read nor missed."""
    run.start(config(), IDENTITY, {})
    recorded = run.recorded()
    with (run.path / "checksums.jsonl").open("a") as file:
        file.write(json.dumps({"path": name, "sha256": "0" * 64}) + "\n")
    assert run.recorded() == recorded
    assert run.damaged() == []


def test_start_ended_between_its_two_files_starts_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunFolder.write

    def dying(self: RunFolder, path: Path, content: bytes | str, **also: Any) -> None:
        if path.name == "manifest.json":
            raise Crash
        write(self, path, content, **also)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", dying)
        with pytest.raises(Crash):
            run.start(config(), IDENTITY, {})
    run.start(config(), IDENTITY, {})
    assert run.manifest()["config_hash"] == config().hash()


def test_a_folder_without_a_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"not a run folder \(no config\.yaml\); `ripieno train CONFIG\.yaml` makes one"
    ):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("content", [None, "", '{"schema": 1'])
def test_a_damaged_manifest_is_the_environments_fault(run: RunFolder, content: str | None) -> None:
    if content is not None:
        (run.path / "manifest.json").write_text(content)
    with pytest.raises(EnvironmentFault, match=r"manifest\.json: missing or damaged"):
        run.manifest()


def test_what_a_killed_process_left_half_written_goes_in_the_end(run: RunFolder) -> None:
    """Not at once: another process may be about to finish it."""
    (run.path / "members").mkdir()
    old, new = (run.path / "members" / f".adapter.{name}.part" for name in ("old", "new"))
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    with run.lock():
        assert (old.exists(), new.exists()) == (False, True)


def test_a_fault_inside_the_lock_keeps_its_own_name(run: RunFolder) -> None:
    with pytest.raises(PermissionError, match="of the questions"), run.lock():
        raise PermissionError(13, "of the questions")
    with run.lock():
        pass
