"""What all figures share: an empty panel, and a finished one as an SVG whose colours are the page's own.

Every panel is one `<svg role="img">` with a text alternative computed from what it shows. Only numbers and fixed words
are drawn: names of data sets stay in the page's HTML, which escapes them and has fonts for every script.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours no figure would choose, replaced by the page's custom properties once drawn.
COLOURS = {
    "ink": "#0000a1",
    "faint": "#0000a2",
    "ensemble": "#0000a3",
    "member": "#0000a4",
    "right": "#0000a5",
    "wrong": "#0000a6",
    "third": "#0000a7",
    "page": "#0000a8",
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
    "path.simplify": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), COLOURS["ink"]),
}
WIDTH, HEIGHT = 320, 240  # points: one unit of the panel's viewBox each
LEFT = 0.19  # of the width: where the axes begin
DASHED, DOTTED, DASH_DOT = (0, (5, 3)), (0, (2, 3)), (0, (7, 2, 1.5, 2))


@dataclass(frozen=True, slots=True)
class Panel:
    """One SVG element, ready to stand in HTML, its text alternative, and what to write above it."""

    svg: Markup
    alt: str
    label: str = ""


def blank(bottom: float = 0.17) -> tuple[Figure, Axes]:
    """Return an empty panel; the axes' place is fixed, so that panels side by side line up."""
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    return figure, figure.add_axes((LEFT, bottom, 0.96 - LEFT, 0.96 - bottom))


def finish(figure: Figure, prefix: str, alt: str, label: str = "") -> Panel:
    """Return the figure as an SVG element: the page's colours and font, ids with the prefix, no metadata."""
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|<defs>\s*</defs>", "", body, flags=re.DOTALL)
    # The page's font is the page's matter, and nothing refers to groups or turns by 0 degrees.
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r' font-family: [^;"]*;|<path d="[^"]*" style="fill: none"/>| transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'\bid="', f'id="{prefix}-', body).replace("url(#", f"url(#{prefix}-")
    body = body.replace('xlink:href="#', f'href="#{prefix}-')
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)  # numbers drawn stay whole
    body = re.sub(r"\s*\n\s*", "\n", body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(alt, width, height)
    return Panel(head + Markup(body.strip()) + Markup("</svg>"), alt, label)


def sheet(rows: Sequence[tuple[str, Sequence[Panel]]], notes: Sequence[str] = ()) -> str:
    """Return panels as one SVG file that stands alone, in the page's colours, light or dark as its reader has it.

    Args:
        rows: a title, and the panels that stand below it side by side.
        notes: lines below them, such as what its lines mean.
    """
    css = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    body, width, y = [], 0, 0
    for title, panels in rows:
        body.append(f'<text x="12" y="{y + 24}" font-size="15" font-weight="600">{escape(title)}</text>')
        x, tallest, y = 0, 0, y + 34
        labels = 18 if any(panel.label for panel in panels) else 0
        for panel in panels:
            across, down = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', panel.svg)[0])
            if panel.label:
                body.append(
                    f'<text class="faint" x="{x + 12}" y="{y + 12}" font-size="12">{escape(panel.label)}</text>'
                )
            place = f'<svg x="{x}" y="{y + labels}" width="{across}" height="{down}" '
            body.append(str(panel.svg).replace("<svg ", place, 1))
            x, tallest = x + across, max(tallest, down)
        width, y = max(width, x), y + labels + tallest + 12
    for note in notes:
        body.append(f'<text class="faint" x="12" y="{y + 8}" font-size="12">{escape(note)}</text>')
        y += 18
    colours = css[: css.index("* {")]  # of the root, in both schemes
    texts = "text { fill: var(--ink); font-family: system-ui, sans-serif; } .faint { fill: var(--faint); }"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">'
    page = '<rect width="100%" height="100%" style="fill: var(--page)"/>'
    return "\n".join([head, f"<style>{colours}{texts}</style>", page, *body, "</svg>"]) + "\n"
