"""The page's figures: small SVG panels whose colours are the page's own, so that they follow light and dark.

Every panel is one `<svg role="img">` with a text alternative computed from what it shows. Only numbers and fixed words
are drawn: names of data sets stay in the page's HTML, which escapes them and has fonts for every script.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ripieno.measures.calibration import Reliability
from ripieno.measures.uncertainty import Floats
from ripieno.report.results import Interval

# Colours no figure would choose, replaced by the page's custom properties once drawn.
COLOURS = {
    "ink": "#0000a1",
    "faint": "#0000a2",
    "ensemble": "#0000a3",
    "member": "#0000a4",
    "right": "#0000a5",
    "wrong": "#0000a6",
}
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ripieno",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.linewidth": 0.8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), COLOURS["ink"]),
}
WIDTH, HEIGHT = 320, 240  # points: one unit of the panel's viewBox each
LEFT = 0.19  # of the width: where the axes begin
GRID = 60  # cells a side, on which densities are computed
SHARES = (0.9, 0.7, 0.5, 0.25)  # of the questions, inside each contour
DOTS = 400  # up to so many questions are drawn one by one as well


@dataclass(frozen=True, slots=True)
class Panel:
    """One SVG element, ready to stand in HTML, its text alternative, and what to write above it."""

    svg: Markup
    alt: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Course:
    """A measure of one answerer over the epochs."""

    points: Sequence[tuple[int, Interval]]
    member: bool = False


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
        figure, axes = _panel()
        for line in courses:
            x = [epoch for epoch, _ in line.points]
            y = [value.value for _, value in line.points]
            if line.member:
                axes.plot(x, y, color=COLOURS["member"], linewidth=1.0, marker="o", markersize=2)
                continue
            axes.plot(x, y, color=COLOURS["ensemble"], linewidth=2.8, marker="o", markersize=5, zorder=4)
            ends = [(e, v.low, v.high) for e, v in line.points if v.low is not None and v.high is not None]
            if ends:
                axes.vlines(*zip(*ends, strict=True), color=COLOURS["ensemble"], linewidth=1.4, alpha=0.7, zorder=3)
        if reference is not None:
            axes.axhline(reference.value, color=COLOURS["faint"], linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
        epochs = sorted({epoch for line in courses for epoch, _ in line.points})
        axes.set(xlabel="epoch (0: the base)", ylabel=label, ylim=limits, xlim=(epochs[0] - 0.2, epochs[-1] + 0.2))
        axes.set_xticks(epochs[:: max(1, len(epochs) // 6)])
        return _finish(figure, prefix, _course_alt(label, courses, reference))


def reliability(r: Reliability, prefix: str) -> Panel:
    """Draw accuracy against confidence, with 95% Wilson intervals, above the number of questions in each bin."""
    with matplotlib.rc_context(RC):
        figure, axes = _panel(bottom=0.42)
        counts = figure.add_axes((LEFT, 0.17, 0.96 - LEFT, 0.19), sharex=axes)
        axes.plot([0, 1], [0, 1], color=COLOURS["faint"], linestyle=(0, (5, 3)), linewidth=1.2)
        full = r.count > 0
        n, x, y = r.count[full], r.confidence[full], r.accuracy[full]
        low, high = _wilson(y, n)
        axes.vlines(x, low, high, color=COLOURS["ensemble"], linewidth=1.2, alpha=0.7)
        axes.plot(x, y, color=COLOURS["ensemble"], marker="o", markersize=5, linewidth=1.6)
        counts.bar(r.edges[:-1], r.count, np.diff(r.edges), align="edge", color=COLOURS["ensemble"], alpha=0.6)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right")
        axes.tick_params(labelbottom=False)
        counts.set(xlabel="confidence", ylabel="count", ylim=(0, max(1, int(r.count.max())) * 1.1))
        counts.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
        bins = "; ".join(f"{c:.2f} sure, {a:.2f} right, {k:,}" for c, a, k in zip(x, y, n, strict=True))
        return _finish(figure, prefix, f"Reliability. Mean confidence, share right, number of questions a bin: {bins}.")


def density(
    entropy: Floats, disagreement: Floats, most: Floats, limits: tuple[float, float], role: str, prefix: str
) -> Panel:
    """Draw where questions lie in entropy (across) and mutual information (up): contours of equal density.

    The contours enclose the densest 90, 70, 50 and 25% of the questions; a Gaussian kernel with Scott's bandwidth,
    mirrored where there can be no questions. The number of elements is bounded, whatever the number of questions.

    Args:
        entropy: [N], nats.
        disagreement: [N], nats.
        most: [N], ln K, the most entropy there can be; a dotted line marks up to three of them.
        limits: the upper ends of both axes, the same for every panel.
        role: "right" or "wrong": the colour.
        prefix: of the ids, unique in the page.
    """
    with matplotlib.rc_context(RC):
        figure, axes = _panel()
        for mark in np.unique(most)[-3:]:
            axes.axvline(mark, color=COLOURS["faint"], linestyle=(0, (2, 3)), linewidth=1.0)
        n = len(entropy)
        if n >= 10:
            x, y = (np.linspace(0, limit, GRID) for limit in limits)
            surface = _kernel(disagreement, y).T @ (_kernel(entropy, x, most) * (x <= most.max()))
            for level in _levels(surface):
                axes.contourf(x, y, surface, [level, surface.max() * 1.01], colors=[COLOURS[role]], alpha=0.22)
        if n <= DOTS:
            axes.plot(entropy, disagreement, "o", color=COLOURS[role], markersize=1.8, alpha=0.75, markeredgewidth=0)
        axes.set(xlim=(0, limits[0]), ylim=(0, limits[1]), xlabel="entropy (nats)")
        axes.set_ylabel("mutual information (nats)")
        alt = f"{n:,} questions answered {role}."
        if n:
            (a, b, c), (d, e, f) = (np.quantile(values, (0.25, 0.5, 0.75)) for values in (entropy, disagreement))
            alt += f" Entropy: median {b:.2f}, middle half {a:.2f} to {c:.2f} nats."
            alt += f" Mutual information: median {e:.3f}, middle half {d:.3f} to {f:.3f} nats."
        return _finish(figure, prefix, alt, f"{n:,} {role} answer{'' if n == 1 else 's'}")


def _panel(bottom: float = 0.17) -> tuple[Figure, Axes]:
    """Return an empty panel; the axes' place is fixed, so that panels side by side line up."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    return figure, figure.add_axes((LEFT, bottom, 0.96 - LEFT, 0.96 - bottom))


def _finish(figure: Figure, prefix: str, alt: str, label: str = "") -> Panel:
    """Return the figure as an SVG element: the page's colours and font, ids with the prefix, no metadata."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r'\bid="', f'id="{prefix}-', body).replace("url(#", f"url(#{prefix}-")
    body = body.replace('xlink:href="#', f'href="#{prefix}-')
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)  # numbers drawn stay whole
    body = re.sub(r"\n\s*", "\n", body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(alt, WIDTH, HEIGHT)
    return Panel(head + Markup(body.strip()), alt, label)


def _kernel(values: Floats, grid: Floats, most: Floats | None = None) -> Floats:
    """Return [N, G]: a Gaussian around each value, mirrored at 0 and at `most`; Scott's rule, at least a cell wide."""
    width = max(float(values.std()) * len(values) ** (-1 / 6), float(grid[1] - grid[0]))
    centres = [values, -values] + ([] if most is None else [2 * most - values])
    return np.sum([np.exp(-0.5 * ((grid - centre[:, None]) / width) ** 2) for centre in centres], axis=0)


def _levels(surface: Floats) -> list[float]:
    """Return the densities above which lie the densest `SHARES` of the whole, lowest first."""
    ordered = np.sort(surface.ravel())[::-1]
    share = np.cumsum(ordered) / ordered.sum()
    return sorted({float(ordered[np.searchsorted(share, wanted)]) for wanted in SHARES})


def _wilson(share: Floats, n: Floats | Any) -> tuple[Floats, Floats]:
    """Return the 95% Wilson interval of a share of n (Wilson 1927)."""
    z = 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def _course_alt(label: str, courses: Sequence[Course], reference: Interval | None) -> str:
    """Return a course's text alternative."""
    text = f"{label} by epoch."
    for line in courses:
        if not line.member:
            text += " Ensemble: " + ", ".join(f"epoch {e} {v.value:.2f}" for e, v in line.points) + "."
    last = [line.points[-1][1].value for line in courses if line.member and line.points]
    if last:
        text += f" {len(last)} members at the last epoch: {min(last):.2f} to {max(last):.2f}."
    return text + (f" Dashed reference: {reference.value:.2f}." if reference else "")
