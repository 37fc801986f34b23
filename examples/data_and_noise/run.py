"""Do the two parts of uncertainty mean what they claim? Train on less data, and on wrong labels, and look.

    python examples/data_and_noise/run.py FOLDER [--train NAME] [--test NAME] [--questions 256] [--members 3]
        [--base embedded:SmolLM2-135M-Instruct] [--learning-rate 4e-4]

Twelve ensembles: on an eighth, a quarter, half and all of the questions, with 0, 20 and 40% of their labels wrong. The
members' disagreement (mutual information) should fall with data, their expected entropy rise with wrong labels. All
take equally many steps: on fewer questions they take more epochs, so that only what they have seen differs. Questions
are nested (a quarter holds the eighth, a label wrong at 20% is wrong at 40%), and a member's seed is the same in all;
its bootstrap sample is of the questions that it is given.

Written to FOLDER: a run an ensemble, and table.md, which is printed too. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ripieno import measures, train
from ripieno.config import Adapter, Base, Config, Data, Prompt, Training
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName
from ripieno.evaluation import evaluate
from ripieno.measures.bootstrap import generator
from ripieno.measures.disentanglement import Series, correlation_by_chance, disentanglement
from ripieno.parquet import read_parquet
from ripieno.progress import Progress
from ripieno.runs import METHOD

SHARES = (8, 4, 2, 1)  # one part in so many
NOISES = (0.0, 0.2, 0.4)
EPOCHS = 1  # on all of the questions
BATCH = 4  # questions a step


@dataclass(frozen=True)
class Cell:
    """One ensemble's answers to the test questions.

    Args:
        share, noise: one part in so many of the questions, and how many of their labels are wrong.
        right: [N], whether the pooled answer is the true one.
        as_noisy: [N], whether it is the label, were the test's labels as noisy.
        aleatoric, epistemic: [N], in nats.
    """

    share: int
    noise: float
    right: NDArray[np.float64]
    as_noisy: NDArray[np.float64]
    aleatoric: NDArray[np.float64]
    epistemic: NDArray[np.float64]


def wrong_labels(questions: Sequence[Question], noise: float, purpose: str) -> list[Question]:
    """Return the questions, a share of them with another choice as their answer, each other choice as likely."""
    rng = generator(0, purpose)
    order, step = rng.permutation(len(questions)), rng.random(len(questions))
    changed = list(questions)
    for n in order[: round(noise * len(questions))]:
        question = questions[n]
        assert question.answer is not None
        choices = len(question.choices)
        other = (question.answer + 1 + int(step[n] * (choices - 1))) % choices
        changed[n] = Question(**{**asdict(question), "answer": other})
    return changed


def write(path: Path, questions: Sequence[Question]) -> str:
    """Write questions as jsonl, and return the name by which a config takes them."""
    path.write_text("".join(json.dumps(asdict(question)) + "\n" for question in questions))
    return str(path)


def cell(args: argparse.Namespace, questions: Sequence[Question], share: int, noise: float) -> Cell:
    """Train and ask one ensemble, as far as that was not done before."""
    name = f"one-in-{share}-noise-{noise:.0%}".replace("%", "")
    # Wrong labels first, so that an eighth has the share of them that all have, but for chance.
    learned = wrong_labels(questions, noise, "labels")[: len(questions) // share]
    config = Config(
        name=name,
        base=Base(model=args.base),
        adapter=Adapter(targets="all-linear", rank=8, alpha=16),
        prompt=Prompt(template="text", normalisation="token"),
        data=Data(train=(write(args.folder / f"{name}.jsonl", learned),), test=(args.test,)),
        training=Training(
            members=args.members,
            epochs=EPOCHS * share,
            batch_size=BATCH,
            learning_rate=args.learning_rate,
            schedule="cosine",
            warmup=0.1,
            bagging=True,
        ),
    )
    with Progress() as progress:
        run = train(config, args.folder / name, progress=progress)
        evaluate(run, [args.test], [config.training.epochs], progress=progress)
    of_test = DatasetName.parse(args.test)
    [p] = read_parquet(run.predictions(of_test.folder, of_test.file, METHOD, config.training.epochs))
    asked = {question.id: question for question in splits.load(args.test).questions}
    noisy = wrong_labels([asked[question_id] for question_id in p.question_ids], noise, "test labels")
    answers, parts = measures.pool(p.probs).argmax(axis=1), measures.decompose(p.probs)
    labels = np.array([question.answer for question in noisy])
    right = (answers == p.targets).astype(float)
    return Cell(share, noise, right, (answers == labels).astype(float), parts.aleatoric, parts.epistemic)


def series(cells: Sequence[Cell]) -> Series:
    """Return what the disentanglement error takes of ensembles along which one thing changes."""
    return Series(
        *(np.array([getattr(c, what).mean() for c in cells]) for what in ("as_noisy", "aleatoric", "epistemic"))
    )


def table(cells: Sequence[Cell], questions: int) -> str:
    """Return the table, with 95% bootstrap intervals over the test questions, and what follows from it."""
    lines = [
        "| questions | wrong labels | accuracy | against labels as noisy | expected entropy (nats) "
        "| mutual information (nats) |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for c in cells:
        values = []
        for what in (c.right, c.as_noisy, c.aleatoric, c.epistemic):
            low, high = measures.interval(what)
            values.append(f"{what.mean():.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| {questions // c.share} | {c.noise:.0%} | {' | '.join(values)} |")
    lines.append("")
    for noise in NOISES:
        of_noise = [c for c in cells if c.noise == noise]
        lines.append(_change(f"At {noise:.0%} wrong labels, from the fewest questions to all", of_noise))
    for share in SHARES:
        of_share = [c for c in cells if c.share == share]
        lines.append(_change(f"On {questions // share} questions, from no wrong label to most", of_share))
    noises, sizes = [c for c in cells if c.share == 1], [c for c in cells if c.noise == 0]
    lines.append("")
    try:
        found = disentanglement(series(noises), series(sizes))
    except ValueError as error:
        return "\n".join([*lines, f"Disentanglement error: not defined ({error})."]) + "\n"
    chance = [correlation_by_chance(len(points)) for points in (noises, sizes)]
    lines += [
        f"Disentanglement error: {found.error:.2f} (0: each part follows its own cause alone; 0.5: both follow both). "
        f"Of so few points ({len(noises)} and {len(sizes)}) parts that follow their own cause alone would have "
        f"{sum(chance) / 4:.2f} by chance.",
        "",
        "Correlation with the accuracy lost (against labels as noisy) to",
        "",
        f"- wrong labels: expected entropy {found.aleatoric_noise:+.2f}, "
        f"mutual information {found.epistemic_noise:+.2f}",
        f"- fewer questions: expected entropy {found.aleatoric_size:+.2f}, "
        f"mutual information {found.epistemic_size:+.2f}",
    ]
    return "\n".join(lines) + "\n"


def _change(what: str, cells: Sequence[Cell]) -> str:
    """Say how both parts change from a series' first ensemble to its last, on the same questions."""
    said = []
    for name in ("aleatoric", "epistemic"):
        first, last = getattr(cells[0], name), getattr(cells[-1], name)
        low, high = measures.paired_interval(last, first)
        word = {"aleatoric": "expected entropy", "epistemic": "mutual information"}[name]
        said.append(f"{word} {(last - first).mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"- {what}: {', '.join(said)}"


def main() -> None:
    """Run all twelve and print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--train", default="commonsense_qa/validation[0%:80%]", help="questions to learn from")
    options.add_argument("--test", default="commonsense_qa/validation[80%:100%]", help="questions to ask")
    options.add_argument("--questions", type=int, default=256, help="how many are all of them; a multiple of 32")
    options.add_argument("--members", type=int, default=3)
    options.add_argument("--base", default="embedded:SmolLM2-135M-Instruct", help="a hub id, a folder or a .gguf file")
    options.add_argument("--learning-rate", type=float, default=4e-4)
    args = options.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    questions = [question for question in splits.load(args.train).questions if question.answer is not None]
    # Whole batches on the fewest, or some would take more steps.
    unit = max(SHARES) * BATCH
    if args.questions % unit or not 0 < args.questions <= len(questions):
        sys.exit(f"--questions {args.questions}: {args.train} holds {len(questions)}; give a multiple of {unit}")
    order = generator(0, "questions").permutation(len(questions))
    chosen = [questions[n] for n in order[: args.questions]]
    cells = [cell(args, chosen, share, noise) for noise in NOISES for share in SHARES]
    said = table(cells, args.questions)
    (args.folder / "table.md").write_text(said)
    print(said)


if __name__ == "__main__":
    main()
