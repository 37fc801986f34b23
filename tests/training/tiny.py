"""A tiny ensemble to train in a second or two: a llama of two layers, 14 questions of 2 to 5 choices."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from families import byte_level_tokenizer, tiny_model
from ripieno.config import Adapter, Compute, Config, Data, Prompt, Training
from ripieno.data.question import Question, Text
from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder
from ripieno.progress import Progress
from ripieno.runs import RunFolder
from ripieno.training.diversity import Driver
from ripieno.training.loop import Examples, Trainer, Validate

TEXT = "a plant near window of the house cat bird fish New York City season day one two three four five"
WORDS = TEXT.split()


def questions(count: int, seed: int = 0) -> list[Question]:
    """Return questions of random words: K from 2 to 5, other lengths of each, choices never equal."""
    draw = random.Random(seed)
    rows = []
    for n in range(count):
        choices: dict[str, None] = {}
        while len(choices) < 2 + n % 4:
            choices[" ".join(draw.choices(WORDS, k=draw.randint(1, 3)))] = None
        text = " ".join(draw.choices(WORDS, k=draw.randint(2, 9))) + "?"
        rows.append(Question(f"q{n}", text, tuple(choices), draw.randrange(len(choices))))
    return rows


# In batches of 4: the last batch of an epoch holds 2.
QUESTIONS = questions(14)
UNLABELLED = questions(9, seed=1)

# DESIGN.md: "training M together gives what training each alone gives, whatever the grouping (relative norm of B A
# within 1e-5 after 20 steps)". Groupings differ in the order of float32 sums alone: 6e-8 a step and product, which
# AdamW's division by the gradient's own size passes on; about 1e-6 is seen.
BOUND = 1e-5
FEW = questions(6)  # two batches an epoch
ONE_AT_A_TIME = Compute(members_per_pass=1, batch_tokens=100_000)  # so the same sums in the same order, to the last bit


def config(
    *,
    template: str = "text",
    normalisation: str = "sum",
    dropout: float = 0.0,
    compute: Compute | None = None,
    own: dict[str, Any] | None = None,
    **training: Any,
) -> Config:
    """Return a config of three members whose updates grow large in a few steps; `own`: more of the adapter."""
    adapter = {"targets": ("q_proj", "v_proj"), "rank": 2, "alpha": 4, "dropout": dropout, **(own or {})}
    given = {"members": 3, "epochs": 1, "learning_rate": 1e-2, "clip": 1.0, "batch_size": 4, **training}
    return Config(
        name="tiny",
        adapter=Adapter(**adapter),
        prompt=Prompt(template=template, normalisation=normalisation),  # type: ignore[arg-type]
        data=Data(train=("unread.jsonl",), validation=("unread.jsonl",)),
        training=Training(**given),
        compute=compute or Compute(members_per_pass=3, batch_tokens=100_000),
    )


def trainer(
    folder: Path,
    settings: Config,
    members: Sequence[int] = (0, 1, 2),
    rows: Sequence[Question | Text] = QUESTIONS,
    validate: Validate | None = None,
) -> Trainer:
    """Return what trains some members of an ensemble into a run folder."""
    model = tiny_model("llama").requires_grad_(False)
    backbone = Backbone(model, byte_level_tokenizer(), {"model": "tiny", "revision": None}, 512)
    stack = AdapterStack(model, settings.adapter, members)
    assert isinstance(settings.compute.batch_tokens, int)
    engine = Engine(backbone, stack, settings.compute.batch_tokens)
    engine.probe()
    encoder = Encoder(backbone.tokenizer, settings.prompt)
    examples = Examples(rows, encoder, settings)
    unlabelled = encoder.trees(UNLABELLED, None, "error")[0]
    driver = Driver(engine, unlabelled, settings) if settings.training.repulsion else None
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(engine, stack, examples, validate, settings, RunFolder(folder), Progress(quiet=True), driver)


def train(folder: Path, settings: Config, members: Sequence[int] = (0, 1, 2), **given: Any) -> Trainer:
    """Train some members of an ensemble into a run folder."""
    made = trainer(folder, settings, members, **given)
    made.train()
    return made


def updates(stack: AdapterStack, position: int) -> Tensor:
    """Return a member's B A of every layer, in one vector, in float64."""
    pairs = [(layer.A[position].double(), layer.B[position].double()) for layer in stack.layers.values()]
    return torch.cat([(B @ A).flatten() for A, B in pairs]).detach()


def stored_updates(file: Path) -> Tensor:
    """Return the same of an adapter's file of weights."""
    tensors = load_file(file)
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in sorted(tensors) if "lora_A" in name]
    return torch.cat([(tensors[b].double() @ tensors[a].double()).flatten() for a, b in pairs])


def distance(a: Tensor, b: Tensor) -> float:
    """Return the relative Frobenius norm of a difference."""
    return ((a - b).norm() / b.norm()).item()


def losses(made: Trainer, member: int) -> list[float]:
    """Return a member's loss at each step, as its run wrote them."""
    lines = made.run.lines("metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "step" and line["member"] == member]


# ---- kills ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here, as by a signal that nobody catches."""


def finished(folder: Path) -> dict[str, bytes]:
    """The adapters of a run, and its metrics."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "members").rglob("epoch-*/*"))}
    files["metrics"] = (folder / "metrics.jsonl").read_bytes()
    return files


def kill_at_write(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the process end after the count-th file that a run writes; after 0, when it would write the first."""
    write, written = RunFolder.write, iter(range(1000))

    def dying(run: RunFolder, path: Path, content: bytes | str) -> None:
        number = next(written)
        if number == count:
            raise Killed
        write(run, path, content)
        if number + 1 == count:
            raise Killed

    monkeypatch.setattr(RunFolder, "write", dying)
