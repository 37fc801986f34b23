"""A real Slurm on this machine, set up from nothing and taken down again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ripieno.launching import slurm

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo", "srun", "setpriv")
WAIT = 300.0  # seconds; every job of these tests takes less

# One node of two cores, of which neither memory nor cgroups are counted; jobs of `urgent` take it over. Short times: a
# task that is queued again waits for its old credential to expire (120 s by default), and then for the next look at the
# queue (60 s).
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=1,batch_sched_delay=0,bf_interval=1
KillWait=20
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


@dataclass(frozen=True)
class Task:
    """How a task of an array ended."""

    state: str
    restarts: int


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.

    Args:
        folder: of its configuration, state and logs.
        environment: with which Slurm's commands find it; this process has it already.
    """

    folder: Path
    environment: dict[str, str]

    def task(self, name: str) -> Task:
        """Return how far a task is, by its name such as 12_0."""
        told = _output("scontrol", "--oneliner", "show", "job", name)
        facts = dict(word.split("=", 1) for word in told.split() if "=" in word)
        return Task(facts["JobState"], int(facts["Restarts"]))

    def ended(self, job: str, tasks: int) -> list[Task]:
        """Wait until no task of an array runs or waits; return how they ended."""
        until(lambda: not slurm.states(job), f"job {job} to end", self.folder)
        return [self.task(f"{job}_{task}") for task in range(tasks)]


def until(true: Callable[[], object], what: str, folder: Path, seconds: float = WAIT) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            logs = [f"{path}:\n" + "\n".join(path.read_text().splitlines()[-15:]) for path in folder.glob("*.log")]
            raise AssertionError(f"waited {seconds:g} s for {what}\n" + "\n".join(logs))
        time.sleep(0.2)


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Start munged, slurmctld and slurmd, with all they write in a folder; they end with the block, after all jobs."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, ports=_free_ports(2), folder=folder))
    munge = [f"--{option}={folder}/munge.{option.partition('-')[0]}" for option in ("socket", "pid-file", "seed-file")]
    source = os.environ.get("PYTHONPATH")
    environment = {
        "SLURM_CONF": str(config),
        # What is tested is this checkout, wherever the environment's own installation points.
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *([source] if source else [])]),
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch, ExitStack() as running:
        # A terminated session ends as an interrupted one does: what runs here is stopped.
        running.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        for name, value in environment.items():
            patch.setenv(name, value)
        daemons = {
            # Its folder is the test's own, which is open to more than it likes: hence --force.
            "munged": ["--foreground", "--force", f"--key-file={key}", f"--log-file={folder}/munge.own.log", *munge],
            "slurmctld": ["-D", "-c", "-f", str(config)],
            "slurmd": ["-D", "-N", "node", "-f", str(config)],
        }
        for program, arguments in daemons.items():
            running.enter_context(_daemon(program, arguments, folder))
            if program == "munged":
                until((folder / "munge.socket").exists, "munged", folder, 10.0)
        until(lambda: _output("sinfo", "--noheader", "--format=%T", check=False) == "idle", "slurmd", folder, 30.0)
        running.callback(_stop_jobs, folder)
        yield Cluster(folder, environment)


@contextmanager
def _daemon(program: str, arguments: list[str], folder: Path) -> Iterator[None]:
    """Run a program inside the block; the system stops it too where this process is killed."""
    command = ["setpriv", "--pdeathsig", "TERM", program, *arguments]
    with (folder / f"{program}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stop_jobs(folder: Path) -> None:
    """Stop all jobs: a job outlives the daemons that started it."""
    subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
    until(lambda: not _output("squeue", "--noheader", check=False), "the jobs to stop", folder, 40.0)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _output(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or not done.returncode, done.stderr
    return done.stdout.strip()
