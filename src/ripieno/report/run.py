"""A run's own report: from its folder to the page, the numbers and the tables; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ripieno.config import Config
from ripieno.data.prompts import TEMPLATES
from ripieno.data.splits import DatasetName
from ripieno.errors import UserError
from ripieno.measures import analysis
from ripieno.predictions import Predictions, read_parquet
from ripieno.report.build import Summary, build, write_tables
from ripieno.runs import METHOD, RunFolder, stopped_members


def report(run: RunFolder) -> Path:
    """Analyse every whole file of predictions, and write report/index.html, metrics.json and tables/.

    Returns:
        The page.

    Raises:
        UserError: nothing was evaluated yet.
    """
    config = run.config()
    evaluated, calibration = read_predictions(run, config)
    if not evaluated:
        raise UserError(f"{run.path}: nothing to report yet; `ripieno evaluate {run.path}` asks the members first")
    rows = analysis.analyze(evaluated, calibration=calibration)
    comparisons = analysis.compare_with_references(evaluated, calibration=calibration)
    content = json.dumps(analysis.to_json(rows, comparisons), indent=1, allow_nan=False)
    run.write(run.report / "metrics.json", content + "\n")
    for name, table in write_tables(rows, comparisons).items():
        run.write(run.report / "tables" / name, table)
    page = run.report / "index.html"
    run.write(page, build(_summary(run, config, evaluated), evaluated, rows, comparisons))
    return page


def read_predictions(run: RunFolder, config: Config) -> tuple[list[Predictions], list[Predictions]]:
    """Return a run's whole predictions: of the evaluated sets in the config's order, and of the calibration sets."""
    data = config.data
    wanted = [DatasetName.parse(text) for text in (*data.test, *data.out_of_domain)]
    order = {(name.dataset, name.split): n for n, name in enumerate(wanted)}
    calibrating = {(n.dataset, n.split) for n in map(DatasetName.parse, data.calibration)}
    files = sorted((run.path / "predictions").rglob("*.parquet"))
    parts = [p for file in files if run.whole(file) for p in read_parquet(file)]
    evaluated = [p for p in parts if (p.dataset, p.split) not in calibrating - set(order)]
    evaluated.sort(key=lambda p: (order.get((p.dataset, p.split), len(order)), p.name, p.epoch))
    return evaluated, [p for p in parts if (p.dataset, p.split) in calibrating]


def _summary(run: RunFolder, config: Config, evaluated: Sequence[Predictions]) -> Summary:
    manifest, training, prompt = run.manifest(), config.training, config.prompt
    in_domain = tuple(name for name in dict.fromkeys(p.name for p in evaluated) if name in _names(config.data.test))
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
        in_domain=in_domain,
        out_of_domain=tuple(n for n in dict.fromkeys(p.name for p in evaluated) if n not in in_domain),
        dropped=tuple(_dropped(manifest, evaluated)),
        versions=manifest["versions"],
        training_seconds=seconds["train"] or None,
        evaluation_seconds=seconds["evaluate"] or None,
        notes=tuple(notes(run)),
        config_yaml=(run.path / "config.yaml").read_text(encoding="utf-8"),
    )


def _names(written: Sequence[str]) -> set[str]:
    return {f"{name.dataset}/{name.split}" for name in map(DatasetName.parse, written)}


def _dropped(manifest: Mapping[str, Any], evaluated: Sequence[Predictions]) -> list[str]:
    """Say how many questions were left out, and why."""
    overlap, too_long = manifest["dropped"]["overlap"], manifest["dropped"]["too_long"]
    lines = []
    for role in dict.fromkeys(drop["role"] for drop in overlap):
        count = sum(drop["role"] == role for drop in overlap)
        lines.append(f"{count} questions were left out of {role}, because a later role asks them too.")
    lines += [f"{len(ids)} questions of {role} were left out as too long." for role, ids in too_long.items() if ids]
    evaluated_too_long = {p.name: len(p.metadata.get("too_long", ())) for p in evaluated}
    lines += [
        f"{count} questions of {name} were left out as too long." for name, count in evaluated_too_long.items() if count
    ]
    return lines


def notes(run: RunFolder) -> list[str]:
    """Say what a run cannot show."""
    config = run.config()
    said = [
        "The ensemble was trained once. Intervals speak of other questions to these members, not of training again.",
    ]
    trained = {(n.dataset, n.splits) for n in map(DatasetName.parse, config.data.train)}
    if any((n.dataset, n.splits) in trained for n in map(DatasetName.parse, config.data.test)):
        said.append(
            "Training and in-domain test questions are drawn from one released split, so the test set is as like the "
            "training set as can be; questions from elsewhere will be answered less well."
        )
    if not config.training.bagging:
        said.append(
            "Members differ by their seed alone (initialisation and order), so they may disagree less than they should."
        )
    if run.manifest()["shared_calibration"]:
        said.append("The temperature was fitted on the validation questions, which also chose when to stop.")
    failed = [m for m, (_, kept) in stopped_members(run).items() if kept is None]
    if failed:
        said.append(f"Left out, because their training failed: member {', '.join(map(str, failed))}.")
    return said
