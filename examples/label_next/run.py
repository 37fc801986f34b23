"""Which questions to label next: does choosing them beat drawing them? Learning curves of four ways, over seeds.

    python examples/label_next/run.py FOLDER [--data NAME] [--test NAME] [--start 16] [--add 16] [--rounds 2]
        [--pool 96] [--seeds 4] [--by entropy mi batch] [--members 3] [--epochs 2] [--learning-rate 4e-4]
        [--base embedded:SmolLM2-135M-Instruct]

For each seed some questions are drawn to start with, and others as a pool without labels. Each way (`ripieno acquire
--by entropy, mi, batch, random`) then chooses from the pool with its own ensemble, gets the labels of what it chose,
and trains a new ensemble on all it has; and so on, for some rounds. All ways of a seed start from the same ensemble,
choose from the same pool, train with the same seeds, and are asked the same test questions.

Written to FOLDER: a run a point, curves.svg, and table.md, which is printed too. The same command goes on where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np

from ripieno import measures, train
from ripieno.acquisition import By, acquire
from ripieno.config import Adapter, Base, Config, Data, Prompt, Training
from ripieno.data import splits
from ripieno.data.question import Question, read_questions
from ripieno.data.splits import DatasetName
from ripieno.evaluation import evaluate
from ripieno.measures.bootstrap import generator
from ripieno.measures.replicates import t_quantile
from ripieno.parquet import read_parquet
from ripieno.progress import Progress
from ripieno.report.drawing import COLOURS, DASH_DOT, DASHED, DOTTED, RC, Panel, blank, finish, sheet
from ripieno.runs import METHOD, RunFolder

CONTROL: By = "random"
MEASURES = {"accuracy": "accuracy", "nll": "NLL"}
# Told apart by their lines as well as by their colours.
LINES = {
    "random": ("ink", DOTTED),
    "entropy": ("member", DASHED),
    "mi": ("third", DASH_DOT),
    "batch": ("ensemble", "solid"),
}


@dataclass(frozen=True)
class Point:
    """How well one ensemble answers the test questions, on the mean over them."""

    seed: int
    by: By
    labels: int
    accuracy: float
    nll: float


def write(path: Path, questions: Sequence[Question]) -> None:
    """Write questions as jsonl."""
    path.write_text("".join(json.dumps(asdict(question)) + "\n" for question in questions))


def trained(args: argparse.Namespace, folder: Path, labelled: Sequence[Path], seed: int) -> RunFolder:
    """Train and ask one ensemble, as far as that was not done before."""
    config = Config(
        name=folder.name,
        base=Base(model=args.base),
        adapter=Adapter(targets="all-linear", rank=8, alpha=16),
        prompt=Prompt(template="text", normalisation="token"),
        data=Data(train=tuple(map(str, labelled)), test=(args.test,)),
        training=Training(
            members=args.members,
            epochs=args.epochs,
            batch_size=4,
            learning_rate=args.learning_rate,
            schedule="cosine",
            warmup=0.1,
            bagging=True,
            seed=seed,
        ),
    )
    with Progress() as progress:
        run = train(config, folder, progress=progress)
        evaluate(run, [args.test], [args.epochs], progress=progress)
    return run


def measured(args: argparse.Namespace, run: RunFolder, seed: int, by: By, labels: int) -> Point:
    """Measure an ensemble's answers to the test questions."""
    name = DatasetName.parse(args.test)
    [p] = read_parquet(run.predictions(name.folder, name.file, METHOD, args.epochs))
    accuracy = measures.correct(measures.pool(p.probs), p.targets)
    nll = measures.nll(measures.pool_log(p.log_probs), p.targets)
    return Point(seed, by, labels, float(accuracy.mean()), float(nll.mean()))


def curves(args: argparse.Namespace, questions: Sequence[Question], seed: int) -> list[Point]:
    """Return the learning curve of each way from one start."""
    order = generator(seed, "candidates").permutation(len(questions))[: args.start + args.pool]
    drawn = [questions[n] for n in order]
    of_id = {question.id: question for question in drawn}
    folder = args.folder / f"seed-{seed}"
    folder.mkdir(exist_ok=True)
    start, pool = folder / "start.jsonl", folder / "pool.jsonl"
    write(start, drawn[: args.start])
    write(pool, [Question(**{**asdict(question), "answer": None}) for question in drawn[args.start :]])
    first = trained(args, folder / "start", [start], seed)
    ways = (CONTROL, *args.by)
    points = [measured(args, first, seed, by, args.start) for by in ways]
    runs, labelled = dict.fromkeys(ways, first), {by: [start] for by in ways}
    for step in range(1, args.rounds + 1):
        for by in ways:
            name = f"{by}-{step}"
            chosen = folder / f"{name}.jsonl"
            if not chosen.exists():
                with Progress() as progress:
                    acquired = acquire(runs[by], pool, args.add, by, seed=seed, progress=progress)
                write(chosen, [of_id[question.id] for question in acquired.questions])  # somebody labels them
            labelled[by].append(chosen)
            runs[by] = trained(args, folder / name, labelled[by], seed)
            points.append(measured(args, runs[by], seed, by, args.start + step * args.add))
    return points


def ways_of(points: Sequence[Point]) -> tuple[By, ...]:
    """Return the ways that were tried, the control first."""
    return tuple(dict.fromkeys(point.by for point in points))


def values(points: Sequence[Point], by: By, labels: int, measure: str) -> list[float]:
    """Return a measure of one way after so many labels, one value a seed, in the order of the seeds."""
    return [getattr(point, measure) for point in points if (point.by, point.labels) == (by, labels)]


def over_seeds(of_seed: Sequence[float], form: str) -> str:
    """Return a mean with its 95% Student t interval over seeds; of one seed there is no interval."""
    mean, n = float(np.mean(of_seed)), len(of_seed)
    if n < 2:
        return f"{mean:{form}}"
    half = t_quantile(n - 1) * float(np.std(of_seed, ddof=1)) / np.sqrt(n)
    return f"{mean:{form}} [{mean - half:{form}}, {mean + half:{form}}]"


def table(points: Sequence[Point]) -> str:
    """Return both measures after each number of labels, and what each way adds to a random draw of as many."""
    labels, ways = sorted({point.labels for point in points}), ways_of(points)
    lines = []
    for measure, name in MEASURES.items():
        lines += [f"| {name} after | {' | '.join(ways)} |", f"|---:|{'---:|' * len(ways)}"]
        for count in labels:
            cells = [over_seeds(values(points, by, count, measure), ".3f") for by in ways]
            lines.append(f"| {count} labels | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"Less that of {CONTROL}, on the mean over the curve, paired by seed:", ""]
    for by in ways:
        if by != CONTROL:
            said = [f"{name} {over_seeds(gains(points, by, measure), '+.3f')}" for measure, name in MEASURES.items()]
            lines.append(f"- {by}: {', '.join(said)}")
    return "\n".join(lines) + "\n"


def in_common(args: argparse.Namespace) -> str:
    """Return how many questions each two ways both chose in the first round, where all choose from the same."""
    lines = [f"In common in the first round, of {args.add}, a number a seed:", ""]
    for one, other in combinations((CONTROL, *args.by), 2):
        counts = []
        for seed in range(args.seeds):
            files = (args.folder / f"seed-{seed}/{by}-1.jsonl" for by in (one, other))
            ids = [{question.id for question in read_questions(file)} for file in files]
            counts.append(len(ids[0] & ids[1]))
        lines.append(f"- {one} and {other}: {', '.join(map(str, counts))}")
    return "\n".join(lines) + "\n"


def gains(points: Sequence[Point], by: By, measure: str) -> list[float]:
    """Return what a way has more than a random draw, a value a seed: the mean over the curve without its start."""
    after = sorted({point.labels for point in points})[1:]
    ours, theirs = (np.array([values(points, of, count, measure) for count in after]) for of in (by, CONTROL))
    gained: list[float] = (ours - theirs).mean(axis=0).tolist()
    return gained


def drawing(points: Sequence[Point], measure: str) -> Panel:
    """Draw a measure against the number of labels: a line a way, the mean over seeds, and a dot a seed."""
    labels, ways = sorted({point.labels for point in points}), ways_of(points)
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        said: Mapping[str, list[float]] = {
            by: [float(np.mean(values(points, by, count, measure))) for count in labels] for by in ways
        }
        for i, (by, means) in enumerate(said.items()):
            colour, style = LINES[by]
            axes.plot(labels, means, color=COLOURS[colour], linestyle=style, linewidth=1.8, label=by)
            for count in labels:
                of_seeds = values(points, ways[i], count, measure)
                aside = count + (i - 1.5) * 0.012 * (labels[-1] - labels[0])  # or dots would hide one another
                axes.plot([aside] * len(of_seeds), of_seeds, "o", color=COLOURS[colour], markersize=3, alpha=0.7)
        axes.set(xlabel="labelled questions", ylabel=MEASURES[measure])
        axes.set_xticks(labels)
        axes.legend(frameon=False, fontsize=8, handlelength=3)
        alt = "; ".join(f"{by}: " + ", ".join(f"{v:.3f}" for v in means) for by, means in said.items())
        return finish(figure, measure, f"{MEASURES[measure]} after {', '.join(map(str, labels))} labels. {alt}.")


def main() -> None:
    """Draw the curves, and print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--by", nargs="+", default=["entropy", "mi", "batch"], help="ways to try beside random")
    options.add_argument("--data", default="commonsense_qa/validation[0%:80%]", help="questions to start from")
    options.add_argument("--test", default="commonsense_qa/validation[90%:100%]", help="questions to ask")
    options.add_argument("--start", type=int, default=16, help="labels at the start")
    options.add_argument("--add", type=int, default=16, help="labels added a round")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--pool", type=int, default=96, help="unlabelled questions to choose from")
    options.add_argument("--seeds", type=int, default=4)
    options.add_argument("--members", type=int, default=3)
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--base", default="embedded:SmolLM2-135M-Instruct", help="a hub id, a folder or a .gguf file")
    options.add_argument("--learning-rate", type=float, default=4e-4)
    args = options.parse_args()
    questions = [question for question in splits.load(args.data).questions if question.answer is not None]
    if args.add * args.rounds > args.pool or args.start + args.pool > len(questions):
        sys.exit(
            f"{args.data} holds {len(questions)} questions with an answer: --start and --pool take as many together at "
            "most, and --pool all that the rounds add"
        )
    args.folder.mkdir(parents=True, exist_ok=True)
    points = [point for seed in range(args.seeds) for point in curves(args, questions, seed)]
    title = f"{args.data}: {args.seeds} seeds, {args.members} members"
    panels = [drawing(points, measure) for measure in MEASURES]
    (args.folder / "curves.svg").write_text(sheet([(title, panels)], ["Lines: the mean over seeds. Dots: each seed."]))
    said = f"{table(points)}\n{in_common(args)}"
    (args.folder / "table.md").write_text(said)
    print(said)


if __name__ == "__main__":
    main()
