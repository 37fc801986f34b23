"""What `ripieno plan` counts is what the job does; what it times is the real work, and leaves nothing behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Experiment, one_line, ripieno, works

from ripieno import Ensemble, planning
from ripieno.data.question import read_questions
from ripieno.model.speed import Meter
from ripieno.runs import RunFolder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure less of a model that takes milliseconds."""
    for name in ("STEPS_SECONDS", "ASKING_SECONDS", "PROMPTS_SECONDS"):
        monkeypatch.setattr(planning, name, 0.05)


def planned(config: Path, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(works("plan", config, "--json", *arguments))
    return found


def test_a_plan_says_what_the_run_then_is(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = planned(experiment.config)
    assert not list(tmp_path.iterdir())
    compute = RunFolder(experiment.path).config().compute
    assert (found["members_per_pass"], found["batch_tokens"]) == (compute.members_per_pass, compute.batch_tokens)
    [state] = (experiment.path / "resume").glob("000-*")
    # But for the numbers in its header.
    assert found["member_bytes"] == pytest.approx(state.stat().st_size, abs=100)
    for stage in ("training", "evaluation"):
        assert found[stage]["peak_bytes"] > found["base_bytes"] > 0
        assert all(seconds >= 0 for seconds in found[stage]["seconds"].values())
    assert found["training"]["seconds"]["steps"] > 0
    assert found["training"]["seconds"]["validation"] > 0
    assert found["evaluation"]["seconds"]["prompts"] > 0


def test_what_is_scaled_by_is_what_the_job_reads(experiment: Experiment, tmp_path: Path) -> None:
    """At a second a token, the seconds of a plan are the tokens that the run's timing.jsonl has."""
    arguments = ("--set", "training.bagging=false", "--set", "training.shuffle_choices=false")
    works("train", experiment.config, "--run", tmp_path / "run", *arguments)
    works("evaluate", tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        train, ask = planning._train, planning._ask
        patch.setattr(Meter, "count", lambda _, tokens, scored: float(tokens))
        patch.setattr(planning, "_train", lambda *given: replace(train(*given), rate=1.0, saving=0.0))
        patch.setattr(planning, "_ask", lambda *given: replace(ask(*given), rate=1.0, merging=0.0))
        found = planned(experiment.config, *arguments)
    evaluated = [x for x in RunFolder(tmp_path / "run").lines("timing.jsonl") if x["what"] == "evaluate"]
    assert found["evaluation"]["seconds"]["asking"] == sum(line["tokens"] for line in evaluated)
    trained = [x for x in RunFolder(tmp_path / "run").lines("timing.jsonl") if x["what"] == "train"]
    # Each of three members looks at its shortest question at the end of each of two epochs, forwards alone.
    ensemble = Ensemble.load(tmp_path / "run")
    shortest = min(tree.read for tree in ensemble.encode(read_questions(Path(experiment.files["train"]))).trees)
    assert found["training"]["seconds"]["steps"] == sum(line["tokens"] for line in trained) - 3 * 2 * shortest / 2


def test_a_person_reads_lines(experiment: Experiment) -> None:
    said = works("plan", experiment.config, "--set", "launch.workers=2")
    for word in ("ripieno train", "ripieno evaluate", "3 members", "2 members a group", "not measured"):
        assert word in said


def test_a_variational_ensemble_that_repels_is_planned_too(experiment: Experiment) -> None:
    questions = experiment.files["train"]
    repulsion = f'training.repulsion={{"questions": ["{questions}"], "weight": 0.1}}'
    found = planned(experiment.config, "--set", repulsion, "--set", "training.variational={}")
    assert found["training"]["seconds"]["steps"] > 0


def test_a_container_that_forbids_to_forget_the_peak_plans_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is then that of the process so far."""

    def refuse(path: Path, text: str) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with planning._peak(torch.device("cpu")) as peak:
        pass
    assert peak.bytes > 1e6


def test_a_config_that_does_not_fit_is_said_in_a_line(experiment: Experiment) -> None:
    done = ripieno("plan", experiment.config, "--set", "adapter.targets=[no_proj]")
    assert "no_proj" in one_line(done, 2)
