"""A run's own report: from its folder to the page, the numbers and the tables; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ripieno import decisions
from ripieno.data.kept import kept_questions, names_of
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question, content_key, read_questions
from ripieno.errors import EnvironmentFault, UserError
from ripieno.features import Features, read_features
from ripieno.measures.about import About
from ripieno.measures.calibration import BINS
from ripieno.measures.certificate import Certificate
from ripieno.measures.comparisons import compare_runs
from ripieno.measures.estimates import Costs
from ripieno.measures.evidence import Evidence
from ripieno.measures.table import Analysis, Comparison
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.report import explorer
from ripieno.report.build import Summary, build, build_comparison, write_tables
from ripieno.report.promise import CertifiedRun
from ripieno.report.words import counted
from ripieno.runs import BASE, METHOD, RunFolder, failed_members, sha256_of


def report(run: RunFolder, *, costs: Costs | None = None, bins: int = BINS) -> Path:
    """Analyse every whole file of predictions, and write report/index.html, metrics.json and tables/.

    Args:
        run: an evaluated run.
        costs: of an error and of a hand-over; the report then says which threshold is the cheapest.
        bins: of the errors of calibration.

    Returns:
        The page.

    Raises:
        UserError: nothing was evaluated yet.
    """
    evidence = _evaluated(run)
    analysis = evidence.analyze(costs=costs, bins=bins)
    run.write(run.report / "metrics.json", json.dumps(analysis.to_json(), indent=1, allow_nan=False) + "\n")
    for name, table in write_tables(analysis).items():
        run.write(run.report / "tables" / name, table)
    questions = _questions(run, evidence)
    explored = explorer.data(evidence.predictions, questions, evidence.out_of_domain, METHOD)
    summary, certified = _summary(run, evidence), None
    if (promised := decisions.recorded(run)) is not None:
        certified, why = _certified(run, evidence, questions, promised)
        summary = replace(summary, notes=(*summary.notes, *why))
    page = run.report / "index.html"
    run.write(page, build(summary, [*evidence.predictions, *evidence.matched], analysis, explored, certified))
    return page


def compare(
    run: RunFolder, other: RunFolder, *, costs: Costs | None = None, bins: int = BINS
) -> tuple[Path, Sequence[Comparison]]:
    """Set another run beside this one, question by question, and write report/compare-NAME.html.

    Args:
        run: a run with its report.
        other: another evaluated run.
        costs, bins: as in `report`, of the other run's analysis.

    Returns:
        The page, and the paired comparisons in it.

    Raises:
        UserError: nothing was evaluated in one of them, or they have no question in common.
    """
    evidence, others = _evaluated(run), _evaluated(other)
    summaries = _summary(run, evidence), _summary(other, others)
    names = (summaries[0].name, summaries[1].name)
    if names[0] == names[1]:
        names = (str(run.path), str(other.path))
    ours, theirs = ([p for p in each.predictions if p.method == METHOD] for each in (evidence, others))
    comparisons = compare_runs(ours, theirs, names, about=evidence.about)
    if not comparisons:
        raise UserError(
            f"{run.path} and {other.path}: no two answered questions in common, so there is nothing to pair; "
            "`ripieno evaluate RUN --dataset NAME` asks a run another set"
        )
    first, second = (replace(summary, name=name) for summary, name in zip(summaries, names, strict=True))
    analyses = read_analysis(run), others.analyze(costs=costs, bins=bins)
    page = run.report / f"compare-{other.path.absolute().name}.html"  # "." has no name
    run.write(page, build_comparison(first, second, analyses, comparisons))
    return page, comparisons


def read_analysis(run: RunFolder) -> Analysis:
    """Read what `report` wrote to metrics.json."""
    return Analysis.from_json(json.loads((run.report / "metrics.json").read_bytes()))


def load(run: RunFolder) -> Evidence:
    """Read all that a run's analysis is made of.

    Sets that were evaluated by their name alone are out of domain, unless the members were trained or chosen on them:
    those are neither in domain nor out of it.

    Raises:
        UserError: the folder is no run.
        EnvironmentFault: a file that was written is missing or damaged.
    """
    data = run.config().data
    _require_whole(run)
    wanted = names_of(run, (*data.test, *data.out_of_domain))
    order = {f"{name.dataset}/{name.split}": n for n, name in enumerate(wanted)}
    calibrating, in_domain = _names(run, data.calibration), _names(run, data.test)
    # Asked to choose a threshold and to certify it (`ripieno certify`), and for nothing else.
    deciding = _names(run, (*data.validation, *data.certification))
    used = _names(run, data.train) | deciding | in_domain
    files = sorted((run.path / "predictions").rglob("*.parquet"))
    parts = [p for file in files if run.whole(file) for p in read_parquet(file)]
    evaluated = [p for p in parts if p.name not in (calibrating | deciding) - set(order)]
    evaluated.sort(key=lambda p: (order.get(p.name, len(order)), p.name, p.epoch))
    asked = [p for p in evaluated if p.choices_kept is None]
    features = _features(run)
    trained = [features[name].hidden for name in _names(run, data.train) if name in features]
    names = dict.fromkeys(p.name for p in asked)
    return Evidence(
        predictions=asked,
        in_domain=tuple(name for name in names if name in in_domain),
        out_of_domain=tuple(name for name in names if name not in used),
        calibration=[p for p in parts if p.name in calibrating and p.choices_kept is None],
        matched=[p for p in evaluated if p.choices_kept is not None],
        about={name: _about(file, features.get(name)) for name, file in _question_files(run).items()},
        familiar=np.concatenate(trained) if trained else None,
    )


def _require_whole(run: RunFolder) -> None:
    """Check that nothing is missing: an older epoch would stand in for it, or a set be left out without a word.

    A set whose whole folder was removed is taken out on purpose.
    """
    for path in run.recorded():
        file = run.path / path
        kept = file.exists() or any(file.parent.glob("*.parquet"))
        if path.startswith(("predictions/", "features/")) and kept and not run.whole(file):
            method, *settings = file.name.partition("-epoch-")[0].split("-")
            how = "" if method in (BASE, METHOD) or path.startswith("features/") else f" --method {method}"
            how += "".join(f" --setting {setting}" for setting in settings)
            raise EnvironmentFault(f"{file}: missing or damaged; `ripieno evaluate {run.path}{how}` makes it again")


def _evaluated(run: RunFolder) -> Evidence:
    evidence = load(run)
    if not any(p.method == METHOD for p in evidence.predictions):
        raise UserError(f"{run.path}: nothing was evaluated yet; `ripieno evaluate {run.path}` asks the members first")
    return evidence


def _features(run: RunFolder) -> dict[str, Features]:
    """Return what the base alone makes of the questions, by data set."""
    files = sorted((run.path / "features").rglob("*.parquet"))
    return {found.name: found for file in files if run.whole(file) for found in [read_features(file)]}


def _question_files(run: RunFolder) -> dict[str, Path]:
    """Return the questions' files by `DATASET/SPLIT`, of all sets that the config or a file of predictions names."""
    data = run.config().data
    written = (*data.train, *data.calibration, *data.test, *data.out_of_domain)
    named = {f"{name.dataset}/{name.split}": name for name in names_of(run, written)}
    found = {shown: run.questions(name.folder, name.file) for shown, name in named.items()}
    # A set that was evaluated by name alone: its files lie side by side.
    for file in sorted((run.path / "predictions").rglob("*.parquet")):
        beside = run.questions(file.parent.parent.name, file.parent.name)
        if run.whole(file) and beside not in found.values():
            found |= {p.name: beside for p in read_parquet(file)[:1]}
    return {name: file for name, file in found.items() if run.holds(file)}


def _about(file: Path, features: Features | None) -> About:
    questions = read_questions(file)
    ids = [question.id for question in questions]
    sizes = [[len(choice.encode()) for choice in question.choices] for question in questions]
    K = max(map(len, sizes))
    about = About(
        question_ids=ids,
        passages=[question.context for question in questions],
        choice_bytes=np.array([row + [0] * (K - len(row)) for row in sizes], dtype=np.int64),
    )
    if features is None:
        return about
    place = {question: n for n, question in enumerate(features.question_ids)}
    read = np.array([question in place for question in ids], dtype=bool)
    index = np.array([place.get(question, 0) for question in ids], dtype=np.int64)
    return replace(
        about,
        prompt_tokens=features.prompt_tokens[index],
        prompt_nll=features.prompt_nll[index],
        hidden=features.hidden[index],
        read=None if read.all() else read,
    )


def _questions(run: RunFolder, evidence: Evidence) -> dict[str, list[Question]]:
    """Return the texts of the evaluated sets' questions, by data set."""
    shown = {p.name for p in evidence.predictions}
    return {name: read_questions(file) for name, file in _question_files(run).items() if name in shown}


def _summary(run: RunFolder, evidence: Evidence) -> Summary:
    config = run.config()
    manifest, training, prompt = run.manifest(), config.training, config.prompt
    seconds = {
        what: sum(line["seconds"] for line in run.lines("timing.jsonl") if line["what"] == what)
        for what in ("train", "evaluate")
    }
    targets = config.adapter.targets
    rule = (
        "one letter's token"
        if TEMPLATES[prompt.template].letters
        else (f"log-likelihood of the choice and its {prompt.terminator.replace('_', ' ')}, by {prompt.normalisation}")
    )
    return Summary(
        name=config.name,
        base=config.base.model,
        base_sha256=manifest["base_sha256"],
        method=METHOD,
        members=training.members,
        epochs=training.epochs,
        rank=config.adapter.rank,
        alpha=config.adapter.alpha,
        targets=(targets,) if isinstance(targets, str) else targets,
        loss=training.loss,
        template=prompt.template,
        scoring_rule=rule,
        training=tuple(manifest["counts"]["train"].items()),
        in_domain=tuple(evidence.in_domain or ()),
        out_of_domain=tuple(evidence.out_of_domain),
        dropped=tuple(_dropped(manifest, evidence.predictions)),
        versions=manifest["versions"],
        training_seconds=seconds["train"] or None,
        evaluation_seconds=seconds["evaluate"] or None,
        notes=tuple(notes(run)),
        config_yaml=(run.path / "config.yaml").read_text(encoding="utf-8"),
    )


def _certified(
    run: RunFolder, evidence: Evidence, questions: Mapping[str, Sequence[Question]], promised: Mapping[str, Any]
) -> tuple[CertifiedRun | None, list[str]]:
    """Return the promise, if it is of the members and the epoch that the page shows; and what is left out, and why."""
    of_epoch, last = promised["asked"]["epoch"], max(p.epoch for p in evidence.predictions if p.method == METHOD)
    if last != of_epoch:
        return None, [f"What was promised is of epoch {of_epoch}, and is not shown beside epoch {last}."]
    # Where a run was copied without its members, its predictions are still theirs.
    members = {run.path / path: sha256 for path, sha256 in promised["adapters"].items()}
    if any(file.exists() and sha256_of(file) != sha256 for file, sha256 in members.items()):
        return None, ["What was promised is of other members than those of this run now, and is not shown."]
    data = run.config().data
    deciding = names_of(run, (*data.validation, *data.calibration, *data.certification))
    seen = {content_key(question) for name in deciding for question in kept_questions(run, name)}
    met = [name for name, of_set in questions.items() if not seen.isdisjoint(map(content_key, of_set))]
    choices = {name: {q.id: q.choices for q in of_set} for name, of_set in questions.items() if name not in met}
    return CertifiedRun(Certificate.from_json(promised["certificate"]), choices), [
        f"{name} holds questions that the promise was made from, so it shows nothing of how it went." for name in met
    ]


def _names(run: RunFolder, written: Sequence[str]) -> set[str]:
    return {f"{name.dataset}/{name.split}" for name in names_of(run, written)}


def _dropped(manifest: Mapping[str, Any], evaluated: Sequence[Predictions]) -> list[str]:
    """Say how many questions were left out, and why."""
    overlap, too_long = manifest["dropped"]["overlap"], manifest["dropped"]["too_long"]
    lines = []
    for role in dict.fromkeys(drop["role"] for drop in overlap):
        count = sum(drop["role"] == role for drop in overlap)
        lines.append(f"{_were(count)} left out of {role}, because a later role asks the same.")
    lines += [f"{_were(len(ids))} left out of {role} as too long." for role, ids in too_long.items() if ids]
    evaluated_too_long = {p.name: len(p.metadata.get("too_long", ())) for p in evaluated}
    lines += [f"{_were(count)} left out of {name} as too long." for name, count in evaluated_too_long.items() if count]
    return lines


def _were(count: int) -> str:
    return f"{counted(count, 'question')} {'was' if count == 1 else 'were'}"


def notes(run: RunFolder) -> list[str]:
    """Say what a run cannot show."""
    config = run.config()
    said = [
        "The ensemble was trained once. Intervals speak of other questions to these members, not of training again.",
    ]
    trained = {(n.dataset, n.splits) for n in names_of(run, config.data.train)}
    if any((n.dataset, n.splits) in trained for n in names_of(run, config.data.test)):
        said.append(
            "Training and in-domain test questions are drawn from one file or released split, so the test set is as "
            "like the training set as can be; questions from elsewhere will be answered less well."
        )
    adapter, training = config.adapter, config.training
    if not (
        training.bagging or training.templates or training.repulsion or adapter.member_ranks or adapter.member_targets
    ):
        said.append(
            "Members differ by their seed alone (initialisation and order), so they may disagree less than they should."
        )
    if run.manifest()["shared_calibration"]:
        said.append("The temperature was fitted on the validation questions, which also chose when to stop.")
    if failed := failed_members(run):
        said.append(f"Left out, because their training failed: member {', '.join(map(str, failed))}.")
    return said
