"""A run's members as folders to hand on: PEFT adapters with model cards, and their mean as one adapter."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ripieno.config import Compute, Config
from ripieno.data.kept import questions_of
from ripieno.data.splits import DatasetName
from ripieno.ensemble import assemble, load_base
from ripieno.errors import EnvironmentFault, UserError
from ripieno.escaping import markdown_text
from ripieno.measures.accuracy import correct, nll
from ripieno.measures.bootstrap import paired_interval
from ripieno.measures.table import Analysis, Row
from ripieno.predictions import concatenate
from ripieno.progress import Progress
from ripieno.report.run import read_analysis
from ripieno.runs import METHOD, RunFolder, members_at

SHOWN = ("accuracy", "nll", "ece")  # on a card
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Lost:
    """How far a mean member that was cut to a rank is from the exact one.

    Args:
        error: ||mean - cut||_F / ||mean||_F over all layers' updates.
        quality: on the test questions; None where none of them has an answer.
    """

    error: float
    quality: Quality | None


@dataclass(frozen=True)
class Quality:
    """A cut mean member on the test questions, beside the exact one.

    Args:
        questions: those with an answer.
        nll, accuracy: of the cut one.
        more_nll, low, high: its NLL (nats) less the exact one's, with the paired 95% interval over questions.
        more_accuracy: its accuracy less the exact one's.
    """

    questions: int
    nll: float
    accuracy: float
    more_nll: float
    low: float
    high: float
    more_accuracy: float


@dataclass(frozen=True)
class Exported:
    """Folders that were written.

    Args:
        members: a folder a member.
        mean: the mean member's folder.
        lost: what the mean lost when it was cut to a rank; None where it was not.
    """

    members: tuple[Path, ...]
    mean: Path
    lost: Lost | None


def export(
    run: RunFolder,
    output: Path,
    rank: int | None = None,
    *,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the members of a run's last epoch and their mean, each a PEFT folder with a model card.

    The mean member's update is the mean of the members': scale / M * sum_m B_m A_m, which is one adapter of rank M r
    with the A's on top of each other and the B's, over M, side by side. It is exact as an update, but it is not the
    ensemble: a network of the mean weights does not give the mean of the members' probabilities, and shows no
    disagreement.

    Args:
        run: a trained run.
        output: a new or empty folder.
        rank: cut the mean to this rank, by the singular values of each layer's update: the closest there is
            (Eckart and Young 1936). Both means are then asked the test questions.
        data_dir: a folder with originally released data files.
        progress: advanced by two a test question, of a mean that is cut.

    Raises:
        UserError: the folder holds something, no member is left, or the rank is none.
        EnvironmentFault: an adapter is missing or damaged, or the folder cannot be written.
    """
    config = run.config()
    epochs = members_at(run, config.training.epochs)
    if rank is not None and not 1 <= rank <= len(epochs) * config.adapter.rank:
        raise UserError(f"--rank {rank}: the mean member has rank {len(epochs) * config.adapter.rank} at most")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output}: is there already; choose a new folder")
    peft = json.loads(run.adapter_files(*next(iter(epochs.items())))[0].read_bytes())
    tensors = [safetensors.torch.load_file(run.adapter_files(m, at)[1]) for m, at in epochs.items()]
    analysis = read_analysis(run) if run.whole(run.report / "metrics.json") else None
    made: dict[str, tuple[Mapping[str, Any], Tensors, str]] = {}
    for (member, at), weights in zip(epochs.items(), tensors, strict=True):
        card = _card(run, config, f"member {member}, epoch {at}", _rows(analysis, config, member), peft)
        made[f"member-{member:03d}"] = (peft, weights, card)
    mean, lost = mean_member(tensors, config.adapter.scale), None
    if rank is not None:
        exact, (mean, error) = mean, cut(mean, rank)
        lost = Lost(error, _quality(run, config, exact, mean, data_dir, progress))
    about = f"the mean of {len(epochs)} members' updates" + ("" if rank is None else f", cut to rank {rank}")
    [width] = {weight.shape[0] for name, weight in mean.items() if name.endswith("lora_A.weight")}
    # The scale is in the weights: alpha / r is 1.
    plain = peft | {"r": width, "lora_alpha": width, "use_rslora": False, "lora_dropout": 0.0}
    made["mean"] = (plain, mean, _card(run, config, about, [], plain, lost))
    _write(output, made)
    return Exported(tuple(output / name for name in made if name != "mean"), output / "mean", lost)


def said(made: Exported) -> Iterator[str]:
    """Yield what was written as lines of text."""
    lost = made.lost
    yield f"{len(made.members)} members: {made.mean.parent}/member-*"
    off = "exact" if lost is None else f"off by {lost.error:.1%} of the updates' norm"
    yield f"Their mean, as one adapter ({off}): {made.mean}"
    if lost is None:
        return
    if (q := lost.quality) is None:
        yield "What that loses was not measured: no test question has an answer."
        return
    yield (
        f"On {q.questions:,} test questions the cut one has accuracy {q.accuracy:.3f} ({q.more_accuracy:+.3f} against "
        f"the exact mean) and NLL {q.nll:.3f} ({q.more_nll:+.4f} [{q.low:+.4f}, {q.high:+.4f}])."
    )


def mean_member(tensors: Sequence[Tensors], scale: float) -> Tensors:
    """Return the mean of M adapters' updates as one adapter of rank M r and scale 1: [A_1; ...], scale/M [B_1 ...]."""
    return {
        name: torch.cat([member[name] for member in tensors])
        if name.endswith("lora_A.weight")
        else torch.cat([member[name] for member in tensors], dim=1) * (scale / len(tensors))
        for name in tensors[0]
    }


def cut(tensors: Tensors, rank: int) -> tuple[Tensors, float]:
    """Return the closest adapter of a rank (scale 1 in both), and the relative Frobenius error of all updates."""
    found: Tensors = {}
    lost = whole = 0.0
    for layer in sorted(name.removesuffix("lora_A.weight") for name in tensors if name.endswith("lora_A.weight")):
        A, B = (tensors[f"{layer}lora_{side}.weight"].double() for side in "AB")
        # B A = Q_b (R_b R_a^T) Q_a^T: the singular values are those of a matrix of the rank, never out x in.
        (Q_b, R_b), (Q_a, R_a) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
        U, S, Vh = torch.linalg.svd(R_b @ R_a.mT, full_matrices=False)
        root = S[:rank].sqrt()
        width = len(root)
        A_cut, B_cut = torch.zeros(rank, A.shape[1]), torch.zeros(B.shape[0], rank)
        A_cut[:width] = (root[:, None] * (Vh[:rank] @ Q_a.mT)).float()
        B_cut[:, :width] = (Q_b @ U[:, :rank] * root).float()
        found |= {f"{layer}lora_A.weight": A_cut, f"{layer}lora_B.weight": B_cut}
        lost += float((S[rank:] ** 2).sum())
        whole += float((S**2).sum())
    return found, (lost / whole) ** 0.5 if whole else 0.0


def _quality(
    run: RunFolder,
    config: Config,
    exact: Tensors,
    mean: Tensors,
    data_dir: Path | None,
    progress: Progress | None,
) -> Quality | None:
    """Ask the exact mean and the cut one the test questions; None where no answer is known."""
    names = map(DatasetName.parse, dict.fromkeys(config.data.test))
    sets = [[q for q in questions_of(run, config, name, data_dir) if q.answer is not None] for name in names]
    if not any(sets):
        return None
    [width] = {weight.shape[0] for name, weight in exact.items() if name.endswith("lora_A.weight")}
    # Two members of one stack: the cut one's missing ranks are zero. The scale is in the weights.
    adapter = config.adapter.model_copy(update={"rank": width, "alpha": float(width), "rslora": False, "dropout": 0.0})
    # Where it was trained says nothing of where it is exported.
    config = config.model_copy(update={"adapter": adapter, "compute": Compute()})
    both = assemble(config, load_base(run, config.base, config.compute), (0, 1), data_dir)
    for position, weights in enumerate((exact, mean)):
        both.stack.load(position, {name: _padded(name, weight, width) for name, weight in weights.items()}, "the mean")
    p = concatenate([both.predict(questions, progress) for questions in sets if questions])
    losses, right = nll(p.log_probs, p.targets), correct(p.log_probs, p.targets).mean(axis=1)
    low, high = paired_interval(losses[1], losses[0])
    return Quality(
        questions=len(p.targets),
        nll=float(losses[1].mean()),
        accuracy=float(right[1]),
        more_nll=float((losses[1] - losses[0]).mean()),
        low=low,
        high=high,
        more_accuracy=float(right[1] - right[0]),
    )


def _padded(name: str, weight: Tensor, rank: int) -> Tensor:
    """Return an adapter's factor with zeros up to a rank."""
    if name.endswith("lora_A.weight"):
        return torch.cat([weight, weight.new_zeros(rank - weight.shape[0], weight.shape[1])])
    return torch.cat([weight, weight.new_zeros(weight.shape[0], rank - weight.shape[1])], dim=1)


def _write(output: Path, made: Mapping[str, tuple[Mapping[str, Any], Tensors, str]]) -> None:
    """Write the folders: all of them, or none."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
            temporary = Path(name) / output.name
            for folder, (peft, tensors, card) in made.items():
                (temporary / folder).mkdir(parents=True)
                weights = {name: weight.contiguous() for name, weight in tensors.items()}
                (temporary / folder / "adapter_config.json").write_text(
                    json.dumps(peft, indent=2, sort_keys=True) + "\n"
                )
                safetensors.torch.save_file(weights, temporary / folder / "adapter_model.safetensors", {"format": "pt"})
                (temporary / folder / "README.md").write_text(card, encoding="utf-8")
            temporary.replace(output)  # an empty folder may be there
    except OSError as error:
        raise EnvironmentFault(
            f"{output}: cannot be written ({error.strerror or error}); choose another with --output"
        ) from error


def _rows(analysis: Analysis | None, config: Config, who: int) -> list[Row]:
    """Return a member's measures at the last epoch."""
    if analysis is None:
        return []
    key = (METHOD, config.training.epochs, who, "prob", None, None)
    return [
        row
        for row in analysis.rows
        if (row.method, row.epoch, row.who, row.pooling, row.variant, row.against) == key and row.measure in SHOWN
    ]


def _card(
    run: RunFolder,
    config: Config,
    about: str,
    rows: Sequence[Row],
    peft: Mapping[str, Any],
    lost: Lost | None = None,
) -> str:
    data, prompt, base = config.data, config.prompt, markdown_text(config.base.model)
    scoring = f"template `{prompt.template}`, scores normalised by `{prompt.normalisation}`"
    lines = [
        "---",
        f"base_model: {json.dumps(config.base.model)}",
        "library_name: peft",
        "tags: [lora, uncertainty, multiple-choice, ripieno]",
        "---",
        "",
        f"# {config.name}: {about}",
        "",
        f"LoRA adapter (rank {peft['r']}) of `{base}` from the run `{markdown_text(run.path.name)}` "
        f"(config {config.hash()}), made by ripieno.",
        "",
        "## Data",
        "",
        f"Trained on {', '.join(f'`{markdown_text(name)}`' for name in data.train)}, with seed {config.training.seed}. "
        f"Questions are put by {scoring}; asked otherwise, nothing below holds.",
        "",
        "## Measured",
        "",
    ]
    if lost is not None:
        lines.append(f"Its updates differ from the exact mean's by {lost.error:.1%} (relative Frobenius norm).")
        if (q := lost.quality) is not None:
            lines.append(
                f"On the {q.questions:,} test questions: accuracy {q.accuracy:.3f}, NLL {q.nll:.3f} nats a question. "
                f"Against the exact mean that is {q.more_accuracy:+.3f} in accuracy and {q.more_nll:+.4f} "
                f"[{q.low:+.4f}, {q.high:+.4f}] in NLL (95% interval)."
            )
    elif rows:
        lines += ["| questions | measure | value | 95% interval | n |", "|---|---|---:|---|---:|"]
        for row in rows:
            name = f"{row.dataset}/{row.split}" if row.split else row.dataset
            value = "-" if row.value is None else f"{row.value:.3f}"
            ends = "-" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
            lines.append(f"| {markdown_text(name)} | {markdown_text(row.measure)} | {value} | {ends} | {row.n} |")
    else:
        lines.append("Nothing: these very weights were not evaluated. `ripieno evaluate` and `report` measure members.")
    lines += [
        "",
        "## Use and limits",
        "",
        "- For multiple-choice questions like those it was trained on. On others its confidence was not checked, but "
        "where they stand in the table.",
        "- One member's confidence is no measure of whether it is right. The ensemble's uncertainty needs all members; "
        "the mean of their weights is one network, and shows no disagreement.",
        "- What the base learned before, and its licence, stay with the base.",
        "",
    ]
    return "\n".join(lines)
