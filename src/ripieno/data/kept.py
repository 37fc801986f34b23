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
    """Return names of data sets as a run knows them.

    A user's file is named by its sum. Of a set that plays a role in the run that is the sum on record: its questions
    are kept, wherever the file is by now, and whatever was added to it.

    Raises:
        UserError: one is no name of a data set.
    """
    return [_as_recorded(run, DatasetName.parse(text)) for text in written]


def _as_recorded(run: RunFolder, name: DatasetName) -> DatasetName:
    if name.path is None:
        return name
    manifest = run.manifest()
    if not any(name.written in sets for sets in manifest["counts"].values()):
        return name
    sums = {source["name"]: source["sha256"] for source in manifest["sources"]}
    return replace(name, sha256=sums.get(str(name.path)))


def kept_questions(run: RunFolder, name: DatasetName) -> list[Question]:
    """Return a set's questions as the run keeps them; none where it keeps none, as of running text.

    Raises:
        EnvironmentFault: they were written, and are missing or damaged.
    """
    name = _as_recorded(run, name)
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
