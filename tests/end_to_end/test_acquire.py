"""Which questions of a pool to label next: chosen, written with room for answers, and trained on once filled in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import Experiment, rows, works, write_config, write_rows

from ripieno import Ensemble, acquisition, measures
from ripieno.acquisition import Acquired
from ripieno.data.question import Question, read_questions
from ripieno.errors import UserError
from ripieno.runs import RunFolder

POOL = [
    *rows(20, seed=50),
    *rows(3, seed=0),  # of the run's training set
    {**rows(1, seed=50)[0], "id": "again"},
    {"id": "long", "question": "where " * 600, "choices": ["a", "b"]},
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_rows(tmp_path_factory.mktemp("pool") / "pool.jsonl", POOL))


@pytest.mark.parametrize("by", ["entropy", "mi", "batch", "random"])
def test_chosen_by(
    experiment: Experiment, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = works("acquire", experiment.path, "--pool", pool, "--n", "6", "--by", by).splitlines()
    assert said[0].startswith("pool-next.jsonl: 6 of 20 questions, ")
    assert said[1] == "Left out of the pool: 3 in the run's own sets, 1 repeat an earlier one, 1 too long to ask."
    assert said[-1] == "  and 1 more"
    found = [json.loads(line) for line in Path("pool-next.jsonl").read_text().splitlines()]
    new = {row["id"]: row for row in POOL[:20]}
    assert len({row["id"] for row in found}) == 6
    for row in found:
        asked = new[row["id"]]
        assert (row["question"], row["choices"], row["answer"]) == (asked["question"], asked["choices"], None)
    scores = [row["score"] for row in found]
    if by == "random":
        assert scores == [None] * 6
        return
    # What the members say through Python, chosen by hand.
    questions = read_questions(pool)[:20]
    parts = measures.decompose(Ensemble.load(experiment.path).predict(questions).probs)
    of = dict(zip(new, parts.total if by == "entropy" else parts.epistemic, strict=True))
    assert scores == sorted(scores, reverse=True)
    # Two passes over the same questions, in float32 and in other company, agree to 1e-5 of a nat.
    if by == "batch":
        assert scores[0] == pytest.approx(max(of.values()), abs=1e-5)
        assert all(score <= of[row["id"]] + 1e-5 for row, score in zip(found, scores, strict=True))
    else:
        assert scores == pytest.approx(sorted(of.values(), reverse=True)[:6], abs=1e-5)


def test_labels_in_the_pool_are_not_looked_at(experiment: Experiment, tmp_path: Path) -> None:
    outputs = []
    for name, answer in (("known", lambda row: row["answer"]), ("other", lambda row: 0), ("none", lambda row: None)):
        file = write_rows(tmp_path / f"{name}.jsonl", [{**row, "answer": answer(row)} for row in POOL[:10]])
        output = tmp_path / f"{name}-next.jsonl"
        works("acquire", experiment.path, "--pool", file, "--n", "4", "--output", output)
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


def test_random_follows_its_seed(experiment: Experiment, pool: Path) -> None:
    run, seeds = RunFolder(experiment.path), (0, 0, 1, 2, 3, 4)
    ids = [[q.id for q in acquisition.acquire(run, pool, 5, "random", seed=seed).questions] for seed in seeds]
    assert ids[0] == ids[1]
    assert len({tuple(of) for of in ids}) == 5


def test_what_was_filled_in_goes_into_training(base: Path, experiment: Experiment, pool: Path, tmp_path: Path) -> None:
    output = tmp_path / "next.csv"
    works("acquire", experiment.path, "--pool", pool, "--n", "4", "--output", output)
    questions = read_questions(output)
    assert {question.answer for question in questions} == {None}
    filled = [
        {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": 1, "score": 0.1} for q in questions
    ]
    more = write_rows(tmp_path / "labelled.jsonl", filled)
    config = write_config(tmp_path, base, {"train": [experiment.files["train"], more]})
    run = tmp_path / "run"
    works("train", config, "--run", run)
    # What is labelled now is not asked for again.
    said = works("acquire", run, "--pool", pool, "--n", "1", "--by", "random", "--output", tmp_path / "again.jsonl")
    assert "Left out of the pool: 7 in the run's own sets" in said


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("labels", [None, ("no", "yes")])
def test_files_are_read_back_as_they_are(tmp_path: Path, suffix: str, labels: tuple[str, ...] | None) -> None:
    choices = labels or ("here, or “there”", "[nowhere]")
    questions = [
        Question("a", "Où, or\nwhere?", choices, None, None, "places"),
        Question("b", "Who?", choices, None, "A passage."),
    ]
    file = tmp_path / f"next{suffix}"
    acquisition.write(file, Acquired(questions, [0.5, 0.25], "mi", 9, 0, 0, 0), labels)
    assert read_questions(file, labels) == questions
    if labels and suffix == ".csv":
        # A person fills the column that the file of labelled texts has.
        text = file.read_text()
        assert text.splitlines()[0] == "id,text,context,subject,label,score"
        file.write_text(text.replace(",,0.5", ",yes,0.5").replace(",,,0.25", ",,no,0.25"))
        answered = [replace(questions[0], answer=1), questions[1]]
        assert read_questions(file, labels)[:1] == answered[:1]


@pytest.mark.parametrize("by", ["mi", "batch"])
def test_one_member_cannot_disagree(
    experiment: Experiment, pool: Path, monkeypatch: pytest.MonkeyPatch, by: acquisition.By
) -> None:
    monkeypatch.setattr(acquisition, "members_at", lambda *_: {0: 2})
    with pytest.raises(UserError, match=rf"--by {by}: goes by how far members disagree, and .* has one; use entropy"):
        acquisition.acquire(RunFolder(experiment.path), pool, 1, by)


def test_a_base_that_hides_its_states(experiment: Experiment, pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble.load(experiment.path)
    monkeypatch.setattr(ensemble.engine.backbone.model, "get_output_embeddings", lambda: None)
    monkeypatch.setattr(Ensemble, "load", lambda _: ensemble)
    with pytest.raises(UserError, match="--by batch: this base names no output layer"):
        acquisition.acquire(RunFolder(experiment.path), pool, 1, "batch")
    assert np.isfinite(acquisition.acquire(RunFolder(experiment.path), pool, 1, "mi").scores[0] or np.nan)
