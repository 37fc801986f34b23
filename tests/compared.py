"""Made-up comparisons: rows of answers in a folder, as `ripieno compare` leaves them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ripieno.comparison import Index, MethodRow, predictions_file
from ripieno.features import Features
from ripieno.features import to_parquet as to_parquet_features
from ripieno.parquet import to_parquet
from ripieno.predictions import Predictions

TEST, OUTSIDE, CALIBRATION = "home/test", "away/test", "home/train"
MEMBERS = 4  # of an ensemble
LAPLACE: dict[str, Any] = {"answers": MEMBERS, "method": "laplace"}
# How a row answers: `signal` makes it right, `scale` too sure, `noise` wrong in its own way each time.
DRAWN = {"signal": 1.0, "scale": 1.0, "noise": 0.7}

Drawn = tuple[MethodRow, dict[str, float]]


def row(name: str, **given: Any) -> Drawn:
    """Return a row, and how it answers."""
    drawn = {key: given.pop(key, default) for key, default in DRAWN.items()}
    slug = "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
    costs = {"training_tokens": 1000, "evaluation_tokens": 500, "stored_bytes": 64}
    fields = {"name": name, "slug": slug, "method": name, "answers": 1, "chosen": ("epoch 2",), **costs, **given}
    return MethodRow(**fields), drawn


def answers(name: str, r: MethodRow, drawn: dict[str, float], replicate: int, n: int, choices: int) -> Predictions:
    """Return what a row answers: its members share the question, and each adds what it makes of it alone."""
    asked = np.random.default_rng(zlib.crc32(name.encode()))
    targets = asked.integers(choices, size=n)
    evidence = asked.normal(size=(n, choices))
    evidence[np.arange(n), targets] += drawn["signal"]
    own = np.random.default_rng([zlib.crc32(name.encode()), replicate])
    noise = drawn["noise"] * own.normal(size=(r.answers, n, choices))
    logits = drawn["scale"] * (evidence * max(drawn["signal"], 0.5) + noise)
    dataset, split = name.rsplit("/", 1)
    return Predictions(
        log_probs=logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)),
        mask=np.ones((n, choices), dtype=bool),
        question_ids=tuple(f"{name} {i}" for i in range(n)),
        targets=targets,
        members=tuple(range(r.answers)),
        dataset=dataset,
        split=split,
        method=r.method,
        epoch=1,
        replicate=replicate,
    )


def features(path: Path, name: str, n: int, shift: float) -> Features:
    """Write what a base makes of the prompts of a set, as `ripieno compare` leaves it, and return it."""
    drawn = np.random.default_rng(zlib.crc32(name.encode()))
    dataset, split = name.rsplit("/", 1)
    made = Features(
        dataset,
        split,
        tuple(f"{name} {i}" for i in range(n)),
        drawn.integers(20, 30, size=n) + round(3 * shift),
        drawn.normal(loc=3.0 - shift, size=n),
        drawn.normal(loc=shift, size=(n, 4)).astype(np.float32),
    )
    file = path / "features" / dataset / f"{split}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(to_parquet_features(made))
    return made


def folder(
    path: Path,
    rows: Sequence[Drawn],
    *,
    replicates: int = 5,
    n: int = 120,
    choices: tuple[int, int] = (4, 4),
    test: tuple[str, ...] = (TEST,),
    calibration: tuple[str, ...] = (CALIBRATION,),
    **more: Any,
) -> Path:
    """Write a folder of rows, with `choices` in domain and out of domain."""
    for r, drawn in rows:
        for name in (*test, OUTSIDE, *calibration) if r.refused is None else ():
            K = choices[name == OUTSIDE]
            of = {**drawn, "signal": 0.3 * drawn["signal"]} if name == OUTSIDE else drawn
            file = predictions_file(path, r.slug, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(to_parquet(*(answers(name, r, of, replicate, n, K) for replicate in range(replicates))))
    index = Index(
        replicates=replicates,
        members=MEMBERS,
        reference=rows[0][0].name,
        calibration=calibration,
        test=test,
        out_of_domain=(OUTSIDE,),
        rows=tuple(r for r, _ in rows),
        **more,
    )
    path.mkdir(parents=True, exist_ok=True)
    (path / "rows.json").write_text(index.to_json())
    return path
