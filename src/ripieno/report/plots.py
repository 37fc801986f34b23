"""Figures of where questions lie: their confidence, their entropy, how much the members disagree."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator

from ripieno.measures.calibration import Reliability
from ripieno.measures.uncertainty import Floats
from ripieno.report.drawing import COLOURS, DASHED, DOTTED, LEFT, RC, Panel, blank, finish
from ripieno.report.results import wilson
from ripieno.report.words import counted

GRID = 60  # cells a side, on which densities are computed
SHARES = (0.9, 0.7, 0.5, 0.25)  # of the questions, inside each contour
DOTS = 400  # up to so many questions are drawn one by one as well
BARS = 24  # of a histogram


def reliability(r: Reliability, prefix: str) -> Panel:
    """Draw accuracy against confidence, with 95% Wilson intervals, above the number of questions in each bin."""
    with matplotlib.rc_context(RC):
        figure, axes = blank(bottom=0.42)
        counts = figure.add_axes((LEFT, 0.17, 0.96 - LEFT, 0.19), sharex=axes)
        axes.plot([0, 1], [0, 1], color=COLOURS["faint"], linestyle=DASHED, linewidth=1.2)
        full = r.count > 0
        n, x, y = r.count[full], r.confidence[full], r.accuracy[full]
        low, high = wilson(y, n)
        axes.vlines(x, low, high, color=COLOURS["ensemble"], linewidth=1.2, alpha=0.7)
        axes.plot(x, y, color=COLOURS["ensemble"], marker="o", markersize=5, linewidth=1.6)
        counts.bar(r.edges[:-1], r.count, np.diff(r.edges), align="edge", color=COLOURS["ensemble"], alpha=0.6)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right")
        axes.tick_params(labelbottom=False)
        counts.set(xlabel="confidence", ylabel="count", ylim=(0, max(1, int(r.count.max())) * 1.1))
        counts.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
        bins = "; ".join(f"{c:.2f} sure, {a:.2f} right, {k:,}" for c, a, k in zip(x, y, n, strict=True))
        return finish(figure, prefix, f"Reliability. Mean confidence, share right, number of questions a bin: {bins}.")


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
        figure, axes = blank()
        for mark in np.unique(most)[-3:]:
            axes.axvline(mark, color=COLOURS["faint"], linestyle=DOTTED, linewidth=1.0)
        n = len(entropy)
        if n >= 10:
            x, y = (np.linspace(0, limit, GRID) for limit in limits)
            surface = _kernel(disagreement, y).T @ (_kernel(entropy, x, most) * (x <= most.max()))
            for level in _levels(surface):
                axes.contourf(x, y, surface, [level, surface.max() * 1.01], colors=[COLOURS[role]], alpha=0.22)
        if 0 < n <= DOTS:
            # One path of strokes without length, whose round ends are the dots: far fewer bytes than markers.
            gap = np.full(n, np.nan)
            across, up = (np.stack([v, v, gap], axis=1).ravel() for v in (entropy, disagreement))
            axes.plot(across, up, color=COLOURS[role], linewidth=1.9, alpha=0.75, solid_capstyle="round")
        axes.set(xlim=(0, limits[0]), ylim=(0, limits[1]), xlabel="entropy (nats)")
        axes.set_ylabel("mutual information (nats)")
        alt = f"{n:,} questions answered {role}."
        if n:
            (a, b, c), (d, e, f) = (np.quantile(values, (0.25, 0.5, 0.75)) for values in (entropy, disagreement))
            alt += f" Entropy: median {b:.2f}, middle half {a:.2f} to {c:.2f} nats."
            alt += f" Mutual information: median {e:.3f}, middle half {d:.3f} to {f:.3f} nats."
        sign = "✓" if role == "right" else "✗"
        return finish(figure, prefix, alt, f"{sign} {counted(n, f'{role} answer')}")


def histogram(
    label: str, inside: Floats, outside: Floats, limits: tuple[float, float], top: float, prefix: str
) -> Panel:
    """Draw the share of the questions in each bin: filled in domain, a dashed line out of domain.

    Args:
        label: of what, on the axis.
        inside: [N], the values in domain.
        outside: [n], those out of domain.
        limits: of the axis; what lies beyond is in the last bin.
        top: of the vertical axis.
        prefix: of the ids, unique in the page.
    """
    with matplotlib.rc_context(RC):
        figure, axes = blank()
        edges = np.linspace(*limits, BARS + 1)
        filled, dashed = shares(inside, limits), shares(outside, limits)
        axes.stairs(filled, edges, fill=True, color=COLOURS["ensemble"], alpha=0.25, linewidth=0)
        axes.stairs(filled, edges, color=COLOURS["ensemble"], linewidth=1.4)
        axes.stairs(dashed, edges, color=COLOURS["member"], linewidth=2.0, linestyle=DASHED)
        axes.set(xlim=limits, ylim=(0, top), xlabel=label, ylabel="share of questions")
        parts = []
        for role, values in (("in domain", inside), ("out of domain", outside)):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            parts.append(f"{role}: median {middle:.3f}, middle half {low:.3f} to {high:.3f}")
        return finish(figure, prefix, f"Histogram of {label}. {'; '.join(parts)}.")


def shares(values: Floats, limits: tuple[float, float]) -> Floats:
    """Return the share of the values in each of a histogram's bins, [BARS]."""
    counts, _ = np.histogram(np.clip(values, *limits), BARS, limits)
    share: Floats = counts / max(1, len(values))
    return share


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
