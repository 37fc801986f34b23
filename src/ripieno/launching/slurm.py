"""Slurm: an array of commands, in a batch script that a person can read.

Each task of the array runs one command. One that runs out of its time is told so `WARNING` seconds before, saves its
state, ends with exit code 143 and is queued again; the same command then goes on. After a preemption, a node's failure
or `scontrol requeue` Slurm itself queues the task again. docs/launching.md says which signal arrives where.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ripieno.config import Launch
from ripieno.errors import EnvironmentFault, UserError
from ripieno.runs import write_atomically, writing

WARNING = 120  # seconds; Slurm looks at its clocks every 30, and a command takes 10 at most to save and end
TERMINATED = 143  # exit code of a command that SIGTERM stopped; what it did is saved
# What Slurm's commands say, among other words, of a cluster that is down and of an array that ended some minutes ago.
_OUT_OF_REACH = ("Unable to contact slurm controller", "Could not establish a configuration source")
_FORGOTTEN = "Invalid job id specified"


def script(name: str, commands: Sequence[Sequence[str]], launch: Launch, folder: Path) -> str:
    """Return the batch script of an array with one task a command.

    Args:
        name: of the jobs, and of their logs.
        commands: each the words after `ripieno`; they run in the folder from which the script is submitted.
        launch: what each task asks for.
        folder: the run's; logs go to its `slurm/`.

    Raises:
        UserError: a value of `launch.slurm` is more than one line.
    """
    logs = str((folder / "slurm").resolve()).replace("%", "%%")  # sbatch fills in what begins with %
    wanted, gpus = launch.slurm, 1 if launch.gpus is None else launch.gpus
    asked = {
        "--job-name": f"{folder.name}-{name}",
        "--array": f"0-{len(commands) - 1}",
        "--output": f"{logs}/{name}-%A_%a.log",
        "--open-mode": "append",  # so that a task queued again writes on
        "--ntasks": 1,
        "--cpus-per-task": launch.cpus,
        "--gpus": gpus or None,
        "--partition": wanted.partition,
        "--account": wanted.account,
        "--time": wanted.time,
        "--mem": wanted.memory,
        "--signal": f"TERM@{WARNING}",
    }
    options = [f"{option}={shlex.quote(str(value))}" for option, value in asked.items() if value is not None]
    options += ["--requeue", *wanted.options]  # the last of two counts, so that a config may say otherwise
    broken = [line for line in options if "\n" in line]
    if broken:
        raise UserError(f"launch.slurm: {broken[0]!r} is more than one line; write it in one")
    cases = [f"    {task}) ripieno {shlex.join(command)} ;;" for task, command in enumerate(commands)]
    threads = [] if launch.cpus is None else [f"export OMP_NUM_THREADS={launch.cpus}"]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in options),
            "",
            "# The Python that wrote this script. The lines of launch.slurm.setup follow; they may name another one.",
            f"python={shlex.quote(sys.executable)}",
            *threads,
            *wanted.setup,
            "",
            "# srun asks for a job's cores only if it is told to.",
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"',
            'ripieno() { srun "$python" -m ripieno.cli "$@"; }',
            "",
            'case "$SLURM_ARRAY_TASK_ID" in',
            *cases,
            "esac",
            "code=$?",
            "",
            f"# {TERMINATED}: warned that its time is nearly out, it saved its state. Queued again, it goes on.",
            "# (Where Slurm stops a job, on scancel or for another one, this shell is stopped before it comes here.)",
            f'if [ "$code" -eq {TERMINATED} ]; then',
            '    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"  # of the array, this task alone',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def submit(name: str, commands: Sequence[Sequence[str]], launch: Launch, folder: Path, after: str | None = None) -> str:
    """Hand an array over to Slurm, and return its job id; RUN/slurm/NAME.sh is its script.

    Args:
        name, commands, launch, folder: see `script`.
        after: id of a job all of whose tasks have to succeed first; where one fails, this one is given up.

    Raises:
        UserError: Slurm refuses what is asked for.
        EnvironmentFault: there is no Slurm here, it cannot be reached, or the script cannot be written.
    """
    text, path = script(name, commands, launch, folder), folder / "slurm" / f"{name}.sh"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    waits = [] if after is None else [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    done = _slurm("sbatch", "--parsable", *waits, str(path))
    if done.returncode:
        fault = EnvironmentFault if any(words in done.stderr for words in _OUT_OF_REACH) else UserError
        raise fault(f"{path}: sbatch refused it ({_said(done)}); see the config's launch and launch.slurm")
    return done.stdout.strip().partition(";")[0]  # the cluster's name may follow


def states(job: str) -> dict[str, str]:
    """Return the state of each task of an array that is not done yet, such as {"12_0": "RUNNING"}, by its own id.

    Raises:
        EnvironmentFault: there is no Slurm here, or it cannot be reached.
    """
    done = _slurm("squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={job}")
    if done.returncode and _FORGOTTEN not in done.stderr:
        raise EnvironmentFault(f"squeue: {_said(done)}")
    return dict(line.split() for line in done.stdout.splitlines())


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{command[0]}: not found; submit from a machine of the Slurm cluster, or choose another launch.on"
        ) from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Return in one line why a command of Slurm failed."""
    return "; ".join(re.sub(r"^\w+: (error: )?", "", line) for line in done.stderr.splitlines() if line)


@dataclass(frozen=True)
class Slurm:
    """Starts commands as arrays of jobs, and does not wait for them.

    Args:
        launch: of the config.
        folder: the run's, which all nodes share.
    """

    launch: Launch
    folder: Path

    @property
    def workers(self) -> int:
        """`launch.workers`: how many jobs share the work.

        Raises:
            UserError: it is `auto`: nobody here knows the nodes that jobs will get.
        """
        if self.launch.workers == "auto":
            raise UserError("launch.workers: on Slurm say how many jobs share the work, such as launch.workers=4")
        return self.launch.workers

    def run(self, name: str, steps: Sequence[Sequence[Sequence[str]]]) -> str:
        """Queue commands, a step behind the one before, asking behind a training that is still queued.

        Raises:
            UserError, EnvironmentFault: as `submit`.
        """
        jobs, after = [], self._still("train") if name != "train" else None
        for label, commands in self._labelled(name, steps):
            after = submit(label, commands, self.launch, self.folder, after)
            write_atomically(self._job(label), after.encode())
            jobs.append(after)
        return f"{'job' if len(jobs) == 1 else 'jobs'} {', '.join(jobs)}"

    def scripts(self, name: str, steps: Sequence[Sequence[Sequence[str]]]) -> list[str]:
        """Return what `run` would submit."""
        return [script(label, commands, self.launch, self.folder) for label, commands in self._labelled(name, steps)]

    def _labelled(
        self, name: str, steps: Sequence[Sequence[Sequence[str]]]
    ) -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
        for number, commands in enumerate(steps):
            yield name if number == 0 else f"{name}-{number + 1}", commands

    def _job(self, label: str) -> Path:
        return self.folder / "slurm" / f"{label}.job"

    def _still(self, label: str) -> str | None:
        """Return the id of a job that was queued here, unless it has ended."""
        job = self._job(label).read_text() if self._job(label).exists() else None
        return job if job and states(job) else None
