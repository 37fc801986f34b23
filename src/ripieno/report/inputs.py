"""What `ripieno analyze` was given: runs, and files of predictions from any program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np

from ripieno.arrays import Axes, read_predictions
from ripieno.config import differences
from ripieno.errors import UserError
from ripieno.measures.evidence import Evidence
from ripieno.measures.rescoring import Normalisation, rescore
from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions
from ripieno.report.run import load
from ripieno.runs import RunFolder


def gather(
    sources: Sequence[Path],
    ood: Sequence[Path] = (),
    *,
    axes: str | None = None,
    normalisation: str | None = None,
    labels: str | None = None,
) -> Evidence:
    """Read everything, with what is known of a run's questions.

    Runs of one config on different training seeds are one experiment repeated: their intervals then speak of training
    again.

    Args:
        sources: run folders, whose configs say what is out of domain, and files, which are in domain.
        ood: files out of domain.
        axes: of npz arrays, "mnk" or "nmk".
        normalisation: score the choices of text templates anew.
        labels: separated by commas, where every question has these choices.

    Raises:
        UserError: a source cannot be read, or does not hold what was asked for.
    """
    if axes is not None and axes not in get_args(Axes):
        raise UserError(f"--axes {axes}: give {' or '.join(get_args(Axes))}: m members, n questions, k choices")
    [(often, count)] = Counter(path.resolve() for path in sources).most_common(1)
    if count > 1:
        raise UserError(f"{often}: is given twice; give it once")
    runs = _repeated([RunFolder(path) for path in sources if path.is_dir()])
    files = [p for path in sources if not path.is_dir() for p in _read(path, axes)]
    outside = [p for path in ood for p in _read(path, axes)]
    predictions = [*(p for run in runs for p in run.predictions), *(p for p in files if p.choices_kept is None)]
    known = {p.name for p in predictions}
    for p in outside:
        if p.name in known:
            raise UserError(
                f"--ood: {p.name} is also among the sets in domain; a set cannot be both (two files of one name: "
                "rename one, or give it a column `dataset`)"
            )
    _check_once([*predictions, *outside])
    names = [*(name for run in runs for name in run.out_of_domain), *(p.name for p in outside)]
    if not predictions:
        raise UserError(f"{sources[0]}: nothing was evaluated yet; `ripieno evaluate {sources[0]}` asks the members")
    evidence = Evidence(
        predictions=[*predictions, *(p for p in outside if p.choices_kept is None)],
        out_of_domain=tuple(dict.fromkeys(names)),
        in_domain=tuple(
            dict.fromkeys([*(name for run in runs for name in run.in_domain or ()), *(p.name for p in files)])
        ),
        calibration=[p for run in runs for p in run.calibration],
        matched=[
            *(p for run in runs for p in run.matched),
            *(p for p in (*files, *outside) if p.choices_kept is not None),
        ],
        about={name: about for run in runs for name, about in run.about.items()},
        familiar=_familiar(runs),
    )
    if labels is not None:
        evidence = replace(
            evidence, predictions=_labelled(evidence.predictions, [label.strip() for label in labels.split(",")])
        )
    return evidence if normalisation is None else _rescored(evidence, normalisation)


def _repeated(folders: Sequence[RunFolder]) -> list[Evidence]:
    """Load runs; where they differ in nothing but the training seed, number them as replicates of one experiment."""
    runs = [load(folder) for folder in folders]
    configs = [folder.config() for folder in folders]
    keys = {line.partition(":")[0] for config in configs[1:] for line in differences(configs[0], config)}
    if keys != {"training.seed"} or len({config.training.seed for config in configs}) < len(configs):
        return runs

    def numbered(predictions: Iterable[Predictions], n: int) -> list[Predictions]:
        return [replace(p, replicate=n) for p in predictions]

    return [
        replace(
            run,
            predictions=numbered(run.predictions, n),
            calibration=numbered(run.calibration, n),
            matched=numbered(run.matched, n),
        )
        for n, run in enumerate(runs)
    ]


def _familiar(runs: Sequence[Evidence]) -> Floats | None:
    """Return the training questions' hidden states; None where runs differ in them (two bases never compare)."""
    states = [run.familiar for run in runs]
    same = all(a is not None and b is not None and np.array_equal(a, b) for a, b in pairwise(states))
    return states[0] if states and same else None


def _read(path: Path, axes: str | None) -> list[Predictions]:
    if not path.exists():
        raise UserError(f"{path}: there is no such file or run folder; mend the path")
    if path.is_dir():
        raise UserError(f"{path}: a folder; --ood takes files of predictions, such as those in RUN/predictions")
    return read_predictions(path, "mnk" if axes == "mnk" else "nmk" if axes == "nmk" else None)


def _check_once(predictions: Sequence[Predictions]) -> None:
    """Refuse what would pass for a repeated experiment: the same answers twice, or those of two different runs."""
    met = set()
    for p in predictions:
        key = (p.name, p.method, p.epoch, p.replicate, p.choices_kept)
        if key in met:
            raise UserError(
                f"{p.name}: method {p.method}, epoch {p.epoch}, replicate {p.replicate} is given twice; give it once, "
                "or number repeated experiments by the column `replicate` (runs that differ in training.seed alone are "
                "numbered); `ripieno report RUN --compare RUN2` sets two others side by side"
            )
        met.add(key)


def _labelled(predictions: Sequence[Predictions], labels: Sequence[str]) -> list[Predictions]:
    if not all(labels) or len(set(labels)) < len(labels):
        raise UserError(f"--labels {','.join(labels)}: give each choice a label of its own, such as no,yes")
    for p in predictions:
        K = p.mask.shape[1]
        if len(labels) != K or not p.mask.all():
            raise UserError(
                f"--labels: {len(labels)} labels, but {p.name} has questions of other numbers of choices; "
                "give a label a choice, or leave --labels out"
            )
    return [replace(p, metadata={**p.metadata, "labels": list(labels)}) for p in predictions]


def _rescored(evidence: Evidence, normalisation: str) -> Evidence:
    """Score all choices by another rule, the calibration's and the reduced sets' too."""
    rules: dict[str, Normalisation] = {rule: rule for rule in get_args(Normalisation)}
    if normalisation not in rules:
        raise UserError(f"--normalisation {normalisation}: give one of {', '.join(rules)}")

    def anew(predictions: Iterable[Predictions]) -> list[Predictions]:
        return [rescore(p, rules[normalisation]) for p in predictions]

    try:
        return replace(
            evidence,
            predictions=anew(evidence.predictions),
            calibration=anew(evidence.calibration),
            matched=anew(evidence.matched),
        )
    except ValueError as error:
        raise UserError(f"--normalisation {normalisation}: {error}; leave it out") from None
