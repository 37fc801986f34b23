"""A folder of ways to be uncertain about one adapter, set side by side: what each answered, and what it cost.

    FOLDER/rows.json                      `Index`: the rows of the table, data sets by role, how many replicates
    FOLDER/predictions/SLUG/*.parquet     a row's answers (`parquet`): one file a data set, all replicates in it
    FOLDER/features/**/*.parquet          what the base alone makes of each set's prompts (`features`), or nothing

A row's answers to a set that were asked again with fewer choices (`Predictions.choices_kept`) lie beside them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ripieno.errors import EnvironmentFault, UserError
from ripieno.features import Features, read_features
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.runs import RunFolder

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)]


class _Content(BaseModel):
    """Frozen; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)


class MethodRow(_Content):
    """One row of the table: a way to be uncertain, what was chosen for it, and what it cost."""

    name: str
    """What the table calls it."""
    slug: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """Its folder of predictions."""
    method: str
    """How its weight samples were made."""
    pooling: Literal["prob", "logit"] = "prob"
    """The mean of probabilities, or the normalised geometric mean of them."""
    tuned: Literal["pooled", "member"] = "pooled"
    """Whether one temperature is fitted to the pooled NLL, or each member's own to its own NLL."""
    answers: Count
    """How many answers a question gets, in each replicate."""
    training_tokens: Count
    evaluation_tokens: Count
    stored_bytes: Count
    chosen: tuple[str, ...] = ()
    """What was chosen for it on other questions, a text a replicate ("epoch 2")."""
    refused: str | None = None
    """Why the row could not be had; it then has no predictions."""


class Index(_Content):
    """What rows.json holds. Data sets are named as predictions name themselves (`Predictions.name`)."""

    schema_version: Literal[1] = Field(1, alias="schema")
    replicates: Annotated[int, Field(ge=1)]
    """R: how often everything was trained again, from other seeds."""
    members: Annotated[int, Field(ge=1)]
    """M: of an ensemble. Mutual information, which grows with the number of answers, is measured among so many."""
    reference: str
    """Name or slug of the row that every other one is compared with."""
    calibration: tuple[str, ...] = ()
    test: Annotated[tuple[str, ...], Field(min_length=1)]
    out_of_domain: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    """What the base makes of their prompts is what is familiar."""
    shared_calibration: bool = False
    """Whether the calibration questions also chose the rows' settings."""
    rows: Annotated[tuple[MethodRow, ...], Field(min_length=1)]

    @property
    def answered(self) -> tuple[MethodRow, ...]:
        """The rows that were not refused."""
        return tuple(row for row in self.rows if row.refused is None)

    def to_json(self) -> str:
        """Return the content of rows.json."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


@dataclass(frozen=True)
class Answers:
    """What one row answered in R replicates.

    Args:
        sets: by name of the data set, one `Predictions` a replicate, all of the same questions in the same order.
        matched: by name and number of choices, the same sets asked again with fewer.
    """

    sets: Mapping[str, tuple[Predictions, ...]]
    matched: Mapping[tuple[str, int], tuple[Predictions, ...]]


@dataclass(frozen=True)
class Compared:
    """A whole folder.

    Args:
        index: what rows.json holds.
        answers: by slug, of every row that was not refused.
        features: by data set, what the base alone makes of its prompts; of as many sets as there are any of.
    """

    index: Index
    answers: Mapping[str, Answers]
    features: Mapping[str, Features] = field(default_factory=dict)


def predictions_file(folder: Path, slug: str, name: str, choices: int | None = None) -> Path:
    """File of a row's answers to a data set (`Predictions.name`), all replicates, asked with fewer choices or not."""
    matched = "" if choices is None else f".k{choices}"
    return folder / "predictions" / slug / f"{re.sub('[:+]', '-', name.replace('/', '-'))}{matched}.parquet"


def read(folder: Path) -> Compared:
    """Read a folder, and put every row's questions in one order.

    Raises:
        UserError: rows.json is missing or says what does not go together, a row lacks a data set or a replicate, two
            rows answered different questions, or a file of features holds something else.
        EnvironmentFault: a file cannot be read.
    """
    index, kept = read_index(folder), RunFolder(folder)
    features = sorted(folder.glob("features/**/*.parquet"))
    for file in (folder / "rows.json", *sorted(folder.glob("predictions/**/*.parquet")), *features):
        kept.holds(file)  # a released folder may come without sums; a file that has one has to be what it is of
    asked: dict[tuple[str, int | None], Predictions] = {}
    answers = {row.slug: _answers(folder, index, row, asked) for row in index.answered}
    return Compared(index, answers, {of.name: of for of in map(read_features, features)})


def read_index(folder: Path) -> Index:
    """Read rows.json.

    Raises:
        UserError: it is missing, or says what does not go together.
    """
    path = folder / "rows.json"
    try:
        index = Index.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder}: no comparison (no rows.json); `ripieno compare CONFIG.yaml` makes one") from None
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["loc"] == ("schema",) and isinstance(first["input"], int) and first["input"] > 1:
            raise UserError(
                f"{path}: written by a newer version of ripieno (schema {first['input']}; this one reads 1); "
                "upgrade ripieno"
            ) from None
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None
    for what, values in (("name", [r.name for r in index.rows]), ("slug", [r.slug for r in index.rows])):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise UserError(f"{path}: two rows have the {what} {twice[0]!r}; rename one")
    names = (*index.test, *index.out_of_domain)
    if len(set(names)) < len(names):
        raise UserError(f"{path}: `test` and `out_of_domain` name a data set twice; name it once")
    if index.reference not in {text for row in index.rows for text in (row.name, row.slug)}:
        raise UserError(f"{path}: `reference` is {index.reference!r}, which is no row's name; name one")
    if not index.answered:
        raise UserError(f"{path}: every row was refused, the first because: {index.rows[0].refused}")
    return index


def _answers(folder: Path, index: Index, row: MethodRow, asked: dict[tuple[str, int | None], Predictions]) -> Answers:
    """Read one row's files; `asked` holds the first row's answers to each set, whose order all others take."""
    own = folder / "predictions" / row.slug
    found: dict[tuple[str, int | None], dict[int, Predictions]] = {}
    for file in sorted(own.glob("*.parquet")):
        for p in read_parquet(file):
            by_replicate = found.setdefault((p.name, p.choices_kept), {})
            if p.replicate in by_replicate:
                raise UserError(f"{file}: {p.name}, replicate {p.replicate} is in another file or epoch too; keep one")
            by_replicate[p.replicate] = _in_order(file, p, asked.setdefault((p.name, p.choices_kept), p))
            if len(p.members) != row.answers:
                raise UserError(
                    f"{file}: replicate {p.replicate} has {len(p.members)} answers a question, but rows.json says "
                    f"{row.answers} of {row.name!r}; mend `answers`, or ask again"
                )
    for name in dict.fromkeys((*index.calibration, *index.test, *index.out_of_domain)):
        if (name, None) not in found:
            known = ", ".join(sorted(name for name, kept in found if kept is None)) or "nothing"
            raise UserError(f"{own}: no predictions of {name}; there are those of {known}; add them, or mend rows.json")
    wanted = list(range(index.replicates))
    for (name, _), by_replicate in found.items():
        if sorted(by_replicate) != wanted:
            raise UserError(
                f"{own}: {name} has the replicates {sorted(by_replicate)}, but rows.json says 0 to {wanted[-1]}; "
                "add the others, or mend `replicates`"
            )
    replicates = {key: tuple(of[r] for r in wanted) for key, of in found.items()}
    return Answers(
        {name: of for (name, kept), of in replicates.items() if kept is None},
        {(name, kept): of for (name, kept), of in replicates.items() if kept is not None},
    )


def _in_order(file: Path, p: Predictions, first: Predictions) -> Predictions:
    """Return the predictions in the order of the questions of the first, which must be the same questions."""
    if p.question_ids != first.question_ids:
        place = {question: n for n, question in enumerate(p.question_ids)}
        if len(place) != len(first.question_ids) or not all(question in place for question in first.question_ids):
            raise UserError(f"{file}: not the questions of {p.name} that the others answered; ask all rows the same")
        p = p.select(np.array([place[question] for question in first.question_ids], dtype=np.int64))
    if not (np.array_equal(p.mask, first.mask) and np.array_equal(p.targets, first.targets)):
        raise UserError(
            f"{file}: a question of {p.name} has other choices or another target than in the other rows; "
            "ask all rows the same"
        )
    return p
