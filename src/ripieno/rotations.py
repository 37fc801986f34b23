"""Asking under every rotation of the choices: how much the prompt itself moves the answer, beside the members."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from ripieno import provenance
from ripieno.data.kept import keep_questions, names_of, questions_of
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName
from ripieno.ensemble import Ensemble, assemble, evaluated_sets, load_base
from ripieno.errors import UserError
from ripieno.measures.about import About
from ripieno.measures.rotations import RotationSummary, summarise_rotations
from ripieno.model.prediction import Asked
from ripieno.parquet import read_parquet, to_parquet
from ripieno.predictions import Predictions, reordered
from ripieno.progress import Progress
from ripieno.runs import BASE, METHOD, RunFolder, members_at


def ask_rotations(
    run: RunFolder,
    datasets: Sequence[str] = (),
    epoch: int | None = None,
    progress: Progress | None = None,
    data_dir: Path | None = None,
) -> dict[str, RotationSummary]:
    """Ask every question once for each cyclic permutation of its choices; what is there already is not asked again.

    All members see the same prompts. The answers are stored in each question's own order, in RUN/rotations.

    Args:
        run: a trained run.
        datasets: names; by default the config's test and out-of-domain sets.
        epoch: after which the members are asked, 0 for the base alone; the last one by default.
        progress: told how long it will take, and advanced by one a member, question and rotation.
        data_dir: a folder with originally released data files, for sets that the run does not hold yet.

    Returns:
        By name of a set (`Predictions.name`): the mean parts of its uncertainty, and its accuracies.

    Raises:
        UserError: the template does not list the choices, an epoch or a set does not exist, or it is not trained.
        EnvironmentFault: the run is locked, or a file is damaged or cannot be written.
    """
    config, progress = run.config(), progress or Progress(quiet=True)
    template = config.prompt.template
    if not TEMPLATES[template].listed:
        able = ", ".join(name for name, other in TEMPLATES.items() if other.listed)
        raise UserError(
            f"{run.path}: prompt.template {template} does not list the choices in the prompt, so their order moves "
            f"nothing; train a run with one that does ({able})"
        )
    epoch = config.training.epochs if epoch is None else epoch
    names = names_of(run, dict.fromkeys(datasets)) or evaluated_sets(run)
    if not names:
        raise UserError(f"{run.path}: its config names no data.test; name a set with --dataset")
    found: dict[str, RotationSummary] = {}
    with run.lock():
        members = members_at(run, epoch)

        @cache
        def ensemble() -> Ensemble:
            base = load_base(run, config.base, config.compute)
            made = assemble(config, base, range(config.training.members), data_dir)
            for member, at in members.items():
                made.stack.load_peft(member, run.adapter(member, at))
            # What else a config stores of an answer is not needed here, and letters are those of a place.
            bare = {"fixed_letters": False, "store_top": None, "unconditional": False}
            return replace(made, evaluation=config.evaluation.model_copy(update=bare))

        sets = {name: questions_of(run, config, name, data_dir) for name in names}
        work = {
            name: max(len(members), 1) * sum(len(question.choices) for question in questions)
            for name, questions in sets.items()
        }
        progress.expect(sum(work.values()))
        for name, questions in sets.items():
            inputs = provenance.inputs_of_prompts(run, config, questions, members)
            files = _stored(run, name, epoch, inputs)
            if files:
                progress.advance(work[name])
            else:
                progress.describe(f"asking {name.written} under every rotation")
                parts = _answer(ensemble(), questions, list(members), progress)
                about = {**provenance.metadata(run, config), "inputs": inputs, "rotations": len(parts)}
                about["too_long"] = sorted({question.id for question in questions} - set(parts[0].question_ids))
                files = [_file(run, name, epoch, rotation) for rotation in range(len(parts))]
                for rotation, (file, part) in enumerate(zip(files, parts, strict=True)):
                    part = replace(part, dataset=name.dataset, split=name.split, epoch=epoch, method=_method(epoch))
                    run.write(file, to_parquet(replace(part, metadata={**about, "rotation": rotation})))
            keep_questions(run, name, questions)
            # Read again, so that what is asked and what was stored give the same numbers, to the last bit.
            answered = [part for file in files for part in read_parquet(file)]
            found[answered[0].name] = _measure(answered, questions)
    return found


def rotate(question: Question, rotation: int) -> Question:
    """Return a question with choice (k + rotation) mod K at place k; its id stays."""
    K = len(question.choices)
    shift = rotation % K
    answer = None if question.answer is None else (question.answer - shift) % K
    return replace(question, choices=question.choices[shift:] + question.choices[:shift], answer=answer)


def put_back(p: Predictions, rotation: int) -> Predictions:
    """Return answers to rotated questions, in the questions' own order of the choices."""
    sizes, places = p.mask.sum(axis=1)[:, None], np.arange(p.mask.shape[1])
    return reordered(p, np.where(places < sizes, (places - rotation) % sizes, places))


def _answer(
    ensemble: Ensemble, questions: Sequence[Question], positions: Sequence[int], progress: Progress
) -> list[Predictions]:
    """Answer all rotations of all questions in one go; return those of each rotation, in the questions' own order.

    A question one of whose rotations is too long is left out of all.
    """
    asked_as: dict[str, tuple[Question, int]] = {}
    rotated = []
    # A question's rotations follow each other, so that what their prompts have in common is computed once.
    for question in questions:
        for rotation in range(len(question.choices)):
            # Told apart by the end of their ids, whatever these are; a message about one names it in words.
            row = replace(rotate(question, rotation), id=f"{question.id} (rotation {rotation})")
            asked_as[row.id] = question, rotation
            rotated.append(row)
    asked = ensemble.encode(rotated)
    fitting = Counter(asked_as[row.id][0].id for row in asked.questions)
    kept = [
        (row, tree)
        for row, tree in zip(asked.questions, asked.trees, strict=True)
        if fitting[asked_as[row.id][0].id] == len(row.choices)
    ]
    p = ensemble.answer(Asked([row for row, _ in kept], [tree for _, tree in kept]), positions, progress)
    of_rotation = np.array([asked_as[row][1] for row in p.question_ids])
    parts = []
    for rotation in range(of_rotation.max() + 1):
        part = p.select(of_rotation == rotation)
        ids = tuple(asked_as[row][0].id for row in part.question_ids)
        parts.append(put_back(replace(part, question_ids=ids), rotation))
    return parts


def _measure(answered: Sequence[Predictions], questions: Sequence[Question]) -> RotationSummary:
    """Measure the answers of each rotation; those of the first are to all questions."""
    first = answered[0]
    N, K = first.mask.shape
    probs = np.zeros((K, len(first.members), N, K))
    place = {question: n for n, question in enumerate(first.question_ids)}
    for of_rotation, p in zip(probs, answered, strict=True):
        of_rotation[:, [place[question] for question in p.question_ids], : p.mask.shape[1]] = p.probs
    passages = About([q.id for q in questions], [q.context for q in questions]).of(first.question_ids)
    return summarise_rotations(probs, first.mask, first.targets, clusters=passages.clusters)


def _stored(run: RunFolder, name: DatasetName, epoch: int, inputs: str) -> list[Path]:
    """Return the files of a set's rotations; none where one is missing, or was made from other inputs."""
    file = _file(run, name, epoch, 0)
    if not run.whole(file):
        return []
    rotations = provenance.header(file)["rotations"]
    files = [_file(run, name, epoch, rotation) for rotation in range(rotations)]
    made_from = [provenance.header(file)["inputs"] for file in files if run.whole(file)]
    return files if made_from == [inputs] * rotations else []


def _file(run: RunFolder, name: DatasetName, epoch: int, rotation: int) -> Path:
    return run.rotations(name.folder, name.file, _method(epoch), epoch, rotation)


def _method(epoch: int) -> str:
    return METHOD if epoch else BASE
