"""The page's tables: rows of an analysis as cells, with an interval or what stands in its place below each number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ripieno.measures import accuracy, uncertainty
from ripieno.measures.methods import SIGNIFICANT
from ripieno.measures.table import Comparison, Row
from ripieno.predictions import Predictions
from ripieno.report.names import (
    ANSWERER_NAMES,
    BASELINES,
    MEASURES,
    OOD_NAMES,
    SELECTIVE_NAMES,
    UNCERTAINTIES,
    better,
    label,
)
from ripieno.report.results import ANSWERERS, Answerer, EvaluatedSet, Interval, Results, wilson
from ripieno.report.words import listed, ordinal, percent, probability, spoken

COLUMNS = {
    measure: MEASURES[measure][0]
    for measure in (
        *("accuracy", "nll", "brier", "ece"),
        *("predictive_entropy", "expected_entropy", "mutual_information"),
    )
}
MEMBER_COLUMNS = {measure: COLUMNS[measure] for measure in ("accuracy", "nll", "brier", "ece")}
COMPARED = ("accuracy", "nll", "brier")
# Numbers that are small by nature are told with three places.
FINE = ("mutual_information", "pairwise_kl", "brier_", "debiased", "smooth", "adaptive", "ece_null")
FEW = 30  # questions of a subject, below which its numbers say little


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table, what stands below it, and why it is none."""

    value: str
    note: str = ""
    reason: str = ""


def numbers(results: Results, s: EvaluatedSet, members: int) -> dict[str, Any]:
    """Return one set's part of the main table: a line an answerer, and one a member."""
    shown = [a for a in ANSWERERS if results.row(s.name, a, "accuracy") and (members > 1 or a != "members_mean")]
    return {
        "set": s,
        "lines": [(ANSWERER_NAMES[a], [_value(results, s, a, measure) for measure in COLUMNS]) for a in shown],
        "members": [
            (f"Member {m}", [_value(results, s, m, measure) for measure in MEMBER_COLUMNS])
            for m in results.members(s.name)
        ],
    }


def every_measure(results: Results, sets: Sequence[EvaluatedSet]) -> list[dict[str, Any]]:
    """Return every measure of the ensemble, a line each with its meaning, a cell a set."""
    lines = []
    for measure, (name, meaning) in MEASURES.items():
        rows = [results.row(s.name, "ensemble", measure) for s in sets]
        if any(row is not None for row in rows):
            lines.append({"name": name, "meaning": meaning, "cells": [cell(row, measure) for row in rows]})
    recalls = dict.fromkeys(m for s in sets for m in results.measures(s.name) if m.startswith("recall_"))
    for measure in recalls:
        rows = [results.row(s.name, "ensemble", measure) for s in sets]
        name, meaning = (
            f"Recall of “{measure.removeprefix('recall_')}”",
            "Of the questions with this answer, the share found.",
        )
        lines.append({"name": name, "meaning": meaning, "cells": [cell(row, measure) for row in rows]})
    return lines


def compared(comparisons: Sequence[Comparison], s: Any, measures: Sequence[str]) -> dict[str, Any]:
    """Return one set's paired comparisons: a line a pair, each difference with what its interval allows to say."""
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for c in comparisons:
        way = Interval(c.difference, c.low, c.high).against(0.0) * better(c.measure)
        said = {1: "better", 0: "not told apart", -1: "worse"}[way]
        if way and c.p_holm >= SIGNIFICANT:
            said += "?"
        if c.second == "mean member" and c.measure in ("nll", "brier"):
            said = "(convexity)"
        low, middle, high = (f"{value:+.2f}".replace("-", "−") for value in (c.low, c.difference, c.high))
        note = f"{low} to {high}; {probability(c.p_holm)}"
        lines.setdefault((c.first, c.second), {})[c.measure] = Cell(f"{middle} {said}", note)
    return {
        "set": s,
        "lines": [
            (f"{first} less {second}", [cells.get(measure, Cell("–")) for measure in measures])
            for (first, second), cells in lines.items()
        ],
    }


def compared_columns(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Return the measures that are compared, with their labels: the three losses first."""
    found = dict.fromkeys(c.measure for c in comparisons)
    return {measure: label(measure) for measure in (*COMPARED, *(m for m in found if m not in COMPARED))}


def selective(results: Results, s: EvaluatedSet) -> dict[str, Any] | None:
    """Return how well each uncertainty finds the errors of one set: a line an uncertainty; None without any."""
    lines = []
    for key, name in UNCERTAINTIES.items():
        rows = {measure: results.row(s.name, "ensemble", f"{measure}_{key}") for measure in SELECTIVE_NAMES}
        if any(row is not None and row.value is not None for row in rows.values()):
            lines.append((name, [cell(row, measure) for measure, row in rows.items()]))
    return {"set": s, "lines": lines} if lines else None


def unfamiliar(results: Results, home: EvaluatedSet, away: EvaluatedSet) -> dict[str, Any] | None:
    """Return how well each score tells `away` from `home`, as it is and K-matched: a line a score; None without any."""
    lines = []
    for key, name in (UNCERTAINTIES | BASELINES).items():
        rows = [
            results.apart(away.name, home.name, f"{measure}_{key}", matched)
            for matched in (False, True)
            for measure in OOD_NAMES
        ]
        if any(row is not None for row in rows):
            lines.append((name, [cell(row, "ood") for row in rows]))
    return {"set": away, "lines": lines} if lines else None


def subjects(p: Predictions) -> list[dict[str, Any]]:
    """Return accuracy, NLL, entropy and mutual information of each subject, the lowest accuracy first."""
    names = [name or "" for name in p.subjects]
    if len(set(names) - {""}) < 2:
        return []
    parts = uncertainty.decompose(p.probs)
    of_subject: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        of_subject.setdefault(name or "(no subject)", []).append(n)
    right, loss = np.full(len(names), np.nan), np.full(len(names), np.nan)
    known = p.labelled
    if known.any():
        pooled = uncertainty.pool_log(p.log_probs)[known]
        right[known] = accuracy.correct(uncertainty.pool(p.probs)[known], p.targets[known])
        loss[known] = accuracy.nll(pooled, p.targets[known])
    lines = []
    for name, questions in of_subject.items():
        index = np.array(questions)
        labelled = index[known[index]]
        share, interval, likelihood = None, "", None
        if len(labelled):
            share = float(right[labelled].mean())
            low, high = wilson(share, len(labelled))
            interval = f"{percent(low)} to {percent(high)}"
            likelihood = float(loss[labelled].mean()) if np.isfinite(loss[labelled]).all() else None
        lines.append(
            {
                "name": name.replace("_", " "),
                "n": len(index),
                "few": len(index) < FEW,
                "accuracy": share,
                "interval": interval,
                "nll": likelihood,
                "entropy": float(parts.total[index].mean()),
                "mutual_information": float(parts.epistemic[index].mean()),
            }
        )
    return sorted(lines, key=lambda line: (line["accuracy"] is None, line["accuracy"], line["name"]))


def checks(results: Results, s: EvaluatedSet) -> list[str]:
    """Say whether the length or the place of a choice draws answers, beyond where the right ones are."""
    said = []
    answered, right = (results.value(s.name, "ensemble", f"shortest_{what}") for what in ("answered", "right"))
    if answered is not None and right is not None:
        way = answered.against(right.value)
        verdict = {1: "it favours short choices", 0: "no sign of a pull", -1: "it avoids short choices"}[way]
        said.append(
            f"Length: it answers the shortest choice in {spoken(answered)} of the questions, and that is right in "
            f"{percent(right.value)}: {verdict}."
        )
    shares, drawn = [], []
    for k in range(max(s.sizes)):
        answered, right = (results.value(s.name, "ensemble", f"position_{k}_{what}") for what in ("answered", "right"))
        if answered is not None and right is not None:
            off = answered.against(right.value)
            shares.append(f"{ordinal(k + 1)} {percent(answered.value)} ({percent(right.value)}){'*' if off else ''}")
            drawn += [ordinal(k + 1)] if off > 0 else []
    if shares:
        chance = percent(1.0 - 0.95 ** len(shares))
        verdict = f"More often than right: the {listed(drawn)}." if drawn else "No sign of a pull."
        starred = (
            f" *: beyond its 95% interval, as one of so many is by chance in {chance} of sets."
            if any("*" in share for share in shares)
            else ""
        )
        said.append(
            f"Order: how often it answers the choice in each place, and how often that is right: "
            f"{', '.join(shares)}.{starred} {verdict}"
        )
    return said


def cell(row: Row | None, measure: str) -> Cell:
    """Return a row as a cell: its value and interval, or a dash and the reason."""
    if row is None or row.value is None:
        return Cell("–", reason="" if row is None else row.reason or "")
    places = 3 if measure.startswith(FINE) else 2
    value = f"{row.value:.{places}f}"
    if row.low is None or row.high is None:
        return Cell(value.replace("-", "−"))
    return Cell(value.replace("-", "−"), f"{row.low:.{places}f} to {row.high:.{places}f}".replace("-", "−"))


def _value(results: Results, s: EvaluatedSet, answerer: Answerer | int, measure: str) -> Cell:
    row = results.row(s.name, answerer, measure)
    null = results.value(s.name, answerer, "ece_null_q95") if measure == "ece" else None
    if null is not None and row is not None and row.value is not None:
        return Cell(f"{row.value:.2f}", f"chance: up to {null.value:.2f}")
    return cell(row, measure)
