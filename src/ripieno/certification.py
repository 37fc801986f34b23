"""A run's promise: thresholds with a guarantee, from the roles that were set aside for it (RUN/certificate.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ripieno import decisions
from ripieno.data.kept import names_of, questions_of
from ripieno.data.question import Question, content_key, read_questions
from ripieno.data.splits import DatasetName
from ripieno.ensemble import Ensemble, assemble, load_base
from ripieno.errors import UserError
from ripieno.evaluation import evaluate, read_answers
from ripieno.measures import Costs
from ripieno.measures import certificate as certificates
from ripieno.measures.certificate import Certificate
from ripieno.measures.sets import By, Score
from ripieno.progress import Progress
from ripieno.prompt_features import as_evaluated, make_features
from ripieno.runs import METHOD, RunFolder, members_at, sha256_of

CONFIDENCE = 0.95


def certify(
    run: RunFolder,
    risk: float,
    confidence: float,
    *,
    costs: Costs | None = None,
    score: Score = "lac",
    by: By | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Certify a risk on the certification questions, once; the same question again is answered from the record.

    Args:
        run: a trained run whose config names `data.validation` and `data.certification`; the temperature is fitted on
            `data.calibration`, or on validation where there is none.
        risk: at most this share of the answered wrong.
        confidence: of the promise.
        costs: of an error and of a hand-over.
        score, by: of the prediction sets, as in `SetRule`.
        data_dir: a folder with originally released data files.
        progress: advanced by one a member and question.

    Raises:
        UserError: a role is missing or has no answers, its questions are in another role too, or they were used for
            another promise.
    """
    config, data = run.config(), run.config().data
    for role in ("validation", "certification"):
        if not getattr(data, role):
            raise UserError(f"{run.path}: its config names no data.{role}, which a promise needs; add it, train again")
    asked = {
        "risk": risk,
        "confidence": confidence,
        "costs": [costs.error, costs.handover] if costs else None,
        "sets": [score, by],
        "epoch": config.training.epochs,
    }
    kept = _kept(run, asked)
    if kept is not None:
        return kept
    names = {role: list(dict.fromkeys(getattr(data, role))) for role in ("validation", "calibration", "certification")}
    asked_sets = list(dict.fromkeys(name for of_role in names.values() for name in of_role))
    own = names_of(run, names["certification"])
    questions = {name: questions_of(run, config, name, data_dir) for name in own}
    choices = _choices(run, by, questions)
    progress = progress or Progress(quiet=True)
    evaluate(run, asked_sets, [config.training.epochs], data_dir=data_dir, progress=progress)
    answering = members_at(run, config.training.epochs)
    weights = [run.adapter_files(member, at)[1] for member, at in answering.items()]
    adapters = {file.relative_to(run.path).as_posix(): sha256_of(file) for file in weights}
    _check_disjoint(run, questions)
    last = config.training.epochs
    answers = {role: read_answers(run, of_role, METHOD, last) for role, of_role in names.items() if of_role}
    for role, p in answers.items():
        if not p.labelled.any():
            raise UserError(
                f"{run.path}: no question of data.{role} has an answer; add some that have, and train again"
            )
    made = certificates.make(
        answers["validation"],
        answers.get("calibration", answers["validation"]),
        answers["certification"],
        risk=risk,
        confidence=confidence,
        costs=costs,
        score=score,
        by=by,
        choices=choices,
    )
    content: dict[str, Any] = {
        "asked": asked,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "adapters": adapters,
        "certificate": made.to_json(),
    }

    @cache
    def base() -> Ensemble:
        return assemble(config, load_base(run, config.base, config.compute), [0], data_dir)

    with run.lock():
        kept = _kept(run, asked)  # another process may have been faster
        if kept is not None:
            return kept
        # What new questions are compared with.
        prompts = [as_evaluated(config, name, of_set) for name, of_set in questions.items()]
        make_features(run, config, prompts, base, progress)
        files = [run.features(name.folder, name.file) for name in own]
        content["features"] = [file.relative_to(run.path).as_posix() for file in files if run.whole(file)]
        run.write(run.certificate, json.dumps(content, indent=2) + "\n")
    return made


def certify_first(run: RunFolder, max_risk: float | None, progress: Progress) -> Certificate | None:
    """Certify a risk, at `CONFIDENCE`, where one is named and nothing was certified yet; None elsewhere.

    Raises:
        UserError: the risk is none, or as `certify`.
    """
    if max_risk is None or decisions.recorded(run) is not None:
        return None
    decisions.check_share("--max-risk", max_risk)
    return certify(run, max_risk, CONFIDENCE, progress=progress)


def _kept(run: RunFolder, asked: Mapping[str, Any]) -> Certificate | None:
    """Return what was certified before, None where nothing was.

    Raises:
        UserError: something else was asked then.
    """
    recorded = decisions.recorded(run)
    if recorded is None:
        return None
    was = recorded["asked"]
    if was != asked:
        score, by = was["sets"]
        asked_too = "" if was["costs"] is None else " --cost-error {:g} --cost-handover {:g}".format(*was["costs"])
        asked_too += ("" if score == "lac" else f" --sets {score}") + ("" if by is None else f" --sets-by {by}")
        raise UserError(
            f"{run.path}: its certification questions were used on {recorded['made'][:10]}, and can be used once: to "
            "ask again until the answer pleases is no guarantee. All that they promise is said by "
            f"`ripieno certify {run.path} --risk {was['risk']:g} --confidence {was['confidence']:g}{asked_too}`"
        )
    return Certificate.from_json(recorded["certificate"])


def _choices(
    run: RunFolder, by: By | None, certification: Mapping[DatasetName, Sequence[Question]]
) -> dict[str, Sequence[str]]:
    """Return the certification questions' choices by id.

    Raises:
        UserError: sets are asked for by what these questions do not have.
    """
    asked = [question for questions in certification.values() for question in questions]
    if by == "label" and len({question.choices for question in asked}) > 1:
        raise UserError(
            f"{run.path}: --sets-by label is for questions that all have the same choices, and these do not; "
            "leave it out, or give --sets-by subject"
        )
    if by == "subject" and not any(question.subject for question in asked):
        raise UserError(f"{run.path}: --sets-by subject: no certification question has a subject; leave it out")
    return {question.id: question.choices for question in asked}


def _check_disjoint(run: RunFolder, certification: Mapping[DatasetName, Sequence[Question]]) -> None:
    """Check by content that no certification question is in any other set that the run keeps.

    Raises:
        UserError: one is.
        EnvironmentFault: a file of the run's questions is damaged.
    """
    mine = {content_key(question): question.id for questions in certification.values() for question in questions}
    own = {run.questions(name.folder, name.file) for name in certification}
    for file in sorted(set((run.path / "questions").rglob("*.parquet")) - own):
        run.holds(file)
        for question in read_questions(file):
            if content_key(question) in mine:
                raise UserError(
                    f"{run.path}: certification question {mine[content_key(question)]!r} is also in {file} "
                    f"({question.id!r}); what was seen elsewhere certifies nothing; take it out there, and train again"
                )
