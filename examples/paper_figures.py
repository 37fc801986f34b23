"""The paper's figures (arXiv:2402.12264) from any run: how uncertainty goes over the epochs, in and out of domain.

    python examples/paper_figures.py RUN [--output DIR]

Written to DIR (RUN/figures by default), as SVG:

    courses.svg     over the epochs: accuracy, NLL, ECE, entropy and mutual information of the ensemble, the first three
                    of each member as well, and how well each uncertainty tells the foreign sets from home
    questions.svg   each question's entropy against its mutual information, right and wrong answers apart, after some
                    of the epochs

One row a set, in domain first, the same axes for all of them. RUN is a run that `ripieno evaluate` has gone over; no
torch is needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ripieno.errors import EnvironmentFault, UserError
from ripieno.measures.evidence import Evidence
from ripieno.report import figures
from ripieno.report.drawing import Panel, sheet
from ripieno.report.results import Results, evaluated_set
from ripieno.report.run import load
from ripieno.runs import METHOD, RunFolder

SHOWN = 3  # epochs whose questions are drawn: the first, the last and what lies between
NOTES = {
    "courses.svg": (
        "Thick: the ensemble, with its 95% interval over questions. Thin: each member. Dashed across: a uniform guess; "
        "of ECE, what chance alone stays below in 95 of 100 samples.",
        "AUROC against home, by uncertainty. Solid: confidence. Dashed: entropy. Dash-dotted: mutual information. 0.5: "
        "not told apart.",
    ),
    "questions.svg": (
        "Inside the contours: the densest 90, 70, 50 and 25% of the questions. Dotted: ln K, the most there can be.",
    ),
}


def paper_figures(evidence: Evidence) -> dict[str, str]:
    """Return the figures by their file's name.

    Args:
        evidence: the answers of several epochs.

    Raises:
        UserError: there are none of the ensemble's.
    """
    asked = [p for p in evidence.predictions if p.method == METHOD]
    if not asked:
        raise UserError("nothing was evaluated yet; `ripieno evaluate RUN` asks the members first")
    results = Results(evidence.analyze(), METHOD)
    last = [p for p in asked if p.epoch == results.last]
    sets = [evaluated_set(results, p, p.name in evidence.out_of_domain) for p in last]
    sets.sort(key=lambda s: s.out)
    courses = {figure.title: figure.panels for figure in figures.courses(results, sets)}
    of_epochs = some(results.epochs)
    pairs = [(p, s) for s in sets for e in of_epochs for p in asked if (p.name, p.epoch) == (s.name, e)]
    drawn = figures.densities([p for p, _ in pairs], [s for _, s in pairs])
    questions: dict[str, list[Panel]] = {}
    shown = [(p, s) for p, s in pairs if s.guess and len(p.members) > 1]
    for (p, _), figure in zip(shown, drawn, strict=True):
        questions.setdefault(p.name, []).extend(
            Panel(panel.svg, panel.alt, f"epoch {p.epoch}: {panel.label}") for panel in figure.panels
        )
    pages = {"courses.svg": courses, "questions.svg": questions}
    titles = {s.name: f"{s.name} ({s.role}, n = {s.n:,})" for s in sets}
    return {
        name: sheet([(title, panels[of]) for of, title in titles.items() if of in panels], NOTES[name])
        for name, panels in pages.items()
        if panels
    }


def some(epochs: Sequence[int]) -> list[int]:
    """Return at most so many of the epochs, evenly, the first and the last among them."""
    places = np.linspace(0, len(epochs) - 1, min(SHOWN, len(epochs))).round().astype(int)
    return [epochs[place] for place in places]


def main() -> None:
    """Write the figures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", type=Path)
    options.add_argument("--output", type=Path, help="the folder to write into; RUN/figures by default")
    args = options.parse_args()
    try:
        found = paper_figures(load(RunFolder(args.run)))
    except (UserError, EnvironmentFault) as error:
        sys.exit(f"{args.run}: {error}")
    folder = args.output or args.run / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in found.items():
        (folder / name).write_text(svg)
        print(folder / name)


if __name__ == "__main__":
    main()
