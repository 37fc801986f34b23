"""Several answers of one member: the draws are what they claim to be, and the analysis takes them as any method's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import files_of, ripieno, rows, works, write_config, write_rows

from ripieno import Ensemble, methods
from ripieno.data.question import read_questions
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.runs import RunFolder

EPOCHS, DRAWS = 3, 3


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout, asked as an ensemble after every epoch and by both methods."""
    folder = tmp_path_factory.mktemp("methods")
    data = {
        role: [write_rows(folder / f"{role}.jsonl", rows(count, seed))]
        for seed, (role, count) in enumerate({"train": 16, "calibration": 12, "test": 12}.items())
    }
    config = write_config(folder, base, data, adapter={"dropout": 0.3}, training={"epochs": EPOCHS})
    works("train", config, "--run", folder / "run")
    works("evaluate", folder / "run")
    for method in methods.names():
        works("evaluate", folder / "run", "--method", method, "--draws", str(DRAWS), "--member", "1")
    return folder / "run"


def stored(run: Path, name: str, kind: str = "test") -> Predictions:
    [file] = (run / "predictions").glob(f"{kind}-*/*/{name}.parquet")
    [p] = read_parquet(file)
    return p


def test_methods_are_found_by_their_files() -> None:
    assert methods.names() == ["checkpoints", "dropout"]


def test_checkpoints_are_the_members_own_answers_epoch_by_epoch(run: Path) -> None:
    p = stored(run, f"checkpoints-epoch-{EPOCHS:03d}")
    assert (p.method, p.epoch, p.members) == ("checkpoints", EPOCHS, (1,) * DRAWS)
    for draw in range(DRAWS):
        of_epoch = stored(run, f"ensemble-epoch-{EPOCHS - draw:03d}")
        # The same passes, rounded to float32 in the file.
        np.testing.assert_array_equal(p.log_probs[draw], of_epoch.log_probs[of_epoch.members.index(1)])
    assert np.abs(p.probs[0] - p.probs[1]).max() > 1e-3


def test_dropout_draws_differ_and_each_is_one_function(run: Path) -> None:
    p = stored(run, f"dropout-epoch-{EPOCHS:03d}")
    assert p.members == (1,) * DRAWS
    assert min(np.abs(p.probs[a] - p.probs[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3
    # The same draws again in other batches, alone, in another order, through the member's own ensemble.
    ensemble = Ensemble.load(run)
    questions = read_questions(run.parent / "test.jsonl")
    seeds = methods.named("dropout").sample(RunFolder(run), ensemble.stack, 1, EPOCHS)
    assert seeds is not None
    ensemble = replace(ensemble, dropout_seeds=seeds, members_per_pass=1)
    for question in reversed(questions):
        [n] = [n for n, name in enumerate(p.question_ids) if name == question.id]
        alone = ensemble.predict([question])
        K = len(question.choices)
        # Draws follow from their number: an ensemble of two members holds the first two.
        bound = 2**-20  # float32 sums of some 100 terms in another order, log-probabilities of a few nats
        np.testing.assert_allclose(alone.log_probs[:, 0, :K], p.log_probs[:2, n, :K], atol=bound * 16)


def test_without_masks_the_draws_are_the_member(run: Path) -> None:
    ensemble = Ensemble.load(run)
    questions = read_questions(run.parent / "test.jsonl")
    methods.named("dropout").sample(RunFolder(run), ensemble.stack, 1, EPOCHS)
    p, own = ensemble.predict(questions), stored(run, f"ensemble-epoch-{EPOCHS:03d}")
    np.testing.assert_allclose(p.log_probs[0], own.log_probs[own.members.index(1)], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(p.log_probs[0], p.log_probs[1])


def test_the_analysis_sets_methods_side_by_side(run: Path) -> None:
    found = json.loads(works("analyze", run, "--json"))
    measured = {
        row["method"]: row["value"]
        for row in found["rows"]
        if (row["measure"], row["who"], row["variant"], row["pooling"]) == ("nll", "ensemble", "temperature", "prob")
        and row["epoch"] in (0, EPOCHS)
    }
    assert {"ensemble", "checkpoints", "dropout"} <= set(measured)  # each with a temperature of its own
    works("report", run)


def test_what_is_there_is_not_computed_again(run: Path) -> None:
    before = files_of(run / "predictions")
    works("evaluate", run, "--method", "dropout", "--draws", str(DRAWS), "--member", "1")
    assert files_of(run / "predictions") == before
    works("evaluate", run, "--method", "dropout", "--draws", "2", "--member", "1")
    assert len(stored(run, f"dropout-epoch-{EPOCHS:03d}").members) == 2


def test_what_cannot_be_drawn_is_refused(run: Path, base: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    data = {role: [write_rows(tmp_path / f"{role}.jsonl", rows(4, n))] for n, role in enumerate(("train", "test"))}
    works("train", write_config(tmp_path, base, data), "--run", plain)
    refused = {
        ("evaluate", plain, "--method", "dropout"): "was trained with adapter.dropout 0, so there are no masks to draw",
        ("evaluate", plain, "--method", "checkpoints"): "2 draws take as many epochs, and member 0 has 1",
        ("evaluate", run, "--method", "laplce"): "--method laplce: there are checkpoints, dropout",
        ("evaluate", run, "--method", "dropout", "--member", "2"): "has members 0 to 1",
        ("evaluate", run, "--method", "dropout", "--draws", "0"): "--draws 0: give 1 at least",
        ("evaluate", run, "--method", "dropout", "--epoch", "0"): "--epoch 0: is the base, which was not trained",
        ("evaluate", run, "--draws", "3"): "--draws and --member: say of which --method",
    }
    for command, why in refused.items():
        done = ripieno(*command)
        assert (done.code, why in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not list((plain / "predictions").rglob("*.parquet"))
