"""The table of features: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ripieno.errors import EnvironmentFault, UserError
from ripieno.features import Features, read_features, to_parquet


def features(seed: int = 0, questions: int = 5, width: int = 3, **fields: Any) -> Features:
    rng = np.random.default_rng(seed)
    made = Features(
        dataset="mmlu:stem",
        split="test[0%:20%]",
        question_ids=tuple(f"q{n}" for n in range(questions)),
        prompt_tokens=rng.integers(1, 99, size=questions),
        prompt_nll=rng.exponential(size=questions),
        hidden=rng.normal(size=(questions, width)).astype(np.float32),
        metadata={"base": {"model": "tiny", "sha256": "ab"}, "inputs": "cd"},
    )
    return dataclasses.replace(made, **fields)


def write(path: Path, made: Features) -> Path:
    path.write_bytes(to_parquet(made))
    return path


@pytest.mark.parametrize(("questions", "width"), [(5, 3), (1, 1), (3, 640)])
def test_a_file_gives_the_same_back(tmp_path: Path, questions: int, width: int) -> None:
    made = features(1, questions, width)
    found = read_features(write(tmp_path / "f.parquet", made))
    assert found.name == "mmlu:stem/test[0%:20%]"
    assert (found.question_ids, found.metadata) == (made.question_ids, made.metadata)
    for name, kind in (("prompt_tokens", np.int64), ("prompt_nll", np.float64), ("hidden", np.float32)):
        assert getattr(found, name).dtype == kind
        assert np.array_equal(getattr(found, name), getattr(made, name)), name


def test_the_same_content_gives_the_same_bytes() -> None:
    made = features()
    assert to_parquet(made) == to_parquet(features(metadata=dict(reversed(made.metadata.items()))))
    assert to_parquet(made) != to_parquet(features(1))


def test_lists_of_other_widths_of_numbers_are_read(tmp_path: Path) -> None:
    """As another program writes the same table again."""
    made = features()
    table = pq.read_table(write(tmp_path / "f.parquet", made))
    hidden = pa.array(made.hidden.astype(np.float64).tolist(), pa.list_(pa.float64()))
    table = table.set_column(table.column_names.index("hidden"), "hidden", hidden)
    pq.write_table(table, tmp_path / "theirs.parquet", row_group_size=2)
    assert np.array_equal(read_features(tmp_path / "theirs.parquet").hidden, made.hidden)


def uneven(table: pa.Table) -> pa.Table:
    hidden = pa.array([[0.0], [0.0, 1.0], [], [1.0], [2.0]], pa.list_(pa.float32()))
    return table.set_column(5, "hidden", hidden)


WRONG: dict[str, tuple[Any, str]] = {
    "a column is missing": (lambda t: t.drop_columns(["prompt_nll"]), "column 'prompt_nll' is missing; features have"),
    "no lists": (lambda t: t.set_column(5, "hidden", t["prompt_nll"]), "column 'hidden' holds double, not lists"),
    "lists of texts": (
        lambda t: t.set_column(5, "hidden", pa.array([["x"]] * 5)),
        "not a table of features",
    ),
    "uneven lists": (uneven, "column 'hidden' has lists of different lengths"),
    "an empty cell": (
        lambda t: t.set_column(4, "prompt_nll", pa.array([None, 1.0, 1.0, 1.0, 1.0])),
        "column 'prompt_nll' has empty cells",
    ),
    "no number": (
        lambda t: t.set_column(5, "hidden", pa.array([[0.0, None, 0.0]] * 5, pa.list_(pa.float32()))),
        "column 'hidden' holds numbers that are not finite",
    ),
    "two sets": (
        lambda t: t.set_column(1, "dataset", pa.array(["a", "b", "a", "a", "a"])),
        "holds the features of 2 data sets",
    ),
    "no rows": (lambda t: t.slice(0, 0), "holds the features of 0 data sets"),
    "newer": (
        lambda t: t.replace_schema_metadata({b"ripieno": b'{"schema": 2}'}),
        r"written by a newer version of ripieno \(schema 2\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    path = write(tmp_path / "f.parquet", features())
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(UserError, match=f"f.parquet: {message}"):
        read_features(path)


def test_a_damaged_file_is_the_environments_fault(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    path.write_bytes(to_parquet(features())[:-10])
    with pytest.raises(EnvironmentFault, match=r"f.parquet: not a readable parquet file"):
        read_features(path)
