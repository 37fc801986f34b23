"""How near `ripieno plan` comes: planned and measured time and memory of whole jobs, for bases of three sizes.

    python benchmarks/plan.py [--quick] [--rounds N] [--only SIZE] [--processor]

A round of a size is `ripieno plan`, then `ripieno train` and `ripieno evaluate` of the same config, each a process of
its own that is timed from start to end. Memory is the highest resident size of the process, which the kernel keeps. The
bases are SmolLM2-135M-Instruct and two random models with its tokenizer (a Llama of 19M parameters and one of 307M);
the questions are those of configs/demo.yaml, or fewer. With --quick the smallest alone, on few questions.

Other work on the machine stretches plan and job, and hardly ever alike: the load before each round stands in the table.
With --processor all have one thread and are timed, plan's own measurements too, in seconds of the processor, which
other work moves little. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
# A clock that stands still while others have the processor, for all that is imported later.
OF_PROCESSOR = "import time; time.perf_counter = time.process_time; from ripieno.cli import main; main()"
EMBEDDED = "embedded:SmolLM2-135M-Instruct"
WITHIN = 0.25  # what the estimates are to be within
SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4}
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20, "num_attention_heads": 16}


@dataclass(frozen=True)
class Size:
    """A base, and a job on it of one to three minutes.

    Args:
        name: in the table.
        model: settings of a random Llama; None for the embedded model.
        shares: of CommonsenseQA's validation split to train on, to validate on, to test on; of OpenBookQA's.
        members, epochs: of the training.
    """

    name: str
    model: dict[str, int] | None
    shares: tuple[float, float, float, float]
    members: int
    epochs: int


SIZES = (
    Size("19M", SMALL, (20, 5, 16, 20), 3, 2),
    Size("135M", None, (7, 2, 4, 5), 2, 1),
    Size("307M", LARGE, (3, 1, 2, 2), 2, 1),
)
QUICK = (Size("19M", SMALL, (4, 1, 2, 2), 2, 1),)


def write(size: Size, folder: Path) -> Path:
    """Write a size's base and its config."""
    base = EMBEDDED
    if size.model:
        base = str(folder / "base")
        if not Path(base).exists():
            subprocess.run([sys.executable, __file__, "--make", base, json.dumps(size.model)], check=True)
    config = yaml.safe_load((HERE.parent / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    train, validation, test, foreign = size.shares
    config["base"]["model"] = base
    config["data"] = {
        "train": [f"commonsense_qa/validation[0%:{train}%]"],
        "validation": [f"commonsense_qa/validation[30%:{30 + validation}%]"],
        "calibration": [f"commonsense_qa/validation[40%:{40 + validation}%]"],
        "test": [f"commonsense_qa/validation[{100 - test}%:100%]"],
        "out_of_domain": [f"openbookqa/validation[0%:{foreign}%]"],
    }
    config["training"] |= {"members": size.members, "epochs": size.epochs}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def make(folder: Path, settings: dict[str, int]) -> None:
    """Save a random Llama with the embedded model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ripieno.config import Base
    from ripieno.model import backbone

    tokenizer = backbone.load(Base()).tokenizer
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **settings, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ripieno(processor: bool, *arguments: str | Path) -> tuple[float, float, str]:
    """Run a command; return its seconds, its highest resident size in MiB, and what it printed."""
    begin = time.perf_counter()
    program = ["-c", OF_PROCESSOR] if processor else ["-m", "ripieno.cli"]
    command = [sys.executable, *program, *map(str, arguments), "--quiet"]
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if processor else {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = used.ru_utime + used.ru_stime if processor else time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"FAILED: {' '.join(command)}")
    return seconds, used.ru_maxrss / 1024, said


def rounds(size: Size, folder: Path, count: int, processor: bool) -> Iterator[dict[str, Any]]:
    """Yield what was planned and what was measured of a size, round by round."""
    config = write(size, folder)
    for number in range(count):
        load = os.getloadavg()[0]
        took, _, said = ripieno(processor, "plan", config, "--json")
        planned = json.loads(said)
        run = folder / f"run-{number}"
        found: dict[str, Any] = {"size": size.name, "load": load, "plan": took}
        for stage, arguments in (("training", ("train", config, "--run", run)), ("evaluation", ("evaluate", run))):
            seconds, memory, _ = ripieno(processor, *arguments)
            expected = planned[stage]
            found[stage] = (sum(expected["seconds"].values()), seconds, expected["peak_bytes"] / 2**20, memory)
            print(f"{size.name}, {stage}: {json.dumps(expected['seconds'])}", file=sys.stderr, flush=True)
        yield found


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rounds as Markdown."""
    lines = ["| base | command | planned (s) | measured (s) | ratio | planned (MiB) | measured (MiB) | ratio | load |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for one in found:
        for stage, command in (("training", "train"), ("evaluation", "evaluate")):
            planned, measured, memory, peak = one[stage]
            cells = [one["size"], f"`{command}`", f"{planned:.0f}", f"{measured:.0f}", f"{planned / measured:.2f}"]
            cells += [f"{memory:,.0f}", f"{peak:,.0f}", f"{memory / peak:.2f}", f"{one['load']:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="the smallest base on few questions: under 2 minutes")
    options.add_argument("--rounds", type=int, default=1, help="of each size (%(default)s)")
    options.add_argument("--only", help="a size, such as 135M")
    options.add_argument("--processor", action="store_true", help="count seconds of the processor, of one thread")
    args = options.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        for size in QUICK if args.quick else SIZES:
            if args.only in (None, size.name):
                folder = Path(name) / size.name
                folder.mkdir()
                for one in rounds(size, folder, args.rounds, args.processor):
                    found.append(one)
                    print("\n".join(table([one])[2:]), flush=True)
    print("\n".join(table(found)))
    ratios = [one[stage][0] / one[stage][1] for one in found for stage in ("training", "evaluation")]
    worst = max(ratios, key=lambda ratio: max(ratio, 1 / ratio))
    print(f"\nTimes are off by {abs(worst - 1):.0%} at most (goal: {WITHIN:.0%}); plan took", end=" ")
    print(", ".join(f"{one['plan']:.0f} s" for one in found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main()
