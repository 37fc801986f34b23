"""Members that differ, from a config to a run: what is refused, what is recorded, and what evaluation asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import ripieno, rows, works, write_config, write_rows

from ripieno import Ensemble, experiment, measures
from ripieno.data.question import read_questions
from ripieno.progress import Progress
from ripieno.runs import RunFolder


@pytest.fixture
def config(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = {role: [write_rows(tmp_path / f"{role}.jsonl", rows(9, n))] for n, role in enumerate(("train", "test"))}
    data["validation"] = [write_rows(tmp_path / "validation.jsonl", rows(6, 2))]
    foreign = [{key: row[key] for key in ("id", "question", "choices")} for row in rows(10, 3)]  # without answers
    training = {
        "templates": ["text", "text-listed"],
        "repulsion": {"questions": [write_rows(tmp_path / "foreign.jsonl", foreign)], "weight": 1.0, "batch_size": 3},
    }
    return write_config(tmp_path, base, data, training=training, adapter={"member_ranks": [2, 1]})


class Counting(Progress):
    """Adds up what it is told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.done = 0

    def advance(self, units: int) -> None:
        self.done += units


def test_a_run_of_members_that_differ(config: Path, tmp_path: Path) -> None:
    progress = Counting()
    run = experiment.train(config, tmp_path / "run", progress=progress)
    assert progress.done == progress.bar.total
    manifest = run.manifest()
    assert manifest["counts"]["repulsion"] == {str(tmp_path / "foreign.jsonl"): 10}
    assert str(tmp_path / "foreign.jsonl") in [source["name"] for source in manifest["sources"]]
    assert manifest["dropped"]["too_long"]["repulsion"] == []
    # Validation, too, asks every member with prompt.template, whatever it trains with.
    ensemble = Ensemble.load(run.path)
    p = ensemble.predict(read_questions(tmp_path / "validation.jsonl"))
    truth = measures.nll(p.log_probs, p.targets).mean(axis=1)
    said = [line["validation_nll"] for line in run.lines("metrics.jsonl") if line["kind"] == "epoch"]
    assert said == pytest.approx(truth.tolist(), rel=1e-5)
    # Other questions are another run.
    write_rows(tmp_path / "foreign.jsonl", rows(10, 4))
    done = ripieno("train", config, "--run", run.path)
    assert (done.code, "holds another run" in done.err, "questions_sha256" in done.err) == (2, True, True)


def test_members_that_depend_on_one_another_train_together(config: Path) -> None:
    done = ripieno("train", config, "--members", "0")
    assert done.code == 2
    assert "--members: with training.repulsion members depend on one another" in done.err
    assert not Path("runs/tiny/config.yaml").exists()


@pytest.mark.parametrize("role", ["test", "validation"])
def test_what_drives_members_apart_is_asked_by_no_later_role(role: str, config: Path) -> None:
    done = ripieno("train", config, "--set", f"training.repulsion.questions=[{role}.jsonl]")
    assert done.code == 2
    assert f"is also question s{1 if role == 'test' else 2}-0 of" in done.err
    assert f"in the role {role}" in done.err


def test_questions_that_drove_members_apart_are_left_out_of_a_new_set(config: Path, tmp_path: Path) -> None:
    works("train", config, "--set", "adapter.member_ranks=[]")
    mixed: list[dict[str, Any]] = [*rows(3, 3), *rows(4, 9)]
    new = write_rows(tmp_path / "new.jsonl", mixed)
    works("evaluate", "runs/tiny", "--dataset", new, "--epoch", "last")
    [file] = (tmp_path / "runs/tiny/questions").glob("new-*/all.parquet")
    assert [question.id for question in read_questions(file)] == [f"s9-{n}" for n in range(4)]
    said = json.loads((RunFolder(tmp_path / "runs/tiny").path / "manifest.json").read_bytes())["counts"]
    assert set(said) == {"train", "repulsion", "validation", "test"}


def test_too_long_in_one_members_template_is_left_out_for_all(config: Path, tmp_path: Path) -> None:
    """As text all have 28 tokens at most, with listed choices six have over 40: member 0 does without them too."""
    limit = ("--set", "training.max_tokens=40", "--set", "training.too_long=drop")
    left_out = {}
    for name in ("text", "text-listed", "text,text-listed"):
        works("train", config, *limit, "--set", f"training.templates=[{name}]", "--run", name)
        left_out[name] = RunFolder(tmp_path / name).manifest()["dropped"]["too_long"]["train"]
    assert len(left_out["text-listed"]) == 6
    assert left_out["text,text-listed"] == left_out["text-listed"] != left_out["text"]
