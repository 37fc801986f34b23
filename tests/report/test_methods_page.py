"""Ways to be uncertain as a page, a csv and lines: what they say, and that they say no more than was tested."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from test_build import Page

from compared import OUTSIDE, TEST, features, folder, row
from ripieno.comparison import Index, MethodRow
from ripieno.measures import methods as numbers
from ripieno.measures.methods import Cell, Difference, MethodsTable, Ratios
from ripieno.report import methods
from ripieno.report.methods_story import tell

NAMES = ("single", "ensemble", "dropout")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MethodsTable]:
    rows = [
        row("single"),
        row("ensemble of 3", answers=3, training_tokens=3000),
        row("=worse <b>bold</b>", noise=3.0, chosen=("epoch 1", "epoch 2", "epoch 2", "epoch 2", "epoch 2")),
        row("logits", answers=3, pooling="logit"),
        row("swag", refused="it needs 20 <i>checkpoints</i>"),
    ]
    path = folder(tmp_path_factory.mktemp("compared"), rows, shared_calibration=True)
    return path, methods.tabulate(path)


def crafted(ensemble: Difference, dropout: Difference, replicates: int = 5) -> MethodsTable:
    """Three rows of one column, NLL after temperature: the ensemble is the best, the others' differences as given."""
    costs = {"training_tokens": 10, "evaluation_tokens": 10, "stored_bytes": 10}
    rows = tuple(MethodRow(name=n, slug=n, method=n, answers=1, **costs) for n in NAMES)
    index = Index(replicates=replicates, members=3, reference="single", test=(TEST,), rows=rows)
    behind = Difference(-ensemble.value, -ensemble.high, -ensemble.low, ensemble.p_holm)
    cells = (
        Cell("single", TEST, "nll", "temperature", 1.0, 50, 0.9, 1.1, False, behind),
        Cell("ensemble", TEST, "nll", "temperature", 0.8, 50, 0.7, 0.9, True, None, ensemble),
        Cell("dropout", TEST, "nll", "temperature", 0.9, 50, 0.8, 1.0, False, behind, dropout),
    )
    return MethodsTable(index, TEST, cells, dict.fromkeys(NAMES, Ratios(1.0, 1.0, 1.0)))


LOWER = Difference(-0.2, -0.3, -0.1, 0.004)
HIGHER = Difference(0.2, 0.1, 0.3, 0.004)
UNSURE = Difference(-0.1, -0.19, -0.01, 0.06)  # alone it would count; among so many tests it does not


def test_what_is_better_than_the_reference() -> None:
    first = tell(crafted(LOWER, UNSURE))[0]
    assert first.verdict == "By NLL, after each row’s own temperature: “ensemble” does."
    assert first.points == (
        "The NLL of “ensemble” is significantly lower than that of “single”, by 0.200 (0.100 to 0.300) nats, "
        "p = 0.004.",
        "Nothing here tells these from “single”: “dropout” (lower by 0.100 (0.010 to 0.190), p = 0.060).",
    )
    first = tell(crafted(UNSURE, HIGHER))[0]
    assert first.verdict.endswith(": nothing here is significantly better.")
    assert first.points[0].startswith("The NLL of “dropout” is significantly higher than that of “single”, by 0.200")


def test_which_is_the_best() -> None:
    by_nll = "“ensemble” has the lowest NLL, 0.800 (0.700 to 0.900)"
    assert tell(crafted(LOWER, UNSURE))[1].verdict == f"{by_nll}; every other row is ruled out as the best."
    assert tell(crafted(UNSURE, HIGHER))[1].verdict == f"{by_nll}; nothing here tells any other row from it."


def test_few_replicates_claim_nothing(tmp_path: Path) -> None:
    table = crafted(LOWER, HIGHER, replicates=3)
    said = " ".join(text for f in tell(table) for text in (f.verdict, *f.points, *f.more))
    assert "significant" not in said
    assert "p =" not in said
    made = numbers.tabulate(methods.read(folder(tmp_path, [row("single"), row("worse", noise=3.0)], replicates=2)))
    page = Page(methods.page(made))
    assert "This page is descriptive: 2 replicates are too few" in page.text
    assert not re.search(r"significant|\*|p [=<≥]", page.text)
    assert not any("*" in line or len(line) > 110 for line in methods.lines(made))


def test_the_page_loads_nothing_and_escapes_names(found: tuple[Path, MethodsTable]) -> None:
    path, table = found
    html = (path / "report" / "index.html").read_text()
    assert html == methods.page(table)
    page = Page(html)
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"https?://|<script|url\((?!#)", html)
    assert "b" not in page.tags
    assert "“swag”: it needs 20 <i>checkpoints</i>" in page.text
    assert "=worse <b>bold</b>" in page.text
    assert "epoch 1 (1 of 5), epoch 2 (4 of 5)" in page.text
    assert "the same questions that chose the rows’ settings" in page.text
    assert page.tags.count("svg") == 2
    assert len(page.ids) == len(set(page.ids))


def test_marks_are_those_of_the_table(found: tuple[Path, MethodsTable]) -> None:
    path, table = found
    html = (path / "report" / "index.html").read_text()
    first = html[html.index("<tbody>") : html.index("</tbody>")]
    by_row = dict(re.findall(r'<th scope="row">\d+\. (.*?)</th>\s*<td>.*?</td>\s*<td>(.*?)<small>', first))
    column = table.column("nll", "temperature")
    assert {name: text.endswith("*") for name, text in by_row.items() if name in column} == {
        name: cell.not_worse for name, cell in column.items() if "<" not in name
    }
    assert column["ensemble of 3"].not_worse
    assert column["=worse <b>bold</b>"].not_worse is False


def test_the_csv_holds_every_number(found: tuple[Path, MethodsTable]) -> None:
    path, table = found
    with (path / "report" / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0])[: len(methods.CSV)] == list(methods.CSV)
    assert len(lines) == len(table.cells) + 3 * len(table.index.rows)
    assert not any(line["row"].startswith("=") for line in lines)
    [line] = [
        x
        for x in lines
        if (x["row"], x["dataset"], x["measure"], x["variant"]) == ("ensemble of 3", OUTSIDE, "ood_auroc_mi", "")
    ]
    cell = table.column("ood_auroc_mi", None, OUTSIDE)["ensemble of 3"]
    assert (float(line["value"]), line["best"], line["not_worse"]) == (cell.value, "True", "True")
    [refused] = [x for x in lines if x["row"] == "swag" and x["measure"] == "training_tokens"]
    assert refused["reason"] == "it needs 20 <i>checkpoints</i>"


def test_what_knows_nothing_of_the_answers_stands_beside_the_rows(tmp_path: Path) -> None:
    """A foreign set of shorter prompts, likelier to the base; without training questions no distance says anything."""
    path = folder(tmp_path, [row("single"), row("ensemble", answers=3)])
    assert not any("without any answer" in text.lower() for text in (*methods.lines(methods.table(path)), html(path)))
    for name, shift in ((TEST, 0.0), (OUTSIDE, -1.5)):
        features(path, name, 120, shift)
    table = methods.table(path)
    length, perplexity = (table.trivial[OUTSIDE, name].value for name in ("prompt_length", "perplexity"))
    assert length is not None
    assert perplexity is not None
    [line] = [line for line in methods.lines(table) if line.startswith("Told apart without any answer")]
    assert line.endswith(f": prompt length {length:.2f}, base's perplexity {perplexity:.2f}")
    page = Page(html(path))
    assert f"without any answer {length:.2f}" in " ".join(page.text.split())
    assert "there are no training questions whose hidden states say what is familiar" in page.text
    # A length below 0.5 tells the sets apart as well: which does so best is said by its distance from chance.
    [said] = [text for finding in tell(table) for text in finding.points if text.startswith("Without any answer")]
    best, value = max((("the prompt’s length", 1 - length), ("how odd", perplexity)), key=lambda pair: pair[1])
    assert f"AUROC {value:.2f} (" in said
    assert best.replace("’", "'") in said
    with (path / "report" / "table.csv").open(newline="") as file:
        rows = {x["measure"]: x for x in csv.DictReader(file) if not x["row"]}
    assert list(rows) == ["ood_auroc_prompt_length", "ood_auroc_perplexity", "ood_auroc_mahalanobis"]
    assert float(rows["ood_auroc_perplexity"]["value"]) == perplexity
    assert rows["ood_auroc_perplexity"]["dataset"] == OUTSIDE


def html(path: Path) -> str:
    methods.tabulate(path)
    return (path / "report" / "index.html").read_text(encoding="utf-8")


def test_the_terminals_table_fits(found: tuple[Path, MethodsTable]) -> None:
    _, table = found
    lines = list(methods.lines(table))
    head = next(i for i, line in enumerate(lines) if "ECE (null)" in line)
    assert all(len(line) <= 110 for line in lines[: head + 5])
    assert len({len(line) for line in lines[head : head + 5]}) == 1
    assert "swag: not to be had: it needs 20 <i>checkpoints</i>" in lines
    assert lines[-1].startswith("*: not significantly worse")
    [ensemble] = [line for line in lines if line.startswith("ensemble of 3")]
    assert ensemble.split()[-3:] == ["3.0x", "1.0x", "1.0x"]
