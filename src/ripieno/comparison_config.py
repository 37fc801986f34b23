"""The config of `ripieno compare`: one experiment, the ways it is trained, and the rows of the table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ripieno import config as configs
from ripieno.config import Config, Experiment, PositiveInt, Section, explain
from ripieno.errors import UserError


class MethodRow(Section):
    """A row of the table: a method on members that were trained in one way, or in the best of several ways."""

    name: str
    """What the table calls it."""
    method: str
    """A file of `methods/`, such as ensemble or laplace."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the method, such as {factors: diagonal}."""
    training: Annotated[tuple[str, ...], Field(min_length=1)] = ("plain",)
    """Names of `trainings`. Of several, validation chooses: each is a trial, and every row has as many."""
    tune: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Settings of the method to values of which validation chooses: each combination is a trial."""
    pooling: Literal["prob", "logit"] = "prob"
    """The mean of probabilities, or the normalised geometric mean of them."""
    tuned: Literal["pooled", "member"] = "pooled"
    """Epoch and temperature by the NLL of the pooled answer, or each member's by its own (arXiv:2511.04160)."""
    epoch: Literal["validation", "last"] = "validation"
    """After which it answers: the one that validation chooses, or the last, with no early stopping."""
    draws: PositiveInt | None = None
    """Answers of a method that can give any number: `training.members` by default, more of one whose draws are free."""

    @property
    def slug(self) -> str:
        """The name in file names."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def trials(self) -> list[tuple[str, dict[str, Any]]]:
        """What validation chooses among: a training, and settings of the method."""
        combined: list[dict[str, Any]] = [dict(self.settings)]
        for key, values in self.tune.items():
            combined = [{**settings, key: value} for settings in combined for value in values]
        return [(training, settings) for training in self.training for settings in combined]


class Comparison(Experiment):
    """Ways to be uncertain about one adapter, side by side: the keys of an experiment, and what is compared.

    `training.members` is the size of one ensemble, and what other methods draw where a draw has to be asked for.
    """

    seeds: PositiveInt = 5
    """How often everything is trained again, from other seeds; fewer than 5 are called descriptive."""
    reference: str = "single"
    """Name of the row that the others are measured against."""
    trainings: dict[str, dict[str, Any]] = {"plain": {}}  # noqa: RUF012 (pydantic copies it)
    """By name, which keys each way of training changes, such as {dropout: {adapter.dropout: 0.1}}."""
    rows: Annotated[tuple[MethodRow, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for role in ("validation", "calibration", "test"):
            if not getattr(self.data, role):
                raise ValueError(f"data.{role}: a comparison chooses, fits temperatures and tests; name a set")
        names, slugs = [row.name for row in self.rows], [row.slug for row in self.rows]
        for name, slug in zip(names, slugs, strict=True):
            if not slug:
                raise ValueError(f"rows: {name!r} has neither letter nor digit to name its files by; rename it")
            if slugs.count(slug) > 1:
                raise ValueError(f"rows: two are named {name!r} in file names; rename one")
        if self.reference not in names:
            raise ValueError(f"reference: {self.reference!r} is no row; there are {', '.join(names)}")
        for row in self.rows:
            for training in row.training:
                if training not in self.trainings:
                    known = ", ".join(self.trainings)
                    raise ValueError(f"rows: {row.name!r} takes training {training!r}; there are {known}")
        trials = {len(row.trials): row.name for row in self.rows}
        if len(trials) > 1:
            listed = ", ".join(f"{name!r} {count}" for count, name in trials.items())
            raise ValueError(f"rows: every row must be chosen among equally many trials; their numbers are {listed}")
        for name, changes in self.trainings.items():
            for key in changes:
                section, _, inside = key.partition(".")
                if section not in ("adapter", "training") or not inside:
                    raise ValueError(f"trainings.{name}: {key} cannot change; adapter.KEY and training.KEY can")
                if inside in ("members", "seed"):
                    raise ValueError(f"trainings.{name}: {key} is the same for all; set it once, outside of trainings")
        return self

    @property
    def trials(self) -> int:
        """How many trials each row is chosen among."""
        return len(self.rows[0].trials)

    def experiment(self, training: str, members: int) -> Config:
        """Return the config of one way of training, of so many members in all.

        Raises:
            UserError: a changed key is unknown, or its value out of range.
        """
        sections = ("base", "adapter", "prompt", "data", "training", "evaluation", "compute")
        content: dict[str, Any] = {
            "name": training,
            **{key: getattr(self, key).model_dump(mode="json") for key in sections},
        }
        for key, value in self.trainings[training].items():
            try:
                configs.put(content, key, value)
            except ValueError as error:
                raise UserError(f"trainings.{training}: {key}: {error}") from None
        content["training"]["members"] = members
        return configs.parse(content, f"trainings.{training}")


def load(path: Path, settings: Sequence[str] = ()) -> Comparison:
    """Read the config of a comparison from YAML, with `key=value` settings applied on top.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown or a value out of range.
    """
    content = configs.read(path, settings)
    if "rows" not in content:
        raise UserError(f"{path}: has no rows, so there is nothing to compare; see configs/compare-demo.yaml")
    try:
        comparison = Comparison.model_validate(content)
        for training in comparison.trainings:  # a slip in one of them is said before another is trained
            comparison.experiment(training, comparison.training.members)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Comparison)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return comparison
