"""Predictions as other groups' uncertainty methods for LoRA write them: those that can be read, and why others are not.

*Laplace-LoRA* (github.com/adamxyang/laplace-lora, arXiv:2308.13111; a copy is in SRI-CSL/BayesAdapt): `run_gpt.py`
writes `step_S/eval_res.json` and `run_gpt_laplace.py` `step_S/eval_res_la_*.json`, an object a line: `index`, `true`
(the right choice), `pred`, `conf`, and under `logits` and `probs` alike the same K numbers. In the first file both are
logits, in the second both are probabilities: the mean over samples, so that no disagreement is left in it. A file is of
one seed.

*BayesAdapt* (github.com/SRI-CSL/BayesAdapt, `bayesadapt/trainers/trainer.py`): `results/id/test_logits_seedS.pt`, or
`results/ood/SET/...`, where torch pickled a dict: question id -> [sample, choice]; without labels. `metrics.json`
beside it holds metrics alone.

*bayesian-peft* (github.com/Wang-ML-Lab/bayesian-peft: BLoB, arXiv:2406.11675; TFB, arXiv:2412.05723): an evaluation
writes metrics alone (`log.txt`, wandb). Only `run/vis_eval.py` keeps logits: `all_dic-MODEL-SET.pkl`, a pickled dict
with `logits_samples` [question, sample, choice], `logits_mode` [question, choice] and `labels` [question].

A pickle is a program, which is never run here; such a file is refused with what makes an npz of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ripieno.errors import UserError
from ripieno.userfiles import short

TORCH = (".pt", ".pth")
PICKLES = (*TORCH, ".pkl", ".pickle")
METRICS = ("ACC", "ECE", "NLL", "test_acc", "test_ece", "test_nll")
LAPLACE_LORA = ("index", "true", "logits", "probs")

Row = dict[str, Any]


def conversion(path: Path) -> str:
    """Return how a pickle becomes an npz file that can be read, in the form in which its project writes it."""
    source, target = str(path), str(path.with_suffix(".npz"))
    if path.suffix in TORCH:
        recipe = (
            f"import numpy, torch; d = torch.load({source!r}, weights_only=True); numpy.savez({target!r}, "
            "ids=[*map(str, d)], logits=torch.stack([*d.values()]).float().numpy(), targets=T)"
        )
        form = (
            "for BayesAdapt's dict of question id -> [sample, choice]; it holds no labels: T is each question's right "
            "choice, from 0, in the order of `d`"
        )
    else:
        recipe = (
            f"import numpy, pathlib, pickle; d = pickle.loads(pathlib.Path({source!r}).read_bytes()); "
            f"numpy.savez({target!r}, logits=d['logits_samples'], targets=d['labels'])"
        )
        form = "for bayesian-peft's dict with logits_samples [question, sample, choice] and labels [question]"
    return (
        f"{path}: a pickle, which could run any program and is never read; if you trust it, save its arrays as npz: "
        f"`{recipe}` ({form}), and read that with --axes nmk"
    )


def metrics_in(value: Any) -> list[str]:
    """Return the names of metrics in what BayesAdapt writes to metrics.json (an object a seed), [] in anything else."""
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    return [name for name in METRICS if any(name in row for row in rows)]


def is_laplace_lora(row: Row) -> bool:
    """Return whether a line is one of Laplace-LoRA's."""
    return set(LAPLACE_LORA) <= row.keys()


def from_laplace_lora(path: Path, rows: Sequence[tuple[int, Row]], slack: float) -> list[tuple[int, Row]]:
    """Return Laplace-LoRA's lines as lines of our own form, of one member.

    Where `probs` are a distribution in every line they are taken as such, and where they are in none, `logits` are.

    Args:
        path: the file, for messages.
        rows: its lines, each with its number.
        slack: how far from 1 probabilities may sum.

    Raises:
        UserError: a line has another form, or some lines hold probabilities and others do not.
    """
    for number, row in rows:
        where = f"{path}, line {number}"
        for key in LAPLACE_LORA:
            if key not in row:
                raise UserError(f"{where}: has no `{key}`, as line {rows[0][0]} has; take the line out, or mend it")
        for key in ("index", "true"):
            if type(row[key]) is not int:
                raise UserError(f"{where}: `{key}` must be a whole number, not {short(json.dumps(row[key]))}")
        for key in ("logits", "probs"):
            if not isinstance(row[key], list):
                found = short(json.dumps(row[key]))
                raise UserError(f"{where}: `{key}` must be a list of a number a choice, not {found}")
    normalised = [_is_distribution(row["probs"], slack) for _, row in rows]
    if not all(normalised) and any(normalised):
        number, _ = rows[normalised.index(not normalised[0])]
        sums, unlike = ("do not sum", "do") if normalised[0] else ("sum", "do not")
        raise UserError(
            f"{path}, line {number}: `probs` {sums} to 1 as probabilities, but those of line {rows[0][0]} {unlike}; "
            "keep files of logits and files of probabilities apart"
        )
    kind = "probs" if normalised[0] else "logits"
    return [(number, {"id": row["index"], "target": row["true"], kind: [row[kind]]}) for number, row in rows]


def _is_distribution(values: Sequence[Any], slack: float) -> bool:
    numbers = [value for value in values if type(value) in (int, float) and 0 <= value <= 1 + slack]
    return len(numbers) == len(values) and abs(sum(numbers) - 1) < slack
