"""Made-up runs: a base, members around it, right as often and as sure as asked for."""

from __future__ import annotations

import numpy as np

from ripieno.predictions import Predictions
from ripieno.report.build import Summary


def answers(
    name: str,
    *,
    seed: int,
    n: int = 250,
    sizes: tuple[int, ...] = (5,),
    members: int = 3,
    epoch: int = 2,
    signal: float = 1.0,
    scale: float = 1.0,
    spread: float = 0.4,
    labelled: bool = True,
    method: str = "ensemble",
) -> Predictions:
    """Return predictions: `signal` makes them right, `scale` above 1 too sure, `spread` makes members disagree."""
    rng = np.random.default_rng(seed)
    size = rng.choice(sizes, n)
    K = max(sizes)
    mask = np.arange(K) < size[:, None]
    targets = (rng.random(n) * size).astype(np.int64)
    evidence = rng.normal(size=(n, K))
    evidence[np.arange(n), targets] += signal
    # With normal evidence of unit noise, softmax(signal * evidence) is the true posterior: scale 1 is calibrated.
    logits = scale * signal * evidence + spread * np.random.default_rng(seed + epoch + 1).normal(size=(members, n, K))
    logits = np.where(mask, logits, -np.inf)
    log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
    dataset, split = name.rsplit("/", 1)
    return Predictions(
        log_probs=log_probs,
        mask=mask,
        question_ids=tuple(f"q{i}" for i in range(n)),
        targets=targets if labelled else np.full(n, -1),
        members=tuple(range(members)),
        dataset=dataset,
        split=split,
        method=method,
        epoch=epoch,
    )


def run(
    sets: dict[str, dict],
    *,
    members: int = 3,
    epochs: int = 2,
    n: int = 250,  # type: ignore[type-arg]
) -> list[Predictions]:
    """Return epochs 0 (the base, untrained and too sure) to `epochs` of each set."""
    found = []
    for i, (name, options) in enumerate(sets.items()):
        own = {"n": n, "seed": 1000 * i, **options}
        base = {**own, "signal": 0.4 * own.get("signal", 1.0), "scale": 5.0}
        found.append(answers(name, **base, epoch=0, members=1, method="base"))
        for epoch in range(1, epochs + 1):
            grown = {**own, "signal": own.get("signal", 1.0) * (1 - 0.3 / epoch), "members": members}
            found.append(answers(name, **grown, epoch=epoch))
    return found


REALISTIC: dict[str, dict] = {  # type: ignore[type-arg]
    "commonsense_qa/validation": {"sizes": (5,), "signal": 1.1, "scale": 1.3, "spread": 0.5},
    "openbookqa/test": {"sizes": (4,), "signal": 0.7, "scale": 1.8, "spread": 0.5},
    "mmlu:professional_law/test": {"sizes": (4,), "signal": 0.15, "scale": 4.0, "spread": 0.3},
}


def summary(in_domain: tuple[str, ...], out_of_domain: tuple[str, ...] = (), **changes: object) -> Summary:
    """Return what such a run would say of itself."""
    values: dict[str, object] = {
        "name": "demo",
        "base": "SmolLM2-135M-Instruct",
        "base_sha256": "2e8040ceae8c3d4e2f6b0e3f1d7c9a5b4f60718293a4b5c6d7e8f90123456789",
        "method": "ensemble",
        "members": 3,
        "epochs": 2,
        "rank": 8,
        "alpha": 16.0,
        "targets": ("q_proj", "v_proj"),
        "loss": "choices",
        "template": "text-listed, version 1",
        "scoring_rule": "text, mean over tokens, newline as the terminator",
        "training": (("commonsense_qa/train[0%:80%]", 400),),
        "in_domain": in_domain,
        "out_of_domain": out_of_domain,
        "dropped": ("2 questions that also occur in the test role were dropped from training.",),
        "versions": {"ripieno": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "training_seconds": 312.0,
        "evaluation_seconds": 95.0,
        "notes": ("The demo did not show that the order of two close models is the same for other seeds.",),
        "config_yaml": "name: demo\ntraining:\n  members: 3\n  epochs: 2\n",
    }
    return Summary(**{**values, **changes})  # type: ignore[arg-type]
