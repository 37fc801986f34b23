"""A comparison of ways to be uncertain as a page, a csv and lines for a terminal; needs no torch."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ripieno.comparison import MethodRow, read
from ripieno.errors import EnvironmentFault
from ripieno.escaping import csv_cell
from ripieno.measures import methods
from ripieno.measures.methods import Cell, Difference, MethodsTable, Ratios
from ripieno.report import curves
from ripieno.report.drawing import Panel
from ripieno.report.methods_story import after, descriptive, main_variant, mark, tell
from ripieno.report.names import BASELINES, MEASURES
from ripieno.report.results import Interval
from ripieno.report.tables import Cell as Shown
from ripieno.report.templates import environment
from ripieno.report.terminal import TRIVIAL
from ripieno.report.words import counted, probability
from ripieno.runs import write_atomically

COLUMNS = {
    **{measure: MEASURES[measure][0] for measure in ("accuracy", "nll", "ece", "brier")},
    "error_auroc_entropy": "Errors found by entropy",
    "error_auroc_mi": "Errors found by MI",
    "mutual_information": "MI (mean)",
}
OUTSIDE = {
    **{measure: MEASURES[measure][0] for measure in ("accuracy", "nll")},
    "ood_auroc_entropy": "Told apart by entropy",
    "ood_auroc_mi": "Told apart by MI",
}
COMPARED = {measure: COLUMNS[measure] for measure in COLUMNS if measure not in ("ece", "mutual_information")}
FINE = ("nll", "mutual_information")  # told with three places
CSV = ("row", "dataset", "measure", "variant", "value", "low", "high", "p_holm", "best", "not_worse", "reason")
# Beyond the best: the difference to the reference, and what else a reader of the csv alone needs.
CSV_MORE = ("n", "to_reference", "to_reference_low", "to_reference_high", "to_reference_p_holm")
COSTS = ("training_tokens", "evaluation_tokens", "stored_bytes")
NAME = 25  # characters of a row's name in a terminal


def table(folder: Path) -> MethodsTable:
    """Measure and compare what a folder holds (`comparison`).

    Raises:
        UserError, EnvironmentFault: as `comparison.read`.
    """
    return methods.tabulate(read(folder))


def tabulate(folder: Path) -> MethodsTable:
    """Measure what a folder holds, and write report/index.html and report/table.csv.

    Raises:
        UserError, EnvironmentFault: as `comparison.read`.
    """
    found = table(folder)
    write(folder, found)
    return found


def write(folder: Path, found: MethodsTable) -> None:
    """Write the page and the csv of a table that was measured already."""
    report = folder / "report"
    try:
        report.mkdir(parents=True, exist_ok=True)
        write_atomically(report / "table.csv", to_csv(found).encode())
        write_atomically(report / "index.html", page(found).encode())
    except OSError as error:
        raise EnvironmentFault(f"{report}: cannot be written ({error.strerror or error})") from error


def to_csv(found: MethodsTable) -> str:
    """Return the long table: a line a number, one a cost, and one a refused row; no text starts a formula.

    What tells a set apart without any answer is no row's.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow((*CSV, *CSV_MORE))
    for line in (*map(_csv_cell, found.cells), *_csv_trivial(found), *_csv_rows(found)):
        writer.writerow([csv_cell(line.get(column)) for column in (*CSV, *CSV_MORE)])
    return buffer.getvalue()


def _csv_cell(cell: Cell) -> dict[str, Any]:
    of, more = cell.to_reference, CSV_MORE[1:]
    values = (None,) * 4 if of is None else (of.value, of.low, of.high, of.p_holm)
    return {
        **{column: getattr(cell, column) for column in (*CSV, "n") if column != "p_holm"},
        "p_holm": None if cell.to_best is None else cell.to_best.p_holm,
        **dict(zip(more, values, strict=True)),
    }


def _csv_trivial(found: MethodsTable) -> Iterator[dict[str, Any]]:
    for (name, baseline), x in found.trivial.items():
        yield {"dataset": name, "measure": f"ood_auroc_{baseline}", **asdict(x)}


def _csv_rows(found: MethodsTable) -> Iterator[dict[str, Any]]:
    for row in found.index.rows:
        for cost in COSTS:
            yield {"row": row.name, "measure": cost, "value": getattr(row, cost), "reason": row.refused}


# For a terminal.


def lines(found: MethodsTable) -> Iterator[str]:
    """Yield the table in at most 110 columns, and what it does not say."""
    variant, outside = main_variant(found), found.index.out_of_domain
    yield f"{found.domain}, {after(variant)}; {counted(found.index.replicates, 'replicate')}"
    apart = ("OOD H", "OOD MI") if outside else ()
    heads = ("acc", "NLL", "ECE (null)", "Brier", "err H", *apart, "MI", "train", "ask", "store")
    yield f"{'':<{NAME}}" + "".join(f"{head:>{13 if head.startswith('ECE') else 7}}" for head in heads)
    for row in found.index.answered:
        ratios = found.ratios[row.name]
        cells = [_plain(found, row, measure, variant, found.domain) for measure in ("accuracy", "nll")]
        null = found.column("ece_null_mean", variant)[row.name].value
        error = _plain(found, row, "ece", variant, found.domain).strip()
        cells.append(f"{f'{error} ({null:.3f})' if null is not None else error:>13}")
        cells += [_plain(found, row, measure, variant, found.domain) for measure in ("brier", "error_auroc_entropy")]
        cells += [_plain(found, row, f"ood_auroc_{u}", variant, outside[0]) for u in ("entropy", "mi") if outside]
        cells.append(_plain(found, row, "mutual_information", variant, found.domain))
        cells += [f"{_times(ratio):>7}" for ratio in (ratios.training, ratios.evaluation, ratios.stored)]
        yield f"{_short(row.name):<{NAME}}" + "".join(cells)
    for name in outside[1:]:
        yield f"Told from {found.domain}: {name}"
        for row in found.index.answered:
            cells = [_plain(found, row, f"ood_auroc_{u}", variant, name) for u in ("entropy", "mi")]
            yield f"  {_short(row.name):<{NAME}}H{cells[0]}   MI{cells[1]}"
    for name in outside:
        values = {b: x.value for (of, b), x in found.trivial.items() if of == name}
        told = [f"{TRIVIAL[b]} {value:.2f}" for b, value in values.items() if value is not None]
        if told:
            of_set = f" ({name})" if len(outside) > 1 else ""
            yield from textwrap.wrap(f"Told apart without any answer{of_set}: {', '.join(told)}", 110)
    for row in found.index.rows:
        if row.refused is not None:
            yield f"{row.name}: not to be had: {row.refused}"
    yield f"err: AUROC of errors; H: by entropy; costs: times those of {found.reference.name}"
    if outside:
        yield f"OOD: AUROC of telling {outside[0]} apart, with as many choices in both (0.5: not at all)"
    yield from textwrap.wrap(descriptive(found), 110) or (
        "*: not significantly worse than the best of its column (p >= 0.05, Holm)",
    )


def _plain(found: MethodsTable, row: MethodRow, measure: str, variant: str | None, name: str) -> str:
    cell = found.column(measure, variant, name).get(row.name)
    if cell is None or cell.value is None:
        return f"{'-':>6} "
    return f"{cell.value:>6.3f}{mark(found, cell) or ' '}"


def _short(name: str) -> str:
    return name if len(name) < NAME else f"{name[: NAME - 2]}…"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.1f}x" if ratio < 1000 else f"{ratio:.2g}x"


# The page.


def page(found: MethodsTable) -> str:
    """Return the comparison as one HTML file that loads nothing."""
    variant, index = main_variant(found), found.index
    variants = [variant] if variant is None else [variant, None]
    outside = [_block(found, name, v, OUTSIDE) for name in index.out_of_domain for v in variants]
    single = [_block(found, name, variant, COLUMNS) for name in index.test if len(index.test) > 1]
    return (
        environment()
        .get_template("methods.html")
        .render(
            index=index,
            reference=found.reference,
            descriptive=descriptive(found),
            findings=tell(found),
            scaled=variant is not None,
            columns=COLUMNS,
            inside=[*(_block(found, found.domain, v, COLUMNS) for v in variants), *single],
            outside_columns=OUTSIDE,
            outside=outside,
            trivial_columns={baseline: BASELINES[baseline] for baseline in methods.TRIVIAL},
            trivial=[_without_answers(found, name) for name in index.out_of_domain] if found.trivial else [],
            compared_columns=COMPARED,
            compared=[_differences(found, variant)],
            panels=_panels(found, variant),
            rows=[_settings(found, number, row) for number, row in _numbered(found)],
            refused=[row for row in index.rows if row.refused is not None],
        )
    )


def _numbered(found: MethodsTable) -> list[tuple[int, MethodRow]]:
    return list(enumerate(found.index.answered, start=1))


def _block(found: MethodsTable, name: str, variant: str | None, columns: dict[str, str]) -> dict[str, Any]:
    """Return one data set's part of a table: a line a row."""
    by_column = {measure: found.column(measure, variant, name) for measure in columns}
    nulls = found.column("ece_null_mean", variant, name)
    shown = [
        (f"{number}. {row.name}", [_shown(found, by_column[m][row.name], nulls.get(row.name)) for m in columns])
        for number, row in _numbered(found)
    ]
    n = max(cell.n for cell in by_column["accuracy"].values())
    role = "out of domain" if name in found.index.out_of_domain else "in domain"
    return {"set": {"name": f"{name}, {after(variant)}", "role": role, "n": n}, "lines": shown}


def _without_answers(found: MethodsTable, name: str) -> dict[str, Any]:
    """Return what tells a foreign set apart and knows nothing of the answers: one line."""
    estimates = [found.trivial[name, baseline] for baseline in methods.TRIVIAL]
    shown = [
        Shown("–", reason=x.reason or "")
        if x.value is None
        else Shown(f"{x.value:.2f}", "" if x.low is None else f"{x.low:.2f} to {x.high:.2f}")
        for x in estimates
    ]
    role = f"told from {found.domain}"
    return {"set": {"name": name, "role": role, "n": estimates[0].n}, "lines": [("without any answer", shown)]}


def _shown(found: MethodsTable, cell: Cell, null: Cell | None) -> Shown:
    if cell.value is None:
        return Shown("–", reason=cell.reason or "")
    places = 3 if cell.measure in FINE else 2
    value = f"{cell.value:.{places}f}{mark(found, cell)}"
    if cell.measure == "ece" and null is not None and null.value is not None:
        return Shown(value, f"by chance {null.value:.2f}")
    ends = "" if cell.low is None else f"{cell.low:.{places}f} to {cell.high:.{places}f}"
    return Shown(value, ends.replace("-", "−"))


def _differences(found: MethodsTable, variant: str | None) -> dict[str, Any]:
    """Return the rows less the reference, with what may be said of it."""
    columns = {measure: found.column(measure, variant) for measure in COMPARED}
    shown = []
    for number, row in _numbered(found):
        cells = [column[row.name] for column in columns.values()]
        if row.name != found.reference.name:
            shown.append((f"{number}. {row.name}", [_difference(found, cell.to_reference) for cell in cells]))
    n = max((cell.n for cell in columns["accuracy"].values()), default=0)
    return {"set": {"name": f"{found.domain}, {after(variant)}", "role": "in domain", "n": n}, "lines": shown}


def _difference(found: MethodsTable, d: Difference | None) -> Shown:
    if d is None:
        return Shown("–", reason="one of the two rows has no such number")
    p = "" if found.descriptive else f"; {probability(d.p_holm)}"
    return Shown(_signed(d.value), f"{_signed(d.low)} to {_signed(d.high)}{p}")


def _signed(value: float) -> str:
    """Return "+0.010" or "−0.010", and no sign where rounding leaves nothing."""
    written = f"{value:+.3f}"
    return written.replace("-", "−") if any(digit in written for digit in "123456789") else written[1:]


def _settings(found: MethodsTable, number: int, row: MethodRow) -> tuple[str, Sequence[Shown]]:
    """Return what a row is, what was chosen for it and what it cost."""
    ratios: Ratios = found.ratios[row.name]
    fitted = found.column("temperature", "temperature", " + ".join(found.index.calibration)).get(row.name)
    temperature = "–" if fitted is None or fitted.value is None else f"{fitted.value:.2f}"
    whose = "of each member" if row.tuned == "member" else "of the pooled prediction"
    counts = {text: row.chosen.count(text) for text in row.chosen}
    chosen = ", ".join(f"{text} ({k} of {len(row.chosen)})" if len(counts) > 1 else text for text, k in counts.items())
    pooled = "mean of logits" if row.pooling == "logit" else "mean of probabilities"
    costs = zip((ratios.training, ratios.evaluation, ratios.stored), COSTS, strict=True)
    return f"{number}. {row.name}", [
        Shown(f"{row.answers}", pooled if row.answers > 1 else ""),
        Shown(temperature, whose if temperature != "–" and row.answers > 1 else ""),
        *(Shown("–" if ratio is None else f"{ratio:.3g}×", f"{getattr(row, cost):,}") for ratio, cost in costs),
        Shown(chosen or "–"),
    ]


def _panels(found: MethodsTable, variant: str | None) -> list[Panel]:
    """Return what is had for the price: NLL against training, errors found against asking."""
    panels = []
    for measure, label, cost, of in (
        ("nll", "NLL", "cost of training", "training"),
        ("error_auroc_entropy", "AUROC of errors, by entropy", "cost of asking", "evaluation"),
    ):
        column = found.column(measure, variant)
        priced = [
            curves.Priced(number, ratio, Interval(cell.value, cell.low, cell.high), bool(mark(found, cell)))
            for number, row in _numbered(found)
            if (ratio := getattr(found.ratios[row.name], of)) and (cell := column[row.name]).value is not None
        ]
        if priced:
            panels.append(curves.costs(label, f"{cost}, times that of the reference", priced, f"p{of}"))
    return panels
