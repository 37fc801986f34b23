"""What a comparison of ways to be uncertain found, in sentences; none of them says more than was tested."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ripieno.measures.methods import SIGNIFICANT, Cell, Difference, MethodsTable
from ripieno.report.results import Interval
from ripieno.report.story import Finding
from ripieno.report.unfamiliar import NAMES, either_side
from ripieno.report.words import counted, listed, points, probability, spoken, turned

# Measures that rank questions: what ranks them, and what it should find.
RANKINGS = {
    "error_auroc_entropy": ("entropy", "errors"),
    "error_auroc_mi": ("mutual information", "errors"),
    "ood_auroc_entropy": ("entropy", "foreign questions"),
    "ood_auroc_mi": ("mutual information", "foreign questions"),
}


def main_variant(table: MethodsTable) -> str | None:
    """Return the variant that the page speaks of first: after each row's own temperature, where that could be had."""
    found = table.column("nll", "temperature").values()
    return "temperature" if any(cell.value is not None for cell in found) else None


def mark(table: MethodsTable, cell: Cell | None) -> str:
    """Return "*" for a row that is the best of its column, or not significantly worse; too few replicates mark none."""
    return "*" if cell is not None and cell.not_worse and not table.descriptive else ""


def tell(table: MethodsTable) -> list[Finding]:
    """Answer what a reader wants to know: is anything better than the reference, which is best, for what price?"""
    found = [_against_reference(table), _best(table), _finding(table), _costs(table)]
    return [finding for finding in found if finding is not None]


def descriptive(table: MethodsTable) -> str:
    """Return the sentence that takes back all claims, "" where there are replicates enough."""
    if not table.descriptive:
        return ""
    return (
        f"This page is descriptive: {counted(table.index.replicates, 'replicate')} "
        f"{'is' if table.index.replicates == 1 else 'are'} too few to say what other trainings would give, so it "
        "claims no difference beyond these trainings."
    )


def after(variant: str | None) -> str:
    """Return how the numbers of a variant were had."""
    return "after each row’s own temperature" if variant else "as they are"


def _against_reference(table: MethodsTable) -> Finding | None:
    reference, variant = table.reference.name, main_variant(table)
    found = {row: cell.to_reference for row, cell in table.column("nll", variant).items() if cell.to_reference}
    if not found:
        return None
    question = f"Does anything beat “{reference}”?"
    if table.descriptive:
        said = [f"“{row}”: NLL {_way(d)} by {_size('nll', d)} nats." for row, d in found.items()]
        return Finding(question, f"In these trainings alone; by NLL, {after(variant)}:", tuple(said))
    better = [row for row, d in found.items() if d.p_holm < SIGNIFICANT and d.value < 0.0]
    worse = [row for row, d in found.items() if d.p_holm < SIGNIFICANT and d.value > 0.0]
    level = [row for row in found if row not in better and row not in worse]
    verdict = f"By NLL, {after(variant)}: "
    verdict += f"{_quoted(better)} {_does(better)}." if better else "nothing here is significantly better."
    said = [
        f"The NLL of “{row}” is significantly {_way(found[row])} than that of “{reference}”, by "
        f"{_size('nll', found[row])} nats, {probability(found[row].p_holm)}."
        for row in (*better, *worse)
    ]
    if level:
        each = [
            f"“{row}” ({_way(found[row])} by {_size('nll', found[row])}, {probability(found[row].p_holm)})"
            for row in level
        ]
        said.append(f"Nothing here tells these from “{reference}”: {listed(each)}.")
    more = [sentence for m in ("accuracy", "brier", *RANKINGS) for sentence in _others(table, m, variant)]
    return Finding(question, verdict, tuple(said), tuple(more))


def _others(table: MethodsTable, measure: str, variant: str | None) -> list[str]:
    """Say of another measure which rows are told from the reference."""
    sets = table.index.out_of_domain if measure.startswith("ood") else (table.domain,)
    said = []
    for name in sets:
        found = {r: c.to_reference for r, c in table.column(measure, variant, name).items() if c.to_reference}
        sure = {row: d for row, d in found.items() if d.p_holm < SIGNIFICANT}
        if not found:
            continue
        each = [f"“{row}” {_way(d)} by {_size(measure, d)}, {probability(d.p_holm)}" for row, d in sure.items()]
        rest = "no row is told from it" if not sure else "the others are not told from it"
        where = f" ({name})" if measure.startswith("ood") else ""
        said.append(
            f"{_label(measure)}{where}: {'; '.join([*each, rest]) if len(sure) < len(found) else '; '.join(each)}."
        )
    return said


def _best(table: MethodsTable) -> Finding | None:
    variant = main_variant(table)
    verdict = _best_of(table, "nll", variant, table.domain, "has the lowest NLL, {}")
    if verdict is None:
        return None
    said = [
        _best_of(table, "brier", variant, table.domain, "has the lowest Brier score, {}"),
        _best_of(table, "accuracy", variant, table.domain, "is right most often, {}"),
        *(
            _best_of(table, "nll", variant, name, f"has the lowest NLL on {name}, {{}}")
            for name in table.index.out_of_domain
        ),
    ]
    question = f"Whose probabilities are the best, {after(variant)}?"
    return Finding(question, verdict, tuple(sentence for sentence in said if sentence))


def _finding(table: MethodsTable) -> Finding | None:
    variant = main_variant(table)
    said = []
    for measure, (score, what) in RANKINGS.items():
        for name in table.index.out_of_domain if measure.startswith("ood") else (table.domain,):
            where = f" ({name})" if measure.startswith("ood") else ""
            said.append(_best_of(table, measure, variant, name, f"finds {what}{where} best by {score}, AUROC {{}}"))
    sentences = [sentence for sentence in said if sentence]
    if not sentences:
        return None
    sentences += _without_answers(table)
    return Finding("Whose uncertainty finds errors, and foreign questions?", sentences[0], tuple(sentences[1:]))


def _without_answers(table: MethodsTable) -> Iterator[str]:
    """Say what tells each foreign set apart best of all that knows nothing of the answers."""
    for name in table.index.out_of_domain:
        told = {
            baseline: either_side(Interval(x.value, x.low, x.high))
            for (of, baseline), x in table.trivial.items()
            if of == name and x.value is not None
        }
        if told:
            best = max(told, key=lambda baseline: told[baseline].value)
            auroc = spoken(told[best], ".2f")
            yield f"Without any answer, {NAMES[best]} alone finds foreign questions ({name}), AUROC {auroc}."


def _best_of(table: MethodsTable, measure: str, variant: str | None, name: str, does: str) -> str | None:
    """Say which row is the best of a column, and which are not told from it; None where there is nothing to choose."""
    column = table.column(measure, variant, name)
    best = next((cell for cell in column.values() if cell.best), None)
    if best is None or best.value is None:
        return None
    form = ".0%" if measure == "accuracy" else ".2f" if measure in RANKINGS else ".3f"
    value = spoken(Interval(best.value, best.low, best.high), form)
    return f"“{best.row}” {does.format(value)}{_rivals(table, list(column.values()))}."


def _rivals(table: MethodsTable, cells: Sequence[Cell]) -> str:
    """Say which rows are not told from the best; of the others no more is known than that they are not the best."""
    if table.descriptive:
        return " in these trainings"
    tested = [cell for cell in cells if cell.to_best is not None]
    level = [cell.row for cell in tested if cell.not_worse]
    if not tested:
        return "; no other row has one"
    if not level:
        return f"; {'every' if len(tested) > 1 else 'the'} other row is ruled out as the best"
    behind = len(tested) - len(level)
    if not behind:
        return f"; nothing here tells {'any' if len(level) > 1 else 'the'} other row from it"
    rest = f"{counted(behind, 'row')} {'is' if behind == 1 else 'are'} ruled out as the best"
    return f"; nothing here tells it from {_quoted(level)}; {rest}"


def _costs(table: MethodsTable) -> Finding | None:
    reference = table.reference.name
    said = []
    for row in table.index.answered:
        r = table.ratios[row.name]
        parts = [
            f"{ratio:.3g}× {what}"
            for ratio, what in ((r.training, "to train"), (r.evaluation, "to ask"), (r.stored, "to store"))
            if ratio is not None
        ]
        if row.name != reference and parts:
            said.append(f"“{row.name}”: {listed(parts)}.")
    cells = table.column("nll", main_variant(table))
    marked = [
        (ratio, row)
        for row, cell in cells.items()
        if mark(table, cell) and (ratio := table.ratios[row].training) is not None
    ]
    if not said:
        return None
    verdict = f"Costs as multiples of those of “{reference}”."
    if marked:
        cheapest = min(ratio for ratio, _ in marked)
        rows = [row for ratio, row in marked if ratio == cheapest]
        verdict = (
            f"Of the rows not significantly worse than the best NLL, {_quoted(rows)} "
            f"{'costs' if len(rows) == 1 else 'cost'} the least to train: {cheapest:.3g}× “{reference}”."
        )
    return Finding("For what price?", verdict, (), tuple(said))


def _size(measure: str, d: Difference) -> str:
    """Return how large a difference is, turned so that its value is positive."""
    x = Interval(d.value, d.low, d.high)
    x = x if d.value >= 0.0 else turned(x)
    return points(x) if measure == "accuracy" else spoken(x, ".3f")


def _way(d: Difference) -> str:
    return "higher" if d.value > 0.0 else "lower"


def _label(measure: str) -> str:
    if measure not in RANKINGS:
        return {"accuracy": "Accuracy", "brier": "Brier"}[measure]
    score, what = RANKINGS[measure]
    return f"AUROC of {what} by {score}"


def _quoted(rows: Sequence[str]) -> str:
    return listed([f"“{row}”" for row in rows])


def _does(rows: Sequence[str]) -> str:
    return "does" if len(rows) == 1 else "do"
