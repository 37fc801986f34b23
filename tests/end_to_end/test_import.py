"""Adapters of any origin become a run, and answer as they did before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ripieno, rows, works, write_config, write_rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ripieno import Ensemble
from ripieno.config import Prompt
from ripieno.data.question import read_questions
from ripieno.parquet import read_parquet

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own


def adapter(base: Path, folder: Path, seed: int) -> Path:
    """Save an adapter that PEFT made; its B is not zero."""
    torch.manual_seed(seed)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return folder


def test_adapters_of_peft_become_a_run(base: Path, tmp_path: Path) -> None:
    folders = [adapter(base, tmp_path / f"peft-{seed}", seed) for seed in range(2)]
    data = {role: [write_rows(tmp_path / f"{role}.jsonl", rows(8, n))] for n, role in enumerate(("train", "test"))}
    config, run = write_config(tmp_path, base, data, training={"members": 9}), tmp_path / "run"
    said = works("import", config, *folders, "--run", run)
    assert said == f"2 members: {run}. Next: ripieno evaluate {run}\n"
    works("evaluate", run)
    works("report", run)
    assert works("status", run).startswith("member 0: epoch 1 of 1\nmember 1: epoch 1 of 1\n")
    [file] = (run / "predictions").rglob("ensemble-epoch-001.parquet")
    [kept] = read_parquet(file)
    direct = Ensemble.load(folders, prompt=Prompt()).predict(read_questions(Path(data["test"][0])))
    # Both are the same passes; what the file holds is rounded to float32.
    np.testing.assert_allclose(kept.log_probs[:, kept.mask], direct.log_probs[:, direct.mask], rtol=2e-6, atol=2e-6)
    assert np.abs(kept.probs[0] - kept.probs[1]).max() > 1e-3
    # A prior around where training started has no place here; one of a given precision needs none.
    done = ripieno("evaluate", run, "--method", "laplace")
    assert (done.code, "it is not known where their training started" in done.err) == (2, True)
    works("evaluate", run, "--method", "laplace", "--setting", "prior_precision=10")


def test_no_role_asks_what_the_adapters_were_trained_on(base: Path, tmp_path: Path) -> None:
    """Of a released set too, where a run that trains its own members would leave such questions out."""
    config = write_config(tmp_path, base, {"train": ["arc:easy/validation"], "test": ["arc:easy/validation[0%:10%]"]})
    done = ripieno("import", config, adapter(base, tmp_path / "one", 0), "--run", tmp_path / "run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "questions that the adapters were trained on are in data.test too" in done.err
    assert not (tmp_path / "run" / "config.yaml").exists()
