"""`evaluate --rotations` on a tiny model: what was asked, where it is kept, what is said of it, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import files_of, ripieno, rows, works, write_config, write_rows

from ripieno import Ensemble, measures, rotations
from ripieno.data.question import Question, read_questions
from ripieno.data.splits import DatasetName
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.runs import RunFolder

SIZES = (2, 3, 4)


def trained(folder: Path, base: Path, template: str, **evaluation: object) -> RunFolder:
    """Train two members for an epoch, to be asked seven questions, one of which has no answer."""
    test = rows(7, 1, SIZES)
    test[3]["answer"] = None
    data = {
        "train": [write_rows(folder / "train.jsonl", rows(6, 0))],
        "test": [write_rows(folder / "test.jsonl", test)],
    }
    config = write_config(folder, base, data, prompt={"template": template}, evaluation=evaluation)
    works("train", config, "--run", folder / "run")
    return RunFolder(folder / "run")


@pytest.fixture(scope="module", params=["text-listed", "letters"])
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = trained(tmp_path_factory.mktemp(request.param), base, request.param)
    works("evaluate", made.path, "--rotations")
    return made


def questions_of(run: RunFolder) -> list[Question]:
    return read_questions(run.path.parent / "test.jsonl")


def stored(run: RunFolder, rotation: int, method: str = "ensemble", epoch: int = 1) -> Predictions:
    name = DatasetName.parse(str(run.path.parent / "test.jsonl"))
    file = run.rotations(name.folder, name.file, method, epoch, rotation)
    assert run.whole(file)
    [p] = read_parquet(file)
    assert (p.method, p.epoch, p.dataset, p.split) == (method, epoch, name.dataset, "all")
    assert p.metadata["rotation"] == rotation
    assert p.metadata["config_hash"] == run.config().hash()
    return p


def test_rotating_moves_the_answer_along() -> None:
    question = Question("q", "?", ("a", "b", "c"), 0)
    assert rotations.rotate(question, 0) == question
    assert rotations.rotate(question, 1) == replace(question, choices=("b", "c", "a"), answer=2)
    assert rotations.rotate(question, 2) == replace(question, choices=("c", "a", "b"), answer=1)
    assert rotations.rotate(replace(question, answer=None), 4).answer is None


def test_each_file_is_what_members_answer_to_that_order(run: RunFolder) -> None:
    ensemble, questions = Ensemble.load(run.path), questions_of(run)
    moved = 0.0
    for rotation in range(max(SIZES)):
        p = stored(run, rotation)
        asked = [question for question in questions if len(question.choices) > rotation]
        assert p.question_ids == tuple(question.id for question in asked)
        assert p.targets.tolist() == [-1 if q.answer is None else q.answer for q in asked]
        for n, question in enumerate(asked):
            K = len(question.choices)
            order = [(place + rotation) % K for place in range(K)]
            alone = ensemble.predict([replace(question, choices=tuple(question.choices[k] for k in order))])
            # float32 sums of some 100 terms in another order, log-probabilities of a few nats.
            np.testing.assert_allclose(p.log_probs[:, n, order], alone.log_probs[:, 0], atol=2**-16, rtol=0)
            if p.bytes is not None:
                assert p.bytes[n, :K].tolist() == [len(choice.encode()) for choice in question.choices]
            first = stored(run, 0)
            own = first.probs[:, first.question_ids.index(question.id), :K]
            moved = max(moved, np.abs(p.probs[:, n, :K] - own).max())
    assert moved > 1e-2  # or answers that were never put back would pass
    with pytest.raises(AssertionError):
        stored(run, max(SIZES))


def test_what_is_said_is_the_mean_over_the_files(run: RunFolder) -> None:
    said = works("evaluate", run.path, "--rotations").splitlines()
    J, questions = max(SIZES), questions_of(run)
    first = stored(run, 0)
    assert (
        said[0] == f"{first.name}: 7 questions, each asked under every rotation of its choices, of 2 members at epoch 1"
    )
    numbers = {line[:32].strip(): line[32:].split() for line in said if line.startswith("  ")}
    rotated = [stored(run, rotation) for rotation in range(J)]
    totals, of_prompts, of_members, right = [], [], [], []
    for question in questions:
        own = [p.probs[:, p.question_ids.index(question.id)] for p in rotated[: len(question.choices)]]
        own = np.array([of_rotation[:, : len(question.choices)] for of_rotation in own])
        totals.append(measures.entropy(own.mean(axis=(0, 1))))
        of_prompts.append(totals[-1] - measures.entropy(own.mean(axis=1)).mean())
        of_members.append(totals[-1] - of_prompts[-1] - measures.entropy(own).mean())
        if question.answer is not None:
            right.append(own.mean(axis=(0, 1)).argmax() == question.answer)
    total, prompts, members = (f"{np.mean(values):.3f}" for values in (totals, of_prompts, of_members))
    shown = [numbers[what][0] for what in ("all of it", "order of the choices", "members", "mean over rotations")]
    assert shown == [total, prompts, members, f"{np.mean(right):.3f}"]
    sentence = f"Reordering the choices accounts for {prompts} of the {total} nats of uncertainty"
    assert f"  {sentence}, the members for {members}." in said


def test_what_is_there_is_not_asked_again(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    before = files_of(copy.path)
    with monkeypatch.context() as patch:
        patch.setattr(rotations, "assemble", lambda *_: pytest.fail("it was asked again"))
        said = works("evaluate", copy.path, "--rotations", "--epoch", "last")
    assert files_of(copy.path) == before
    damaged = sorted((copy.path / "rotations").rglob("*.rotation-1.parquet"))[0]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    assert "damaged" in works("status", copy.path)
    assert works("evaluate", copy.path, "--rotations") == said
    assert damaged.read_bytes() == content


def test_the_base_alone_has_no_members_and_the_analysis_none_of_it(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    works("evaluate", copy.path)
    rows_of_analysis = works("analyze", copy.path, "--json")
    said = works("evaluate", copy.path, "--rotations", "--epoch", "0", "--dataset", run.path.parent / "test.jsonl")
    assert "of the base\n" in said
    assert "the members for" not in said
    file = DatasetName.parse(str(run.path.parent / "test.jsonl"))
    [p] = read_parquet(copy.rotations(file.folder, file.file, "base", 0, 0))
    [own] = read_parquet(copy.predictions(file.folder, file.file, "base", 0))
    # In passes of other sizes, as above.
    np.testing.assert_allclose(p.probs, own.probs, atol=2**-16, rtol=0)
    assert works("analyze", copy.path, "--json") == rows_of_analysis


def test_a_question_too_long_in_one_order_is_left_out_of_all(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, base, "letters", too_long="drop", max_tokens=500, fixed_letters=True, store_top=3)
    dropped = questions_of(run)[2]
    assert len(dropped.choices) == 4
    fit = Ensemble.load(run.path).encoder.__class__._fit

    def too_long_once(self, question, *limits):
        return None if question.choices == rotations.rotate(dropped, 2).choices else fit(self, question, *limits)

    monkeypatch.setattr("ripieno.model.trees.Encoder._fit", too_long_once)
    assert "6 questions" in works("evaluate", run.path, "--rotations")
    for rotation in range(max(SIZES)):
        p = stored(run, rotation)
        assert dropped.id not in p.question_ids
        assert p.metadata["too_long"] == [dropped.id]
        assert (p.letter_log_probs, p.top_tokens) == (None, None)  # those of another place's letters


def test_what_does_not_go_with_it_is_refused(run: RunFolder, base: Path, tmp_path: Path) -> None:
    plain = trained(tmp_path, base, "text")
    only = "only --dataset and --epoch go with it"
    refused = {
        (plain.path,): "prompt.template text does not list the choices in the prompt",
        (run.path, "--epoch", "all"): "--epoch all: rotations are asked at one epoch; give a number or last",
        (run.path, "--epoch", "2"): "has epochs 0 (the base) to 1",
        (run.path, "--dataset", "mmlu"): "names no data set",
    }
    refused |= {
        (run.path, *option): only
        for option in (
            ("--tokens", "all"), ("--store-top", "3"), ("--fixed-letters",), ("--unconditional",), ("--choices", "2"),
            ("--method", "dropout"), ("--draws", "2"), ("--member", "0"),
        )
    }  # fmt: skip
    for arguments, why in refused.items():
        done = ripieno("evaluate", arguments[0], "--rotations", *arguments[1:])
        assert (done.code, why in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not (plain.path / "rotations").exists()
