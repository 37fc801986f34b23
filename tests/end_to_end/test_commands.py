"""The whole command line on a tiny model: what a run leaves, what it never does twice, and how it fails."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from commands import Done, Experiment, files_of, one_line, ripieno, rows, works, write_config, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import byte_level_tokenizer, save_tiny
from ripieno import Ensemble, measures
from ripieno.config import FewShot, Prompt
from ripieno.config import load as load_config
from ripieno.data.kept import kept_questions
from ripieno.data.question import read_questions
from ripieno.data.splits import DatasetName
from ripieno.errors import EnvironmentFault, UserError
from ripieno.model.packed import PackedEngine
from ripieno.model.padded import PaddedEngine
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder, TokenTree
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.report.run import load as load_evidence
from ripieno.runs import RunFolder
from ripieno.training.loop import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own


# ---- what a run leaves ------------------------------------------------------------------------------------------


def test_the_run_folder_is_laid_out_as_the_contract_says(experiment: Experiment) -> None:
    questions = {role: experiment.folder(role) for role in experiment.files}
    expected = {".locks/.mutex", "checksums.jsonl", "config.yaml", "manifest.json", "metrics.jsonl", "timing.jsonl"}
    for member in range(3):
        expected |= {f"resume/{member:03d}-step-0000006.safetensors"}
        for epoch in (1, 2):
            folder = f"members/{member:03d}/epoch-{epoch:03d}"
            expected |= {f"{folder}/adapter_config.json", f"{folder}/adapter_model.safetensors"}
    expected |= {f"questions/{folder}/all.parquet" for folder in questions.values()}
    expected |= {f"features/{questions[role]}/all.parquet" for role in ("train", "test", "foreign")}
    for role, epochs in {"test": (1, 2), "foreign": (1, 2), "calibration": (2,)}.items():
        folder = f"predictions/{questions[role]}/all"
        expected |= {f"{folder}/base-epoch-000.parquet", *(f"{folder}/ensemble-epoch-{e:03d}.parquet" for e in epochs)}
        if role != "calibration":  # of 2 to 6 choices listed in the prompt, so asked again with 2
            expected |= {f"{folder}/base-epoch-000.k2.parquet", f"{folder}/ensemble-epoch-002.k2.parquet"}
    found = {name for name in files_of(experiment.path) if not name.startswith("report/")}
    assert found == expected
    report = {name for name in files_of(experiment.path) if name.startswith("report/")}
    assert {"report/index.html", "report/metrics.json"} < report
    assert all(re.fullmatch(r"report/(index\.html|metrics\.json|tables/\w+\.csv)", name) for name in report)
    run = RunFolder(experiment.path)
    kept = [name for name in found | report if not name.startswith(".") and not name.endswith(".jsonl")]
    assert run.whole(*(experiment.path / name for name in kept))


def test_what_is_saved_is_what_ran(experiment: Experiment) -> None:
    config = RunFolder(experiment.path).config()
    assert "auto" not in json.dumps(config.model_dump(mode="json", exclude={"launch"}))  # how many workers: each start
    assert config.adapter.targets == ("q_proj", "v_proj")
    manifest = json.loads((experiment.path / "manifest.json").read_bytes())
    assert manifest["config_hash"] == config.hash()
    assert {s["name"] for s in manifest["sources"]} == set(experiment.files.values())
    assert manifest["counts"]["train"] == {experiment.files["train"]: 12}
    assert manifest["dropped"] == {"overlap": [], "too_long": {"train": [], "validation": []}}
    assert re.fullmatch("[0-9a-f]{64}", manifest["base_sha256"])
    peft = json.loads((experiment.path / "members/000/epoch-001/adapter_config.json").read_bytes())
    assert peft["target_modules"] == ["q_proj", "v_proj"]


def test_metrics_hold_each_step_and_epoch_and_no_clock(experiment: Experiment) -> None:
    lines = [json.loads(line) for line in (experiment.path / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["member"], line["epoch"], line["step"]) for line in lines if line["kind"] == "step"]
    assert sorted(steps) == [(m, e, s) for m in range(3) for e in (1, 2) for s in range(3 * e - 2, 3 * e + 1)]
    epochs = [(line["member"], line["epoch"]) for line in lines if line["kind"] == "epoch"]
    assert sorted(epochs) == [(m, e) for m in range(3) for e in (1, 2)]
    known = {"kind", "epoch", "step", "member", "loss", "gradient_norm", "learning_rate"}
    assert {key for line in lines for key in line} == known | {"validation_nll", "validation_accuracy"}


def test_commands_print_what_comes_next(experiment: Experiment) -> None:
    assert experiment.said["train"] == f"Trained: {experiment.path}. Next: ripieno evaluate {experiment.path}\n"
    assert experiment.said["evaluate"].startswith("12 files of predictions")
    temperatures = re.findall(r"^(\w+): T = (\d+\.\d{3})$", experiment.said["calibrate"], re.MULTILINE)
    assert [method for method, _ in temperatures] == ["base", "ensemble"]
    assert experiment.said["report"].endswith(f"Report: {experiment.path / 'report' / 'index.html'}\n")
    status = experiment.said["status"].splitlines()
    assert status[:3] == [f"member {m}: epoch 2 of 2" for m in range(3)]
    kept = [file for what in ("predictions", "features") for file in (experiment.path / what).rglob("*.parquet")]
    assert sorted(status[3:]) == sorted(file.relative_to(experiment.path).as_posix() for file in kept)
    assert "damaged" not in experiment.said["status"]


# ---- the numbers ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def plain_probabilities(model: torch.nn.Module, trees: list[TokenTree]) -> list[np.ndarray]:
    """Return each question's p(choice) by the plain rule: summed log-likelihoods, one sequence at a time."""
    found = []
    for tree in trees:
        scores = []
        for branch in tree.branches:
            logits = model(input_ids=torch.tensor([tree.question + branch])).logits[0]
            log_probs = logits.double().log_softmax(-1)[len(tree.question) - 1 : -1]
            scores.append(log_probs[range(len(branch)), branch].sum())
        found.append(torch.stack(scores).softmax(-1).numpy())
    return found


def test_members_load_in_peft_and_give_the_tables_probabilities(experiment: Experiment, base: Path) -> None:
    questions = read_questions(Path(experiment.files["foreign"]))
    trees, _ = Encoder(byte_level_tokenizer(), Prompt()).trees(questions, None, "error")
    p = experiment.predictions("foreign", 2)
    assert p.question_ids == tuple(question.id for question in questions)
    assert p.members == (0, 1, 2)
    zero = experiment.predictions("foreign", 0)
    assert (zero.members, zero.method, zero.epoch) == ((0,), "base", 0)
    tables = [(zero, 0, None), *((p, m, experiment.path / f"members/{m:03d}/epoch-002") for m in range(3))]
    for table, row, folder in tables:
        model = AutoModelForCausalLM.from_pretrained(base)
        if folder:
            model = PeftModel.from_pretrained(model, folder)
        for n, truth in enumerate(plain_probabilities(model.eval(), trees)):
            # The issue's bound; float32 of ten tokens' log-likelihoods (1e-5 each, DESIGN.md) stays within it.
            np.testing.assert_allclose(table.probs[row, n, : len(truth)], truth, atol=1e-4)
            assert not table.probs[row, n, len(truth) :].any()
    # Members have moved away from the base and from each other by far more than that.
    assert np.abs(p.probs - zero.probs).max() > 0.05
    assert np.abs(p.probs[0] - p.probs[1]).max() > 0.05


def test_predictions_say_how_they_were_made(experiment: Experiment) -> None:
    config = RunFolder(experiment.path).config()
    for role, epoch in (("test", 0), ("test", 2), ("calibration", 2)):
        p = experiment.predictions(role, epoch)
        assert p.metadata["config_hash"] == config.hash()
        assert p.metadata["template"] == {"name": "text-listed", "version": 1}
        assert p.metadata["scoring"] == {"rule": "text", "normalisation": "sum", "terminator": "newline"}
        assert p.metadata["base"]["model"] == config.base.model
        assert (p.epoch, p.split, p.dataset) == (epoch, "all", experiment.folder(role))
        assert p.outside_mass is None
        assert p.tokens is not None


ROW = {
    "dataset", "split", "method", "epoch", "who", "pooling", "variant", "against", "measure", "value", "low", "high",
    "scope", "n", "reason",
}  # fmt: skip


def no_constant(name: str) -> Any:
    raise AssertionError(f"{name} in JSON")


def table(text: str) -> list[dict[str, Any]]:
    content = json.loads(text, parse_constant=no_constant)
    assert content["schema"] == 1
    assert content["rows"]
    for row in content["rows"]:
        assert set(row) >= ROW
        assert row["value"] is not None or row["reason"]
        assert row["who"] in ("ensemble", "members_mean", 0, 1, 2)
    found: list[dict[str, Any]] = content["rows"]
    return found


def test_the_tables_rows_are_the_contracts(experiment: Experiment) -> None:
    found = table((experiment.path / "report" / "metrics.json").read_text())
    names = {(row["dataset"], row["epoch"]) for row in found}
    assert names >= {(experiment.folder(role), epoch) for role in ("test", "foreign") for epoch in (0, 1, 2)}
    assert {row["measure"] for row in found} >= {"accuracy", "nll", "brier", "ece", "mutual_information"}
    assert "temperature" in {row["variant"] for row in found}


@pytest.mark.parametrize("role", ["test", "foreign"])
def test_the_tables_numbers_are_those_of_the_predictions(experiment: Experiment, role: str) -> None:
    found = table((experiment.path / "report" / "metrics.json").read_text())
    p = experiment.predictions(role, 2)
    right = p.probs[:, np.arange(len(p.targets)), p.targets]
    pooled = right.mean(axis=0)
    expected = {
        "ensemble": -np.log(pooled).mean(),
        "members_mean": -np.log(right).mean(),
        **{m: -np.log(right[m]).mean() for m in range(3)},
    }
    for who, value in expected.items():
        [row] = [
            row for row in found
            if (row["dataset"], row["epoch"], row["who"], row["measure"], row["variant"], row["pooling"])
            == (p.dataset, 2, who, "nll", None, "prob")
        ]  # fmt: skip
        assert row["value"] == pytest.approx(value, rel=1e-6)  # the parquet's float32
        assert row["n"] == len(p.targets)
        assert row["low"] < row["value"] < row["high"]


def test_analyze_reads_a_run_a_file_and_another_programs_file(experiment: Experiment, tmp_path: Path) -> None:
    of_run = table(works("analyze", experiment.path, "--json"))
    file = experiment.path / "predictions" / experiment.folder("test") / "all" / "ensemble-epoch-002.parquet"
    of_file = table(works("analyze", file, "--json"))
    assert {row["dataset"] for row in of_file} == {experiment.folder("test")}
    assert len(of_run) > len(of_file)
    least = pq.read_table(file).select(["question_id", "member", "choice_log_probs", "target"])
    pq.write_table(least.replace_schema_metadata(None), tmp_path / "theirs.parquet")
    of_theirs = table(works("analyze", tmp_path / "theirs.parquet", "--json"))

    def values(found: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
        return {(row["who"], row["measure"], row["pooling"]): row["value"] for row in found if row["measure"] == "nll"}

    # Without the scores that explain it, what float32 left of a sum of 1 is normalised away.
    assert values(of_theirs) == pytest.approx(values(of_file), rel=1e-6)
    assert values(of_file)
    said = works("analyze", file)
    assert f"{experiment.folder('test')}/all · ensemble epoch 2 · ensemble\n" in said
    of_ensemble = values(of_file)["ensemble", "nll", "prob"]
    assert f"  nll {of_ensemble:>38.4f}       8  [" in said


def test_the_report_is_one_file_that_names_its_sets(experiment: Experiment) -> None:
    page = (experiment.path / "report" / "index.html").read_text(encoding="utf-8")
    for role in ("test", "foreign"):
        assert experiment.folder(role) in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*["']""", page)
    assert "nan" not in re.findall(r">\s*(nan|None|inf)\s*<", page)


def test_two_runs_are_set_side_by_side(experiment: Experiment, tmp_path: Path) -> None:
    """A run against its own copy: nothing differs, and nothing may be said to."""
    run, other = tmp_path / "one", tmp_path / "two"
    for copy in (run, other):
        shutil.copytree(experiment.path, copy)
    said = works("report", run, "--compare", other)
    page = (run / "report" / "compare-two.html").read_text(encoding="utf-8")
    assert "not told apart" in said
    assert "is better" not in said
    assert f"{run} less {other}" in said
    for role in ("test", "foreign"):
        assert experiment.folder(role) in page


def test_what_is_missing_or_damaged_is_named_before_anything_is_said(experiment: Experiment, tmp_path: Path) -> None:
    """An older epoch must not stand in for a damaged one; a set whose folder was removed is taken out on purpose."""
    run = tmp_path / "run"
    shutil.copytree(experiment.path, run)
    name = f"predictions/{experiment.folder('foreign')}/all/ensemble-epoch-002.parquet"
    before = (run / "report" / "index.html").read_bytes()
    for damage in (b"PAR1", None):
        (run / name).write_bytes(damage) if damage else (run / name).unlink()
        for command in ("report", "analyze"):
            done = ripieno(command, run)
            assert done.code == 1
            assert f"{name}: missing or damaged; `ripieno evaluate" in done.err
            assert done.out == ""
    assert (run / "report" / "index.html").read_bytes() == before
    shutil.rmtree(run / "predictions" / experiment.folder("foreign"))
    works("report", run)
    measured = {row["dataset"] for row in table((run / "report" / "metrics.json").read_text())}
    assert measured == {experiment.folder("test")}


@pytest.mark.parametrize("changed", [False, True], ids=["gone", "changed"])
def test_a_run_knows_its_questions_without_the_files_they_came_from(experiment: Experiment, changed: bool) -> None:
    run = RunFolder(experiment.path)
    names = [DatasetName.parse(text) for text in (*run.config().data.train, *run.config().data.test)]
    there, kept = load_evidence(run), [kept_questions(run, name) for name in names]
    files = [Path(source["name"]) for source in run.manifest()["sources"]]
    for file in files:
        file.rename(f"{file}.gone")
        if changed:
            write_rows(file, rows(3, 77, (2,)))
    try:
        alone = load_evidence(run)
        names = [DatasetName.parse(name.written) for name in names]
        assert [kept_questions(run, name) for name in names] == kept
    finally:
        for file in files:
            Path(f"{file}.gone").rename(file)
    assert all(kept)
    assert (alone.in_domain, alone.out_of_domain) == (there.in_domain, there.out_of_domain)
    assert alone.about.keys() == there.about.keys()
    assert len(alone.predictions) == len(there.predictions) > 0


def test_a_run_that_is_not_there_is_named_before_a_report_is_written(experiment: Experiment, tmp_path: Path) -> None:
    before = files_of(experiment.path)
    for other, said in ((tmp_path / "nowhere", "not a run folder"), (experiment.path, "is the run itself")):
        done = ripieno("report", experiment.path, "--compare", other)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
    assert files_of(experiment.path) == before


def test_runs_on_other_training_seeds_are_one_experiment_repeated(experiment: Experiment, tmp_path: Path) -> None:
    runs = [experiment.path, tmp_path / "seed-1", tmp_path / "seed-2"]
    for seed in (1, 2):
        shutil.copytree(experiment.path, runs[seed])
        file, records = runs[seed] / "config.yaml", runs[seed] / "checksums.jsonl"
        config, before = yaml.safe_load(file.read_text()), load_config(file).hash()
        config["training"]["seed"] = seed
        file.write_text(yaml.safe_dump(config))
        records.write_text(records.read_text().replace(before, load_config(file).hash()))
    found = table(works("analyze", *runs, "--json"))
    # The base is not trained: it is the same in each, and so are the trivial baselines.
    assert {row["scope"] for row in found if row["method"] == "ensemble" and not row["against"]} == {"training"}
    assert {row["scope"] for row in found if row["method"] == "base"} == {"questions"}
    # These copies hold the same predictions, so training again would change nothing.
    nll = [row for row in found if (row["measure"], row["who"], row["method"]) == ("nll", "ensemble", "ensemble")]
    assert nll
    for row in nll:  # the mean of three equal numbers is one of them up to rounding
        assert (row["low"], row["high"]) == pytest.approx((row["value"], row["value"]), rel=1e-14)
    done = ripieno("analyze", runs[1], runs[1])
    assert done.code == 2
    assert "is given twice" in done.err


def test_the_report_says_what_costs_make_of_it(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(experiment.path, run)
    works("report", run, "--cost-error", "3", "--cost-handover", "1")
    measured = {row["measure"] for row in table((run / "report" / "metrics.json").read_text())}
    assert {"decision_threshold_confidence", "decision_saving_confidence"} <= measured


def test_foreign_sets_are_told_apart_with_every_baseline(experiment: Experiment) -> None:
    """The features of the base are there after `evaluate`, so no baseline is null."""
    found = table((experiment.path / "report" / "metrics.json").read_text())
    rows_ = [row for row in found if row["against"] and row["variant"] is None and row["epoch"] == 2]
    values = {row["measure"]: row["value"] for row in rows_ if row["measure"].startswith("ood_auroc")}
    scores = ("entropy", "mi", "confidence", "choices", "prompt_length", "perplexity", "mahalanobis")
    assert set(values) == {f"ood_auroc_{score}" for score in scores}
    assert all(value is not None for value in values.values()), values
    matched = [row for row in found if row["variant"] == "k_matched" and row["measure"] == "ood_auroc_choices"]
    # The template lists the choices, so the last epoch was asked again with two of them, and earlier ones were not.
    assert {(row["epoch"], row["value"]) for row in matched if row["method"] == "ensemble"} == {(1, None), (2, 0.5)}
    assert {row["reason"] for row in matched if row["epoch"] == 1} == {
        "the choices stand in the prompt; `ripieno evaluate RUN --choices 2 --epoch 1` asks again with fewer"
    }


def test_calibrate_shows_the_measures_before_and_after(experiment: Experiment) -> None:
    said = experiment.said["calibrate"]
    assert "ensemble: T = " in said
    assert f"{experiment.folder('test')}/all: nll " in said
    assert " -> " in said


def test_a_run_answers_from_python_as_its_table_and_as_its_adapters(experiment: Experiment) -> None:
    questions = read_questions(Path(experiment.files["test"]))
    truth = experiment.predictions("test", 2)
    ensemble = Ensemble.load(experiment.path)
    p = ensemble.predict(questions)
    # Other groupings of the same sums, float32: far below the table's own bound.
    np.testing.assert_allclose(p.probs, truth.probs, atol=1e-5)
    folders = [experiment.path / f"members/{m:03d}/epoch-002" for m in range(3)]
    prompt = RunFolder(experiment.path).config().prompt
    np.testing.assert_array_equal(Ensemble.load(folders, prompt=prompt).predict(questions).probs, p.probs)
    swapped = Ensemble.load(folders[::-1], prompt=prompt).predict(questions)
    np.testing.assert_allclose(swapped.probs[::-1], p.probs, atol=1e-5)
    u = measures.decompose(p.probs)
    np.testing.assert_allclose(u.aleatoric + u.epistemic, u.total, atol=1e-12)
    assert u.total.shape == (8,)
    first = Ensemble.load(experiment.path, epoch=1).predict(questions)
    np.testing.assert_allclose(first.probs, experiment.predictions("test", 1).probs, atol=1e-5)
    zero = Ensemble.load(experiment.path, epoch=0).predict(questions)
    np.testing.assert_allclose(zero.probs, experiment.predictions("test", 0).probs, atol=1e-5)


# ---- nothing twice ----------------------------------------------------------------------------------------------


def test_a_second_time_computes_nothing_and_writes_nothing(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(experiment.path)
    monkeypatch.setattr(Engine, "scan", lambda *_: pytest.fail("a question was asked again"))
    monkeypatch.setattr(PaddedEngine, "text_likelihoods", lambda *_: pytest.fail("a prompt was read again"))
    monkeypatch.setattr(Trainer, "_gradients", lambda *_: pytest.fail("a step was taken again"))
    assert works("train", experiment.config, "--run", experiment.path) == experiment.said["train"]
    assert works("train", experiment.config, "--run", experiment.path, "--set", "compute.batch_tokens=99")
    assert works("evaluate", experiment.path) == experiment.said["evaluate"]
    assert works("calibrate", experiment.path) == experiment.said["calibrate"]
    assert files_of(experiment.path) == before


@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "missing"])
@pytest.mark.fault("a file damaged, any of a finished run")
def test_a_damaged_file_of_predictions_is_made_again_and_no_other(experiment: Experiment, damage: str) -> None:
    before = files_of(experiment.path)
    name = f"predictions/{experiment.folder('foreign')}/all/ensemble-epoch-001.parquet"
    file, content = experiment.path / name, before[name][1]
    damaged = {
        "cut": content[:-1], "emptied": b"", "flipped": content[:200] + bytes([content[200] ^ 1]) + content[201:],
    }  # fmt: skip
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(damaged[damage])
        assert f"{name}  (damaged" in works("status", experiment.path)
    works("evaluate", experiment.path)
    after = files_of(experiment.path)
    assert after[name][1] == content
    changed = {other for other in before if after[other] != before[other]}
    assert changed == {name, "checksums.jsonl", "timing.jsonl"}
    assert set(after) == set(before)


# ---- other ways to put a question -------------------------------------------------------------------------------


def small_run(folder: Path, base: Path, data: dict[str, Any], **sections: Any) -> Path:
    config = write_config(folder, base, data, **sections)
    run = folder / "run"
    works("train", config, "--run", run)
    works("evaluate", run)
    works("report", run)
    return run


def tables_of(run: Path, epoch: int) -> list[Predictions]:
    files = sorted((run / "predictions").rglob(f"*-epoch-{epoch:03d}.parquet"))
    return [p for file in files for p in read_parquet(file)]


def test_letters_store_what_was_asked_for(base: Path, tmp_path: Path) -> None:
    """K of 2 to 5 in one file; the likeliest tokens, the mass outside the letters and the fixed five letters agree."""
    data = {
        "train": [write_rows(tmp_path / "a.jsonl", rows(6, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", rows(5, 2))],
    }
    run = small_run(
        tmp_path, base, data, prompt={"template": "letters"}, training={"loss": "answer_token"},
        evaluation={"fixed_letters": True, "store_top": "all"},
    )  # fmt: skip
    for epoch in (0, 1):
        [p] = tables_of(run, epoch)
        M, N = p.probs.shape[:2]
        assert p.probs.shape[:2] == ((2, 5) if epoch else (1, 5))
        assert p.metadata["scoring"] == {"rule": "letters"}
        assert p.letter_log_probs is not None
        assert p.letter_log_probs.shape == (M, N, 5)
        assert p.top_log_probs is not None
        assert p.top_tokens is not None
        assert p.scores is not None
        assert p.outside_mass is not None
        assert p.top_tokens.shape == (M, N, 400)
        assert (np.sort(p.top_tokens, axis=-1) == np.arange(400)).all()
        # 400 float32 log-probabilities of about 6 each: 6 * 2^-24 relative, stored as float32 once more.
        np.testing.assert_allclose(np.exp(p.top_log_probs).sum(-1), 1, atol=2e-6)
        letters = [byte_level_tokenizer().convert_tokens_to_ids(f"Ġ{letter}") for letter in "ABCDE"]
        place = np.argsort(p.top_tokens, axis=-1)[:, :, letters]
        np.testing.assert_array_equal(np.take_along_axis(p.top_log_probs, place, -1), p.letter_log_probs)
        for n in range(N):
            K = p.mask[n].sum()
            np.testing.assert_array_equal(p.scores[:, n, :K], p.letter_log_probs[:, n, :K])
            inside = np.exp(p.letter_log_probs[:, n, :K]).sum(-1)
            np.testing.assert_allclose(p.outside_mass[:, n], 1 - inside, atol=1e-6)
            np.testing.assert_allclose(p.probs[:, n, :K], np.exp(p.scores[:, n, :K]) / inside[:, None], atol=1e-6)


def test_store_top_keeps_the_likeliest_tokens(base: Path, tmp_path: Path) -> None:
    data = {
        "train": [write_rows(tmp_path / "a.jsonl", rows(4, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", rows(3, 2))],
    }
    run = small_run(tmp_path, base, data, prompt={"template": "paper"}, evaluation={"store_top": 3})
    [p] = tables_of(run, 1)
    assert p.top_log_probs is not None
    assert p.top_log_probs.shape == (2, 3, 3)
    assert (np.diff(p.top_log_probs, axis=-1) <= 0).all()
    assert p.letter_log_probs is None
    # What is asked for later is stored beside what was stored before, and less of the same takes nothing away.
    works("evaluate", run, "--fixed-letters")
    works("evaluate", run, "--store-top", "2")
    [again] = tables_of(run, 1)
    assert again.letter_log_probs is not None
    assert np.array_equal(again.top_tokens, p.top_tokens)


def test_fixed_labels_are_the_choices_of_every_text(base: Path, tmp_path: Path) -> None:
    labels = ["good", "bad", "neither, nor"]
    for name, count in (("train", 6), ("test", 5)):
        lines = [f'"{name} {n}, and a ""cat""",{["good", "bad", ""][n % 3]}' for n in range(count)]
        lines = [line if n % 3 < 2 else f'"{name} {n}","neither, nor"' for n, line in enumerate(lines)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    data = {"train": [str(tmp_path / "train.csv")], "test": [str(tmp_path / "test.csv")], "labels": labels}
    run = small_run(tmp_path, base, data, prompt={"template": "text"})
    [p] = tables_of(run, 1)
    assert p.targets.tolist() == [0, 1, 2, 0, 1]
    assert p.mask.all()
    assert p.probs.shape == (2, 5, 3)
    [asked] = {tuple(q.choices) for file in (run / "questions").rglob("*.parquet") for q in read_questions(file)}
    assert asked == tuple(labels)
    works("report", run)
    measured = {row["measure"] for row in table((run / "report" / "metrics.json").read_text())}
    assert {"macro_f1", "recall_good", "recall_neither, nor"} <= measured


def test_running_text_trains_under_next_token(base: Path, tmp_path: Path) -> None:
    texts = [{"text": f"{n} a bird near the house of the day"} for n in range(4)]
    data = {
        "train": [write_rows(tmp_path / "texts.jsonl", texts), write_rows(tmp_path / "a.jsonl", rows(3, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", rows(3, 2))],
    }
    run = small_run(tmp_path, base, data, training={"loss": "next_token"})
    [p] = tables_of(run, 1)
    assert p.probs.shape[:2] == (2, 3)
    manifest = json.loads((run / "manifest.json").read_bytes())
    assert sorted(manifest["counts"]["train"].values()) == [3, 4]
    refused = ripieno("train", run / "config.yaml", "--run", tmp_path / "no", "--set", "training.loss=choices")
    assert refused.code == 2
    assert "running text" in refused.err
    assert "next_token" in refused.err


def test_questions_without_answers_are_asked_and_not_measured(base: Path, tmp_path: Path) -> None:
    blank = [[{k: v for k, v in row.items() if k != "answer"} for row in rows(3, seed)] for seed in (2, 3)]
    data = {
        "train": [write_rows(tmp_path / "a.jsonl", rows(4, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", blank[0])],
        "calibration": [write_rows(tmp_path / "c.jsonl", blank[1])],
    }
    run = small_run(tmp_path, base, data)
    assert (tables_of(run, 1)[0].targets == -1).all()
    found = table((run / "report" / "metrics.json").read_text())
    assert {row["value"] for row in found if row["measure"] == "nll"} == {None}
    assert all(row["value"] is not None for row in found if row["measure"] == "predictive_entropy")
    assert "no question of data.calibration has an answer" in one_line(ripieno("calibrate", run), 2)


def test_few_shot_examples_stand_before_each_question(base: Path, tmp_path: Path) -> None:
    """The table's probabilities are those of the prompts with the named split's first examples, drawn by data.seed."""
    seed, pool = 3, write_rows(tmp_path / "pool.jsonl", rows(9, 3))
    data = {
        "train": [write_rows(tmp_path / "a.jsonl", rows(4, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", rows(3, 2)), f"{pool}[40%:100%]"],
        "seed": seed,
    }
    few_shot = {"dataset": f"{pool}[0%:40%]", "count": 2}
    run = small_run(tmp_path, base, data, prompt={"template": "text", "few_shot": few_shot})
    from ripieno.data.splits import load

    examples = load(few_shot["dataset"], seed=seed).questions
    tested = load(data["test"][1], seed=seed).questions
    assert not {q.id for q in examples} & {q.id for q in tested}
    prompt = Prompt(template="text", few_shot=FewShot(**few_shot))  # type: ignore[arg-type]
    questions = read_questions(tmp_path / "b.jsonl")
    trees, _ = Encoder(byte_level_tokenizer(), prompt, examples).trees(questions, None, "error")
    truth = plain_probabilities(AutoModelForCausalLM.from_pretrained(base).eval(), trees)
    [p] = [p for p in tables_of(run, 0) if p.dataset.startswith("b-")]
    for n, probabilities in enumerate(truth):
        np.testing.assert_allclose(p.probs[0, n, : len(probabilities)], probabilities, atol=1e-4)


@pytest.mark.fault("a member that is not finite")
def test_a_member_whose_training_fails_is_left_out(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {
        "train": [write_rows(tmp_path / "a.jsonl", rows(4, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", rows(3, 2))],
    }
    config = write_config(tmp_path, base, data, training={"epochs": 2})
    run, epoch = tmp_path / "run", Trainer._epoch

    def with_nan(made: Trainer, number: int, running: list[int]) -> None:
        for position in broken.get(number, []):
            next(iter(made.stack.layers.values())).A[position].data[0, 0] = math.nan
        epoch(made, number, running)

    broken = {2: [1]}
    monkeypatch.setattr(Trainer, "_epoch", with_nan)
    done = ripieno("train", config, "--run", run)
    assert done.code == 0
    assert "member 1 stopped in epoch 2: its loss (nan)" in done.err
    said = f"member 1 is left out from epoch 2 on: its training failed; `ripieno status {run}` says why\n"
    assert said in ripieno("evaluate", run).err
    assert [p.members for p in tables_of(run, 1)] == [(0, 1)]
    assert [p.members for p in tables_of(run, 2)] == [(0,)]
    works("report", run)
    assert "training failed: member 1" in (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "member 1: epoch 1 of 2, stopped: its loss (nan)" in works("status", run)
    # Where none is left, the base must not answer in the members' name.
    broken = {2: [0, 1]}
    none = tmp_path / "none"
    failed = ripieno("train", config, "--run", none)
    assert failed.code == 2
    assert "the training of every member failed" in failed.err.splitlines()[-1]
    works("evaluate", none)
    assert [p.members for p in tables_of(none, 1)] == [(0, 1)]
    assert tables_of(none, 2) == []
    last = ripieno("evaluate", none, "--epoch", "last")
    assert last.code == 2
    assert last.err.splitlines()[-1].startswith(f"ripieno: {none}: no member is left at epoch 2")
    works("report", none)


def test_members_trained_in_two_starts_are_those_of_one(experiment: Experiment, tmp_path: Path) -> None:
    """A cluster's array jobs train some each; the adapters are the same bytes, as members take turns on a CPU."""
    works("train", experiment.config, "--run", tmp_path, "--members", "2")
    assert one_line(ripieno("evaluate", tmp_path), 2).startswith(f"ripieno: {tmp_path}: member 0 is not trained")
    works("train", experiment.config, "--run", tmp_path, "--members", "0-1")
    ours, theirs = files_of(tmp_path), files_of(experiment.path)
    adapters = [name for name in theirs if name.startswith("members/")]
    assert len(adapters) == 12
    assert [name for name in adapters if ours[name][1] != theirs[name][1]] == []


def test_another_set_is_asked_without_what_the_members_trained_on(experiment: Experiment, tmp_path: Path) -> None:
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(experiment.path), str(run)], check=True)
    train = rows(12, 0)
    file = write_rows(tmp_path / "more.jsonl", [*rows(3, 77), *train[:2]])
    works("evaluate", run, "--dataset", file, "--epoch", "last")
    name = DatasetName.parse(file)
    [p] = read_parquet(run / "predictions" / name.folder / name.file / "ensemble-epoch-002.parquet")
    assert p.question_ids == tuple(row["id"] for row in rows(3, 77))
    assert not (run / "predictions" / name.folder / name.file / "base-epoch-000.parquet").exists()
    only = write_rows(tmp_path / "only.jsonl", train[:2])
    assert "trained on every question" in one_line(ripieno("evaluate", run, "--dataset", only), 2)


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_a_locked_run_is_the_environments_fault(experiment: Experiment) -> None:
    run = RunFolder(experiment.path)
    with run.lock([1]), run.lock():
        line = one_line(ripieno("train", experiment.config, "--run", experiment.path), 1)
        assert f"process {os.getpid()} on " in line
        assert "is training member 1 of this run; wait for it, stop it, or train others with --members" in line
        assert "is asking this run; wait for it, stop it" in one_line(ripieno("evaluate", experiment.path), 1)
        works("train", experiment.config, "--run", experiment.path, "--members", "0")


def copied(experiment: Experiment, folder: Path) -> Path:
    subprocess.run(["cp", "-r", str(experiment.path), str(folder / "run")], check=True)
    return folder / "run"


def damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    # Of a config, what moves results; the rest of it may be edited.
    middle = content.index(b"epochs: ") + len(b"epochs: ") if file.name == "config.yaml" else len(content) // 2
    if how == "missing":
        file.unlink()
        return
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes({"cut": content[:middle], "emptied": b"", "flipped": flipped}[how])


def all_damaged(run: Path, how: str) -> int:
    """Damage all files of a run but for its logs and sums, and return how many these are."""
    names = set(RunFolder(run).recorded()) - {"metrics.jsonl", "timing.jsonl"}
    for name in names:
        damage(run / name, how)
    return len(names)


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "missing"])
@pytest.mark.fault("all files damaged at once")
def test_every_damaged_file_is_named(how: str, experiment: Experiment, tmp_path: Path) -> None:
    run = copied(experiment, tmp_path)
    written = RunFolder(run).recorded()
    assert set(files_of(run)) - set(written) == {"checksums.jsonl", ".locks/.mutex"}
    assert f"all {len(written)} files are as they were written" in works("status", run, "--verify")
    count = all_damaged(run, how)
    done = ripieno("status", run, "--verify")
    assert (done.code, done.out.count("\n")) == (1, count)
    assert f"{count} files are missing or damaged" in done.err
    word = "missing" if how == "missing" else "damaged"
    for name in set(written) - {"metrics.jsonl", "timing.jsonl"}:
        assert f"{name}: {word}; `ripieno " in done.out


@pytest.mark.parametrize("how", ["flipped", "missing"])
@pytest.mark.fault("all files damaged at once")
def test_what_is_damaged_is_made_again_to_the_same_bytes(how: str, experiment: Experiment, tmp_path: Path) -> None:
    """All files of a run at once, by the commands that made them."""
    run = copied(experiment, tmp_path)
    before = files_of(run)
    all_damaged(run, how)
    assert f"{run / 'config.yaml'}: missing or damaged; `ripieno train`" in one_line(ripieno("report", run), 1)
    again = ripieno("train", experiment.config, "--run", run)
    assert again.code == 0
    assert "member 1: a file that it needs to go on is missing or damaged; it trains again from the start" in again.err
    said = one_line(ripieno("report", run), 2 if how == "missing" else 1)
    assert f"`ripieno evaluate {run}` " in said
    works("evaluate", run)
    works("report", run)
    works("status", run, "--verify")
    after = files_of(run)
    assert set(after) == set(before)
    clocks = ("timing.jsonl", "checksums.jsonl", "manifest.json", "report/index.html")
    same = [name for name in before if name not in clocks]
    assert [name for name in same if after[name][1] != before[name][1]] == []


@pytest.mark.fault("a file damaged, any of a finished run")
def test_a_damaged_adapter_never_answers(experiment: Experiment, tmp_path: Path) -> None:
    run, asked = copied(experiment, tmp_path), write_rows(tmp_path / "asked.jsonl", rows(2, 91))
    damage(run / "members/001/epoch-002/adapter_model.safetensors", "flipped")
    before = files_of(run)
    for arguments in (
        ("predict", run, "--input", asked, "--output", tmp_path / "decided.csv"),
        ("evaluate", run, "--dataset", asked),
        ("export", run, "--output", tmp_path / "exported"),
        ("read", run, "--text", asked),
    ):
        line = one_line(ripieno(*arguments), 1)
        assert "members/001/epoch-002/adapter_model.safetensors: missing or damaged; `ripieno train`" in line
    with pytest.raises(EnvironmentFault, match="missing or damaged"):
        Ensemble.load(run)
    after = files_of(run)
    assert {name for name in after if name not in before or after[name][1] != before[name][1]} <= {".locks/.mutex"}


@pytest.mark.fault("a file damaged, any of a finished run")
def test_damage_lets_no_question_of_training_into_an_evaluation(experiment: Experiment, tmp_path: Path) -> None:
    run = copied(experiment, tmp_path)
    damage(run / "questions" / experiment.folder("train") / "all.parquet", "flipped")
    file = write_rows(tmp_path / "more.jsonl", [*rows(3, 77), *rows(12, 0)[:2]])
    line = one_line(ripieno("evaluate", run, "--dataset", file, "--epoch", "last"), 1)
    assert "all.parquet: missing or damaged; `ripieno train`" in line


@pytest.mark.fault("a file damaged, any of a finished run")
@pytest.mark.parametrize("how", ["emptied", "missing"])
def test_without_its_sums_a_run_is_not_trained_over(how: str, experiment: Experiment, tmp_path: Path) -> None:
    run = copied(experiment, tmp_path)
    damage(run / "checksums.jsonl", how)
    before = files_of(run)
    said = f"ripieno: {run / 'checksums.jsonl'}: missing or damaged; it cannot be made again; take it from a copy"
    assert one_line(ripieno("train", experiment.config, "--run", run), 1).startswith(said)
    assert one_line(ripieno("status", run, "--verify"), 1).startswith(said)
    after = files_of(run)
    assert [name for name in before if not name.startswith(".") and after[name] != before[name]] == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl"])
@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "missing"])
@pytest.mark.fault("a file damaged, any of a finished run")
def test_a_log_that_is_damaged_is_not_read(name: str, how: str, experiment: Experiment, tmp_path: Path) -> None:
    """It says which members stopped and what they cost, and nothing makes it again."""
    run = copied(experiment, tmp_path)
    damage(run / name, how)
    said = f"{run / name}: missing or damaged; it cannot be made again; take it from a copy of the run"
    assert said in one_line(ripieno("report", run), 1)
    assert "it cannot be made again" in ripieno("status", run, "--verify").out
    if name == "metrics.jsonl":
        for arguments in (("train", experiment.config, "--run", run), ("evaluate", run)):
            assert said in one_line(ripieno(*arguments), 1)


@pytest.mark.fault("a file damaged, any of a finished run")
def test_a_record_that_is_damaged_costs_what_it_recorded(experiment: Experiment, tmp_path: Path) -> None:
    run = copied(experiment, tmp_path)
    records = (run / "checksums.jsonl").read_bytes().split(b"\n")
    [at] = [n for n, line in enumerate(records) if b"members/001/epoch-002/adapter_model" in line]
    records[at] = records[at][:-1]
    (run / "checksums.jsonl").write_bytes(b"\n".join(records))
    before = files_of(run)
    works("train", experiment.config, "--run", run)
    after = files_of(run)
    assert {name for name in before if after[name][1] != before[name][1]} <= {"checksums.jsonl", "timing.jsonl"}
    works("status", run, "--verify")
    manifest = [n for n, line in enumerate(records) if b'"manifest.json"' in line]
    (run / "checksums.jsonl").write_bytes(b"\n".join(line for n, line in enumerate(records) if n not in manifest))
    done = one_line(ripieno("train", experiment.config, "--run", run), 1)
    assert "checksums.jsonl: missing or damaged; it cannot be made again" in done


def packed(engine: Engine) -> None:
    """As `Engine.probe` decides for this model, without asking it."""
    engine.packed, engine.notice = PackedEngine(engine.backbone, engine.stack), None


@pytest.mark.fault("out of memory")
def test_memory_that_is_not_there_is_the_environments_fault(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch says so in a RuntimeError; what else raises one is a bug, and keeps its traceback."""
    file = write_rows(experiment.config.parent / "asked.jsonl", rows(2, 88))
    monkeypatch.setattr(PackedEngine, "scan", lambda *_, **__: torch.empty(2**50))
    monkeypatch.setattr(Engine, "probe", packed)
    line = one_line(ripieno("evaluate", experiment.path, "--dataset", file, "--epoch", "0"), 1)
    assert line == (
        "ripieno: out of memory: lower compute.batch_tokens from 1024 to 512, with --set in training, later in the "
        "run's config.yaml"
    )
    monkeypatch.setattr(PackedEngine, "scan", lambda *_, **__: torch.empty(2) @ torch.empty(3))
    with pytest.raises(RuntimeError, match="size"):
        ripieno("evaluate", experiment.path, "--dataset", file, "--epoch", "0")


def test_speeds_are_kept_and_the_noise_floor_is_said(experiment: Experiment, tmp_path: Path) -> None:
    lines = RunFolder(experiment.path).lines("timing.jsonl")
    for line in lines:
        if line["what"] in ("train", "evaluate"):
            assert line["tokens"] > line["questions"] > 0
            assert line["of_matrix_rate"] > 0
    run = Path(shutil.copytree(experiment.path, tmp_path / "run"))
    said = ripieno("evaluate", run, "--dataset", write_rows(tmp_path / "noise.jsonl", rows(5, 89))).err
    [floor] = [line for line in said.splitlines() if line.startswith("noise floor")]
    found = re.search(r"scored 3 times .* information of (\S+) nats at most \(5 questions\)", floor)
    assert found
    # Float32 log-probabilities are off by 1e-5 at most, and mutual information goes with the square of that.
    assert float(found[1]) < 1e-9


def test_datasets_lists_what_can_be_read_and_checks_a_file(experiment: Experiment) -> None:
    listed = works("datasets")
    for name in ("commonsense_qa", "mmlu", "arc:easy", "openbookqa"):
        assert name in listed
    file = experiment.files["foreign"]
    assert works("datasets", "check", file) == f"{file}: 6 questions of 2 to 6 choices, 6 with an answer\n"


def test_help_and_no_arguments_explain_the_commands() -> None:
    assert works("--help") == works()
    for command in ("train", "evaluate", "report", "analyze", "datasets", "status", "calibrate", "demo"):
        assert command in works("--help")
        assert "Usage" in works(command, "--help")


# ---- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("SIGTERM and Ctrl-C")
def test_a_signal_ends_a_run_that_the_same_command_goes_on_with(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM to a process of its own, then Ctrl-C in the middle of a step of the second start: no step is lost."""
    data = {
        "train": [write_rows(tmp_path / "a.jsonl", rows(40, 1))],
        "test": [write_rows(tmp_path / "b.jsonl", rows(3, 2))],
    }
    config, run = write_config(tmp_path, base, data, training={"epochs": 2000}), tmp_path / "run"
    arguments = ["train", str(config), "--run", str(run), "--quiet"]

    program = [sys.executable, "-m", "ripieno.cli", *arguments]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not RunFolder(run).adapter_files(1, 2)[0].exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()
        asked = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - asked < 10
    line = one_line(Done(process.returncode, out, err), 143)
    assert line == "ripieno: terminated; the same command goes on from what is saved"

    def last() -> tuple[dict[int, int], dict[int, int]]:
        """Return each member's last step, and the step of its last state."""
        lines = [line for line in RunFolder(run).lines("metrics.jsonl") if line["kind"] == "step"]
        states = sorted(file.stem.split("-step-") for file in (run / "resume").iterdir())
        return {x["member"]: x["step"] for x in lines}, {int(member): int(step) for member, step in states}

    steps, states = last()
    assert steps == states
    step, taken = Trainer._step, itertools.count()

    def interrupted(*given: Any) -> bool:
        if next(taken) == 9:
            signal.raise_signal(signal.SIGINT)
        return step(*given)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored in what started the tests
    try:
        line = one_line(ripieno(*arguments), 130)
    finally:
        signal.signal(signal.SIGINT, before)
    assert line == "ripieno: interrupted; the same command goes on from what is saved"

    assert not [path for path in run.rglob(".*") if path.name not in (".locks", ".mutex")]  # no temporary file is left
    more, states = last()
    assert more == states == {member: number + 5 for member, number in steps.items()}
    taken_once = [(x["member"], x["step"]) for x in RunFolder(run).lines("metrics.jsonl")]
    assert sorted(taken_once) == [(member, n) for member in range(2) for n in range(1, more[member] + 1)]


@pytest.mark.fault("another config, base, data or library")
def test_a_base_whose_files_changed_does_not_answer(experiment: Experiment, tmp_path: Path) -> None:
    """The folder has its name still, but the adapters were trained on other weights."""
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(experiment.path), str(run)], check=True)
    config = run / "config.yaml"
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    other = save_tiny(tmp_path / Path(content["base"]["model"]).name, seed=5)
    content["base"]["model"] = str(other)
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"is not the base that .* was trained on"):
        Ensemble.load(run)
    shutil.rmtree(run / "predictions")
    assert "is not the base" in one_line(ripieno("evaluate", run), 2)
