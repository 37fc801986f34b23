"""The embedded job by each launcher: the same adapters and the same predictions, to rounding.

    python benchmarks/launchers.py [--quick]

The job of `ripieno demo` (with --quick a sixth of its questions), trained and asked by one process, by two workers of a
Ray cluster on this machine, and by two jobs of a real Slurm (Debian's slurm-wlm and munge, as `make test-slurm` sets
them up; left out, and said, where they are missing). Each is a command line of its own; a worker has one thread.

Printed of each: seconds of training and of asking, and how far it is from the one process: the largest relative norm of
a difference in a layer's update B A, over members, epochs and layers, and the largest difference of a probability.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ripieno.parquet import read_parquet

HERE = Path(__file__).parent
DEMO = HERE.parent / "src/ripieno/demo.yaml"
QUICK = ("--set", "data.train=['commonsense_qa/validation[0%:3%]']", "--set", "training.epochs=1")


def ripieno(*words: str) -> str:
    """Run a command to its end; return what it printed."""
    command = [sys.executable, "-m", "ripieno.cli", *words, "--quiet"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def job(run: Path, *launch: str, quick: bool) -> tuple[float, float]:
    """Train and ask; return the seconds of both."""
    config = [str(DEMO), "--run", str(run), "--set", "launch.cpus=1", "--set", "launch.gpus=0"]
    config += [
        word
        for key, value in zip(("on", "workers"), launch, strict=True)
        for word in ("--set", f"launch.{key}={value}")
    ]
    seconds = []
    for words in (["train", *config, *(QUICK if quick else ())], ["evaluate", str(run)]):
        start = time.perf_counter()
        wait(ripieno(*words))
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def wait(said: str) -> None:
    """Wait for what was only queued."""
    if not said.startswith("Queued: "):
        return
    from ripieno.launching import slurm

    jobs = said.split(" ", 2)[2].partition(".")[0].split(", ")
    while any(slurm.states(number) for number in jobs):
        time.sleep(0.5)


def updates(run: Path) -> dict[str, torch.Tensor]:
    """Return B A of each layer of each member after each epoch."""
    found = {}
    for file in sorted(run.glob("members/*/*/adapter_model.safetensors")):
        tensors = load_file(file)
        for name in tensors:
            if name.endswith("lora_A.weight"):
                B = tensors[name.replace("lora_A", "lora_B")].double()
                found[f"{file.relative_to(run)}:{name}"] = B @ tensors[name].double()
    return found


def apart(one: Path, other: Path) -> tuple[float, float]:
    """Return the largest relative norm of a difference of updates, and the largest difference of a probability."""
    a, b = updates(one), updates(other)
    assert a.keys() == b.keys()
    of_updates = max(((a[name] - b[name]).norm() / a[name].norm()).item() for name in a)
    files = sorted(file.relative_to(one) for file in one.glob("predictions/**/*.parquet"))
    assert files == sorted(file.relative_to(other) for file in other.glob("predictions/**/*.parquet"))
    pairs = [
        (p, q) for file in files for p, q in zip(read_parquet(one / file), read_parquet(other / file), strict=True)
    ]
    assert all(p.question_ids == q.question_ids for p, q in pairs)
    return of_updates, max(float(np.abs(p.probs - q.probs).max()) for p, q in pairs)


def main() -> None:
    """Run all three, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    print(f"{'':<12}{'training':>10}{'asking':>10}{'updates off by':>17}{'probabilities off by':>23}")
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "local"
        say("one process", job(alone, "local", "1", quick=quick))
        say("ray", job(Path(folder) / "ray", "ray", "2", quick=quick), apart(alone, Path(folder) / "ray"))
        if missing := [program for program in ("munged", "slurmctld", "slurmd") if not shutil.which(program)]:
            print(f"slurm: left out, as {', '.join(missing)} is missing; `make test-slurm` installs it")
            return
        sys.path.append(str(HERE.parent / "tests/slurm"))
        import engine

        (Path(folder) / "cluster").mkdir()
        with engine.started(Path(folder) / "cluster"):
            seconds = job(Path(folder) / "slurm", "slurm", "2", quick=quick)
        say("slurm", seconds, apart(alone, Path(folder) / "slurm"))


def say(name: str, seconds: Sequence[float], off: Sequence[float] = ()) -> None:
    """Print a line."""
    print(f"{name:<12}{seconds[0]:>8.0f} s{seconds[1]:>8.0f} s" + "".join(f"{x:>19.1e}" for x in off), flush=True)


if __name__ == "__main__":
    main()
