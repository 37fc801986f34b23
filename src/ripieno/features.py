"""The table of features: what the base alone computes on each question's prompt, before any choice.

Trivial baselines of out-of-distribution detection are made of these: the prompt's length, its perplexity, and the
distance of its last hidden state from those of the training questions.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripieno.errors import UserError
from ripieno.untrusted import arrow, parquet, read_header

SCHEMA_VERSION = 1

COLUMNS = ("question_id", "dataset", "split", "prompt_tokens", "prompt_nll", "hidden")


@dataclass(frozen=True)
class Features:
    """What the base alone computes on the prompts of N questions.

    Args:
        dataset, split: whose questions these are.
        question_ids: N ids.
        prompt_tokens: int64 [N], tokens of the prompt that all choices share, solved examples included.
        prompt_nll: float64 [N], mean negative log-likelihood of the prompt's tokens but the first, in nats a token;
            the perplexity is its exp. 0 for a prompt of one token, of which nothing is predicted.
        hidden: float32 [N, D], what the base's output layer reads at the prompt's last token, where the answer begins.
        metadata: what the file says of itself (base, inputs, template, how many questions were taken of how many).
    """

    dataset: str
    split: str
    question_ids: tuple[str, ...]
    prompt_tokens: NDArray[np.int64]
    prompt_nll: NDArray[np.float64]
    hidden: NDArray[np.float32]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`DATASET/SPLIT`, as configs name it."""
        return f"{self.dataset}/{self.split}" if self.split else self.dataset


def to_parquet(features: Features) -> bytes:
    """Return the parquet file of one `Features`, the same bytes for the same content."""
    N, D = features.hidden.shape
    columns = {
        "question_id": pa.array(features.question_ids, pa.string()),
        "dataset": pa.array([features.dataset] * N, pa.string()),
        "split": pa.array([features.split] * N, pa.string()),
        "prompt_tokens": pa.array(features.prompt_tokens, pa.int32()),
        "prompt_nll": pa.array(features.prompt_nll, pa.float64()),
        "hidden": pa.FixedSizeListArray.from_arrays(pa.array(features.hidden.ravel(), pa.float32()), D),
    }
    header = {"schema": SCHEMA_VERSION, **features.metadata}
    metadata = {b"ripieno": json.dumps(header, sort_keys=True, ensure_ascii=False).encode()}
    buffer = io.BytesIO()
    # Hidden states never repeat: a dictionary of their values would only make the file larger.
    texts = ["question_id", "dataset", "split"]
    table = pa.table({name: columns[name] for name in COLUMNS}).replace_schema_metadata(metadata)
    pq.write_table(table, buffer, compression="zstd", use_dictionary=texts)
    return buffer.getvalue()


def read_features(path: Path) -> Features:
    """Read a parquet file of one data set's features.

    Raises:
        UserError: it holds something else than one data set's features (finite numbers), or a newer version of them.
        EnvironmentFault: the file cannot be read as parquet.
    """
    with parquet(path) as file:
        table = file.read()
        table.validate(full=True)  # texts that are no UTF-8 among the rest
    counts = {name: table.column_names.count(name) for name in COLUMNS}
    for name, count in counts.items():
        if count != 1:
            what = "stands twice" if count else "is missing"
            raise UserError(f"{path}: column {name!r} {what}; features have {', '.join(COLUMNS)}")
    header = read_header(path, table.schema, SCHEMA_VERSION)
    holed = next((name for name in COLUMNS if table[name].null_count), None)
    if holed:
        raise UserError(f"{path}: column {holed!r} has empty cells; `ripieno evaluate` makes the file again")
    sets = set(zip(table["dataset"].to_pylist(), table["split"].to_pylist(), strict=True))
    if len(sets) != 1:
        raise UserError(f"{path}: holds the features of {len(sets)} data sets; give a file with those of one")
    kind = table.schema.field("hidden").type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise UserError(
            f"{path}: column 'hidden' holds {kind}, not lists of numbers; `ripieno evaluate` makes the file again"
        )
    if len(pc.unique(pc.list_value_length(table["hidden"]))) > 1:
        raise UserError(
            f"{path}: column 'hidden' has lists of different lengths; `ripieno evaluate` makes the file again"
        )
    with arrow(path, "a table of features", UserError):
        values = table["hidden"].combine_chunks().flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        hidden = values.reshape(table.num_rows, -1)
        tokens = table["prompt_tokens"].cast(pa.int64()).to_numpy()
        nll = table["prompt_nll"].cast(pa.float64()).to_numpy()
    for name, numbers in (("prompt_nll", nll), ("hidden", hidden)):
        if not np.isfinite(numbers).all():
            raise UserError(
                f"{path}: column {name!r} holds numbers that are not finite; `ripieno evaluate` makes the file again"
            )
    [(dataset, split)] = sets
    return Features(
        dataset=dataset,
        split=split,
        question_ids=tuple(table["question_id"].to_pylist()),
        prompt_tokens=tokens,
        prompt_nll=nll,
        hidden=hidden,
        metadata={key: value for key, value in header.items() if key != "schema"},
    )
