"""Whole commands by a real Slurm: what an array makes is what the same commands make one after the other."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import files_of, ripieno, rows, works, write_config, write_rows
from engine import WAIT, Cluster, Task, until
from tiny import finished

from ripieno.config import Launch, Slurm
from ripieno.errors import EnvironmentFault, UserError
from ripieno.launching import slurm
from ripieno.runs import RunFolder

ONE_CORE = Launch(on="slurm", workers=2, cpus=1, gpus=0)
# So that no machine decides how the sums are ordered.
COMPUTE = {"threads": 1, "batch_tokens": 256, "members_per_pass": 2}
LONG = 40.0  # seconds of training: Slurm looks every 30 whether a job's time is nearly out
STEPS = 50  # an epoch; the state is saved at its end, and where the training is stopped


def train(config: Path, run: Path, members: str) -> list[str]:
    return ["train", str(config), "--run", str(run), "--members", members, "--quiet"]


def log(run: Path, job: str, task: int) -> str:
    return (run / "slurm" / f"train-{job}_{task}.log").read_text()


# ---- an array ---------------------------------------------------------------------------------------------------


def test_an_array_makes_what_its_commands_make_one_after_the_other(
    cluster: Cluster, base: Path, tmp_path: Path
) -> None:
    """Another array asks the members when all of the first has succeeded. Paths may hold what shells and Slurm read."""
    folder = tmp_path / "it's 100%u of a run"
    folder.mkdir()
    data = {role: [write_rows(folder / f"{role}.jsonl", rows(12, n))] for n, role in enumerate(("train", "validation"))}
    training = {"members": 3, "epochs": 2, "shuffle_choices": True}
    config = write_config(folder, base, data, adapter={"dropout": 0.1}, training=training, compute=COMPUTE)
    alone, run = folder / "alone", folder / "run"
    first = slurm.submit("train", [train(config, run, "0-1"), train(config, run, "2")], ONE_CORE, run)
    asked = ["evaluate", str(run), "--dataset", data["validation"][0], "--quiet"]
    second = slurm.submit("evaluate", [asked], ONE_CORE, run, after=first)
    assert slurm.states(second) == {f"{second}_0": "PENDING"}
    works(*train(config, alone, "0-1"))
    works(*train(config, alone, "2"))
    works("evaluate", alone, *asked[2:])
    assert cluster.ended(first, 2) == [Task("COMPLETED", 0)] * 2, log(run, first, 0) + log(run, first, 1)
    assert cluster.ended(second, 1) == [Task("COMPLETED", 0)]
    assert finished(run) == finished(alone)
    asked_of = [{name: content for name, (_, content) in files_of(x / "predictions").items()} for x in (run, alone)]
    assert asked_of[0] == asked_of[1]
    assert ripieno("status", run, "--verify").code == 0


def test_what_waits_for_a_job_that_fails_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    first = slurm.submit("first", [["train", str(tmp_path / "none.yaml")]], ONE_CORE, tmp_path)
    second = slurm.submit("second", [["--help"]], ONE_CORE, tmp_path, after=first)
    assert cluster.ended(first, 1) == [Task("FAILED", 0)]
    assert cluster.ended(second, 1) == [Task("CANCELLED", 0)]
    assert "none.yaml" in (tmp_path / "slurm" / f"first-{first}_0.log").read_text()


# ---- queued again -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Long:
    """A training that is long enough to be stopped on its way.

    Args:
        config: of the run.
        steps: of its one member.
        alone: the run that nothing stops, being made beside the tests.
        process: what makes it.
    """

    config: Path
    steps: int
    alone: Path
    process: subprocess.Popen[bytes]

    def steps_of(self, run: Path) -> int:
        """Return how many steps a run has taken."""
        file = run / "metrics.jsonl"
        return file.read_bytes().count(b'"kind": "step"') if file.exists() else 0

    def saved(self, run: Path) -> int:
        """Return after how many steps a run saved its state last."""
        return max(int(file.stem.rpartition("-")[2]) for file in (run / "resume").glob("*-step-*.safetensors"))

    def is_same(self, run: Path) -> None:
        """Check that a run came to the same adapters and metrics, byte for byte."""
        assert self.process.wait(WAIT) == 0
        assert finished(run) == finished(self.alone)
        assert len([line for line in RunFolder(run).lines("metrics.jsonl") if line["kind"] == "step"]) == self.steps


@pytest.fixture(scope="module")
def long(base: Path, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Long]:
    folder = tmp_path_factory.mktemp("long")
    data = {"train": [write_rows(folder / "train.jsonl", rows(4 * STEPS, 0))]}

    def configured(epochs: int) -> Path:
        training = {"members": 1, "epochs": epochs, "shuffle_choices": True}
        return write_config(folder, base, data, adapter={"dropout": 0.1}, training=training, compute=COMPUTE)

    works(*train(configured(1), folder / "measured", "0"))
    [measured] = [x["seconds"] for x in RunFolder(folder / "measured").lines("timing.jsonl") if x["what"] == "train"]
    epochs = math.ceil(LONG / measured)
    command = [sys.executable, "-m", "ripieno.cli", *train(configured(epochs), folder / "alone", "0")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield Long(folder / "tiny.yaml", STEPS * epochs, folder / "alone", process)
        process.terminate()


def test_a_task_that_is_queued_again_goes_on(cluster: Cluster, long: Long, tmp_path: Path) -> None:
    """As after a preemption: Slurm stops the command, and starts it anew. The array's other task is left alone."""
    run = tmp_path / "run"
    job = slurm.submit("train", [["--help"], train(long.config, run, "0")], ONE_CORE, run)
    until(lambda: long.steps_of(run) > long.steps // 3, "the training to be on its way", cluster.folder)
    taken = long.steps_of(run)
    subprocess.run(["scontrol", "requeue", f"{job}_1"], check=True)
    until(lambda: cluster.task(f"{job}_1").state == "PENDING", "it to stop", cluster.folder)
    assert taken <= long.saved(run) < long.steps
    assert cluster.ended(job, 2) == [Task("COMPLETED", 0), Task("COMPLETED", 1)], log(run, job, 1)
    long.is_same(run)


def test_a_task_whose_time_is_out_goes_on(cluster: Cluster, long: Long, tmp_path: Path) -> None:
    """Its time is cut to what makes Slurm's next look at the clock warn it, and lengthened again before it goes on."""
    run, submitted = tmp_path / "run", time.monotonic()
    hour = ONE_CORE.model_copy(update={"slurm": Slurm(time="01:00:00")})
    job = slurm.submit("train", [train(long.config, run, "0")], hour, run)

    def give(minutes: int) -> None:
        subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)

    until(lambda: long.steps_of(run), "the training to begin", cluster.folder)
    give(math.ceil((time.monotonic() - submitted) / 60) + 1)  # 60 to 120 seconds from now on
    until(lambda: cluster.task(f"{job}_0") == Task("PENDING", 1), "its time to be out", cluster.folder)
    assert 0 < long.steps_of(run) == long.saved(run) < long.steps
    give(60)
    assert cluster.ended(job, 1) == [Task("COMPLETED", 1)], log(run, job, 0)
    assert "terminated; the same command goes on from what is saved" in log(run, job, 0)
    long.is_same(run)


def test_a_job_gives_way_to_another_one_and_stays_stopped_where_a_person_stops_it(
    cluster: Cluster, long: Long, tmp_path: Path
) -> None:
    """Its state is saved both times, though Slurm sends SIGTERM twice when another job takes over."""
    run = tmp_path / "run"
    job = slurm.submit("train", [train(long.config, run, "0")], ONE_CORE, run)
    until(lambda: long.steps_of(run) > STEPS, "the training to be on its way", cluster.folder)
    taken = long.steps_of(run)
    both = Launch(on="slurm", cpus=2, gpus=0, slurm=Slurm(partition="urgent"))
    other = slurm.submit("urgent", [["--help"]], both, tmp_path)
    assert cluster.ended(other, 1) == [Task("COMPLETED", 0)]
    assert taken <= long.saved(run) < long.steps
    before = long.steps_of(run)
    until(lambda: long.steps_of(run) > before, "the training to go on", cluster.folder)
    taken = long.steps_of(run)
    subprocess.run(["scancel", job], check=True)
    assert cluster.ended(job, 1) == [Task("CANCELLED", 1)]
    assert taken <= long.saved(run) < long.steps


# ---- what is refused --------------------------------------------------------------------------------------------


def test_what_slurm_refuses_is_said_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    elsewhere = ONE_CORE.model_copy(update={"slurm": Slurm(partition="gpus")})
    with pytest.raises(UserError, match=r"train\.sh: sbatch refused it \(invalid partition specified: gpus; .*\); see"):
        slurm.submit("train", [["--help"]], elsewhere, tmp_path)
    with pytest.raises(UserError, match=r"sbatch refused it \(.*[Ii]nvalid generic resource"):
        slurm.submit("train", [["--help"]], ONE_CORE.model_copy(update={"gpus": None}), tmp_path)
    assert slurm.states("999999") == {}


def test_a_slurm_that_cannot_be_reached_is_the_environments_fault(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Path(cluster.environment["SLURM_CONF"]).read_text()
    (tmp_path / "slurm.conf").write_text(
        re.sub("SlurmctldPort=.*", "SlurmctldPort=9\nMessageTimeout=1\nSlurmctldTimeout=1", config)
    )
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(EnvironmentFault, match="Unable to contact slurm controller"):
        slurm.submit("train", [["--help"]], ONE_CORE, tmp_path)
    with pytest.raises(EnvironmentFault, match="squeue: "):
        slurm.states("1")
