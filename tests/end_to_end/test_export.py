"""What is handed on: members and their mean as PEFT folders that load, with cards that say what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from commands import ripieno, rows, works, write_config, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ripieno import Ensemble
from ripieno.data.question import read_questions
from ripieno.exporting import cut, mean_member

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    data = {role: [write_rows(folder / f"{role}.jsonl", rows(8, n))] for n, role in enumerate(("train", "test"))}
    config = write_config(folder, base, data, training={"members": 3})
    works("train", config, "--run", folder / "run")
    works("evaluate", folder / "run")
    works("report", folder / "run")
    return folder / "run"


def updates(weights: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Return each layer's update, out x in."""
    layers = {name.removesuffix("lora_A.weight") for name in weights if name.endswith("lora_A.weight")}
    return {
        layer: scale * weights[f"{layer}lora_B.weight"].double() @ weights[f"{layer}lora_A.weight"].double()
        for layer in layers
    }


def test_the_mean_member_is_the_mean_of_the_updates(run: Path, base: Path, tmp_path: Path) -> None:
    said = works("export", run, "--output", tmp_path / "out")
    assert "Their mean, as one adapter (exact)" in said
    members = [
        safetensors.torch.load_file(tmp_path / f"out/member-{m:03d}/adapter_model.safetensors") for m in range(3)
    ]
    for m, weights in enumerate(members):
        kept = safetensors.torch.load_file(run / f"members/{m:03d}/epoch-001/adapter_model.safetensors")
        assert all(torch.equal(kept[name], weights[name]) for name in kept)
    scale = 4 / 2  # alpha and rank of the small experiment
    of_members = [updates(weights, scale) for weights in members]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out/mean")
    for layer, first in of_members[0].items():
        mean = (first + of_members[1][layer] + of_members[2][layer]) / 3
        in_peft = model.get_submodule(layer.removesuffix(".")).get_delta_weight("default").double()
        # A float32 product of 6 terms; the factors were rounded once more when B was scaled.
        bound = 16 * 2**-24 * sum(u[layer].abs() for u in of_members).max()
        assert (in_peft - mean).abs().max() <= bound
        assert mean.abs().max() > 100 * bound
    # What it computes is the base's output plus that update's.
    config = json.loads((tmp_path / "out/mean/adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (6, 6, 0.0)


def test_a_cut_is_the_closest_of_its_rank(run: Path, tmp_path: Path) -> None:
    said = works("export", run, "--output", tmp_path / "out", "--rank", "2")
    weights = safetensors.torch.load_file(tmp_path / "out/mean/adapter_model.safetensors")
    files = [run / f"members/{m:03d}/epoch-001/adapter_model.safetensors" for m in range(3)]
    mean = mean_member([safetensors.torch.load_file(file) for file in files], 2.0)
    exact, found = updates(mean, 1.0), updates(weights, 1.0)
    lost = whole = 0.0
    for layer, update in exact.items():
        singular = torch.linalg.svdvals(update)  # the dense way, out x in
        assert torch.linalg.matrix_rank(found[layer], rtol=1e-5) <= 2
        difference = torch.linalg.norm(update - found[layer])
        assert difference == pytest.approx(float((singular[2:] ** 2).sum() ** 0.5), rel=1e-4)
        lost, whole = lost + float((singular[2:] ** 2).sum()), whole + float((singular**2).sum())
    error = (lost / whole) ** 0.5
    assert f"(off by {error:.1%} of the updates' norm)" in said
    assert f"differ from the exact mean's by {error:.1%}" in (tmp_path / "out/mean/README.md").read_text()
    # What it says of both means is what they answer as adapters of their own.
    works("export", run, "--output", tmp_path / "exact")
    both = [Ensemble.load([tmp_path / name / "mean"]) for name in ("exact", "out")]
    questions = read_questions(run.parent / "test.jsonl")
    answers = [ensemble.predict(questions) for ensemble in both]
    nll = [-np.take_along_axis(p.log_probs[0], p.targets[:, None], axis=1).mean() for p in answers]
    accuracy = [(p.log_probs[0].argmax(axis=1) == p.targets).mean() for p in answers]
    assert nll[1] != pytest.approx(nll[0], abs=1e-3)
    assert (
        f"On 8 test questions the cut one has accuracy {accuracy[1]:.3f} ({accuracy[1] - accuracy[0]:+.3f} against the "
        f"exact mean) and NLL {nll[1]:.3f} ({nll[1] - nll[0]:+.4f} [" in said
    )
    assert f"accuracy {accuracy[1]:.3f}, NLL {nll[1]:.3f}" in (tmp_path / "out/mean/README.md").read_text()
    again, none = cut(mean, 6)  # its whole rank: nothing is lost
    assert none < 1e-7
    assert updates(again, 1.0).keys() == exact.keys()


def test_cards_say_what_was_measured(run: Path, tmp_path: Path) -> None:
    works("export", run, "--output", tmp_path / "out")
    card = (tmp_path / "out/member-001/README.md").read_text()
    metrics = json.loads((run / "report/metrics.json").read_bytes())["rows"]
    [accuracy] = [
        row
        for row in metrics
        if (row["who"], row["measure"], row["method"], row["variant"], row["against"])
        == (1, "accuracy", "ensemble", None, None)
    ]
    assert f"| accuracy | {accuracy['value']:.3f} | {accuracy['low']:.3f} to {accuracy['high']:.3f} | 8 |" in card
    assert card.startswith("---\nbase_model: ")
    assert "shows no disagreement" in card
    assert "Nothing: these very weights were not evaluated" in (tmp_path / "out/mean/README.md").read_text()


def test_a_rank_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    done = ripieno("export", run, "--output", tmp_path / "new", "--rank", "7")
    assert (done.code, "rank 6 at most" in done.err) == (2, True)
    assert not (tmp_path / "new").exists()
