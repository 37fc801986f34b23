"""Questions as a run keeps them: as they were asked, with their sums on record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ripieno.config import Config
from ripieno.data.question import Question, content_key, questions_to_parquet, read_questions
from ripieno.data.splits import DatasetName, load
from ripieno.errors import UserError
from ripieno.runs import RunFolder


def keep_questions(run: RunFolder, name: DatasetName, questions: Sequence[Question]) -> None:
    """Write a set's questions into the run, unless it holds them: once answered, so that a slip leaves none there."""
    file = run.questions(name.folder, name.file)
    if not run.whole(file):
        run.write(file, questions_to_parquet(questions))


def names_of(run: RunFolder, written: Iterable[str]) -> list[DatasetName]:
    """Return data sets as a run knows them: a file by the sum on record, wherever it is by now and whatever it holds.

    Raises:
        UserError: one is no name of a data set.
    """
    recorded = {source["name"]: source["sha256"] for source in run.manifest()["sources"]}
    names = map(DatasetName.parse, written)
    return [name if name.path is None else replace(name, sha256=recorded.get(str(name.path))) for name in names]


def kept_questions(run: RunFolder, name: DatasetName) -> list[Question]:
    """Return a set's questions as the run keeps them; none where it keeps none, as of running text.

    Raises:
        EnvironmentFault: they were written, and are missing or damaged.
    """
    file = run.questions(name.folder, name.file)
    return read_questions(file) if run.holds(file) else []


def questions_of(run: RunFolder, config: Config, name: DatasetName, data_dir: Path | None) -> list[Question]:
    """Return a set's questions: the run's own copy, or newly read, without those that training has read.

    Raises:
        UserError: there is no such set, or training has read every question of it.
        EnvironmentFault: the run's own copy of one of its roles is missing or damaged; roles were made disjoint, so its
            source may hold more.
    """
    data = config.data
    trained = [*map(DatasetName.parse, (*data.train, *config.training.driven_on))]
    others = (*data.validation, *data.calibration, *data.certification, *data.test, *data.out_of_domain)
    if name in (*trained, *map(DatasetName.parse, others)) and (kept := kept_questions(run, name)):
        return kept
    file = run.questions(name.folder, name.file)
    if run.whole(file):
        return read_questions(file)
    loaded = load(name, data_dir=data_dir, seed=data.seed, labels=data.labels)
    seen = {content_key(question) for of in trained for question in kept_questions(run, of)}
    questions = [question for question in loaded.questions if content_key(question) not in seen]
    if not questions:
        raise UserError(f"{name.written}: the members trained on every question of it; name another set")
    return questions
