"""Several answers of one member: the draws are what they claim to be, and the analysis takes them as any method's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import files_of, ripieno, rows, works, write_config, write_rows
from sampled import saved, stored, trained

from ripieno import Ensemble, measures, methods
from ripieno.data.question import read_questions
from ripieno.methods.laplace import TAUS, Kronecker, Laplace
from ripieno.runs import RunFolder
from ripieno.training.loop import member_seed

EPOCHS, DRAWS = 3, 3
SAMPLED = [name for name in methods.names() if not methods.named(name).of_members]


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout and a distribution of A, asked as an ensemble after every epoch and by every method."""
    folder = tmp_path_factory.mktemp("methods")
    data = {
        role: [write_rows(folder / f"{role}.jsonl", rows(count, seed))]
        for seed, (role, count) in enumerate({"train": 16, "calibration": 12, "test": 12, "validation": 8}.items())
    }
    training = {"epochs": EPOCHS, "variational": {"initial_std": 0.1, "divergence_rate": 0.001}}
    config = write_config(folder, base, data, adapter={"dropout": 0.3}, training=training)
    works("train", config, "--run", folder / "run")
    works("evaluate", folder / "run")
    for method in SAMPLED:
        works("evaluate", folder / "run", "--method", method, "--draws", str(DRAWS), "--member", "1")
    return folder / "run"


def test_methods_are_found_by_their_files() -> None:
    assert {"checkpoints", "dropout", "laplace", "single", "tfb", "variational"} <= set(methods.names())
    for name in methods.names():
        assert type(methods.named(name)).__module__ == f"ripieno.methods.{name}"


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
    # The same draws again: in another order, alone, and several of one member in a pass.
    ensemble = Ensemble.load(run)
    seeds = list(methods.named("dropout").draws(trained(run, ensemble, 1, EPOCHS), {}, DRAWS))
    assert all(seed is not None for seed in seeds)
    for question in reversed(read_questions(run.parent / "test.jsonl")):
        n, K = p.question_ids.index(question.id), len(question.choices)
        asked = ensemble.encode([question])
        for per_pass in (1, 2, 3):
            together = replace(ensemble, members_per_pass=per_pass)
            alone = together.answer(asked, [0] * DRAWS, dropout_seeds=seeds)  # type: ignore[arg-type]
            # float32 sums of some 100 terms in another order, log-probabilities of a few nats.
            np.testing.assert_allclose(alone.log_probs[:, 0, :K], p.log_probs[:, n, :K], atol=2**-16)


def test_without_masks_the_draws_are_the_member(run: Path) -> None:
    ensemble = Ensemble.load(run)
    list(methods.named("dropout").draws(trained(run, ensemble, 1, EPOCHS), {}, 1))
    p = ensemble.answer(ensemble.encode(read_questions(run.parent / "test.jsonl")), [0, 0])
    own = stored(run, f"ensemble-epoch-{EPOCHS:03d}")
    np.testing.assert_allclose(p.log_probs[0], own.log_probs[own.members.index(1)], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(p.log_probs[0], p.log_probs[1])


@pytest.mark.parametrize("name", [name for name in SAMPLED if name not in ("checkpoints", "dropout")])
def test_samples_differ_repeat_and_are_adapters_that_peft_reads(name: str, run: Path, tmp_path: Path) -> None:
    p = stored(run, f"{name}-epoch-{EPOCHS:03d}")
    assert p.members == (1,) * DRAWS
    assert min(np.abs(p.probs[a] - p.probs[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-5
    sampled = {"predictive": "sampled"} if name == "laplace" else {}
    method, ensemble = methods.named(name, sampled), Ensemble.load(run)
    of_run = trained(run, ensemble, 1, EPOCHS)
    fitted = method.fit(of_run)
    asked = ensemble.encode(read_questions(run.parent / "test.jsonl"))
    answers = method.answer(of_run, fitted, asked, DRAWS)
    if not sampled:
        # The same draws, in a stack of another size; float32 sums in another order.
        np.testing.assert_allclose(answers.log_probs, p.log_probs, atol=2**-16)
    for draw, _ in enumerate(method.draws(of_run, fitted, DRAWS)):
        again = saved(run, ensemble, tmp_path / str(draw)).answer(asked, [0])
        np.testing.assert_allclose(again.log_probs[0], answers.log_probs[draw], atol=2**-16)


def test_a_setting_has_a_file_of_its_own_and_what_was_fitted_is_kept(run: Path) -> None:
    works("evaluate", run, "--method", "laplace", "--setting", "factors=diagonal")
    name = "laplace-factors=diagonal"
    p = stored(run, f"{name}-epoch-{EPOCHS:03d}")
    assert (p.method, len(p.members)) == (name, 100)
    fitted = RunFolder(run).fitted(name, 0, EPOCHS)
    before = fitted.stat().st_mtime_ns
    for file in (run / "predictions").rglob(f"{name}-*"):
        file.unlink()
    works("evaluate", run, "--method", "laplace", "--setting", "factors=diagonal")
    assert fitted.stat().st_mtime_ns == before


def test_the_prior_stands_where_training_started(run: Path) -> None:
    """The precision of the highest evidence is the root of sum lambda / (lambda + tau) = tau |W - W_0|^2."""
    ensemble = Ensemble.load(run)
    of_run = trained(run, ensemble, 1, EPOCHS)
    fitted = Laplace().fit(of_run)
    tau, eigenvalues = float(fitted["tau"]), Kronecker.of(fitted).eigenvalues()
    weights = of_run.weights()
    ensemble.stack.initialise(0, member_seed(of_run.config.training.seed, 1), of_run.config.training.init_scale)
    start = of_run.weights()
    moved = {
        name: sum(float(((W - W_0).double() ** 2).sum()) for W, W_0 in zip(weights[name], start[name], strict=True))
        for name in weights
    }
    assert min(moved.values()) > 0.0
    assert float((eigenvalues / (eigenvalues + tau)).sum()) == pytest.approx(tau * sum(moved.values()), rel=1e-6)


def test_draws_that_cost_nothing_are_many(run: Path) -> None:
    assert [Laplace().count(M) for M in (1, 3, 5)] == [100, 102, 100]
    assert Laplace(predictive="sampled").count(3) == methods.named("tfb").count(3) == 3


def test_the_priors_precision_is_the_one_of_the_lowest_nll_on_validation(run: Path) -> None:
    ensemble = Ensemble.load(run)
    of_run, losses = trained(run, ensemble, 1, EPOCHS), {}
    for tau in TAUS:
        method = Laplace(prior_precision=tau)
        p = method.answer(of_run, method.fit(of_run), of_run.validation, 400)
        losses[tau] = float(measures.nll(measures.pool_log(p.log_probs), p.targets).mean())
    chosen = float(Laplace(prior_precision="validation").fit(of_run)["tau"])
    # Of 100 draws there and 400 here: the means of 8 questions' pooled NLL differ by hundredths of nats.
    assert losses[chosen] < min(losses.values()) + 0.05
    assert max(losses.values()) > min(losses.values()) + 0.1


def test_the_analysis_sets_methods_side_by_side(run: Path) -> None:
    found = json.loads(works("analyze", run, "--json"))
    measured = {
        row["method"]: row["value"]
        for row in found["rows"]
        if (row["measure"], row["who"], row["variant"], row["pooling"]) == ("nll", "ensemble", "temperature", "prob")
        and row["epoch"] in (0, EPOCHS)
    }
    assert {"ensemble", *SAMPLED} <= set(measured)  # each with a temperature of its own
    # A row's keys name one number: draws of one member have no rows of their own.
    values = ("value", "low", "high", "n", "reason")
    keys = [tuple(cell for key, cell in row.items() if key not in values) for row in found["rows"]]
    assert len(set(keys)) == len(keys)


def test_the_report_is_of_the_ensemble_alone(run: Path, tmp_path: Path) -> None:
    sampled, plain = tmp_path / "sampled", tmp_path / "plain"
    for copy in (sampled, plain):
        shutil.copytree(run, copy)
    for name in SAMPLED:
        for file in (plain / "predictions").rglob(f"{name}-*.parquet"):
            file.unlink()
    lines = (line for line in (plain / "checksums.jsonl").read_text().splitlines(keepends=True))
    kept = [line for line in lines if not any(f"/{name}-" in line for name in SAMPLED)]
    (plain / "checksums.jsonl").write_text("".join(kept))
    of_plain, said = works("report", plain), works("report", sampled, "--compare", plain)
    assert said.replace("sampled", "plain").startswith(of_plain)
    pairs = [line for line in said.splitlines() if " less " not in line and "nll: " in line]
    assert len(pairs) == 1  # one set, one comparison: of ensembles
    assert "nll: +0.000" in pairs[0]


def test_damage_names_the_command_that_mends_it(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    [file] = (copy / "predictions").glob(f"test-*/*/dropout-epoch-{EPOCHS:03d}.parquet")
    file.write_bytes(b"")
    done = ripieno("report", copy)
    assert (done.code, f"`ripieno evaluate {copy} --method dropout` makes it again" in done.err) == (1, True)


def test_a_run_that_was_only_sampled_has_no_report(base: Path, tmp_path: Path) -> None:
    data = {role: [write_rows(tmp_path / f"{role}.jsonl", rows(4, n))] for n, role in enumerate(("train", "test"))}
    config = write_config(tmp_path, base, data, training={"epochs": 2})
    works("train", config, "--run", tmp_path / "run")
    works("evaluate", tmp_path / "run", "--method", "checkpoints", "--draws", "2")
    done = ripieno("report", tmp_path / "run")
    assert (done.code, "nothing was evaluated yet" in done.err) == (2, True)


def test_what_is_there_is_not_computed_again(run: Path) -> None:
    before = files_of(run / "predictions")
    works("evaluate", run, "--method", "dropout", "--draws", str(DRAWS), "--member", "1")
    assert files_of(run / "predictions") == before
    # Other draws would not go with those of the other sets.
    done = ripieno("evaluate", run, "--method", "dropout", "--draws", "2", "--member", "1")
    assert (done.code, f"holds {DRAWS} draws of member 1, and all sets must have the same" in done.err) == (2, True)
    works("evaluate", run, "--method", "checkpoints", "--draws", "1", "--epoch", "1")
    assert stored(run, "checkpoints-epoch-001").members == (0,)


def test_what_cannot_be_drawn_is_refused(run: Path, base: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    data = {role: [write_rows(tmp_path / f"{role}.jsonl", rows(4, n))] for n, role in enumerate(("train", "test"))}
    works("train", write_config(tmp_path, base, data), "--run", plain)
    refused = {
        ("evaluate", plain, "--method", "checkpoints"): "2 draws take as many epochs, and there are 1; ask fewer draws",
        ("evaluate", run, "--method", "checkpoints", "--setting", "all_members=true"): "asks several members",
        ("evaluate", run, "--method", "ensemble"): "its answers are among the members' own; leave --method out",
        ("evaluate", plain, "--method", "tfb"): "it has no data.validation to search by",
        ("evaluate", plain, "--method", "variational"): "set training.variational",
        ("evaluate", run, "--method", "map"): "leave --method out",
        ("evaluate", run, "--draws", "3"): "--draws, --member and --setting: say of which --method",
        ("evaluate", run, "--method", "dropout", "--unconditional"): "--unconditional: is not offered with --method",
    }
    for command, why in refused.items():
        done = ripieno(*command)
        assert (done.code, why in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not list((plain / "predictions").rglob("*.parquet"))
