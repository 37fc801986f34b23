"""How cost grows with questions, members and length, and how far packing alone moves an answer.

    python benchmarks/scaling.py [--quick] [--threads 1]

cost_questions  Seconds of `Ensemble.predict` (tokenizing included) for 100 to 10,000 MMLU questions with letters. The
                model is a random llama of two layers and 64 features (SmolLM2's tokenizer), so that 10,000 take
                seconds: what is looked for is work that grows faster than the questions. Up to 1,000 with --quick.
cost_members    Seconds of a training step of 1 to 32 members (up to 8 with --quick) of SmolLM2-135M-Instruct, each with
                a batch of its own: `ripieno.training.loop.Trainer`, seconds a step from its timing.jsonl.
cost_length     Seconds a question of `Ensemble.answer` with SmolLM2-135M-Instruct, for prompts of 32 to 1,024 tokens
                (up to 256 with --quick), about as many tokens at each length.

Each is a slope of log(seconds) on log(size), by least squares; ours is the median over rounds, theirs is 1 (cost in
proportion). Also drawn: benchmarks/scaling.svg (medians over the rounds).

Printed beside them: the numeric noise floor, the mutual information that M scorings of one member would have as if they
were M members, where only the packing differs: token budgets, and what else is asked at the same time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from side_by_side import Result, named, parser, record, use_threads
from transformers import LlamaConfig, LlamaForCausalLM

from ripieno import experiment, measures
from ripieno.config import Adapter, Config, Data, Prompt, Training
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.ensemble import Ensemble
from ripieno.model import backbone as backbones
from ripieno.model.backbone import Backbone
from ripieno.model.scoring import Engine
from ripieno.progress import Progress
from ripieno.runs import RunFolder
from ripieno.training.loop import Examples, Trainer

HERE = Path(__file__).parent
POOL = "mmlu:all/test"
BUDGETS = (256, 512, 1024, 2048)  # tokens a pass, for the noise floor
TITLES = {"questions": "questions asked", "members": "members trained", "length": "tokens a question"}
LABELS = {"questions": "seconds", "members": "seconds a step", "length": "seconds a question"}
Points = dict[int, list[float]]  # size -> the seconds of each round


def settings(members: int, batch: int = 4) -> Config:
    """Return an experiment with letters, rank 8 on q_proj and v_proj."""
    return Config(
        name="scaling",
        adapter=Adapter(targets=("q_proj", "v_proj"), rank=8, alpha=16),
        prompt=Prompt(template="letters"),
        data=Data(train=(POOL,)),
        training=Training(members=members, epochs=1, loss="answer_token", batch_size=batch),
    )


def assemble(backbone: Backbone, members: int) -> tuple[Ensemble, Config]:
    """Return an ensemble whose members all have updates that are not zero, and its resolved config."""
    config = experiment.resolve(settings(members), backbone)
    ensemble = Ensemble.assemble(backbone, config.adapter, range(members), config.prompt, compute=config.compute)
    for p in range(members):
        ensemble.stack.initialise(p, p)
        generator = torch.Generator().manual_seed(p)
        with torch.no_grad():
            for weight in ensemble.stack.parameters(p)[1::2]:  # each layer's B
                weight.normal_(std=0.01, generator=generator)
    return ensemble, config


def random_backbone(like: Backbone) -> Backbone:
    """Return a random llama of two layers and 64 features with another base's tokenizer."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=like.model.config.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(shape).requires_grad_(False).eval()
    return Backbone(model, like.tokenizer, {"model": "random", "revision": None}, 8192)


def sweep(what: str, sizes: Sequence[int], cost: Callable[[int], float], rounds: int) -> Points:
    """Return the seconds of each size in each round; one more, of the least size, comes before them, uncounted."""
    points: Points = {size: [] for size in sizes}
    cost(sizes[0])
    for number in range(rounds):
        for size in sizes if number % 2 else reversed(sizes):
            points[size].append(cost(size))
        said = ", ".join(f"{size:,}: {seconds[-1]:.3g} s" for size, seconds in points.items())
        print(f"cost_{what}: round {number + 1}/{rounds}: {said}", file=sys.stderr, flush=True)
    return points


def questions_sweep(like: Backbone, pool: Sequence[Question], args: argparse.Namespace) -> Points:
    """Ask more and more questions of a small random model."""
    ensemble, _ = assemble(random_backbone(like), 1)
    drawn = [pool[int(n)] for n in np.random.default_rng(0).permutation(len(pool))]

    def cost(count: int) -> float:
        start = time.perf_counter()
        ensemble.predict(drawn[:count])
        return time.perf_counter() - start

    sizes = (100, 200, 500, 1000) if args.quick else (100, 300, 1000, 3000, 10_000)
    return sweep("questions", sizes, cost, args.rounds)


def members_sweep(ensemble: Ensemble, config: Config, pool: Sequence[Question], args: argparse.Namespace) -> Points:
    """Train the first members of a stack for a step."""
    batch = 2 if args.quick else 4
    shorter = sorted(pool, key=lambda q: len(q.question) + sum(map(len, q.choices)))
    # The same questions for all members, so that no member's batch is longer than another's.
    chosen = shorter[len(pool) // 10 :][:batch]

    def cost(members: int) -> float:
        training = config.training.model_copy(update={"batch_size": batch, "members": members})
        given = config.model_copy(update={"training": training})
        # The trainer takes all the members that it finds in the stack: here, those that are asked for.
        stack = _First(ensemble.stack, members)
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            examples = Examples(chosen, ensemble.encoder, given)
            examples.epoch(0, 1)  # encodes them
            Trainer(ensemble.engine, stack, examples, None, given, run, Progress(quiet=True)).train()
            seconds = next(line["seconds"] for line in run.lines("timing.jsonl") if line["what"] == "train")
        return float(seconds)

    return sweep("members", (1, 2, 4, 8) if args.quick else (1, 2, 4, 8, 16, 32), cost, args.rounds)


class _First:
    """The first members of a stack; all else is the stack's."""

    def __init__(self, stack: Any, members: int):
        self.stack, self.members = stack, stack.members[:members]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stack, name)


def length_sweep(ensemble: Ensemble, pool: Sequence[Question], args: argparse.Namespace) -> tuple[Points, int]:
    """Ask questions behind passages of real text, so that prompts have a given length; no two begin alike."""
    sizes, total = ((32, 64, 128, 256), 256) if args.quick else ((32, 64, 128, 256, 512, 1024), 2048)
    words = " ".join(q.question for q in pool).split()
    rng = np.random.default_rng(0)

    def of_length(tokens: int, number: int) -> Question:
        """Return a question whose prompt has so many tokens, or few less."""
        start = int(rng.integers(len(words) - 2000))
        question = Question(f"{tokens}-{number}", "Which is it?", ("one", "two"), 0)
        few, most = 0, tokens
        while few < most:
            middle = (few + most + 1) // 2
            longer = replace(question, context=" ".join(words[start : start + middle]))
            few, most = (middle, most) if ensemble.encode([longer]).trees[0].length <= tokens else (few, middle - 1)
        return replace(question, context=" ".join(words[start : start + few]) or None)

    asked = {size: ensemble.encode([of_length(size, n) for n in range(max(1, total // size))]) for size in sizes}
    real = {size: round(np.mean([tree.length for tree in of.trees])) for size, of in asked.items()}
    of_real = {real[size]: of for size, of in asked.items()}

    def cost(tokens: int) -> float:
        start = time.perf_counter()
        ensemble.answer(of_real[tokens], [0])
        return (time.perf_counter() - start) / len(of_real[tokens].questions)

    return sweep("length", list(of_real), cost, args.rounds), total


def noise_floor(ensemble: Ensemble, pool: Sequence[Question], count: int) -> None:
    """Print the mutual information of one member with itself, scored in other company."""
    rng = np.random.default_rng(1)
    chosen = [pool[int(n)] for n in rng.choice(len(pool), size=count, replace=False)]
    scored = []
    for budget in BUDGETS:
        engine = Engine(ensemble.engine.backbone, ensemble.stack, budget)
        engine.probe()
        alone = replace(ensemble, engine=engine)
        for order in (rng.permutation(count), np.arange(0, count, 2)):
            # Questions of another order, then the even ones without the odd ones beside them.
            p = alone.answer(alone.encode([chosen[int(n)] for n in order]), [0])
            rest = [n for n in range(count) if n not in set(order.tolist())]
            probs = dict(zip(order.tolist(), p.probs[0], strict=True))
            if rest:
                q = alone.answer(alone.encode([chosen[n] for n in rest]), [0])
                probs |= dict(zip(rest, q.probs[0], strict=True))
            scored.append([probs[n] for n in range(count)])
    K = max(len(row) for rows in scored for row in rows)
    arrays = np.array([[np.pad(row, (0, K - len(row))) for row in rows] for rows in scored])
    floor = measures.decompose(arrays).epistemic
    spread = np.abs(arrays - arrays[:1]).max()
    budgets = ", ".join(map(str, BUDGETS))
    print(
        f"noise floor: mutual information of one member scored {len(scored)} times ({budgets} tokens a pass, two "
        f"orders each) over {count} questions: mean {floor.mean():.1e}, max {floor.max():.1e} nats; largest "
        f"difference of a probability {spread:.1e}"
    )


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of log(seconds) on log(size)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def result(what: str, points: Points, args: argparse.Namespace, note: str) -> Result:
    """Return how cost grows: 1 is in proportion."""
    slopes = [slope(list(points), [seconds[n] for seconds in points.values()]) for n in range(args.rounds)]
    ratios = [1 / value for value in slopes]
    middle = statistics.median(slopes)
    low, high = min(points), max(points)
    note = f"theirs: in proportion; {low:,} to {high:,} {TITLES[what]}{note}"
    name = named(f"cost_{what}", args)
    return Result(name, middle, 1.0, statistics.median(ratios), min(ratios), max(ratios), "slope", note)


def draw(sweeps: dict[str, Points], file: Path) -> None:
    """Draw the sweeps, log-log, each with its fit."""
    style = {"svg.fonttype": "none", "svg.hashsalt": "ripieno", "font.size": 10, "axes.linewidth": 0.8}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "xtick.labelsize": 9, "ytick.labelsize": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10.5, 3.4), layout="constrained", facecolor="white")
        for axes, (what, points) in zip(figure.subplots(1, len(sweeps)), sweeps.items(), strict=True):
            sizes = np.array(list(points), dtype=float)
            seconds = np.array([statistics.median(values) for values in points.values()])
            power, start = np.polyfit(np.log(sizes), np.log(seconds), 1)
            axes.plot(sizes, np.exp(start) * sizes**power, color="#59636e", linewidth=1.2, label=f"slope {power:.2f}")
            axes.plot(sizes, seconds, "o", color="#0072b2", markersize=6, label="measured")
            axes.set(xscale="log", yscale="log", xlabel=TITLES[what], ylabel=LABELS[what])
            axes.set_xticks(sizes, [f"{int(size):,}" for size in sizes])
            axes.minorticks_off()
            low, high = axes.get_ylim()
            # Ticks at 1, 2 and 5 times a power of ten: a range of less than ten has one power in it at most.
            ticks = [m * 10.0**e for e in range(-6, 5) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.grid(color="#d0d7de", linewidth=0.6)
            axes.legend(frameon=False, loc="upper left")
        figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--figure", type=Path, default=HERE / "scaling.svg", help="the figure: %(default)s")
    args = options.parse_args()
    use_threads(args)
    base = backbones.load(settings(1).base)
    pool = splits.load(POOL).questions
    asked = questions_sweep(base, pool, args)
    ensemble, config = assemble(base, 8 if args.quick else 32)
    lengths, total = length_sweep(ensemble, pool, args)
    noise_floor(ensemble, pool, 6 if args.quick else 64)
    members = members_sweep(ensemble, config, pool, args)
    results = [
        result("questions", asked, args, " of a random two-layer model"),
        result("members", members, args, ""),
        result("length", lengths, args, f", {total:,} tokens at each length"),
    ]
    draw({"questions": asked, "members": members, "length": lengths}, args.figure)
    record(results, args)


if __name__ == "__main__":
    main()
