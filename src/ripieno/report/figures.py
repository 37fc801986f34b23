"""The page's figures: which panels stand together, on which axes, and the sentences that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ripieno.data.prompts import TEMPLATES
from ripieno.measures import accuracy, uncertainty
from ripieno.measures.calibration import reliability
from ripieno.measures.ensemble_size import enough_members
from ripieno.measures.matching import match_choices
from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions
from ripieno.report import curves, plots
from ripieno.report.drawing import Panel
from ripieno.report.names import MEASURES
from ripieno.report.results import EvaluatedSet, Interval, Results, interval_of
from ripieno.report.words import counted, ordinal, percent, spoken, turned

COURSES = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "predictive_entropy": "entropy (nats)",
    "mutual_information": "mutual information (nats)",
}
OF_MEMBERS = ("accuracy", "nll", "ece")  # drawn for each member as well
SIZES = {"accuracy": "accuracy", "nll": "NLL", "mutual_information": "mutual information (nats)"}
HISTOGRAMS = {
    "predictive_entropy": "entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "confidence": "confidence",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels that are read together, for one set, and sentences about them."""

    title: str
    panels: tuple[Panel, ...]
    sentences: tuple[str, ...] = ()


def courses(results: Results, sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set: measures over the epochs, the same axes for every set."""
    if not results.epochs:
        return []
    panels: dict[str, list[Panel]] = {s.name: [] for s in sets}
    for measure, label in COURSES.items():
        lines = {s.name: _lines(results, s, measure) for s in sets}
        references = {s.name: _reference(results, s, measure) for s in sets}
        values = [v for each in lines.values() for line in each for _, p in line.points for v in (p.value, p.high) if v]
        top = 1.08 * max([*values, *(r.value for r in references.values() if r)], default=1.0)
        for i, s in enumerate(sets):
            if lines[s.name]:
                drawn = curves.course(label, lines[s.name], (0.0, top), references[s.name], f"c{i}{measure}")
                panels[s.name].append(drawn)
    home = next((s for s in sets if not s.out), None)
    for i, s in enumerate(sets):
        if home is not None and s.out and (apart := _apart_lines(results, home, s)):
            drawn = curves.course("AUROC against home", apart, (0.0, 1.0), Interval(0.5), f"c{i}ood")
            panels[s.name].append(drawn)
    return [Figure(s.name, tuple(panels[s.name])) for s in sets if panels[s.name]]


def reliabilities(last: Sequence[Predictions], sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set with known answers: how often it is right where it is so sure."""
    figures = []
    for i, (p, s) in enumerate(zip(last, sets, strict=True)):
        if s.guess:
            sure, wrong = _confidence_and_wrong(p)
            figures.append(Figure(s.name, (plots.reliability(reliability(sure, 1.0 - wrong), f"r{i}"),)))
    return figures


def densities(answered: Sequence[Predictions], sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a file of answers: the right and the wrong ones, the same axes everywhere.

    Args:
        answered: of a set each; those of a single member are left out, and those without known answers.
        sets: theirs.
    """
    shown = [(p, s, uncertainty.decompose(p.probs)) for p, s in zip(answered, sets, strict=True)]
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


def risks(last: Sequence[Predictions], sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set with right and wrong answers: how wrong the rest is when the least sure are handed over."""
    figures = []
    for i, (p, s) in enumerate(zip(last, sets, strict=True)):
        if not s.guess:
            continue
        sure, wrong = _confidence_and_wrong(p)
        parts = uncertainty.decompose(p.probs[:, p.labelled])
        drawn = {"entropy": parts.total, "confidence": -sure}
        if len(p.members) > 1:
            drawn["mi"] = parts.epistemic
        if 0.0 < wrong.mean() < 1.0:
            figures.append(Figure(s.name, (curves.risks(drawn, wrong, f"k{i}"),)))
    return figures


def histograms(
    last: Sequence[Predictions], sets: Sequence[EvaluatedSet], everything: Sequence[Predictions]
) -> list[Figure]:
    """Return a figure a foreign set: its entropy, mutual information and confidence beside those in domain.

    Where the numbers of choices differ, both are reduced to the smallest one; where that takes asking again and nobody
    did, they are drawn as they are, and a sentence says so.
    """
    home = next(((p, s) for p, s in zip(last, sets, strict=True) if not s.out), None)
    if home is None:
        return []
    made = []
    for p, s in zip(last, sets, strict=True):
        if s.out:
            pair, said = _matched(home[0], p, everything)
            if all(len(one.question_ids) for one in pair):
                made.append((s, [_distributions(one) for one in pair], said))
    if not made:
        return []
    measures = [measure for measure in HISTOGRAMS if all(measure in values for _, pair, _ in made for values in pair)]
    panels: dict[str, list[Panel]] = {s.name: [] for s, _, _ in made}
    for measure in measures:
        values = [values[measure] for _, pair, _ in made for values in pair]
        most = 1.0 if measure == "confidence" else 1.02 * max(float(np.quantile(v, 0.995)) for v in values) or 1.0
        limits = (0.0, max(most, 1e-3))
        top = 1.08 * max(float(plots.shares(v, limits).max()) for v in values)
        for i, (s, both, _) in enumerate(made):
            inside, outside = (distribution[measure] for distribution in both)
            drawn = plots.histogram(HISTOGRAMS[measure], inside, outside, limits, top, f"h{i}{measure}")
            panels[s.name].append(drawn)
    return [Figure(s.name, tuple(panels[s.name]), (said,) if said else ()) for s, _, said in made]


def sizes(results: Results, sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set: measures against the number of members, and where one more no longer shows."""
    panels: dict[str, list[Panel]] = {s.name: [] for s in sets}
    for measure, label in SIZES.items():
        points = {s.name: results.sizes(s.name, measure) for s in sets}
        ends = [end for each in points.values() for p in each for end in (p.value, p.low, p.high) if end is not None]
        for i, s in enumerate(sets):
            if len(points[s.name]) > 1:
                room = 0.05 * (max(ends) - min(ends)) or 0.05
                low = 0.0 if measure == "mutual_information" else min(ends) - room
                drawn = curves.members(label, points[s.name], (low, max(ends) + room), f"m{i}{measure}")
                panels[s.name].append(drawn)
    return [
        Figure(
            s.name,
            tuple(panels[s.name]),
            tuple(_enough(results, s, m) for m in ("accuracy", "nll") if results.sizes(s.name, m)),
        )
        for s in sets
        if panels[s.name]
    ]


def flows(results: Results, sets: Sequence[EvaluatedSet]) -> list[Figure]:
    """Return a figure a set: how its questions moved between right and wrong, low and high mutual information."""
    figures = []
    for i, s in enumerate(sets):
        between, learned = results.flows(s.name), _learned(results, s)
        panels = (curves.flow(between, f"f{i}"),) if between else ()
        if panels or learned:
            figures.append(Figure(s.name, panels, (learned,) if learned else ()))
    return figures


def _lines(results: Results, s: EvaluatedSet, measure: str) -> list[curves.Course]:
    members = results.members(s.name) if measure in OF_MEMBERS else ()
    lines = [curves.Course(results.course(s.name, m, measure), member=True) for m in members]
    ensemble = results.course(s.name, "ensemble", measure)
    if measure == "mutual_information":  # the base is one member, which cannot disagree
        ensemble = [(epoch, value) for epoch, value in ensemble if epoch]
        if len(results.members(s.name)) < 2:
            return []
    return [line for line in (*lines, curves.Course(ensemble)) if line.points]


def _apart_lines(results: Results, home: EvaluatedSet, away: EvaluatedSet) -> list[curves.Course]:
    """Return how well each uncertainty tells a foreign set from home, over the epochs, K-matched if that is known."""
    for matched in (True, False):
        lines = []
        for line in curves.LINES:
            rows = [
                (epoch, interval_of(results.apart(away.name, home.name, f"ood_auroc_{line}", matched, epoch)))
                for epoch in results.epochs
            ]
            known = [(epoch, value) for epoch, value in rows if value is not None]
            if known:
                lines.append(curves.Course(known, line=line))
        if lines:
            return lines
    return []


def _reference(results: Results, s: EvaluatedSet, measure: str) -> Interval | None:
    """Return where the dashed line lies: a uniform guess, or the ECE that chance alone would reach."""
    if measure == "ece":
        return results.value(s.name, "ensemble", "ece_null_q95")
    if measure == "mutual_information":
        return None
    value = s.guess if measure == "accuracy" else s.even_odds
    return None if value is None else Interval(value)


def _confidence_and_wrong(p: Predictions) -> tuple[Floats, Floats]:
    pooled = uncertainty.pool(p.probs)[p.labelled]
    return uncertainty.confidence(pooled), 1.0 - accuracy.correct(pooled, p.targets[p.labelled])


def _distributions(p: Predictions) -> dict[str, Floats]:
    parts = uncertainty.decompose(p.probs)
    found = {"predictive_entropy": parts.total, "confidence": uncertainty.confidence(uncertainty.pool(p.probs))}
    return found | ({"mutual_information": parts.epistemic} if len(p.members) > 1 else {})


def _matched(
    inside: Predictions, outside: Predictions, everything: Iterable[Predictions]
) -> tuple[tuple[Predictions, Predictions], str]:
    """Return both sets with as many choices a question where that can be had, and what to say of it."""
    counts = [p.mask.sum(axis=1) for p in (inside, outside)]
    K = min(int(of.min()) for of in counts)
    if all((of == K).all() for of in counts):
        return (inside, outside), ""
    found = []
    asked = [p for p in everything if p.choices_kept == K]
    for p, of in zip((inside, outside), counts, strict=True):
        again = [
            a for a in asked if (a.name, a.method, a.epoch, a.replicate) == (p.name, p.method, p.epoch, p.replicate)
        ]
        template = TEMPLATES.get(p.metadata.get("template", {}).get("name", ""))
        if (of == K).all():
            found.append(p)
        elif again:
            found.append(again[0])
        elif template is None or not template.listed:
            found.append(match_choices(p, K, 0))
    if len(found) < 2 or not all(len(p.question_ids) for p in found):
        return (inside, outside), "As they are: the numbers of choices differ, which alone moves all three."
    return (found[0], found[1]), f"K-matched: wrong choices dropped at random until every question has {K}."


def _enough(results: Results, s: EvaluatedSet, measure: str) -> str:
    points = results.sizes(s.name, measure)
    name, last = MEASURES[measure][0], points[-1]
    if measure == "nll" and last.gain is not None:  # the mean over subsets falls with their size: Jensen's inequality
        gain = spoken(turned(Interval(last.gain, last.gain_low, last.gain_high)), ".3f")
        if min(last.gain, last.gain_low or 0.0) > -0.0005:
            gain = "less than 0.001"
        return f"{name}: every member lowers it (convexity); the {ordinal(last.members)} still by {gain}."
    enough = enough_members(points)
    if enough is None:
        if any(p.gain_low is not None for p in points):
            return f"{name}: each member up to the {ordinal(last.members)} still brought a gain beyond the noise."
        return f"{name}: there are too few questions to tell a gain from noise."
    if enough == 1:
        return f"{name}: already the second member's gain falls inside the noise (n = {points[0].n:,})."
    return (
        f"{name}: up to {counted(enough, 'member')} each brings a gain beyond the noise; that of the "
        f"{ordinal(enough + 1)} falls inside it."
    )


def _learned(results: Results, s: EvaluatedSet) -> str | None:
    """Say what the base knew and the ensemble forgot, and what it learned."""
    found = results.flows(s.name, base=True)
    if not found:
        return None
    count = {(f.state_from, f.state_to): f.count for f in found}
    n = found[0].n
    kept, forgot = count.get(("right", "right"), 0), count.get(("right", "wrong"), 0)
    learned = count.get(("wrong", "right"), 0)
    return (
        f"Of {n:,} questions the base was right on {kept + forgot:,} ({percent((kept + forgot) / n)}); of those the "
        f"ensemble forgot {forgot:,}. It learned {learned:,} that the base got wrong: {kept + learned:,} right in all."
    )
