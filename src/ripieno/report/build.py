"""The page: what was run, what it is worth, and where not to trust it, in one HTML file that loads nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from ripieno.measures import accuracy, uncertainty
from ripieno.measures.analysis import Comparison, Row
from ripieno.measures.calibration import reliability
from ripieno.predictions import Predictions
from ripieno.report import plots, story
from ripieno.report.results import ANSWERERS, Answerer, EvaluatedSet, Interval, Results, evaluated_set

COLUMNS = {
    "accuracy": "Accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "predictive_entropy": "Entropy",
    "expected_entropy": "Expected entropy",
    "mutual_information": "Mutual information",
}
MEMBER_COLUMNS = ("accuracy", "nll", "brier", "ece")
COMPARED = ("accuracy", "nll", "brier")
ANSWERER_NAMES: dict[Answerer, str] = {
    "base": "Base",
    "base_temperature": "Base, temperature-scaled",
    "members_mean": "Mean member",
    "ensemble": "Ensemble",
    "ensemble_temperature": "Ensemble, temperature-scaled",
}
COURSES = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"}


@dataclass(frozen=True)
class Summary:
    """What was run.

    Args:
        name: of the run.
        base, base_sha256: the model's name and its weights' identity.
        method: how the weight samples were made; the rows of this method (and `base`) are shown.
        members, epochs: how many were trained, and how long.
        rank, alpha, targets: of the adapters.
        loss: what was minimised.
        template, scoring_rule: how a question was put, and how a choice was scored.
        training: data set and number of questions, of each that was trained on.
        in_domain, out_of_domain: names (`DATASET/SPLIT`) of the evaluated sets, in the page's order.
        dropped: a sentence for each reason that questions were dropped.
        versions: of the programs used.
        training_seconds, evaluation_seconds: how long it took, where known.
        notes: sentences on what this run did not show.
        config_yaml: the resolved config.
    """

    name: str
    base: str
    base_sha256: str
    method: str
    members: int
    epochs: int
    rank: int
    alpha: float
    targets: tuple[str, ...]
    loss: str
    template: str
    scoring_rule: str
    training: tuple[tuple[str, int], ...]
    in_domain: tuple[str, ...]
    out_of_domain: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None
    training_seconds: float | None = None
    evaluation_seconds: float | None = None
    notes: tuple[str, ...] = ()
    config_yaml: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the table, and what stands below it."""

    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels that are read together, for one set."""

    title: str
    panels: tuple[plots.Panel, ...]


def build(
    summary: Summary, predictions: Sequence[Predictions], rows: Sequence[Row], comparisons: Sequence[Comparison]
) -> str:
    """Return the report as one HTML file.

    Args:
        summary: what was run.
        predictions: of every evaluated set, the base (epoch 0) and the method's epochs.
        rows: `analyze` of them.
        comparisons: `compare_with_references` of them.
    """
    results = Results(rows, comparisons, summary.method)
    last = _last(summary, predictions, results)
    sets = [evaluated_set(p, p.name in summary.out_of_domain) for p in last]
    environment = Environment(
        loader=PackageLoader("ripieno.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html").render(
        summary=summary,
        findings=story.tell(summary, results, sets),
        notes=_notes(summary, last),
        facts=_facts(summary),
        columns=COLUMNS,
        member_columns={measure: COLUMNS[measure] for measure in MEMBER_COLUMNS},
        tables=[_table(results, s, summary.members) for s in sets],
        compared_columns={measure: COLUMNS[measure] for measure in COMPARED},
        comparisons=[_compared(results, s) for s in sets if results.compared(s.name)],
        courses=_courses(results, sets),
        reliabilities=[_reliability(p, s, i) for i, (p, s) in enumerate(zip(last, sets, strict=True)) if s.guess],
        densities=_densities(last, sets),
        epoch=results.epochs[-1] if results.epochs else 0,
    )


def write_tables(rows: Sequence[Row], comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Return the csv files of report/tables by name; no text in them starts a spreadsheet's formula."""
    return {"measures.csv": _csv(Row, rows), "comparisons.csv": _csv(Comparison, comparisons)}


def _csv(kind: type[Row] | type[Comparison], items: Iterable[Row | Comparison]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows([_harmless(value) for value in astuple(item)] for item in items)
    return buffer.getvalue()


def _harmless(value: Any) -> Any:
    """Return a text cell that no spreadsheet runs as a formula (a leading apostrophe makes it text)."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _last(summary: Summary, predictions: Sequence[Predictions], results: Results) -> list[Predictions]:
    """Return the method's last epoch of each named set, in the page's order."""
    at_last = {p.name: p for p in predictions if p.method == summary.method and p.epoch in results.epochs[-1:]}
    return [at_last[name] for name in (*summary.in_domain, *summary.out_of_domain) if name in at_last]


def _notes(summary: Summary, last: Sequence[Predictions]) -> list[str]:
    """Return what the run did not show, the sets that were not evaluated at its last epoch among it."""
    shown = {p.name for p in last}
    missing = [name for name in (*summary.in_domain, *summary.out_of_domain) if name not in shown]
    return [*summary.notes, *(f"{name} was not evaluated at the last epoch." for name in missing)]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """Return the table of what was run."""
    seconds = [("Training took", summary.training_seconds), ("Evaluation took", summary.evaluation_seconds)]
    return [
        ("Base", f"{summary.base} (sha256 {summary.base_sha256})"),
        ("Method", f"{summary.method}: {story.counted(summary.members, 'member')}"),
        ("Adapter", f"rank {summary.rank}, alpha {summary.alpha:g}, on {', '.join(summary.targets)}"),
        ("Trained on", "; ".join(f"{name}: {story.counted(n, 'question')}" for name, n in summary.training)),
        ("Epochs", f"{summary.epochs}"),
        ("Loss", summary.loss),
        ("Prompt template", summary.template),
        ("Scoring rule", summary.scoring_rule),
        ("In domain", ", ".join(summary.in_domain) or "none"),
        ("Out of domain", ", ".join(summary.out_of_domain) or "none"),
        ("Dropped questions", " ".join(summary.dropped) or "none"),
        *((label, _duration(value)) for label, value in seconds if value is not None),
        ("Versions", ", ".join(f"{name} {version}" for name, version in (summary.versions or {}).items())),
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _table(results: Results, s: EvaluatedSet, members: int) -> dict[str, Any]:
    """Return one set's part of the table: a line an answerer, and one a member."""
    shown = [a for a in ANSWERERS if results.row(s.name, a, "accuracy") and (members > 1 or a != "members_mean")]
    return {
        "set": s,
        "lines": [(ANSWERER_NAMES[a], [_cell(results, s, a, measure) for measure in COLUMNS]) for a in shown],
        "members": [
            (f"Member {m}", [_cell(results, s, m, measure) for measure in MEMBER_COLUMNS])
            for m in results.members(s.name)
        ],
    }


def _cell(results: Results, s: EvaluatedSet, answerer: Answerer | int, measure: str) -> Cell:
    row = results.row(s.name, answerer, measure)
    if row is None or row.value is None:
        return Cell("–", "" if row is None else row.reason or "")
    places = 3 if measure == "mutual_information" else 2
    null = results.value(s.name, answerer, "ece_null_q95") if measure == "ece" else None
    if null is not None:
        return Cell(f"{row.value:.2f}", f"chance: up to {null.value:.2f}")
    if row.low is None or row.high is None:
        return Cell(f"{row.value:.{places}f}")
    return Cell(f"{row.value:.{places}f}", f"{row.low:.{places}f} to {row.high:.{places}f}")


def _compared(results: Results, s: EvaluatedSet) -> dict[str, Any]:
    """Return one set's paired comparisons: a line a pair, each difference with what its interval allows to say."""
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for c in results.compared(s.name):
        way = Interval(c.difference, c.low, c.high).against(0.0) * (1 if c.measure == "accuracy" else -1)
        said = {1: "better", 0: "not told apart", -1: "worse"}[way]
        if c.second == "mean member" and c.measure != "accuracy":
            said = "no evidence: convexity"
        low, middle, high = (f"{value:+.2f}".replace("-", "−") for value in (c.low, c.difference, c.high))
        cell = Cell(f"{middle} {said}", f"{low} to {high}")
        lines.setdefault((c.first, c.second), {})[c.measure] = cell
    return {
        "set": s,
        "lines": [
            (f"{first} less {second}", [cells.get(measure, Cell("–")) for measure in COMPARED])
            for (first, second), cells in lines.items()
        ],
    }


def _courses(results: Results, sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set: accuracy, NLL and ECE over the epochs, the same axes for every set."""
    if not results.epochs:
        return []
    panels: dict[str, list[plots.Panel]] = {s.name: [] for s in sets}
    for measure, label in COURSES.items():
        lines = {s.name: _lines(results, s, measure) for s in sets}
        values = [v for each in lines.values() for line in each for _, p in line.points for v in (p.value, p.high) if v]
        references = {s.name: _reference(results, s, measure) for s in sets}
        top = 1.08 * max([*values, *(r.value for r in references.values() if r)], default=1.0)
        for i, s in enumerate(sets):
            if lines[s.name]:
                panels[s.name].append(
                    plots.course(label, lines[s.name], (0.0, top), references[s.name], f"c{i}{measure}")
                )
    return [Figure(s.name, tuple(panels[s.name])) for s in sets if panels[s.name]]


def _lines(results: Results, s: EvaluatedSet, measure: str) -> list[plots.Course]:
    members = [results.course(s.name, m, measure) for m in results.members(s.name)]
    ensemble = results.course(s.name, "ensemble", measure)
    lines = [*(plots.Course(points, member=True) for points in members), plots.Course(ensemble)]
    return [line for line in lines if line.points]


def _reference(results: Results, s: EvaluatedSet, measure: str) -> Interval | None:
    """Return where the dashed line lies: a uniform guess, or the ECE that chance alone would reach."""
    if measure == "ece":
        return results.value(s.name, "ensemble", "ece_null_q95")
    value = s.guess if measure == "accuracy" else s.even_odds
    return None if value is None else Interval(value)


def _reliability(p: Predictions, s: EvaluatedSet, i: int) -> Figure:
    pooled = uncertainty.pool(p.probs)[p.labelled]
    right = accuracy.correct(pooled, p.targets[p.labelled])
    return Figure(s.name, (plots.reliability(reliability(uncertainty.confidence(pooled), right), f"r{i}"),))


def _densities(last: Sequence[Predictions], sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set: its right and its wrong answers, the same axes everywhere. None for a single member."""
    shown = [(p, s, uncertainty.decompose(p.probs)) for p, s in zip(last, sets, strict=True)]
    shown = [each for each in shown if each[1].guess and len(each[0].members) > 1]
    if not shown:
        return []
    across = 1.04 * max(np.log(max(s.sizes)) for _, s, _ in shown)
    up = 1.1 * max(max(float(np.quantile(parts.epistemic, 0.995)) for _, _, parts in shown), 1e-3)
    figures = []
    for i, (p, s, parts) in enumerate(shown):
        right = p.probs.mean(axis=0).argmax(axis=1) == p.targets
        most = np.log(p.mask.sum(axis=1))
        panels = tuple(
            plots.density(parts.total[chosen], parts.epistemic[chosen], most[chosen], (across, up), role, f"d{i}{role}")
            for role, chosen in (("right", right & p.labelled), ("wrong", ~right & p.labelled))
        )
        figures.append(Figure(s.name, panels))
    return figures
