"""Two runs side by side: what differs in their configs, their numbers, and which differences hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from ripieno.measures.methods import SIGNIFICANT
from ripieno.measures.table import Comparison
from ripieno.report.names import MEASURES, better
from ripieno.report.results import Interval, Results, name_of
from ripieno.report.story import SHOWN, Finding
from ripieno.report.tables import Cell, cell
from ripieno.report.words import counted, points, probability, spoken, turned

if TYPE_CHECKING:
    from ripieno.report.build import Summary

Pair = tuple[Results, Results]

# At equal numbers of members, for mutual information grows with them.
COLUMNS = {
    measure: MEASURES[measure][0]
    for measure in ("accuracy", "nll", "brier", "ece", "mean_confidence", "predictive_entropy", "mutual_information")
}
# Which comparison answers a reader's question, and what the one that is better is said to do.
QUESTIONS = {
    "accuracy": ("Which is right more often?", "is right more often"),
    "nll": ("Whose probabilities are better?", "gives the right answers more probability"),
    "error_auroc_confidence": ("Whose confidence finds the errors better?", "tells errors better by its confidence"),
}


@dataclass(frozen=True, slots=True)
class SharedSet:
    """A set that at least one of the runs was evaluated on."""

    name: str
    role: str
    n: int


def shared_sets(summaries: tuple[Summary, Summary], results: Pair) -> list[SharedSet]:
    """Return the sets that both were evaluated on, in the first's order, then those of one alone."""
    names = [dict.fromkeys((*summary.in_domain, *summary.out_of_domain)) for summary in summaries]
    order = [
        *(n for n in names[0] if n in names[1]),
        *(n for n in dict.fromkeys([*names[0], *names[1]]) if n not in names[0] or n not in names[1]),
    ]
    found = []
    for name in order:
        roles = {
            "out of domain" if name in summary.out_of_domain else "in domain"
            for summary, own in zip(summaries, names, strict=True)
            if name in own
        }
        rows = [row for of in results if (row := of.row(name, "ensemble", "accuracy")) is not None]
        if rows:
            role = roles.pop() if len(roles) == 1 else "in domain for one of them"
            found.append(SharedSet(name, role, max(row.n for row in rows)))
    return found


def config_differences(first: str, second: str) -> list[tuple[str, str, str]]:
    """Return the keys whose values differ, with both: ("training.members", "3", "5"); a dash stands for no key."""
    a, b = (_flat(yaml.safe_load(text) or {}) for text in (first, second))
    return [(key, a.get(key, "–"), b.get(key, "–")) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def side_by_side(names: tuple[str, str], results: Pair, s: SharedSet) -> dict[str, Any]:
    """Return one set's numbers, a line a run."""
    smaller = _smaller(results, s.name)
    lines = []
    for name, of in zip(names, results, strict=True):
        cells = [cell(of.row(s.name, "ensemble", measure), measure) for measure in list(COLUMNS)[:-1]]
        null = of.value(s.name, "ensemble", "ece_null_q95")
        if null is not None:
            cells[3] = Cell(cells[3].value, f"chance: up to {null.value:.2f}")
        lines.append((name, [*cells, _disagreement(of, s.name, smaller)]))
    return {"set": s, "lines": lines}


def tell(
    names: tuple[str, str], results: Pair, sets: Sequence[SharedSet], comparisons: Sequence[Comparison]
) -> list[Finding]:
    """Answer in plain words which differences hold, of a family of tests corrected together."""
    roles = {s.name: s.role for s in sets}
    findings = []
    for measure, (question, does) in QUESTIONS.items():
        found = [c for c in comparisons if c.measure == measure]
        if found:
            said = [_sentence(c, does, roles.get(name_of(c), "")) for c in found]
            findings.append(Finding(question, _verdict(names, found), tuple(said[:SHOWN]), tuple(said[SHOWN:])))
    said = [sentence for s in sets if (sentence := _disagreeing(names, results, s))]
    if said:
        verdict = "Compared at equal numbers of members, for disagreement grows with them."
        findings.append(Finding("Whose members disagree more?", verdict, tuple(said[:SHOWN]), tuple(said[SHOWN:])))
    return findings


def _verdict(names: tuple[str, str], found: Sequence[Comparison]) -> str:
    wins = [sum(winner(c) == name for c in found) for name in names]
    n = len(found)
    if not any(wins):
        return "They cannot be told apart." if n == 1 else f"They cannot be told apart on any of {n} sets."
    parts = [
        f"“{name}” {'' if n == 1 else f'on {won} of {n} sets'}".strip()
        for name, won in zip(names, wins, strict=True)
        if won
    ]
    rest = n - sum(wins)
    return ", ".join(parts) + (f"; on {rest} they cannot be told apart." if rest else ".")


def winner(c: Comparison) -> str | None:
    """Return the run whose measure is surely better, after the correction for many tests."""
    way = Interval(c.difference, c.low, c.high).against(0.0) * better(c.measure)
    return None if way == 0 or c.p_holm >= SIGNIFICANT else c.first if way > 0 else c.second


def _sentence(c: Comparison, does: str, role: str) -> str:
    x = Interval(c.difference, c.low, c.high)
    size = x if x.value >= 0 else turned(x)
    by = points(size) if c.measure == "accuracy" else spoken(size, ".3f") + (" nats" if c.measure == "nll" else "")
    where = f"{name_of(c)} ({f'{role}, ' if role else ''}n = {c.n:,})"
    better_one = winner(c)
    if better_one is None:
        return f"{where}: not told apart; they differ by {by}, {probability(c.p_holm)}."
    return f"{where}: “{better_one}” {does}, by {by}, {probability(c.p_holm)}."


def _smaller(results: Pair, name: str) -> int:
    """Return the number of members that both runs' points against the number of members reach; 0 without any."""
    return min(max((p.members for p in of.sizes(name, "mutual_information")), default=0) for of in results)


def _disagreement(of: Results, name: str, members: int) -> Cell:
    point = next((p for p in of.sizes(name, "mutual_information") if p.members == members), None)
    if point is None or members < 2:
        return Cell("–", reason="mutual information needs two members")
    interval = "" if point.low is None or point.high is None else f"{point.low:.3f} to {point.high:.3f}; "
    return Cell(f"{point.value:.3f}", f"{interval}of {counted(members, 'member')}")


def _disagreeing(names: tuple[str, str], results: Pair, s: SharedSet) -> str | None:
    members = _smaller(results, s.name)
    if members < 2:
        return None
    found = [next(p for p in of.sizes(s.name, "mutual_information") if p.members == members) for of in results]
    a, b = (Interval(p.value, p.low, p.high) for p in found)
    way = a.apart(b)
    verdict = f"“{names[0 if way > 0 else 1]}” more" if way else "the intervals overlap, so this says nothing"
    return (
        f"{s.name}, with {members} members each: “{names[0]}” {spoken(a, '.3f')}, “{names[1]}” {spoken(b, '.3f')} "
        f"nats of mutual information: {verdict}."
    )


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return nested keys joined by dots, with their values as text."""
    if not isinstance(value, dict):
        return {prefix: ", ".join(map(str, value)) if isinstance(value, list) else str(value)}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
