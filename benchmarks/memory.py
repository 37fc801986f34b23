"""Memory of training: five members over one base against five processes of PEFT, and what 31 more members add.

    python benchmarks/memory.py [--quick]

memory_5       Peak memory of a training step of 5 members. Theirs: 5 separate processes, each a PEFT model in a loop
               with AdamW (batches padded to their longest, logits of every token, the library's own loss), held at a
               barrier before each step so that all are in it at once. Ours: one process, `ripieno.experiment.train`,
               which is `ripieno train`. Memory is the summed PSS of the processes, in which a page that several of
               them map counts once; sampled every 0.1 s until the first of them ends its step. Both sides take the
               same steps on the same batches from the same adapters, and every step's loss must agree.
memory_growth  How much higher the peak of a step of our own training is with 32 members than with one, on questions of
               one length, each in a process of its own (the highest resident size, which the kernel keeps), all
               members' optimizer states included. Theirs is the limit: 300 MB.

A round is a step, of the same processes. Before the rounds that count comes one step that makes the optimizer states.

The base is SmolLM2-135M-Instruct (float32, rank 8 on q_proj and v_proj), the questions are MMLU and CommonsenseQA with
letters, of at most 128 tokens, so that five processes of theirs fit into 16 GiB. Each process has one thread. With
--quick batches hold 2 questions, which favours theirs: what a batch needs counts for less beside the base.
Linux alone: /proc is read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from side_by_side import Result, fail, parser, record

MEMBERS, MANY = 5, 32
LONGEST = 128  # tokens
LIMIT = 0.3e9 / 2**20  # MiB
LEARNING_RATE = 1e-4
INTERVAL = 0.1  # seconds between two samples

# Largest difference of a step's loss, in nats. Both sides are float32 with sums in another order: about 2.6e-6 of a
# logit's size (2^-24 a rounding, sqrt(576 / 64) of them a product, sqrt(210) for 210 products in a row), so 5e-5 for
# logits of 20; twice that, as AdamW's steps after the first differ by roundings too.
BOUND = 1e-4


class Worker:
    """A process that loads, waits at the barrier, trains, and stays until it is told to end."""

    def __init__(self, side: str, folder: Path, number: int):
        command = [sys.executable, __file__, "--worker", side, str(folder), str(number)]
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )

    def expect(self, word: str) -> str:
        """Return what follows a word that the worker says next; what libraries print goes by."""
        for line in _pipe(self.process.stdout):
            said, _, rest = line.strip().partition(" ")
            if said == word:
                return rest
        fail(f"a worker ended before it said {word!r} (exit status {self.process.wait()})")
        raise AssertionError

    def tell(self) -> None:
        """Let the worker go on."""
        pipe = _pipe(self.process.stdin)
        pipe.write("\n")
        pipe.flush()

    def pss(self) -> float:
        """Return the proportional set size, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def workers(side: str, folder: Path, numbers: Sequence[int]) -> Iterator[list[Worker]]:
    """Start workers, and bring them all to the barrier."""
    started = [Worker(side, folder, number) for number in numbers]
    try:
        for worker in started:
            worker.expect("ready")
        yield started
    finally:
        for worker in started:
            worker.process.kill()
            worker.process.wait()


def peaks(side: str, folder: Path, numbers: Sequence[int], steps: int) -> tuple[list[float], dict[str, list[float]]]:
    """Return the highest summed PSS of workers in each step while all of them are in it, in MiB, and the losses."""
    found = []
    with workers(side, folder, numbers) as started:
        for step in range(steps):
            if step:
                for worker in started:
                    worker.expect("ready")
            for worker in started:
                worker.tell()
            flags = [folder / f"{side}-{number}-{step}.done" for number in numbers]
            samples = []
            while not any(flag.exists() for flag in flags) and all(w.process.poll() is None for w in started):
                samples.append(sum(worker.pss() for worker in started))
                time.sleep(INTERVAL)
            found.append(max(samples))
        said = [json.loads(worker.expect("done")) for worker in started]
    return found, {member: values for line in said for member, values in line["losses"].items()}


def memory_5(folder: Path, rounds: int) -> Result:
    """Compare the peaks of five members."""
    theirs, their_losses = peaks("theirs", folder, range(MEMBERS), rounds + 1)
    ours, our_losses = peaks("ours", folder, [MEMBERS], rounds + 1)
    worst = max(
        abs(a - b) for member in our_losses for a, b in zip(our_losses[member], their_losses[member], strict=True)
    )
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        say(f"memory_5, round {number}/{rounds}: theirs {b:,.0f} MiB, ours {a:,.0f} MiB")
    say(f"memory_5: losses of the same batches differ by {worst:.1e} at most (bound {BOUND:.0e})")
    if not worst <= BOUND:
        fail(f"memory_5: losses of the same batch differ by {worst:.2e}, more than {BOUND:.0e}")
    return result("memory_5", ours[1:], theirs[1:], "theirs: 5 processes")


def memory_growth(folder: Path, rounds: int) -> Result:
    """Compare the growth from one member to many with the limit."""
    # Resident sizes do not depend on who else runs, so both may run at once, one on each core.
    with workers("ours", folder, [1]) as one, workers("ours", folder, [MANY]) as many:
        for worker in (*one, *many):
            for _ in range(rounds + 1):
                worker.tell()
        few, most = (json.loads(worker.expect("done"))["peaks"][1:] for worker in (*one, *many))
    for number, (a, b) in enumerate(zip(few, most, strict=True)):
        say(f"memory_growth, round {number + 1}/{rounds}: 1 member {a:,.0f} MiB, {MANY} members {b:,.0f} MiB")
    growths = [max(b - a, 1.0) for a, b in zip(few, most, strict=True)]  # pages fall as they may: none is not negative
    note = f"ours: growth from 1 to {MANY} members; theirs: the limit, 300 MB"
    return result("memory_growth", growths, [LIMIT] * rounds, note)


def result(name: str, ours: Sequence[float], theirs: Sequence[float], note: str) -> Result:
    """Return the result of rounds."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    middle = [statistics.median(values) for values in (ours, theirs, ratios)]
    return Result(name, *middle, min(ratios), max(ratios), "MiB", note)


def say(text: str) -> None:
    """Print progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    args = parser(__doc__ or "").parse_args()
    args.threads = 1  # each process has one, whatever was asked for
    with tempfile.TemporaryDirectory() as name:
        folders = {"memory_5": Path(name) / "five", "memory_growth": Path(name) / "growth"}
        prepare(folders, args)
        record([memory_growth(folders["memory_growth"], args.rounds)], args)
        record([memory_5(folders["memory_5"], args.rounds)], args)


# ---- what runs in the workers ---------------------------------------------------------------------------------------


def prepare(folders: dict[str, Path], args: argparse.Namespace) -> None:
    """Write the questions, and what theirs starts from, in a process of its own: this one stays small."""
    sizes = {"memory_5": 2, "memory_growth": 2} if args.quick else {"memory_5": 8, "memory_growth": 4}
    for name, size in sizes.items():
        folders[name].mkdir()
        # Of the many members every step takes questions of one length: no peak is that of one longest batch.
        plan = {"batch_size": size, "count": (args.rounds + 1) * size, "one_length": name == "memory_growth"}
        (folders[name] / "plan.json").write_text(json.dumps(plan))
    subprocess.run([sys.executable, __file__, "--worker", "prepare", folders["memory_5"].parent, "0"], check=True)


def config_of(folder: Path, members: int) -> Any:
    """Return the experiment that ours trains."""
    from ripieno.config import Adapter, Compute, Config, Data, Prompt, Training

    plan = json.loads((folder / "plan.json").read_text())
    return Config(
        name="memory",
        adapter=Adapter(targets=("q_proj", "v_proj"), rank=8, alpha=16),
        prompt=Prompt(template="letters"),
        data=Data(train=(str(folder / "questions.jsonl"),)),
        training=Training(
            members=members,
            loss="answer_token",
            learning_rate=LEARNING_RATE,
            epochs=1,
            batch_size=plan["batch_size"],
        ),
        compute=Compute(threads=1),
    )


def write_inputs(folders: Sequence[Path]) -> None:
    """Write the questions, and each member's first adapter and batches for theirs."""
    from ripieno import experiment
    from ripieno.data import splits
    from ripieno.data.question import read_questions
    from ripieno.ensemble import Ensemble
    from ripieno.model import backbone as backbones
    from ripieno.training.loop import Examples, member_seed

    config = config_of(folders[0], MEMBERS)
    backbone = backbones.load(config.base)
    config = experiment.resolve(config, backbone)
    ensemble = Ensemble.assemble(backbone, config.adapter, range(MEMBERS), config.prompt, compute=config.compute)
    sets = ("mmlu:all/dev+validation", "commonsense_qa/validation")
    pool = {question.id: question for name in sets for question in splits.load(name).questions}
    trees, _ = ensemble.encoder.trees(list(pool.values()), None, "error")
    fitting = sorted((tree.length, key) for key, tree in zip(pool, trees, strict=True) if tree.length <= LONGEST)
    for folder in folders:
        plan = json.loads((folder / "plan.json").read_text())
        count, size = plan["count"], plan["batch_size"]
        # Neighbours among the shorter ones (many members take long), or at even steps through all lengths.
        at = [len(fitting) // 8 + n for n in range(count)]
        if not plan["one_length"]:
            at = [int((n + 0.5) * len(fitting) / count) for n in range(count)]
        lines = []
        for q in (pool[fitting[n][1]] for n in at):
            lines.append({"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer})
            lines[-1] |= {key: value for key in ("context", "subject") if (value := getattr(q, key))}
        file = folder / "questions.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        training = config.training.model_copy(update={"batch_size": size})
        examples = Examples(read_questions(file), ensemble.encoder, config.model_copy(update={"training": training}))
        for p in range(MEMBERS):
            ensemble.stack.initialise(p, member_seed(config.training.seed, p))
            adapter = folder / f"adapter-{p}"
            adapter.mkdir()
            settings, tensors = ensemble.stack.to_peft(p, str(backbones.locate(config.base)[0]), None)
            (adapter / "adapter_config.json").write_text(settings)
            (adapter / "adapter_model.safetensors").write_bytes(tensors)
            rows: list[Any] = examples.epoch(p, 1)
            sequences = [[*row.question, row.branches[row.answer][0]] for row in rows]
            batches = [sequences[first : first + size] for first in range(0, count, size)]
            (folder / f"batches-{p}.json").write_text(json.dumps(batches))


class Barrier:
    """Where a worker waits before each of its steps.

    Args:
        folder: where a file says that a step is done.
        name: of the worker.
        steps: how many it takes.
    """

    def __init__(self, folder: Path, name: str, steps: int):
        self.folder, self.name, self.steps = folder, name, steps
        self.done = -1
        self.peaks: list[float] = []

    def pass_by(self) -> None:
        """End a step (if one has been taken), and wait for the others before the next (if there is one)."""
        if self.done >= 0:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peaks.append(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)
            (self.folder / f"{self.name}-{self.done}.done").touch()
        self.done += 1
        if self.done < self.steps:
            print("ready", flush=True)
            sys.stdin.readline()
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the highest resident size so far

    def leave(self, losses: dict[int, list[float]]) -> None:
        """Say what was found, and hold all memory until this process is ended."""
        print("done " + json.dumps({"losses": losses, "peaks": self.peaks}), flush=True)
        sys.stdin.readline()


def ours(folder: Path, members: int) -> None:
    """Train members as `ripieno train` does."""
    from ripieno import experiment
    from ripieno.progress import Progress

    config = config_of(folder, members)
    steps = json.loads((folder / "plan.json").read_text())["count"] // config.training.batch_size
    barrier = Barrier(folder, f"ours-{members}", steps)

    class Steps(Progress):
        """Passes the barrier where the training makes progress: before its first step, and after each."""

        def advance(self, units: int) -> None:
            super().advance(units)
            barrier.pass_by()

    with tempfile.TemporaryDirectory() as run_folder:
        run = experiment.train(config, Path(run_folder) / "run", progress=Steps(quiet=True))
        lines = [line for line in run.lines("metrics.jsonl") if line["kind"] == "step"]
    if len(barrier.peaks) != steps:
        fail(f"the training made progress {len(barrier.peaks)} times in {steps} steps; see `Trainer`")
    barrier.leave({m: [line["loss"] for line in lines if line["member"] == m] for m in range(members)})


def theirs(folder: Path, member: int) -> None:
    """Train one member with PEFT, as one writes it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    adapter = folder / f"adapter-{member}"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter, is_trainable=True
    )
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    batches = json.loads((folder / f"batches-{member}.json").read_text())
    losses = []
    barrier = Barrier(folder, f"theirs-{member}", len(batches))
    barrier.pass_by()
    for rows in batches:
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        labels = torch.full_like(tokens, -100)  # the loss is that of the answer alone
        for r, row in enumerate(rows):
            labels[r, len(row) - 1] = row[-1]
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        barrier.pass_by()
    barrier.leave({member: losses})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        side, folder, number = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
        if side == "prepare":
            write_inputs(sorted(path for path in folder.iterdir() if path.is_dir()))
        else:
            {"ours": ours, "theirs": theirs}[side](folder, number)
    else:
        main()
