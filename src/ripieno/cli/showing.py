"""Commands that show or hand on what is there: export, report, analyze, datasets, status."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ripieno.cli import options
from ripieno.cli.options import AsJson, Bins, CostError, CostHandover, DataDir, Quiet, Run
from ripieno.cli.output import print_json, print_line, print_lines
from ripieno.errors import UserError


def export(
    run: Run,
    output: Annotated[Path, typer.Option(help="A new folder.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Cut the mean member to this rank, and measure what that loses.")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Write the members, and their mean, as PEFT folders. Each is one adapter with a model card."""
    from ripieno import exporting
    from ripieno.progress import Progress

    with Progress(quiet=quiet) as progress:
        made = exporting.export(options.asked(run), output, rank, data_dir=data_dir, progress=progress)
    print_lines(exporting.said(made))


def report(
    run: Run,
    compare: Annotated[
        Path | None, typer.Option(metavar="RUN2", help="Also set another run beside this one, with paired tests.")
    ] = None,
    cost_error: CostError = None,
    cost_handover: CostHandover = None,
    bins: Bins = 15,
) -> None:
    """Write a run's report: a page, measures and tables.

    They are RUN/report/index.html, metrics.json and tables/*.csv. It needs no torch.
    """
    from ripieno.report import run as reports
    from ripieno.report import terminal
    from ripieno.runs import METHOD, RunFolder

    folder, costs = RunFolder(run), options.costs(cost_error, cost_handover)
    if compare is not None:
        if compare.resolve() == run.resolve():
            raise UserError(f"--compare {compare}: is the run itself; name another")
        RunFolder(compare).config()  # a slip in the name is said before anything is written
    page = reports.report(folder, costs=costs, bins=bins)
    print_lines(terminal.summary(reports.read_analysis(folder), METHOD))
    print_line(f"Report: {page}")
    if compare is not None:
        page, comparisons = reports.compare(folder, RunFolder(compare), costs=costs, bins=bins)
        print_lines(terminal.compared(comparisons))
        print_line(f"Comparison: {page}")


def analyze(
    files: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_FILE", help="Run folders, or predictions: parquet, npz, jsonl.")
    ],
    ood: Annotated[
        list[Path] | None,
        typer.Option(help="Predictions of questions out of domain, to tell apart; may be given again."),
    ] = None,
    as_json: AsJson = False,
    axes: Annotated[str | None, typer.Option(help="Of npz arrays: mnk (member, question, choice) or nmk.")] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(help="Score choices anew: sum, token, byte or unconditional (runs with a text template)."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="The choices of every question, such as no,yes: adds macro-F1 and the recall of each."),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIRST,SECOND",
            help="Also compare two rows by a paired test, each METHOD[@EPOCH][:MEMBER], such as ensemble@1,base.",
        ),
    ] = None,
    cost_error: CostError = None,
    cost_handover: CostHandover = None,
    bins: Bins = 15,
) -> None:
    """Measure predictions, this program's or another's. It needs no torch."""
    from ripieno.measures.comparisons import rows_named
    from ripieno.report import terminal
    from ripieno.report.inputs import gather

    evidence = gather(files, ood or [], axes=axes, normalisation=normalisation, labels=labels)
    pairs = options.pairs(pair or [])
    for name in (name for both in pairs for name in both):
        try:
            rows_named(evidence.predictions, name)
        except ValueError as error:
            raise UserError(f"--pair {error}") from None
    analysis = evidence.analyze(costs=options.costs(cost_error, cost_handover), pairs=pairs, bins=bins)
    if as_json:
        print_json(analysis.to_json())
    else:
        print_lines(terminal.table(analysis))


def datasets(
    action: Annotated[str | None, typer.Argument(metavar="check", help="`check` reads a file of yours.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="jsonl, csv or parquet.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels of a text,label file, separated by commas.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List what can be read, or check a file of yours. A check says what is in it, and what is wrong with it."""
    from ripieno.data import splits

    if action is None:
        for found in splits.available(data_dir):
            print_line(f"{found.name:<16} {', '.join(found.splits) or 'nothing':<28} {found.where}")
        return
    if action != "check" or file is None:
        raise UserError("usage: ripieno datasets, or ripieno datasets check FILE")
    print_lines(splits.said(file, splits.check(file, labels.split(",") if labels else None)))


def status(
    run: Run,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file by its checksum, and nothing else.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Say it again every two seconds, until nobody works on the run any more.")
    ] = False,
) -> None:
    """Say how far a run is.

    Each member's step and speed, who works on what, and what was evaluated.
    """
    from ripieno.report import status as statuses
    from ripieno.runs import RunFolder

    folder = RunFolder(run)
    if verify:
        if follow:
            raise UserError("--verify checks what is there; --follow does not go with it")
        print_lines(statuses.verified(folder))
        return
    shown = statuses.Status(folder)
    if follow:
        statuses.follow(shown, lambda text: print(text, end="", flush=True), in_place=sys.stdout.isatty())
    else:
        print_lines(shown.lines(time.time()))
