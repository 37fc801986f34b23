"""Figures of how a measure goes: over the epochs, with more members, with fewer answers, and questions on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from ripieno.measures.selective import risk_coverage
from ripieno.measures.table import Flow, SizePoint
from ripieno.measures.uncertainty import Floats
from ripieno.report.drawing import COLOURS, DASH_DOT, DASHED, DOTTED, RC, Panel, blank, finish
from ripieno.report.results import Interval

# How an uncertainty is drawn, told apart by its line as well as by its colour.
LINES = {
    "confidence": ("ensemble", "solid", 2.2),
    "entropy": ("member", DASHED, 1.8),
    "mi": ("third", DASH_DOT, 1.8),
}
POINTS = 150  # of a risk-coverage curve
FEWEST = 0.02  # share of the questions below which an error rate is that of a handful, and is not drawn

# The states of a flow, from top to bottom, their colours, and what is drawn on their column.
STATES = ("right, low", "right", "right, high", "wrong, high", "wrong", "wrong, low")
STATE_WORDS = {
    "right, low": "right, agree",
    "right, high": "right, disagree",
    "wrong, high": "wrong, disagree",
    "wrong, low": "wrong, agree",
}


@dataclass(frozen=True, slots=True)
class Priced:
    """What one way costs and brings: `number` is what the figure writes beside it, `marked` is drawn filled."""

    number: int
    cost: float
    value: Interval
    marked: bool


@dataclass(frozen=True, slots=True)
class Course:
    """A measure of one answerer over the epochs; `line` is a key of `LINES` where it is an uncertainty's."""

    points: Sequence[tuple[int, Interval]]
    member: bool = False
    line: str = "confidence"


def course(
    label: str, courses: Sequence[Course], limits: tuple[float, float], reference: Interval | None, prefix: str
) -> Panel:
    """Draw a measure over the epochs: thin lines for members, a thick one (and its interval) for the ensemble.

    Args:
        label: the measure's name, on the axis.
        courses: of the members and the ensemble.
        limits: of the vertical axis, the same for every set.
        reference: a dashed line across, such as a guess's accuracy.
        prefix: of the ids, unique in the page.
    """
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        for line in courses:
            x = [epoch for epoch, _ in line.points]
            y = [value.value for _, value in line.points]
            if line.member:
                axes.plot(x, y, color=COLOURS["member"], linewidth=1.0, marker="o", markersize=2)
                continue
            colour, style, _ = LINES[line.line]
            axes.plot(x, y, color=COLOURS[colour], linestyle=style, linewidth=2.4, marker="o", markersize=5, zorder=4)
            ends = [(e, v.low, v.high) for e, v in line.points if v.low is not None and v.high is not None]
            if ends:
                axes.vlines(*zip(*ends, strict=True), color=COLOURS[colour], linewidth=1.4, alpha=0.7, zorder=3)
        if reference is not None:
            axes.axhline(reference.value, color=COLOURS["faint"], linestyle=DASHED, linewidth=1.2, zorder=1)
        epochs = sorted({epoch for line in courses for epoch, _ in line.points})
        axes.set(
            xlabel="epoch (0: the base)" if epochs[0] == 0 else "epoch",
            ylabel=label,
            ylim=limits,
            xlim=(epochs[0] - 0.2, epochs[-1] + 0.2),
        )
        axes.set_xticks(epochs[:: max(1, len(epochs) // 6)])
        return finish(figure, prefix, _course_alt(label, courses, reference))


def members(label: str, points: Sequence[SizePoint], limits: tuple[float, float], prefix: str) -> Panel:
    """Draw a measure against the number of members, with its 95% interval where it has one."""
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        x, y = [p.members for p in points], [p.value for p in points]
        ends = [(p.members, p.low, p.high) for p in points if p.low is not None and p.high is not None]
        if ends:
            at, low, high = zip(*ends, strict=True)
            axes.fill_between(at, low, high, color=COLOURS["ensemble"], alpha=0.18, linewidth=0)
        axes.plot(x, y, color=COLOURS["ensemble"], linewidth=2.0, marker="o", markersize=4.5)
        axes.set(xlabel="members", ylabel=label, xlim=(min(x) - 0.3, max(x) + 0.3), ylim=limits)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        values = ", ".join(f"{p.members}: {p.value:.3f}" for p in points)
        return finish(figure, prefix, f"{label} by number of members. {values}.")


def costs(label: str, cost: str, points: Sequence[Priced], prefix: str) -> Panel:
    """Draw a measure against a cost as a multiple of the reference's; points of equal cost stand side by side.

    Args:
        label: the measure's name, on the axis.
        cost: the cost's name, on the axis.
        points: at least one, of costs above 0.
        prefix: of the ids, unique in the page.
    """
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        figure.set_size_inches(440 / 72, 260 / 72)
        axes.set_position((0.15, 0.17, 0.82, 0.79))
        places = sorted({p.cost for p in points})
        # Each cost has a stretch of the axis as wide as it has points: the order counts, and no number hides another.
        starts, start = {}, 0.0
        for place in places:
            starts[place] = start
            start += sum(p.cost == place for p in points) + 0.8
        for place in places:
            own = sorted((p for p in points if p.cost == place), key=lambda p: p.number)
            for i, p in enumerate(own):
                x = starts[place] + i
                if p.value.low is not None and p.value.high is not None:
                    axes.vlines(x, p.value.low, p.value.high, color=COLOURS["ensemble"], linewidth=1.4, alpha=0.7)
                face = COLOURS["ensemble"] if p.marked else COLOURS["page"]
                axes.plot(x, p.value.value, "o", markersize=6, color=COLOURS["ensemble"], markerfacecolor=face)
                axes.annotate(
                    str(p.number), (x, p.value.value), (5, 0), textcoords="offset points", va="center", fontsize=9
                )
            if place != places[-1]:
                axes.axvline(starts[place] + len(own) - 0.1, color=COLOURS["faint"], linestyle=DOTTED, linewidth=0.8)
        middles = [starts[place] + (sum(p.cost == place for p in points) - 1) / 2 for place in places]
        axes.set_xticks(middles, [f"{place:.3g}×" for place in places])
        axes.set(xlim=(-0.6, start - 0.6), xlabel=cost, ylabel=label)
        said = "; ".join(f"{p.number}: {p.cost:.3g} times, {p.value.value:.3f}" for p in points)
        return finish(figure, prefix, f"{label} against {cost}. Row: cost, value. {said}.")


def risks(uncertainties: Mapping[str, Floats], wrong: Floats, prefix: str) -> Panel:
    """Draw the share of wrong answers among those given, against how many are given, for each uncertainty.

    Args:
        uncertainties: by their keys in `LINES`, [N] each, higher where less certain.
        wrong: [N], 0 or 1.
        prefix: of the ids, unique in the page.
    """
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        overall, highest, said = float(wrong.mean()), float(wrong.mean()), []
        x = np.linspace(0.0, 1.0, 101)[1:]
        axes.plot(x, np.maximum(0.0, 1.0 - (1.0 - overall) / x), color=COLOURS["ink"], linestyle=DOTTED, linewidth=1.4)
        axes.axhline(overall, color=COLOURS["faint"], linewidth=1.2)
        for name, uncertainty in uncertainties.items():
            curve = risk_coverage(uncertainty, wrong)
            drawn = np.flatnonzero(curve.coverage >= min(FEWEST, curve.coverage[-1]))
            drawn = drawn[np.unique(np.linspace(0, len(drawn) - 1, POINTS).round().astype(int))]
            colour, style, width = LINES[name]
            across, risk = curve.coverage[drawn], curve.risk[drawn]
            axes.plot(across, risk, color=COLOURS[colour], linestyle=style, linewidth=width)
            highest = max(highest, float(risk.max()))
            half = int(np.searchsorted(curve.coverage, 0.5))
            said.append(f"{name}: {curve.risk[min(half, len(curve.risk) - 1)]:.2f}")
        axes.set(xlim=(0, 1), ylim=(0, min(1.02, 1.08 * highest + 0.02)))
        axes.set(xlabel="share of questions answered", ylabel="share wrong among them")
        alt = (
            f"Share wrong against share answered. All answered: {overall:.2f}. Half answered, the rest handed over by "
        )
        return finish(figure, prefix, f"{alt}{', '.join(said)}.")


def flow(flows: Sequence[Flow], prefix: str) -> Panel:
    """Draw how many questions go from which state to which, from epoch to epoch: bands between columns.

    Args:
        flows: of one set, between the method's epochs.
        prefix: of the ids, unique in the page.
    """
    epochs = sorted({f.epoch_from for f in flows} | {f.epoch_to for f in flows})
    states = [s for s in STATES if any(s in (f.state_from, f.state_to) for f in flows)]
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        figure.set_size_inches(640 / 72, 240 / 72)
        axes.set_position((0.16, 0.15, 0.80, 0.81))
        total = max(f.n for f in flows)
        gap, width = 0.03 * total, 0.06
        tops = {(e, s): top for e in epochs for s, top in _stack(flows, e, states, gap).items()}
        out, into = {key: top for key, (top, _) in tops.items()}, {key: top for key, (top, _) in tops.items()}
        for f in sorted(flows, key=lambda f: (states.index(f.state_from), states.index(f.state_to))):
            left, right = (f.epoch_from, f.state_from), (f.epoch_to, f.state_to)
            band = _band((left[0] + width, out[left]), (right[0] - width, into[right]), f.count)
            colour = COLOURS["right" if f.state_to.startswith("right") else "wrong"]
            stays = f.state_from.split(",")[0] == f.state_to.split(",")[0]
            axes.add_patch(PathPatch(band, facecolor=colour, alpha=0.18 if stays else 0.5, linewidth=0))
            out[left] -= f.count
            into[right] -= f.count
        for (epoch, state), (top, count) in tops.items():
            colour = COLOURS["right" if state.startswith("right") else "wrong"]
            box = (epoch - width, top - count)
            axes.add_patch(Rectangle(box, 2 * width, count, facecolor=colour, alpha=0.55 if "low" in state else 0.95))
            if epoch == epochs[0] and count:
                words = STATE_WORDS.get(state, state)
                axes.text(epoch - width - 0.03, top - count / 2, words, ha="right", va="center", fontsize=9)
        if len(epochs) <= 6:
            for (epoch, _), (top, count) in tops.items():
                if count >= 0.05 * total:
                    axes.text(epoch + width + 0.02, top - count / 2, f"{count:,}", ha="left", va="center", fontsize=8)
        axes.set(xlim=(epochs[0] - width - 0.01, epochs[-1] + width + 0.18), xlabel="epoch")
        axes.set_ylim(-(len(states) - 1) * gap - 0.01 * total, 1.01 * total)
        axes.set_xticks(epochs)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        said = [
            f"epoch {e}: "
            + ", ".join(f"{count:,} {STATE_WORDS.get(s, s)}" for (of, s), (_, count) in tops.items() if of == e)
            for e in epochs
        ]
        return finish(figure, prefix, f"Questions by state. {'; '.join(said)}.")


def _stack(flows: Sequence[Flow], epoch: int, states: Sequence[str], gap: float) -> dict[str, tuple[float, int]]:
    """Return where each state's part of a column begins (its top), and how many questions it holds."""
    leaving = [f for f in flows if f.epoch_from == epoch]
    counts = {
        s: sum(f.count for f in leaving if f.state_from == s)
        if leaving
        else sum(f.count for f in flows if f.epoch_to == epoch and f.state_to == s)
        for s in states
    }
    top, stack = float(sum(counts.values())), {}
    for state, count in counts.items():
        stack[state] = (top, count)
        top -= count + gap
    return stack


def _band(left: tuple[float, float], right: tuple[float, float], height: float) -> Path:
    """Return a band from one place's top to another's, bent like an S."""
    (x0, y0), (x1, y1) = left, right
    middle = (x0 + x1) / 2
    corners = [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]
    back = [(x1, y1 - height), (middle, y1 - height), (middle, y0 - height), (x0, y0 - height), (x0, y0)]
    curve = [Path.CURVE4] * 3
    return Path([*corners, *back], [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY])


def _course_alt(label: str, courses: Sequence[Course], reference: Interval | None) -> str:
    """Return a course's text alternative."""
    text = f"{label} by epoch."
    several = len({line.line for line in courses}) > 1
    for line in courses:
        if not line.member:
            who = f"By {line.line}" if several else "Ensemble"
            text += f" {who}: " + ", ".join(f"epoch {e} {v.value:.2f}" for e, v in line.points) + "."
    last = [line.points[-1][1].value for line in courses if line.member and line.points]
    if last:
        text += f" {len(last)} members at the last epoch: {min(last):.2f} to {max(last):.2f}."
    return text + (f" Dashed reference: {reference.value:.2f}." if reference else "")
