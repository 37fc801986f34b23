"""The page: what was run, what it is worth, and where not to trust it, in one HTML file that loads nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ripieno.escaping import csv_cell
from ripieno.measures.table import Analysis, Comparison, Flow, Row, SizePoint
from ripieno.predictions import Predictions
from ripieno.report import compare, figures, promise, story, tables
from ripieno.report.explorer import Explored
from ripieno.report.names import MEASURES, OOD_NAMES, SELECTIVE_NAMES
from ripieno.report.promise import CertifiedRun
from ripieno.report.results import EvaluatedSet, Results, evaluated_set, name_of
from ripieno.report.templates import environment
from ripieno.report.words import counted


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


def build(
    summary: Summary,
    predictions: Sequence[Predictions],
    analysis: Analysis,
    explored: Explored | None = None,
    certified: CertifiedRun | None = None,
) -> str:
    """Return the report as one HTML file.

    Args:
        summary: what was run.
        predictions: of every evaluated set, the base (epoch 0) and the method's epochs. Those that were asked again
            with fewer choices (`choices_kept`) only serve to compare sets of different numbers of choices.
        analysis: of them.
        explored: the questions for the page's explorer; without them it is left out.
        certified: what was promised, where something was certified.
    """
    results = Results(analysis, summary.method)
    last = _last(summary, predictions, results)
    sets = evaluated_sets(summary, results, last)
    home = next((s for s in sets if not s.out), None)
    compared_columns = tables.compared_columns(results.comparisons)
    return (
        environment()
        .get_template("template.html")
        .render(
            summary=summary,
            findings=story.tell(summary, results, sets, last, certified),
            promise=promise.section(certified, sets, last) if certified else None,
            notes=_notes(summary, last),
            facts=_facts(summary),
            columns=tables.COLUMNS,
            member_columns=tables.MEMBER_COLUMNS,
            numbers_of_sets=[tables.numbers(results, s, summary.members) for s in sets],
            meanings=[MEASURES[measure] for measure in tables.COLUMNS],
            sets=sets,
            every_measure=tables.every_measure(results, sets),
            compared_columns=compared_columns,
            comparisons=[
                tables.compared(found, s, tuple(compared_columns)) for s in sets if (found := results.compared(s.name))
            ],
            courses=figures.courses(results, sets),
            flows=figures.flows(results, sets),
            reliabilities=figures.reliabilities(last, sets),
            risks=figures.risks(last, sets),
            selective_columns=SELECTIVE_NAMES,
            selective=[table for s in sets if (table := tables.selective(results, s))],
            densities=figures.densities(last, sets),
            histograms=figures.histograms(last, sets, predictions),
            ood_columns=OOD_NAMES,
            home=home,
            ood=[table for s in sets if home and s.out and (table := tables.unfamiliar(results, home, s))],
            sizes=figures.sizes(results, sets),
            subjects=[
                {"set": s, "lines": lines} for p, s in zip(last, sets, strict=True) if (lines := tables.subjects(p))
            ],
            few=tables.FEW,
            checks=[{"set": s, "sentences": said} for s in sets if (said := tables.checks(results, s))],
            epoch=results.last,
            explored=explored,
        )
    )


def build_comparison(
    first: Summary, second: Summary, analyses: tuple[Analysis, Analysis], comparisons: Sequence[Comparison]
) -> str:
    """Return two runs side by side as one HTML file.

    Args:
        first, second: what was run; their names are those that the comparisons carry.
        analyses: of each.
        comparisons: paired differences first - second, on the questions that both answered.
    """
    results = Results(analyses[0], first.method), Results(analyses[1], second.method)
    shared = compare.shared_sets((first, second), results)
    columns = tables.compared_columns(comparisons)
    return (
        environment()
        .get_template("compare.html")
        .render(
            first=first,
            second=second,
            findings=compare.tell((first.name, second.name), results, shared, comparisons),
            config=compare.config_differences(first.config_yaml, second.config_yaml),
            columns=compare.COLUMNS,
            sides=[compare.side_by_side((first.name, second.name), results, s) for s in shared],
            compared_columns=columns,
            comparisons=[
                tables.compared(found, s, tuple(columns))
                for s in shared
                if (found := [c for c in comparisons if name_of(c) == s.name])
            ],
        )
    )


def evaluated_sets(summary: Summary, results: Results, last: Sequence[Predictions]) -> list[EvaluatedSet]:
    """Return what the page says of each set, by a short name where no other set of the page has it."""
    datasets = [p.dataset for p in last]
    short = [p.dataset if datasets.count(p.dataset) == 1 else p.name for p in last]
    return [
        evaluated_set(results, p, p.name in summary.out_of_domain, name) for p, name in zip(last, short, strict=True)
    ]


def write_tables(analysis: Analysis) -> dict[str, str]:
    """Return the csv files of report/tables by name; no text in them starts a spreadsheet's formula."""
    return {
        "measures.csv": _csv(Row, analysis.rows),
        "comparisons.csv": _csv(Comparison, analysis.comparisons),
        "ensemble_sizes.csv": _csv(SizePoint, analysis.sizes),
        "flows.csv": _csv(Flow, analysis.flows),
    }


def _csv(kind: type[Any], items: Iterable[Any]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [field.name for field in fields(kind)]
    writer.writerow(columns)
    writer.writerows([csv_cell(getattr(item, column)) for column in columns] for item in items)
    return buffer.getvalue()


def _last(summary: Summary, predictions: Sequence[Predictions], results: Results) -> list[Predictions]:
    """Return the method's last epoch of each named set, in the page's order."""
    at_last: dict[str, Predictions] = {}
    for p in predictions:  # of several replicates the first is drawn
        if p.method == summary.method and p.epoch in results.epochs[-1:] and p.choices_kept is None:
            at_last.setdefault(p.name, p)
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
        ("Method", f"{summary.method}: {counted(summary.members, 'member')}"),
        ("Adapter", f"rank {summary.rank}, alpha {summary.alpha:g}, on {', '.join(summary.targets)}"),
        ("Trained on", "; ".join(f"{name}: {counted(n, 'question')}" for name, n in summary.training)),
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
