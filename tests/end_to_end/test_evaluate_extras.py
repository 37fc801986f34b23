"""What evaluation stores for the analysis: the base's features of prompts, unconditional scores, fewer choices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import files_of, ripieno, rows, works, write_config, write_rows
from transformers import AutoModelForCausalLM

from families import byte_level_tokenizer
from ripieno import evaluation, experiment, prompt_features
from ripieno.config import Prompt, parse
from ripieno.data.matching import drop_choices, match_questions
from ripieno.data.question import Question, content_key, read_questions
from ripieno.data.splits import DatasetName
from ripieno.features import read_features
from ripieno.measures.matching import match_choices
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder, TokenTree
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.progress import Progress
from ripieno.runs import RunFolder

SEED = 3


def experiment_of(
    folder: Path, base: Path, template: str, sizes: Sequence[Sequence[int]] = ((5, 4), (3,)), **sections: Any
) -> tuple[RunFolder, dict[str, Path]]:
    """Train two members for an epoch on a set of 6 questions, to be asked a test and a foreign set of other sizes."""
    roles = {"train": (6, (2, 3)), "test": (7, sizes[0]), **({"foreign": (5, sizes[1])} if sizes[1:] else {})}
    files = {
        role: Path(write_rows(folder / f"{role}.jsonl", rows(count, seed, choices)))
        for seed, (role, (count, choices)) in enumerate(roles.items())
    }
    data = {"train": [str(files["train"])], "test": [str(files["test"])], "seed": SEED}
    data |= {"out_of_domain": [str(files["foreign"])]} if sizes[1:] else {}
    config = write_config(folder, base, data, prompt={"template": template}, **sections)
    works("train", config, "--run", folder / "run")
    return RunFolder(folder / "run"), files


def answers(run: RunFolder, file: Path, epoch: int, choices: int | None = None) -> Predictions:
    name = DatasetName.parse(str(file))
    path = run.predictions(name.folder, name.file, "ensemble" if epoch else "base", epoch, choices)
    assert run.whole(path)
    [p] = read_parquet(path)
    return p


@torch.inference_mode()
def score_of(model: Any, tree: TokenTree, branch: tuple[int, ...]) -> float:
    """Return a branch's log-likelihood by the plain model, one sequence at a time."""
    log_probs = model(input_ids=torch.tensor([tree.question + branch])).logits[0].double().log_softmax(-1)
    score: float = log_probs[range(len(tree.question) - 1, len(tree.question + branch) - 1), branch].sum().item()
    return score


def predictions_of(run: RunFolder) -> list[str]:
    return sorted(name for name in files_of(run.path / "predictions"))


@pytest.fixture(scope="module")
def listed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Path]]:
    run, files = experiment_of(tmp_path_factory.mktemp("listed"), base, "text-listed")
    works("evaluate", run.path)
    return run, files


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Path]]:
    run, files = experiment_of(tmp_path_factory.mktemp("plain"), base, "text")
    works("evaluate", run.path)
    return run, files


# ---- features -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def assert_features(run: RunFolder, file: Path, questions: Sequence[Question], model: Any) -> None:
    name = DatasetName.parse(str(file))
    found = read_features(run.features(name.folder, name.file))
    assert (found.dataset, found.split) == (name.dataset, "all")
    assert found.question_ids == tuple(question.id for question in questions)
    assert found.metadata["base"] == {"model": run.config().base.model, "sha256": run.manifest()["base_sha256"]}
    assert found.metadata["questions"] == {"available": len(questions), "taken": len(questions), "too_long": []}
    trees, _ = Encoder(byte_level_tokenizer(), run.config().prompt).trees(questions, None, "error")
    for n, tree in enumerate(trees):
        output = model(input_ids=torch.tensor([tree.question]), output_hidden_states=True)
        log_probs = output.logits[0].double().log_softmax(-1)
        nll = -log_probs[range(len(tree.question) - 1), tree.question[1:]].mean().item()
        hidden = output.hidden_states[-1][0, -1].numpy()
        assert found.prompt_tokens[n] == len(tree.question)
        # Two float32 computations of two layers (see tests/model/test_features.py).
        assert found.prompt_nll[n] == pytest.approx(nll, abs=1e-5)
        np.testing.assert_allclose(found.hidden[n], hidden, atol=1e-5 * np.abs(hidden).max(), rtol=0)


def test_features_are_the_bases_alone(listed: tuple[RunFolder, dict[str, Path]], base: Path) -> None:
    """Of the test and foreign sets in the order asked, of the training set by the hash of its content."""
    run, files = listed
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    for role in ("test", "foreign"):
        assert_features(run, files[role], read_questions(files[role]), model)
    trained_on = read_questions(files["train"])
    in_order = prompt_features.first_by_content(trained_on)
    assert sorted(question.id for question in in_order) == sorted(question.id for question in trained_on)
    assert_features(run, files["train"], in_order, model)
    lines = [line for line in run.lines("timing.jsonl") if line["what"] == "features"]
    assert [line["questions"] for line in lines] == [7, 5, 6]


def test_of_a_large_training_set_the_same_questions_are_taken_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [Question(row["id"], row["question"], tuple(row["choices"]), row["answer"]) for row in rows(50, 9)]
    monkeypatch.setattr(prompt_features, "TRAINING_FEATURES", 20)
    taken = prompt_features.first_by_content(questions)
    assert len(taken) == 20
    assert prompt_features.first_by_content(questions[::-1]) == taken
    assert {content_key(question) for question in taken} < {content_key(question) for question in questions}
    # None of the two halves of the file is preferred: 20 of 50 without regard to place, +- 4 standard deviations.
    first = sum(question in questions[:25] for question in taken)
    assert abs(first - 10) <= 4 * np.sqrt(20 * 0.25 * 30 / 49)


def test_a_damaged_file_of_features_is_made_again_and_no_other(
    listed: tuple[RunFolder, dict[str, Path]], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(listed[0].path, run.path)
    before = files_of(run.path)
    name = DatasetName.parse(str(listed[1]["foreign"]))
    file = run.features(name.folder, name.file)
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    works("evaluate", run.path)
    assert file.read_bytes() == content
    after = files_of(run.path)
    changed = {other for other in before if after[other] != before[other]}
    assert changed == {file.relative_to(run.path).as_posix(), "checksums.jsonl", "timing.jsonl"}
    # The training set's own copy is needed for its features.
    trained_on = DatasetName.parse(str(listed[1]["train"]))
    for damaged in (
        run.features(trained_on.folder, trained_on.file),
        run.questions(trained_on.folder, trained_on.file),
    ):
        damaged.unlink()
    done = ripieno("evaluate", run.path)
    assert done.code == 1
    assert "missing or damaged; `ripieno train` with the run's config makes it again" in done.err


def test_texts_have_no_features_and_a_choice_too_long_to_score_leaves_its_question_out(
    base: Path, tmp_path: Path
) -> None:
    """Under next_token only the right answer has to fit; the features' questions are those whose choices all do."""
    few = rows(4, 1)
    wrong = (few[2]["answer"] + 1) % len(few[2]["choices"])
    few[2]["choices"][wrong] = "a very long choice " * 30
    texts = [{"text": f"{n} a bird near the house of the day"} for n in range(3)]
    train = [write_rows(tmp_path / "a.jsonl", few), write_rows(tmp_path / "texts.jsonl", texts)]
    data = {"train": train, "test": [write_rows(tmp_path / "b.jsonl", rows(3, 2))]}
    training = {"loss": "next_token", "max_tokens": 250}
    config = write_config(tmp_path, base, data, training=training, prompt={"template": "text"})
    works("train", config, "--run", tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.manifest()["dropped"]["too_long"]["train"] == []
    works("evaluate", run.path)
    name, of_texts = (DatasetName.parse(file) for file in train)
    found = read_features(run.features(name.folder, name.file))
    assert sorted(found.question_ids) == ["s1-0", "s1-1", "s1-3"]
    assert found.hidden.shape[0] == len(found.prompt_nll) == 3
    assert found.metadata["questions"] == {"available": 4, "taken": 4, "too_long": ["s1-2"]}
    assert not run.features(of_texts.folder, of_texts.file).exists()


def test_sets_named_by_hand_need_no_features(plain: tuple[RunFolder, dict[str, Path]], tmp_path: Path) -> None:
    before = set(files_of(plain[0].path / "features"))
    more = write_rows(tmp_path / "more.jsonl", rows(2, 77))
    works("evaluate", plain[0].path, "--dataset", more, "--epoch", "0")
    assert set(files_of(plain[0].path / "features")) == before


def test_a_model_that_names_no_output_layer_has_no_features(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = experiment_of(tmp_path, base, "text")
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda _: None)
    done = ripieno("evaluate", run.path)
    assert done.code == 0
    assert "names no output layer, so no features of prompts are kept" in done.err
    assert not (run.path / "features").exists()


# ---- unconditional scores -------------------------------------------------------------------------------------------


def test_unconditional_scores_are_added_on_demand(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, files = experiment_of(tmp_path, base, "text")
    works("evaluate", run.path)
    before = {epoch: answers(run, files["test"], epoch) for epoch in (0, 1)}
    assert before[0].unconditional is before[1].unconditional is None
    works("evaluate", run.path, "--unconditional")
    questions = read_questions(files["test"])
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    for epoch in (0, 1):
        p = answers(run, files["test"], epoch)
        assert np.array_equal(p.log_probs, before[epoch].log_probs)
        assert p.metadata["inputs"] == before[epoch].metadata["inputs"]
        assert p.unconditional is not None
        assert p.unconditional.shape == p.log_probs.shape
        for n, tree in enumerate(Encoder(byte_level_tokenizer(), Prompt(template="text")).bare(questions)):
            for k, branch in enumerate(tree.branches):
                score = score_of(model, tree, branch)
                if epoch == 0:
                    assert p.unconditional[0, n, k] == pytest.approx(score, abs=1e-5 + 2e-7 * abs(score))
                else:
                    assert (p.unconditional[:, n, k] != score).all()
    # Asked without them afterwards, the files with them serve.
    monkeypatch.setattr(Engine, "scan", lambda *_: pytest.fail("a question was asked again"))
    works("evaluate", run.path)
    works("evaluate", run.path, "--unconditional")
    assert answers(run, files["test"], 1).unconditional is not None


def test_letters_have_no_unconditional_score(base: Path, tmp_path: Path) -> None:
    run, _ = experiment_of(tmp_path, base, "letters")
    done = ripieno("evaluate", run.path, "--unconditional")
    assert done.code == 2
    assert "evaluation.unconditional needs a text template" in done.err


# ---- fewer choices --------------------------------------------------------------------------------------------------


def test_each_foreign_set_is_compared_with_as_many_choices_as_the_two_of_them_have() -> None:
    """Five choices at home, four and three elsewhere: home is asked again with four and with three, the others not."""

    def questions(size: int) -> list[Question]:
        return [Question(f"q{size}", "which?", tuple("abcde"[:size]), 0)]

    names = {size: f"mmlu:{part}/test" for size, part in ((5, "anatomy"), (4, "astronomy"), (3, "virology"))}
    data = {"train": ["arc:easy/train"], "test": [names[5]], "out_of_domain": [names[4], names[3]]}
    sets = {DatasetName.parse(name): questions(size) for size, name in names.items()}

    def asked(template: str) -> set[tuple[str, int]]:
        config = parse({"name": "x", "data": data, "prompt": {"template": template}})
        return {(name.written, choices) for name, choices in evaluation.matched_choices(config, sets)}

    assert asked("letters") == {(names[5], 4), (names[5], 3)}
    assert asked("text") == set()  # a choice's score does not depend on the others: columns are dropped


def test_sets_of_different_sizes_are_asked_again_with_the_fewest(
    listed: tuple[RunFolder, dict[str, Path]], base: Path
) -> None:
    """Where choices are listed; of the base and the last epoch alone, and of the sets that have more."""
    run, files = listed
    folder = DatasetName.parse(str(files["test"])).folder
    again = [name for name in predictions_of(run) if ".k" in name]
    assert again == [f"{folder}/all/base-epoch-000.k3.parquet", f"{folder}/all/ensemble-epoch-001.k3.parquet"]
    questions = [drop_choices(question, 3, SEED) for question in read_questions(files["test"])]
    trees, _ = Encoder(byte_level_tokenizer(), run.config().prompt).trees(questions, None, "error")
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    for epoch in (0, 1):
        p = answers(run, files["test"], epoch, 3)
        assert p.choices_kept == 3
        assert p.metadata["choices_left_out"] == {"fewer_choices": 0, "no_answer": 0}
        assert p.question_ids == tuple(question.id for question in questions)
        assert p.targets.tolist() == [question.answer for question in questions]
        assert p.mask.shape == (7, 3)
        assert (p.dataset, p.split, p.epoch) == (folder, "all", epoch)
        assert answers(run, files["test"], epoch).choices_kept is None
    for n, tree in enumerate(trees):
        truth = torch.tensor([score_of(model, tree, branch) for branch in tree.branches]).softmax(-1).numpy()
        np.testing.assert_allclose(answers(run, files["test"], 0, 3).probs[0, n], truth, atol=1e-4)
    # Where the others stand in the prompt, dropping columns is not the same as asking again.
    dropped = match_choices(answers(run, files["test"], 0), 3, SEED)
    assert np.abs(dropped.probs - answers(run, files["test"], 0, 3).probs).max() > 1e-3


def test_where_no_choice_is_listed_dropping_columns_does_the_same(plain: tuple[RunFolder, dict[str, Path]]) -> None:
    run, files = plain
    assert not [name for name in predictions_of(run) if ".k" in name]
    works("evaluate", run.path, "--dataset", files["test"], "--choices", "3")
    for epoch in (0, 1):
        dropped, asked = (
            match_choices(answers(run, files["test"], epoch), 3, SEED),
            answers(run, files["test"], epoch, 3),
        )
        assert dropped.question_ids == asked.question_ids
        assert np.array_equal(dropped.targets, asked.targets)
        # Two groupings of the same float32 sums, and the table's own float32.
        np.testing.assert_allclose(dropped.probs, asked.probs, atol=2e-5)


def test_choices_are_asked_of_what_is_named(base: Path, tmp_path: Path) -> None:
    """Questions with too few choices or none to keep are left out and counted; the rest is done once."""
    run, files = experiment_of(tmp_path, base, "letters", ((5, 2, 4), (3, 4)))
    content = [json.loads(line) for line in files["test"].read_text().splitlines()]
    some = write_rows(
        tmp_path / "some.jsonl", [{**row, "answer": None} if n < 3 else row for n, row in enumerate(content)]
    )
    said = works("evaluate", run.path, "--choices", "4", "--dataset", some, "--epoch", "last")
    assert said.startswith("1 files of predictions")
    [name] = predictions_of(run)
    assert name.endswith("/all/ensemble-epoch-001.k4.parquet")
    p = answers(run, Path(some), 1, 4)
    assert p.question_ids == tuple(f"s1-{n}" for n in (2, 3, 5, 6))
    assert p.metadata["choices_left_out"] == {"fewer_choices": 2, "no_answer": 1}
    assert p.targets[0] == -1  # of 4 choices, so that none has to go
    before = files_of(run.path)
    works("evaluate", run.path, "--choices", "4", "--dataset", some, "--epoch", "last")
    assert files_of(run.path) == before
    # Without names: the test and out-of-domain sets at every epoch, and no features.
    works("evaluate", run.path, "--choices", "4")
    assert len(predictions_of(run)) == 1 + 2 * 2
    assert not (run.path / "features").exists()
    done = ripieno("evaluate", run.path, "--choices", "6")
    assert done.code == 2
    assert f"--choices 6: no question of {files['test']} has so many choices" in done.err


@pytest.mark.parametrize(
    ("template", "sizes", "asked"),
    [
        ("text-listed", ((4,), (4,)), 0),
        ("paper", ((4, 5),), 0),
        ("letters", ((4, 5), (5,)), 4),
        ("text", ((4,), (5,)), 0),
    ],
    ids=["all the same", "one set", "mixed", "not listed"],
)
def test_nothing_is_asked_again_where_it_would_show_nothing(
    template: str, sizes: Sequence[Sequence[int]], asked: int, base: Path, tmp_path: Path
) -> None:
    run, _ = experiment_of(tmp_path, base, template, sizes)
    works("evaluate", run.path)
    assert len([name for name in predictions_of(run) if name.endswith(".k4.parquet")]) == asked
    assert not [name for name in predictions_of(run) if ".k" in name and ".k4" not in name]


def test_the_bar_is_as_long_as_the_work(base: Path, tmp_path: Path) -> None:
    run, files = experiment_of(tmp_path, base, "text-listed")
    for choices in (None, 3):
        units: list[int] = []
        progress = Progress(quiet=True)
        progress.advance = units.append  # type: ignore[method-assign]
        evaluation.evaluate(run, choices=choices, progress=progress)
        assert sum(units) == progress.bar.total
        if choices is None:  # as the demo knows from the data alone
            assert sum(units) == experiment.units_of_evaluation(run.config(), experiment.assign_roles(run.config()))
    assert len(match_questions(read_questions(files["test"]), 3, SEED).questions) == 7
