"""What a whole job takes, from a short measurement on the machine at hand: time, memory, members a pass.

Everything that is counted is exact: the real questions are encoded with the real tokenizer. Everything that is timed is
the real thing on a part of them: the base is loaded, the trainer takes steps of the first group of members on batches
drawn over its first epoch, a member and the base answer a sample of all lengths. Times are scaled by the operations of
the base's matrix products at the tokens to read, which the engine counts alike for both.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ripieno import experiment
from ripieno.config import Config
from ripieno.data.question import Question
from ripieno.ensemble import Ensemble, assemble, device_of
from ripieno.evaluation import NOISE_QUESTIONS
from ripieno.model import backbone as backbones
from ripieno.model.adapters import ADAPTER_FILES
from ripieno.model.batching import Row
from ripieno.model.features import read_prompts
from ripieno.model.packing import shared_fronts
from ripieno.model.prediction import Asked
from ripieno.model.scoring import Engine
from ripieno.model.trees import TokenSequence, TokenTree
from ripieno.parquet import to_parquet
from ripieno.predictions import Predictions
from ripieno.progress import Progress
from ripieno.prompt_features import first_by_content
from ripieno.report.words import counted
from ripieno.runs import RunFolder
from ripieno.training import diversity
from ripieno.training.loop import Examples, Trainer

STEPS_SECONDS, ASKING_SECONDS, PROMPTS_SECONDS = 12.0, 6.0, 3.0  # what is measured of each, about
FEWEST_STEPS = 2
Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    """One command of the job.

    Args:
        seconds: what takes them -> how many.
        peak_bytes: the most memory at once: of the process, or of the GPU.
    """

    seconds: Mapping[str, float]
    peak_bytes: int

    @property
    def total(self) -> float:
        """Seconds of all."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Plan:
    """What a job takes on this machine.

    Args:
        training, evaluation: `ripieno train` and `ripieno evaluate`, whole and undisturbed.
        device: that computes.
        members, members_per_pass, batch_tokens: of the ensemble, of a forward pass, and the most tokens of one.
        base_bytes: of the base's weights.
        member_bytes: of a member in training: its adapter and two moments, beside gradients while it takes its step.
        workers: processes that `launch.workers` asks for, where that is a number.
        measured_seconds: how long it took to find this out.
    """

    training: Stage
    evaluation: Stage
    device: str
    members: int
    members_per_pass: int
    batch_tokens: int
    base_bytes: int
    member_bytes: int
    workers: int | None
    measured_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON: seconds and bytes."""
        return asdict(self)


def plan(
    config: Config, *, data_dir: Path | None = None, started: float = 0.0, progress: Progress | None = None
) -> Plan:
    """Measure for about half a minute what a job takes; nothing is written but to a temporary folder.

    Args:
        config: an experiment.
        data_dir: a folder with originally released data files.
        started: seconds that a process takes until it can do anything: to import what it needs.
        progress: where it says what it does.

    Raises:
        UserError: the config does not fit the data or the base.
    """
    begin, progress = time.perf_counter(), progress or Progress(quiet=True)
    progress.describe("loading the data and the base")
    roles, reading = _timed(lambda: experiment.assign_roles(config, data_dir))
    device = torch.device(device_of(config.compute))
    with _peak(device) as of_loading:
        backbone, loading = _timed(lambda: backbones.load(config.base, device))
    base_bytes = sum(parameter.nbytes for parameter in backbone.model.parameters())
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    given, config = config.compute, experiment.resolve(config, backbone)
    M, E = config.training.members, config.training.epochs
    ensemble, assembling = _timed(lambda: assemble(config, backbone, range(M), data_dir))
    progress.describe("encoding the questions")
    (rows, validation, _), encoding = _timed(lambda: experiment.training_rows(ensemble, config, roles))
    unlabelled = experiment.unlabelled_questions(ensemble, config, roles)[0] if config.training.repulsion else []
    examples = Examples(rows, ensemble.encoder, config)
    step_tokens, encoding_rows = _timed(examples.step_tokens)
    config = experiment.resolve(config.model_copy(update={"compute": given}), backbone, step_tokens)
    P, budget = config.compute.members_per_pass, config.compute.batch_tokens
    assert isinstance(P, int)
    assert isinstance(budget, int)
    ensemble.members_per_pass = P
    starting = started + reading + loading + assembling
    engine = ensemble.engine

    sets = [_set(ensemble, questions, epochs) for questions, epochs in experiment.asked(config, roles)]
    progress.describe("asking a sample")
    asking = _ask(ensemble, [*(one.asked for one in sets), validation], device)
    progress.describe("reading a sample of the prompts")
    prompts = [tree for one in sets[: len(experiment.evaluated(roles))] for tree in one.asked.trees]
    for loaded in roles.sets["train"].values():
        some = first_by_content(loaded.questions)
        prompts += ensemble.encoder.trees(some, config.training.max_tokens, "drop")[0]
    reading_prompts, of_prompts = _read(engine, prompts, device)

    progress.describe("taking a few steps")
    with tempfile.TemporaryDirectory() as folder:
        trained = _train(ensemble, examples, unlabelled, config, Path(folder), device)

    # What trains under bagging is a sample of the same rows, and choices in another order are as long.
    plain = config.training.model_copy(update={"bagging": False, "shuffle_choices": False})
    whole = Examples(rows, ensemble.encoder, config.model_copy(update={"training": plain}))
    templates = max(1, len(plain.templates))
    operations = sum(_epoch_operations(engine, whole.epoch(m, 1)) for m in range(templates)) / templates
    again = encoding_rows if config.training.shuffle_choices else 0.0
    saves = 1 + (math.ceil(len(rows) / plain.batch_size) - 1) // plain.save_every if plain.save_every else 1
    training = Stage(
        {
            "start": starting + encoding + encoding_rows + asking.once + trained.once,
            "steps": M * E * (operations * trained.rate + again),
            "validation": M * E * asking.seconds(engine, validation),
            "saving": M * E * saves * trained.saving,
        },
        # Members are validated with their moments at hand.
        max(of_loading.bytes, trained.peak_bytes, asking.peak_bytes + M * trained.state_bytes * 2 // 3),
    )
    evaluation = Stage(
        {
            "start": starting + asking.once,
            "encoding": sum((1 + one.epochs) * one.encoding for one in sets),
            "asking": sum((1 + M * one.epochs) * asking.seconds(engine, one.asked) for one in sets),
            "bringing and writing": sum(
                (1 + M * one.epochs) * (asking.bringing + asking.writing * len(one.asked.trees)) for one in sets
            ),
            "noise floor": max(M, 2) * asking.seconds(engine, sets[0].asked, NOISE_QUESTIONS) if sets else 0.0,
            "prompts": reading_prompts,
        },
        max(of_loading.bytes, asking.peak_bytes, of_prompts),
    )
    workers = config.launch.workers
    return Plan(
        training=training,
        evaluation=evaluation,
        device=str(device),
        members=M,
        members_per_pass=P,
        batch_tokens=budget,
        base_bytes=base_bytes,
        member_bytes=trained.state_bytes,
        workers=workers if isinstance(workers, int) else None,
        measured_seconds=time.perf_counter() - begin,
    )


# ---- measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Set:
    """Questions to ask, the seconds it takes to encode them, and after how many epochs the members are asked."""

    asked: Asked
    encoding: float
    epochs: int


def _set(ensemble: Ensemble, questions: Sequence[Question], epochs: int) -> _Set:
    return _Set(*_timed(lambda: ensemble.encode(questions, bare=ensemble.evaluation.unconditional)), epochs)


@dataclass(frozen=True)
class _Trained:
    """What steps took: seconds an operation; of a member's end of an epoch; bytes of its state; the peak of all.

    `once`: the seconds of what the first step makes, and later ones use.
    """

    rate: float
    saving: float
    once: float
    state_bytes: int
    peak_bytes: int


class _Drawn(Examples):
    """Some batches of the first epoch, each member's own.

    Args:
        whole: all examples.
        batches: which of an epoch's.
        members: that train on them.
    """

    def __init__(self, whole: Examples, batches: Sequence[int], members: Sequence[int]):
        size = whole.config.training.batch_size
        self.of = {}
        for m in members:
            rows = whole.epoch(m, 1)
            self.of[m] = [row for n in batches for row in rows[n * size : (n + 1) * size]]
        # How many there are is all that the trainer asks of the questions themselves.
        super().__init__(whole.rows[: len(self.of[members[0]])], whole.encoder, whole.config)

    def epoch(self, member: int, epoch: int) -> list[Row]:
        return self.of[member]


def _train(
    ensemble: Ensemble,
    whole: Examples,
    unlabelled: Sequence[TokenTree],
    config: Config,
    folder: Path,
    device: torch.device,
) -> _Trained:
    """Train the first group of members for a step on the heaviest batch, then for some on batches of all weights."""
    training = config.training
    config = config.model_copy(
        update={"training": training.model_copy(update={"epochs": 1, "patience": None, "save_every": None})}
    )
    stack, engine = copy.copy(ensemble.stack), ensemble.engine
    if not training.repulsion:  # under which all of them take every step together
        stack.members = stack.members[: ensemble.members_per_pass]
    driver = diversity.Driver(engine, unlabelled, config) if unlabelled else None
    size, first = training.batch_size, whole.epoch(stack.members[0], 1)
    weights = [sum(row.read for row in first[n : n + size]) for n in range(0, len(first), size)]
    # The last batch may be a part of one.
    order = sorted(range(max(1, len(first) // size)), key=weights.__getitem__)

    def take(name: str, batches: Sequence[int]) -> tuple[dict[str, Any], float, RunFolder, _Drawn]:
        run, drawn = RunFolder(folder / name), _Drawn(whole, batches, stack.members)
        run.path.mkdir()
        trainer = Trainer(engine, stack, drawn, None, config, run, Progress(quiet=True), driver)
        _, seconds = _timed(trainer.train)
        [line] = [line for line in run.lines("timing.jsonl") if line["what"] == "train"]
        return line, seconds, run, drawn

    with _peak(device) as peak:
        line, _, _, drawn = take("first", order[-1:])
        begun, of_begun = line["seconds"], sum(_epoch_operations(engine, rows) for rows in drawn.of.values())

        def steps(count: int) -> tuple[float, tuple[dict[str, Any], float, RunFolder, _Drawn]]:
            found = take(f"{count}-steps", _evenly(order, count))
            return found[0]["seconds"], found

        _, (line, seconds, run, drawn) = _filling(steps, FEWEST_STEPS, len(order), STEPS_SECONDS, begun)
    operations = sum(_epoch_operations(engine, rows) for rows in drawn.of.values())
    [state, *_] = sorted((run.path / "resume").glob("*.safetensors"))
    bytes_of_state = state.stat().st_size
    # The adapters of all are in the engine; those who took no step have no moments yet.
    others = (len(ensemble.stack.members) - len(stack.members)) * bytes_of_state * 2 // 3
    saving = (seconds - line["seconds"]) / len(stack.members)
    rate = line["seconds"] / operations
    return _Trained(rate, saving, max(0.0, begun - rate * of_begun), bytes_of_state, peak.bytes + others)


@dataclass(frozen=True)
class _Asking:
    """What asking takes: seconds an operation, a member's merging, its reading, a written answer; the peak of all.

    `once`: the seconds of what a process makes in its first pass, and uses in all later ones.
    """

    rate: float = 0.0
    merging: float = 0.0
    bringing: float = 0.0
    writing: float = 0.0
    once: float = 0.0
    peak_bytes: int = 0

    def seconds(self, engine: Engine, asked: Asked, first: int | None = None) -> float:
        """Return the seconds in which one member answers questions, or the first of them."""
        bare = list({(tree.question, tree.branches): tree for tree in asked.bare}.values())
        operations = sum(_asking_operations(engine, trees[:first]) for trees in (asked.trees, bare))
        return self.merging + self.rate * operations if asked.trees else 0.0


def _ask(ensemble: Ensemble, sets: Sequence[Asked], device: torch.device) -> _Asking:
    """Let members (one, but where questions are too few to fill its passes) answer a sample."""
    engine, stack = ensemble.engine, ensemble.stack
    pairs = [pair for asked in sets for pair in zip(asked.questions, asked.trees, strict=True)]
    if not pairs:
        return _Asking()
    ordered = [question for question, _ in sorted(pairs, key=lambda pair: pair[1].read)]
    positions = range(min(ensemble.members_per_pass, len(stack.members)))

    def ask(count: int) -> tuple[float, tuple[float, Predictions]]:
        some = ensemble.encode(_evenly(ordered, count), bare=ensemble.evaluation.unconditional)
        engine.forget()
        before = engine.meter.operations
        p, seconds = _timed(lambda: ensemble.answer(some, positions))
        return seconds, (engine.meter.operations - before, p)

    with _peak(device) as peak:
        first, (of_first, _) = ask(1)
        seconds, (operations, p) = _filling(ask, 4, len(ordered), ASKING_SECONDS, ask(4)[0] / 4)

    def merge() -> None:
        with stack.merged(0):
            stack.digest(0)

    def bring() -> None:
        settings, tensors = stack.to_peft(0, "", None)
        (folder / ADAPTER_FILES[0]).write_text(settings)
        (folder / ADAPTER_FILES[1]).write_bytes(tensors)
        stack.load_peft(0, folder)

    _, merging = _timed(merge)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, bringing = _timed(bring)
    _, writing = _timed(lambda: to_parquet(p))
    rate = max(seconds - merging * len(positions), seconds / 2) / operations
    once = max(0.0, first - merging - rate * of_first)
    return _Asking(rate, merging, bringing, writing / (len(p.members) * len(p.question_ids)), once, peak.bytes)


def _read(engine: Engine, trees: Sequence[TokenTree], device: torch.device) -> tuple[float, int]:
    """Read a sample of prompts with the base alone; return the seconds of all, and the peak."""
    if not trees or engine.backbone.model.get_output_embeddings() is None:
        return 0.0, 0
    ordered = sorted(trees, key=lambda tree: len(tree.question))

    def read(count: int) -> tuple[float, float]:
        some = _evenly(ordered, count)
        _, seconds = _timed(lambda: read_prompts(engine, some))
        return seconds, seconds / operations(some)

    def operations(some: Iterable[TokenTree]) -> float:
        return sum(engine.meter.count(len(tree.question), len(tree.question)) for tree in some)

    with _peak(device) as peak:
        _, rate = _filling(read, 4, len(ordered), PROMPTS_SECONDS, read(4)[0] / 4)
    return rate * operations(trees), peak.bytes


def _epoch_operations(engine: Engine, rows: Sequence[Row]) -> float:
    """Return the operations of a member's epoch, forward passes alone; what rows share in training is left out.

    After an epoch the trainer looks at the loss of the shortest row, without a backward pass, which takes as long.
    """
    found = [
        engine.meter.count(row.read, row.length if isinstance(row, TokenSequence) else 1 + row.fed) for row in rows
    ]
    return sum(found) + min(found) / 2


def _asking_operations(engine: Engine, trees: Sequence[TokenTree]) -> float:
    """Return the operations of asking: what questions share at the front is read once."""
    shared = shared_fronts(trees) if engine.packed else [0] * len(trees)
    fronts = {tree.question[:n] for tree, n in zip(trees, shared, strict=True) if n}
    tokens = sum(tree.read - n for tree, n in zip(trees, shared, strict=True)) + sum(map(len, fronts))
    return engine.meter.count(tokens, sum(1 + tree.fed for tree in trees) + len(fronts))


def _evenly(ordered: Sequence[Result], count: int) -> list[Result]:
    """Return so many at even steps, or all."""
    count = min(count, len(ordered))
    return [ordered[int((n + 0.5) * len(ordered) / count)] for n in range(count)]


def _filling(
    measure: Callable[[int], tuple[float, Result]], fewest: int, most: int, seconds: float, pace: float
) -> tuple[float, Result]:
    """Measure so many things that it takes about some seconds, or all; return what `measure` then returns.

    What it took for fewer says how many they are; a GPU's first passes are slow, and say too few at first.

    Args:
        measure: takes how many, and returns the seconds and the result.
        fewest, most: how many may be measured.
        seconds: that it is to take; half of them at least, unless there are no more.
        pace: seconds for one, by a first pass.
    """
    while True:
        count = min(most, max(fewest, int(seconds / pace)))
        took, found = measure(count)
        if count == most or took > seconds / 2:
            return took, found
        pace = took / count


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    begin = time.perf_counter()
    found = work()
    if torch.cuda.is_initialized():  # a GPU works on after it was told what to do
        torch.cuda.synchronize()
    return found, time.perf_counter() - begin


class _Peak:
    """The most memory in use within a block, in bytes."""

    bytes = 0


@contextmanager
def _peak(device: torch.device) -> Iterator[_Peak]:
    """Measure the most memory in use at once: of the GPU, or else of the process."""
    found, status, forgets = _Peak(), Path("/proc/self/status"), False
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # some containers do not let it be written
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the highest resident size so far
            forgets = True
    yield found
    if device.type == "cuda":
        found.bytes = torch.cuda.max_memory_allocated(device)
    elif forgets:
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        found.bytes = int(line.split()[1]) * 1024
    else:  # of the process so far
        found.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---- in words ---------------------------------------------------------------------------------------------------


def said(planned: Plan) -> Iterator[str]:
    """Yield a plan as lines of text."""
    yield (
        f"Estimated from {planned.measured_seconds:.0f} s of the real work on this machine ({planned.device}): "
        "other work on it makes all of it longer."
    )
    for command, stage in (("train", planned.training), ("evaluate", planned.evaluation)):
        parts = ", ".join(f"{what} {_duration(seconds)}" for what, seconds in stage.seconds.items() if seconds >= 0.5)
        yield f"  {'ripieno ' + command:<18}{_duration(stage.total):>12}   {_size(stage.peak_bytes):>8}   ({parts})"
    yield f"Memory is the most at once; of it the base takes {_size(planned.base_bytes)}, and each of the"
    yield f"{planned.members} members {_size(planned.member_bytes)} while training: its adapter and two moments."
    yield (
        f"A pass holds {planned.members_per_pass} of the members and {planned.batch_tokens:,} tokens at most "
        "(compute.members_per_pass, compute.batch_tokens)."
    )
    if planned.workers and planned.workers > 1:
        each = math.ceil(planned.members / planned.workers)
        own = planned.training.seconds
        seconds = own["start"] + (planned.training.total - own["start"]) * each / planned.members
        yield (
            f"launch.workers {planned.workers}, not measured: {counted(each, 'member')} a group, so training would "
            f"take about {_duration(seconds)} and asking 1/{planned.workers} of its time, were each worker a machine "
            "like this."
        )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
