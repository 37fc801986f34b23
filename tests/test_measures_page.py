"""docs/measures.md has an entry for every measure, and names what is there; what its code prints: test_pages.py."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from populations import random_predictions
from typer.main import get_command

from pages import ROOT, prose, read
from ripieno import measures, tokens
from ripieno.cli import app
from ripieno.measures import table

PAGE, PROSE = read("docs/measures.md"), prose("docs/measures.md")

# What stands for what in the names of families.
FAMILIES = {
    "U": table.UNCERTAINTIES,
    "S": (*table.UNCERTAINTIES, *table.BASELINES),
    "C": tuple(str(coverage) for coverage in measures.selective.COVERAGES),
}
# Named after a set's own labels and places, so no table can list them.
OPEN = ("recall_LABEL", "position_K_answered", "position_K_right")


def expanded(name: str) -> set[str]:
    """Return all names of a family: `aurc_U` is aurc_entropy, aurc_mi and aurc_confidence."""
    if name in OPEN:
        return {name}
    names = {name}
    for letter, values in FAMILIES.items():
        part = re.compile(rf"(?<=_){letter}(?=_|$)")
        names = {part.sub(value, one) for one in names for value in values}
    return names


def sections() -> dict[str, dict[str, str]]:
    """Return the entries (### headings and what stands below) of each section (## heading) that has some."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", PROSE, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        entries = re.split(r"^### ", body, flags=re.MULTILINE)[1:]
        if entries:
            parts = [entry.partition("\n") for entry in entries]
            found[title] = {name.strip("`"): text for name, _, text in parts}
            assert len(found[title]) == len(entries), f"{title}: two entries of one name"
    return found


SECTIONS = sections()
ENTRIES = [(title, name, text) for title, entries in SECTIONS.items() for name, text in entries.items()]
SCORES, TABLES, TOKENS = "Uncertainties and scores", "Courses and paired tests", "Tokens of running text"
ROTATIONS = "Order of the choices"


def test_every_measure_of_the_table_has_an_entry_and_no_other_name_has() -> None:
    named = [name for title, name, _ in ENTRIES if title not in (SCORES, TABLES, TOKENS, ROTATIONS)]
    documented = [one for name in named for one in expanded(name)]
    assert len(documented) == len(set(documented))
    assert set(documented) == {*table.MEASURES, *OPEN}


def test_every_row_of_an_analysis_is_documented() -> None:
    """What the table lists is one thing, what an analysis gives another: costs, labels and lengths add to it."""
    metadata = {"labels": ["no", "perhaps", "yes"]}
    lengths: dict[str, Any] = {"bytes": np.full((40, 3), 4), "outside_mass": np.full((2, 40), 0.1)}
    inside, outside = (
        random_predictions(2, 40, 3, seed=n, dataset=f"set {n}", metadata=metadata, **lengths) for n in range(2)
    )
    evidence = measures.Evidence([inside, outside], out_of_domain=[outside.name], calibration=[inside])
    rows = evidence.analyze(costs=measures.Costs(5.0, 1.0), resamples=20).rows
    places = re.compile(r"(?<=^position_)\d+|(?<=^recall_)(?:no|perhaps|yes)$")
    found = {places.sub(lambda hit: "K" if hit[0].isdigit() else "LABEL", row.measure) for row in rows}
    assert found == {*table.MEASURES, *OPEN}


def test_scores_tables_parts_and_token_measures_are_those_of_the_program() -> None:
    assert set(SECTIONS[SCORES]) == {*table.UNCERTAINTIES, *table.BASELINES}
    assert set(SECTIONS[TABLES]) == {*table.Analysis().to_json()} - {"schema", "rows"}
    summary = {field.name for field in fields(tokens.Summary)} - {"tokens", "members"}
    # Of a table's columns those are left out that say which token it is; `correct` is what accuracy is the mean of.
    columns = {"log_prob", "entropy", "expected_entropy", "mutual_information", "confidence"}
    assert columns < set(tokens.SCHEMA.names)
    assert set(SECTIONS[ROTATIONS]) == {field.name for field in fields(measures.RotationParts)}
    assert set(SECTIONS[TOKENS]) == summary | columns | {"ece"}


@pytest.mark.parametrize(("title", "name", "text"), ENTRIES, ids=[f"{title}-{name}" for title, name, _ in ENTRIES])
def test_an_entry_has_a_formula_and_the_two_sentences(title: str, name: str, text: str) -> None:
    assert re.search(r"\n\n    \S", text), "no formula"
    said = " ".join(text.split())
    assert said.count("Use it when ") == said.count("It misleads when ") == 1
    [(use, misleads)] = re.findall(r"Use it when (.+?)\. It misleads when (.+?)\.(?: |$)", said)
    assert min(len(use), len(misleads)) > 20
    assert not re.search(r"[.?!] [A-Z]", use), "more than one sentence"


def test_the_keys_of_a_row_and_the_fields_of_the_other_tables_are_explained() -> None:
    quoted = set(re.findall(r"`([^`]+)`", PROSE))
    assert set(table.ROW_KEYS) <= quoted
    for name in SECTIONS[TABLES]:
        assert f"`{name}`" in PROSE.split("## Courses")[0], "the overview names every table"


def test_names_of_functions_are_public() -> None:
    """The page sends readers to `measures.NAME`, with or without arguments."""
    named = set(re.findall(r"\bmeasures\.(\w+)", PAGE))
    assert named <= set(measures.__all__) | {"md"}
    assert len(named) > 20


def test_options_that_are_named_alone_belong_to_a_command() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    known = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[\w-]+)", PROSE)) <= known


def test_papers_are_those_that_the_code_names() -> None:
    """An arXiv number that no source file has is one that somebody made up, or mistyped."""
    cited = re.compile(r"(?:arXiv:|arxiv\.org/abs/)(\d{4}\.\d{4,5})")
    sources = (ROOT / "src/ripieno").rglob("*.py")
    known = {number for file in sources for number in cited.findall(file.read_text(encoding="utf-8"))}
    assert set(cited.findall(PAGE)) <= known
