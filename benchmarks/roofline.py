"""What share of the machine's matrix rate training and evaluation reach, counting work that has to be done alone.

    python benchmarks/roofline.py [--quick] [--threads 1] [--profile]

roofline_train, roofline_evaluate  Ours: (multiply-adds that have to be done) / (seconds) / (the machine's matrix rate).
               Theirs: the goal, 0.85 in training and 0.90 in evaluation.
roofline       The one of the two that is further from its goal.

What has to be done, for real tokens alone: each of the base's linear layers at every token that is read, the output
layer at the rows that are scored, and attention's two products for every pair of tokens of which one sees the other. In
training also the adapters' products, and backwards the gradients with respect to inputs that something trained stands
before, and of the adapters. Never counted: padding, weights' gradients of the frozen base, norms, activations, softmax,
the optimizer. In evaluation the adapters are not counted, as they can be merged into the weights.

The machine's matrix rate: `torch.mm` in float32 of exactly the model's shapes (forwards, in training backwards too) at
a step's number of tokens, into memory that is there already, weighted as the model needs them. It alternates with
training and evaluation, which are `ripieno.training.loop.Trainer` (the seconds that its run keeps in timing.jsonl,
without checkpoints) and `Ensemble.answer`.

The count is checked against torch's FlopCounterMode: what was executed is never less. Questions are MMLU and
CommonsenseQA with letters, without the heading that names a subject; what questions of a pass share at the front is
needed once.

--profile prints where the time goes by kind of operation, as torch.profiler sees it, and records nothing.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from side_by_side import Result, fail, named, parser, record, use_threads
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ripieno import experiment
from ripieno.config import Adapter, Config, Data, Prompt, Training
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.ensemble import Ensemble
from ripieno.model import backbone as backbones
from ripieno.model.packing import shared_fronts
from ripieno.model.prediction import Asked
from ripieno.model.trees import TokenTree
from ripieno.progress import Progress
from ripieno.runs import RunFolder
from ripieno.training.loop import Examples, Trainer

GOALS = {"train": 0.85, "evaluate": 0.90}
SETS = ("mmlu:all/dev+validation", "commonsense_qa/validation")
BATCH = 8
FIRST = tuple(f"layers.0.self_attn.{name}_proj" for name in "qkv")

# Kinds of operations: the first whose words are part of a name. What is none of them is elementwise.
KINDS = {
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "::matmul"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "optimizer and clipping": ("_foreach_", "_fused_adam", "Optimizer.", "linalg_vector_norm"),
    "copies, cats and gathers": (
        *("::copy_", "::cat", "::index", "::gather", "::clone", "::embedding", "::stack", "::contiguous", "::select"),
        *("::scatter", "::new_full", "::zeros", "::fill_", "::zero_", "::arange", "::lift", "::_to_copy", "::to"),
    ),
    # Functions of autograd hold no work of their own: what they call is counted by its own name.
    "Python, autograd and dispatch": ("autograd::", "Backward"),
}
ELEMENTWISE, REST = "elementwise, norms, softmax", "Python, autograd and dispatch"


@dataclass(frozen=True)
class Shape:
    """A linear layer of the base, and what backwards needs of it.

    Args:
        inside, out: features.
        rank: of its adapter; 0 without one.
        trained_before: whether its input depends on something trained.
    """

    inside: int
    out: int
    rank: int
    trained_before: bool


@dataclass(frozen=True)
class Attention:
    """Attention: heads x features a head; layers, and those of them whose keys depend on something trained."""

    width: int
    layers: int
    trained_before: int


class Work:
    """Counts multiply-adds (2 operations each) that a model has to do.

    Args:
        model: a llama with its adapters.
        adapted: names of the layers with an adapter.
        rank: of each adapter.
    """

    def __init__(self, model: Any, adapted: Mapping[str, Any], rank: int):
        config, head = model.config, model.get_output_embeddings()
        self.shapes: list[Shape] = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and module is not head:
                place = name.removesuffix(".base")  # an adapted layer holds the base's own
                has_adapter = place in adapted
                # Of the first block's q, k and v the input is the embedding: nothing trained stands before them.
                first = place.endswith(FIRST)
                self.shapes.append(Shape(module.in_features, module.out_features, rank * has_adapter, not first))
        if len(self.shapes) != 7 * config.num_hidden_layers:
            fail(
                f"{len(self.shapes)} linear layers were found in {config.num_hidden_layers} blocks, 7 in each are meant"
            )
        self.head = Shape(head.in_features, head.out_features, 0, True)
        width = config.num_attention_heads * config.head_dim
        self.attention = Attention(width, config.num_hidden_layers, config.num_hidden_layers - 1)

    def linear(self, tokens: int, rows: int, training: bool) -> float:
        """Return the operations of all linear layers and adapters for so many tokens read and rows scored."""
        total = 0.0
        for count, shape in [*((tokens, shape) for shape in self.shapes), (rows, self.head)]:
            whole = 2.0 * count * shape.inside * shape.out
            narrow, wide = (2.0 * count * shape.rank * features for features in (shape.inside, shape.out))
            total += whole
            if training:
                total += narrow + wide  # forwards x A^T, then times B^T
                # Backwards: of B and of x A^T; of A, and where it is needed of x, through A and through W.
                total += 2 * wide + narrow + shape.trained_before * (narrow + whole)
        return total

    def attended(self, pairs: int, training: bool) -> float:
        """Return the operations of attention for so many pairs of a token and one that it sees (itself among them)."""
        of_product, a = 2.0 * pairs * self.attention.width, self.attention
        # Forwards Q K^T and P V; backwards gradients of P, V, Q and, where keys depend on something trained, of K.
        return of_product * (2 * a.layers + training * (3 * a.layers + a.trained_before))


def pairs(tree: TokenTree) -> int:
    """Return how many pairs of a token and one that it sees a question's tree holds."""
    q = len(tree.question)
    branches = [len(branch) - 1 for branch in tree.branches]
    return q * (q + 1) // 2 + sum(fed * q + fed * (fed + 1) // 2 for fed in branches)


@dataclass(frozen=True)
class Load:
    """What has to be done: tokens read, rows scored, pairs attended, and the operations of all."""

    tokens: int
    rows: int
    linear: float
    attention: float

    @property
    def operations(self) -> float:
        """All."""
        return self.linear + self.attention


def load_of(work: Work, passes: Sequence[Sequence[TokenTree]], training: bool) -> Load:
    """Return what trees need, all their rows that predict something being scored.

    What the trees of a pass share at the front is needed once, by the rule that the engine shares by.
    """
    tokens = rows = seen = 0
    for trees in passes:
        shared = shared_fronts(trees)
        fronts = Counter(tree.question[:n] for tree, n in zip(trees, shared, strict=True) if n)
        tokens += sum(tree.read for tree in trees) - sum((n - 1) * len(front) for front, n in fronts.items())
        rows += sum(1 + tree.fed for tree in trees)
        twice = sum((n - 1) * len(front) * (len(front) + 1) // 2 for front, n in fronts.items())
        seen += sum(map(pairs, trees)) - twice
    return Load(tokens, rows, work.linear(tokens, rows, training), work.attended(seen, training))


class MatrixRate:
    """Multiplies matrices of a model's shapes.

    Args:
        work: the model's.
        tokens: rows of the layers' input.
        rows: rows of the output layer's input.
        training: also the gradients with respect to inputs.
    """

    def __init__(self, work: Work, tokens: int, rows: int, training: bool):
        counts: Counter[tuple[int, int, int, bool]] = Counter()
        for count, shape in [*((tokens, shape) for shape in work.shapes), (rows, work.head)]:
            counts[count, shape.inside, shape.out, False] += 1
            if training and shape.trained_before:
                counts[count, shape.inside, shape.out, True] += 1
        generator = torch.Generator().manual_seed(0)
        self.products = []
        for (count, inside, out, backward), times in counts.items():
            x = torch.randn(count, out if backward else inside, generator=generator)
            weight = torch.randn(out, inside, generator=generator)
            # A layer's weight is [out, in]: forwards x W^T, backwards g W.
            right = weight if backward else weight.T
            self.products.append((x, right, torch.empty(count, right.shape[1]), times))

    def measure(self) -> float:
        """Return the operations a second over all products of one step, each as often as the model has it."""
        seconds = operations = 0.0
        for x, right, out, times in self.products:
            torch.mm(x, right, out=out)
            repeats = min(times, 5)
            start = time.perf_counter()
            for _ in range(repeats):
                torch.mm(x, right, out=out)
            seconds += (time.perf_counter() - start) / repeats * times
            operations += 2.0 * x.shape[0] * x.shape[1] * right.shape[1] * times
        return operations / seconds


class Bench:
    """One member on the base, questions to train on and questions to ask."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        steps, asked = (1, 16) if args.quick else (6, 96)
        config = Config(
            name="roofline",
            adapter=Adapter(targets=("q_proj", "v_proj"), rank=8, alpha=16),
            prompt=Prompt(template="letters"),
            data=Data(train=SETS),
            training=Training(members=1, epochs=1, loss="answer_token", batch_size=BATCH),
        )
        backbone = backbones.load(config.base)
        self.config = experiment.resolve(config, backbone)
        self.ensemble = Ensemble.assemble(
            backbone, self.config.adapter, [0], config.prompt, compute=self.config.compute
        )
        self.model = backbone.model
        self.work = Work(backbone.model, self.ensemble.stack.layers, config.adapter.rank)
        pool = [replace(q, subject=None) for name in SETS for q in splits.load(name).questions]
        lengths = self.ensemble.encode(pool).trees
        ordered = sorted(range(len(pool)), key=lambda n: lengths[n].length)
        self.steps = steps
        self.examples = Examples(_evenly(pool, ordered, steps * BATCH), self.ensemble.encoder, self.config)
        self.trained: list[Any] = self.examples.epoch(0, 1)
        self.asked: Asked = self.ensemble.encode(_evenly(pool, ordered, asked))
        steps_trees = [self.trained[n : n + BATCH] for n in range(0, len(self.trained), BATCH)]
        parts = [part[0] for trees in steps_trees for part in self.ensemble.engine.parts([trees])]
        self.loads = {
            "train": load_of(self.work, parts, True),
            "evaluate": load_of(self.work, [self.asked.trees], False),
        }
        budget = self.config.compute.batch_tokens
        assert isinstance(budget, int)
        # Tokens and scored rows of one forward pass.
        passes = {"train": steps, "evaluate": max(1, math.ceil(self.loads["evaluate"].tokens / budget))}
        self.rates = {
            name: MatrixRate(self.work, load.tokens // passes[name], load.rows // passes[name], name == "train")
            for name, load in self.loads.items()
        }

    def train(self) -> float:
        """Train the member over the examples once; return the seconds of the steps."""
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            ensemble, progress = self.ensemble, Progress(quiet=True)
            Trainer(ensemble.engine, ensemble.stack, self.examples, None, self.config, run, progress).train()
            return float(next(line["seconds"] for line in run.lines("timing.jsonl") if line["what"] == "train"))

    def evaluate(self) -> float:
        """Ask the member the questions; return the seconds."""
        self.ensemble.engine.forget()  # what an earlier round kept has to be computed again
        start = time.perf_counter()
        self.ensemble.answer(self.asked, self.ensemble.positions)
        return time.perf_counter() - start

    @property
    def sides(self) -> dict[str, Callable[[], float]]:
        """What is measured."""
        return {"train": self.train, "evaluate": self.evaluate}

    def check(self) -> dict[str, float]:
        """Return executed over needed operations of the linear layers; end the script where less was executed."""
        found = {}
        for name, side in self.sides.items():
            with FlopCounterMode(display=False) as counter:
                side()
            # Training ends with a question's loss, to see that the last step broke nothing.
            shortest = min(self.trained, key=lambda tree: tree.read)
            extra = load_of(self.work, [[shortest]], False).linear if name == "train" else 0.0
            operations = counter.get_flop_counts()["Global"]
            executed = sum(count for kind, count in operations.items() if "attention" not in str(kind)) - extra
            found[name] = executed / self.loads[name].linear
            if found[name] < 1 - 1e-3:  # adapters of the question that is left out above are counted as training's
                fail(f"{name}: {found[name]:.4f} of the products that are counted were executed; the count is wrong")
        return found


def _evenly(pool: Sequence[Question], ordered: Sequence[int], count: int) -> list[Question]:
    """Return questions at even steps through all lengths."""
    return [pool[ordered[int((n + 0.5) * len(ordered) / count)]] for n in range(count)]


def measure(bench: Bench, executed: dict[str, float]) -> list[Result]:
    """Return the share of the matrix rate that training and evaluation reach."""
    args, results = bench.args, []
    for name, side in bench.sides.items():
        load, shares = bench.loads[name], []
        side()
        for number in range(args.rounds):
            before = bench.rates[name].measure()
            seconds = side()
            rate = (before + bench.rates[name].measure()) / 2  # right before and after, as a shared machine drifts
            shares.append(load.operations / seconds / rate)
            print(
                f"roofline_{name}: round {number + 1}/{args.rounds}: {load.operations / seconds / 1e9:.1f} of "
                f"{rate / 1e9:.1f} Gflop/s, {load.tokens / seconds:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )
        goal, middle = GOALS[name], statistics.median(shares)
        note = f"theirs: the goal; executed linear products / needed: {executed[name]:.2f}"
        ratios = [share / goal for share in shares]
        results.append(
            Result(
                *(named(f"roofline_{name}", args), middle, goal, statistics.median(ratios), min(ratios), max(ratios)),
                *("of the matrix rate", note),
            )
        )
    least = min(results, key=lambda result: result.ratio)
    return [*results, replace(least, name=named("roofline", args), note=f"the lesser: {least.name}")]


def where_time_goes(side: Callable[[], float]) -> dict[str, float]:
    """Return the share of each kind of operation in the time of one run."""
    side()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        seconds = side()
    by_kind: Counter[str] = Counter()
    for event in recorded.key_averages():
        kind = next((k for k, words in KINDS.items() if any(word in event.key for word in words)), ELEMENTWISE)
        if kind != REST:
            by_kind[kind] += event.self_cpu_time_total / 1e6
    shares = {kind: by_kind[kind] / seconds for kind in (*list(KINDS)[:-1], ELEMENTWISE)}
    return {**shares, REST: 1 - sum(shares.values())}


def print_profile(bench: Bench) -> None:
    """Print where the time of training and of evaluation goes, in per cent."""
    columns = {name: where_time_goes(side) for name, side in bench.sides.items()}
    print(f"{'kind of operation':<32}" + "".join(f"{name:>10}" for name in columns))
    for kind in columns["train"]:
        print(f"{kind:<32}" + "".join(f"{100 * shares[kind]:9.1f}%" for shares in columns.values()))


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--profile", action="store_true", help="print where the time goes instead")
    args = options.parse_args()
    use_threads(args)
    bench = Bench(args)
    if args.profile:
        print_profile(bench)
        return
    executed = bench.check()
    record(measure(bench, executed), args)


if __name__ == "__main__":
    main()
