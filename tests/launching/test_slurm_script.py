"""The batch script, run here with stand-ins for Slurm's own commands; tests/slurm has a real one."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ripieno.config import Launch, Slurm
from ripieno.errors import EnvironmentFault, UserError
from ripieno.launching import slurm

COMMANDS = [["train", "a b.yaml", "--set", "name=it's $HOME"], ["train", "*", "--members", "0,2"]]
ASKED = Launch(
    on="slurm", workers=2, cpus=4, gpus=1,
    slurm=Slurm(
        partition="gpu", account="me", time="04:00:00", memory="40G", options=("--constraint=a100 --no-requeue",),
        setup=("source activate 'of mine'", "python=/theirs/python"),
    ),
)  # fmt: skip


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def stand_in(folder: Path, name: str, does: str) -> None:
    """Put a command on the path that keeps its words, and does something."""
    program = folder / name
    keeps = f"import json, sys; json.dump(sys.argv[1:], open({str(folder / name)!r} + '.words', 'w'))"
    program.write_text(f"#!/bin/bash\n{sys.executable} - \"$@\" <<'E'\n{keeps}\nE\n{does}\n")
    program.chmod(0o755)


def words(folder: Path, name: str) -> list[str] | None:
    kept = folder / f"{name}.words"
    return json.loads(kept.read_text()) if kept.exists() else None


def test_what_each_task_asks_for(tmp_path: Path) -> None:
    text = slurm.script("train", COMMANDS, ASKED, tmp_path / "it's 5%u")
    logs = f"{tmp_path}/it'\"'\"'s 5%%u/slurm/train-%A_%a.log"
    assert options(text) == [
        "--job-name=" + shlex.quote("it's 5%u-train"), "--array=0-1",
        f"--output='{logs}'", "--open-mode=append", "--ntasks=1",
        "--cpus-per-task=4", "--gpus=1", "--partition=gpu", "--account=me", "--time=04:00:00", "--mem=40G",
        "--signal=TERM@120", "--requeue", "--constraint=a100 --no-requeue",
    ]  # fmt: skip


@pytest.mark.parametrize(("gpus", "line"), [(None, ["--gpus=1"]), (0, []), (1, ["--gpus=1"])])
def test_a_gpu_a_task_unless_there_are_none(gpus: int | None, line: list[str], tmp_path: Path) -> None:
    asked = options(slurm.script("train", COMMANDS, Launch(on="slurm", gpus=gpus), tmp_path))
    assert [option for option in asked if option.startswith("--gpus")] == line


@pytest.mark.parametrize("code", [0, 1, 143])
@pytest.mark.parametrize("task", [0, 1])
def test_a_task_runs_its_command_and_goes_back_where_its_time_was_out(code: int, task: int, tmp_path: Path) -> None:
    stand_in(tmp_path, "srun", f"exit {code}")
    stand_in(tmp_path, "scontrol", "")
    launch = ASKED.model_copy(update={"slurm": Slurm(setup=("python='their python'",))})
    (tmp_path / "job.sh").write_text(slurm.script("train", COMMANDS, launch, tmp_path))
    ids = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=ids | path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert words(tmp_path, "srun") == ["their python", "-m", "ripieno.cli", *COMMANDS[task]]
    assert words(tmp_path, "scontrol") == (["requeue", f"7_{task}"] if code == 143 else None)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_script_is_good_shell(tmp_path: Path) -> None:
    launch = ASKED.model_copy(update={"slurm": Slurm(setup=("module load cuda",))})
    commands = [["train", "a b.yaml", "--members", "0-1"], ["train", "it's"]]
    (tmp_path / "job.sh").write_text(slurm.script("train", commands, launch, tmp_path))
    done = subprocess.run(["shellcheck", tmp_path / "job.sh"], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_submitting_keeps_the_script_and_returns_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "sbatch", "echo '12;here'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert slurm.submit("train", COMMANDS, ASKED, tmp_path / "run") == "12"
    file = tmp_path / "run" / "slurm" / "train.sh"
    assert words(tmp_path, "sbatch") == ["--parsable", str(file)]
    assert file.read_text() == slurm.script("train", COMMANDS, ASKED, tmp_path / "run")
    slurm.submit("evaluate", COMMANDS, ASKED, tmp_path / "run", after="12")
    assert "--dependency=afterok:12" in (words(tmp_path, "sbatch") or [])


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"launch\.workers: on Slurm say how many"):
        assert slurm.Slurm(Launch(on="slurm"), tmp_path).workers
    assert slurm.Slurm(ASKED, tmp_path).workers == 2
    with pytest.raises(UserError, match=r"launch\.slurm: .*4G\\nrm.* is more than one line"):
        slurm.script("train", COMMANDS, Launch(slurm=Slurm(memory="4G\nrm")), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"^sbatch: not found; submit from a machine of the Slurm cluster"):
        slurm.submit("train", COMMANDS, ASKED, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"file/slurm/train\.sh: cannot be written \(Not a directory\)"):
        slurm.submit("train", COMMANDS, ASKED, tmp_path / "file")
