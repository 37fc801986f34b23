"""On a GPU: the same numbers as on the processor, and what a base of 7B takes beside what it takes on paper.

    python benchmarks/on_gpu.py [--size 19M] [--only equal|job|train] [--folder /dev/shm] [--tokenizer FOLDER]

equal   A random Llama of 19M parameters in float32: `ripieno train` and `ripieno evaluate` on the processor and on the
        GPU, and how far apart their adapters (relative norm of B A) and probabilities are.
job     A random Llama with the shapes of Llama-2-7B in bfloat16 (the tokenizer is SmolLM2's, so its vocabulary is
        49,152; what a weight is changes no cost): `ripieno plan`, `train` and `evaluate` of five members of rank 8 on
        q_proj and v_proj, letters, CommonsenseQA in batches of 8. Printed: what plan said and what was measured, the
        highest memory of torch's allocator, and what benchmarks/on_paper.py counts for the very tokens of a step.
theirs  The same adapter trained by PEFT in a loop with AdamW, one member, on batches of the same questions: padded to
        their longest, logits of every token (what the Hugging Face Trainer does), or of the answers alone (the best
        that a careful user writes). M members one after the other take M times as long.

--only job is job and theirs; --only train is the job's training, unplanned, and theirs: half the time.

One GPU, alone. The base goes to a folder (13.5 GB; --folder: in memory by default). --size 19M tries the script out,
on a processor too.
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
from pathlib import Path
from typing import Any

import numpy as np
import on_paper
import safetensors.torch
import torch
import yaml
from train import Loss, Theirs, answers_last, labelled
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ripieno.config import Base, Prompt, Training
from ripieno.data import splits
from ripieno.model import backbone
from ripieno.model.trees import Encoder, TokenTree
from ripieno.parquet import read_parquet
from ripieno.runs import METHOD, RunFolder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = {
    "19M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4},
    "7B": on_paper.SHAPES["Llama-2-7B"],
}
QUESTIONS = {"19M": 10, "7B": 35}  # percent of CommonsenseQA's validation split (1,221 questions) to train on
MEMBERS, BATCH = 5, on_paper.BATCH
# Prints the peak of torch's allocator after a command.
PEAK = (
    "import atexit, sys, torch; from ripieno.cli import main\n"
    "atexit.register(lambda: print('peak', torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0))\n"
    "main()"
)


def save(name: str, dtype: torch.dtype, tokenizer: str | None, folder: Path) -> Path:
    """Save a random Llama with the embedded model's tokenizer."""
    found = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else backbone.load(Base()).tokenizer
    torch.manual_seed(0)
    ids = {"bos_token_id": found.bos_token_id, "eos_token_id": found.eos_token_id}
    config = LlamaConfig(vocab_size=len(found), tie_word_embeddings=False, dtype=dtype, **SHAPES[name], **ids)
    with torch.device(DEVICE):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    path = folder / f"base-{name}"
    model.save_pretrained(path)
    found.save_pretrained(path)
    return path


def write(base: Path, name: str, dtype: str, percent: int, folder: Path) -> Path:
    """Write the config of a job."""
    path = folder / f"{name}.yaml"
    config = {
        "name": name,
        "base": {"model": str(base), "dtype": dtype},
        "adapter": {"targets": ["q_proj", "v_proj"], "rank": 8, "alpha": 16},
        "prompt": {"template": "letters"},
        "data": {
            "train": [f"commonsense_qa/validation[0%:{percent}%]"],
            "validation": ["commonsense_qa/validation[70%:75%]"],
            "test": ["commonsense_qa/validation[90%:100%]"],
        },
        "training": {"members": MEMBERS, "epochs": 1, "batch_size": BATCH, "loss": "answer_token"},
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def ripieno(*arguments: str | Path) -> tuple[str, float, int]:
    """Run a command; return what it printed, its seconds, and the peak of torch's allocator in bytes."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"FAILED: {' '.join(map(str, arguments))}")
    said, _, peak = done.stdout.rpartition("peak ")
    return said, seconds, int(peak)


def answers(run: Path) -> np.ndarray[Any, Any]:
    """Return the probabilities of a run's only test set."""
    [file] = (run / "predictions").rglob(f"{METHOD}-epoch-001.parquet")
    [p] = read_parquet(file)
    return p.probs


def updates(run: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Return B A of every module of every member."""
    found = {}
    for file in sorted((run / "members").rglob("adapter_model.safetensors")):
        tensors = safetensors.torch.load_file(file)
        for name, A in tensors.items():
            if "lora_A" in name:
                found[file.parent.parent.name, name] = tensors[name.replace("lora_A", "lora_B")] @ A
    return found


def equal(folder: Path, tokenizer: str | None) -> Iterator[str]:
    """Compare the processor and the GPU."""
    config = write(save("19M", torch.float32, tokenizer, folder), "equal", "float32", 10, folder)
    for device in ("cpu", DEVICE):
        run = folder / f"on-{device}"
        ripieno("train", config, "--run", run, "--set", f"compute.device={device}", "--quiet")
        ripieno("evaluate", run, "--quiet")
    mine, other = (updates(folder / f"on-{device}") for device in (DEVICE, "cpu"))
    apart = max(float((mine[key] - other[key]).norm() / other[key].norm()) for key in other)
    probs = float(np.abs(answers(folder / f"on-{DEVICE}") - answers(folder / "on-cpu")).max())
    yield f"equal: {DEVICE} and processor: B A apart by {apart:.1e} of its norm at most, probabilities by {probs:.1e}"


def train(name: str, base: Path, folder: Path) -> Iterator[str]:
    """Train, and nothing else of the job."""
    config, run = write(base, "job", "bfloat16", QUESTIONS[name], folder), RunFolder(folder / "job")
    _, seconds, peak = ripieno("train", config, "--run", run.path, "--quiet")
    yield f"train: {seconds:.0f} s, peak {peak / 2**30:.1f} GiB"
    yield from timed(run)


def job(name: str, base: Path, folder: Path) -> Iterator[str]:
    """Plan, train and evaluate."""
    config = write(base, "job", "bfloat16", QUESTIONS[name], folder)
    planned = json.loads(ripieno("plan", config, "--json", "--quiet")[0])
    run = RunFolder(folder / "job")
    for stage, command in (("training", ("train", config, "--run", run.path)), ("evaluation", ("evaluate", run.path))):
        _, seconds, peak = ripieno(*command, "--quiet")
        expected = planned[stage]
        parts = ", ".join(f"{part} {took:.1f}" for part, took in expected["seconds"].items())
        yield (
            f"job: {stage}: {seconds:.0f} s (planned {sum(expected['seconds'].values()):.0f}), "
            f"peak {peak / 2**30:.1f} GiB (planned {expected['peak_bytes'] / 2**30:.1f}); planned: {parts}"
        )
    yield from timed(run)


def timed(run: RunFolder) -> Iterator[str]:
    """Say what a run wrote of its speed."""
    for line in run.lines("timing.jsonl"):
        yield f"job: timing: {json.dumps(line)}"
    yield f"job: members a pass: {run.config().compute.members_per_pass}"


def theirs(base: Path, name: str, folder: Path) -> Iterator[str]:
    """Train one member by PEFT."""
    loaded = backbone.load(Base(model=str(base), dtype="bfloat16"), DEVICE)
    questions = splits.load(f"commonsense_qa/validation[0%:{QUESTIONS[name]}%]").questions
    trees = Encoder(loaded.tokenizer, Prompt(template="letters")).trees(questions, None, "error")[0]
    tokens = sum(tree.read for tree in trees) / len(trees)
    steps: Sequence[Sequence[TokenTree]] = [trees[n : n + BATCH] for n in range(0, len(trees), BATCH)]
    paper = on_paper.needs(SHAPES[name] | {"vocab_size": len(loaded.tokenizer)})
    per_pass = RunFolder(folder / "job").config().compute.members_per_pass
    assert isinstance(per_pass, int)
    counted = paper.of(MEMBERS, per_pass) | {"pass": per_pass * BATCH * tokens * paper.token}
    parts = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in counted.items())
    yield f"paper: {sum(counted.values()) / 2**30:.1f} GiB for {tokens:.0f} tokens a question ({parts})"
    side = Theirs(loaded.model, Training(learning_rate=1e-4))
    initial = {key: value.detach().clone() for key, value in side.model.state_dict().items() if "lora_" in key}
    initial = {key.replace(".default", ""): value for key, value in initial.items()}
    ways: dict[str, tuple[Any, Loss]] = {
        "logits of every token": (labelled, Theirs.full_logits),
        "logits of the answers": (answers_last, Theirs.answer_logits),
    }
    for way, (batch_of, loss_of) in ways.items():
        batches = [{key: value.to(DEVICE) for key, value in batch_of(step).items()} for step in steps]
        side.train(batches[:3], initial, loss_of)
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trained = side.train(batches, initial, loss_of)
        peak = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0
        each = trained.seconds / len(steps)
        yield (
            f"theirs: {way}: {each:.4f} s a member and step, {len(trees) / trained.seconds:.1f} questions/s, "
            f"peak {peak / 2**30:.1f} GiB"
        )


def main() -> None:
    """Print a line a finding."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", choices=SHAPES, default="7B")
    arguments.add_argument("--only", choices=("equal", "job", "train"), help="see above")
    arguments.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    arguments.add_argument("--tokenizer", help="a folder; the embedded model's by default")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        print(torch.cuda.get_device_name() if DEVICE == "cuda" else "no GPU", torch.__version__, flush=True)
        if args.only in (None, "equal"):
            for line in equal(folder, args.tokenizer):
                print(line, flush=True)
        if args.only != "equal":
            base = save(args.size, torch.bfloat16, args.tokenizer, folder)
            ours = train if args.only == "train" else job
            for part in (ours(args.size, base, folder), theirs(base, args.size, folder)):
                for line in part:
                    print(line, flush=True)


if __name__ == "__main__":
    main()
