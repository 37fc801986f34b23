"""Which questions of a pool to label next, by what the members make of them; their labels, if any, are not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from ripieno import measures
from ripieno.config import Config
from ripieno.data import rows
from ripieno.data.kept import kept_questions
from ripieno.data.question import SCHEMA, Question, content_key, read_questions
from ripieno.data.splits import DatasetName
from ripieno.ensemble import Ensemble
from ripieno.errors import UserError
from ripieno.escaping import csv_cell
from ripieno.measures.acquisition import Batch
from ripieno.model.features import read_prompts
from ripieno.model.prediction import Asked
from ripieno.progress import Progress
from ripieno.runs import RunFolder, members_at
from ripieno.userfiles import quoted

By = Literal["entropy", "mi", "batch", "random"]
MEANT = {
    "entropy": "the ensemble is least sure",
    "mi": "the members disagree most",
    "batch": "the members disagree most, and that differ from one another",
    "random": "drawn at random",
}
SHOWN = 5  # questions printed
WIDE = 80  # characters of each


@dataclass(frozen=True)
class Acquired:
    """Questions to label, the first one first.

    Args:
        questions: n of them, their answers taken out.
        scores: n, in nats; None where they were drawn at random.
        by: what they were chosen by.
        pool: how many questions they were chosen from.
        own: left out before, as the run's roles hold them.
        repeats: left out before, as they repeat an earlier question.
        too_long: left out before, as `evaluation.max_tokens` or the base does not reach.
    """

    questions: Sequence[Question]
    scores: Sequence[float | None]
    by: By
    pool: int
    own: int
    repeats: int
    too_long: int


def acquire(
    run: RunFolder, pool: Path, count: int, by: By = "batch", *, seed: int = 0, progress: Progress | None = None
) -> Acquired:
    """Choose questions to label next, by the members of a run's last epoch.

    Args:
        run: a trained run.
        pool: a file of questions; what it says of their answers is not looked at.
        count: how many.
        by: entropy of the ensemble, mi (how far the members disagree), batch (`measures.diverse_batch` of mi and the
            base's hidden states), or random.
        seed: of the lot that decides between those that tie, and of random.
        progress: advanced by one a member and question, and by one a question whose prompt is read.

    Raises:
        UserError: the pool holds too few questions that the run does not have, a single member is asked to disagree,
            or the base does not show the hidden states that `batch` goes by.
    """
    config, progress = run.config(), progress or Progress(quiet=True)
    members = members_at(run, config.training.epochs)
    if by in ("mi", "batch") and len(members) < 2:
        raise UserError(f"--by {by}: goes by how far members disagree, and {run.path} has one; use entropy or random")
    read = [replace(question, answer=None) for question in read_questions(pool, config.data.labels)]
    own, seen = _own(run, config), set[str]()
    new: list[Question] = []
    for question in read:
        key = content_key(question)
        if key not in own and key not in seen:
            new.append(question)
        seen.add(key)
    known = sum(content_key(question) in own for question in read)
    repeats = len(read) - known - len(new)
    _check_enough(pool, count, len(new), read, known, repeats)
    ensemble = Ensemble.load(run.path)
    asked = ensemble.encode_fitting(new)
    too_long = len(new) - len(asked.questions)
    _check_enough(pool, count, len(asked.questions), read, known, repeats, too_long)
    batch = _choose(ensemble, asked, count, by, seed, progress)
    scores = [None] * count if by == "random" else batch.scores.tolist()
    chosen = [asked.questions[n] for n in batch.chosen]
    return Acquired(chosen, scores, by, len(asked.questions), known, repeats, too_long)


def _own(run: RunFolder, config: Config) -> set[str]:
    """Return the content of what is labelled: all roles but those that members are driven apart on, without labels."""
    data = config.data
    roles = (data.train, data.validation, data.calibration, data.certification, data.test, data.out_of_domain)
    names = dict.fromkeys(name for role in roles for name in role)
    return {content_key(question) for name in names for question in kept_questions(run, DatasetName.parse(name))}


def _check_enough(
    pool: Path, count: int, left: int, read: Sequence[Question], known: int, repeats: int, too_long: int = 0
) -> None:
    if count <= left:
        return
    why = _left_out(known, repeats, too_long)
    of_which = f" of {len(read):,} ({', '.join(why)})" if why else ""
    less = "ask for fewer, or add questions" if left else "add some"
    raise UserError(f"--n {count}: {pool} has {left:,}{of_which} to choose from; {less}")


def _left_out(known: int, repeats: int, too_long: int) -> list[str]:
    said = {"in the run's own sets": known, "repeat an earlier one": repeats, "too long to ask": too_long}
    return [f"{count:,} {what}" for what, count in said.items() if count]


def _choose(ensemble: Ensemble, asked: Asked, count: int, by: By, seed: int, progress: Progress) -> Batch:
    N = len(asked.questions)
    if by == "random":
        return measures.highest(np.zeros(N), count, seed)
    model = ensemble.engine.backbone.model
    if by == "batch" and model.get_output_embeddings() is None:
        raise UserError("--by batch: this base names no output layer, so its hidden states cannot be read; use mi")
    progress.expect(N * (len(ensemble.positions) + (by == "batch")))
    progress.describe("asking the pool")
    parts = measures.decompose(ensemble.answer(asked, ensemble.positions, progress).probs)
    if by == "entropy":
        return measures.highest(parts.total, count, seed)
    if by == "mi":
        return measures.highest(parts.epistemic, count, seed)
    states = read_prompts(ensemble.engine, asked.trees, progress).hidden
    return measures.diverse_batch(parts.epistemic, states, count, seed)


# ---- what is said and written ---------------------------------------------------------------------------------------


def said(acquired: Acquired, output: Path) -> Iterator[str]:
    """Yield what was chosen as lines of text."""
    n, by = len(acquired.questions), acquired.by
    how = MEANT[by] if by == "random" else f"those on which {MEANT[by]} ({by})"
    yield f"{output}: {n:,} of {acquired.pool:,} questions, {how}"
    if left_out := _left_out(acquired.own, acquired.repeats, acquired.too_long):
        yield f"Left out of the pool: {', '.join(left_out)}."
    for question, score in zip(acquired.questions[:SHOWN], acquired.scores, strict=False):
        text = " ".join(question.question.split())
        shown = text if len(text) <= WIDE else f"{text[:WIDE]}…"
        yield f"  {shown}" if score is None else f"  {score:.3f} nats  {shown}"
    if n > SHOWN:
        yield f"  and {n - SHOWN:,} more"


def check_output(path: Path, pool: Path, labels: Sequence[str] | None = None) -> None:
    """Check where the questions are to be written, before any work.

    Args:
        path: of them.
        pool: where they come from.
        labels: of the run's text,label files.

    Raises:
        UserError: there is a file, which may hold a person's labels; or it is csv, and a text of the pool would be a
            formula there: the apostrophe that takes its power makes it another question.
        EnvironmentFault: no file can be written there.
    """
    rows.check_output(path, pool)
    if path.exists():
        raise UserError(f"--output {path}: is there already, perhaps with labels by now; choose another name")
    if path.suffix != ".csv":
        return
    for question in read_questions(pool, labels):
        for text in (question.id, question.question, question.context, question.subject):
            if csv_cell(text) != text:
                raise UserError(
                    f"--output {path}: question {quoted(question.id)} would be a formula in a spreadsheet; write "
                    ".jsonl or .parquet"
                )


def write(path: Path, acquired: Acquired, labels: Sequence[str] | None = None) -> None:
    """Write the questions with room for their answers, as `read_questions` reads them, and each one's score.

    Args:
        path: jsonl, csv or parquet, by its ending; see `check_output`.
        acquired: the questions.
        labels: of the run's text,label files: questions that have these as their choices are such rows again.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    columns = {name: name for name in SCHEMA.names}
    if labels is not None and all(question.choices == tuple(labels) for question in acquired.questions):
        columns = {"id": "id", "question": "text", "context": "context", "subject": "subject", "answer": "label"}
    found = [
        {**{column: getattr(question, name) for name, column in columns.items()}, "score": score}
        for question, score in zip(acquired.questions, acquired.scores, strict=True)
    ]
    types = {**{name: SCHEMA.field(name).type for name in SCHEMA.names}, "text": pa.string(), "label": pa.string()}
    schema = pa.schema([*((column, types[column]) for column in columns.values()), ("score", pa.float64())])
    rows.write_rows(path, found, schema)
