"""The table of tokens: what an ensemble says of every token of running text, one parquet row a token.

    text_id string · position int32 (0 is the text's first token) · token_id int32
    token string, start int32, end int32       the token's characters, text[start:end]
    log_prob float32                           ln p of the token by the ensemble: the mean of its members' probabilities
    entropy, expected_entropy, mutual_information float32      nats, over the whole vocabulary
    confidence float32 · correct bool          of the likeliest token: its probability, and whether it is the token
    member_log_probs list<float32>             ln p of the token by each member
    answer bool (null)                         solved questions: whether the token belongs to the right answer

All from `log_prob` to `member_log_probs` is null where nothing stands before a token to predict it from. The `token`s
of a text, joined, are the text: a character that several tokens spell belongs to the last of them, white space that a
tokenizer passes over to the next. The file's metadata (`ripieno`, JSON) names schema, method, epoch, members, base and
config hash; of a user's text, the file with its sha256 and how many tokens were read at once (`window`).
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripieno.errors import UserError
from ripieno.untrusted import arrow, parquet, read_header

SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        ("text_id", pa.string()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("log_prob", pa.float32()),
        ("entropy", pa.float32()),
        ("expected_entropy", pa.float32()),
        ("mutual_information", pa.float32()),
        ("confidence", pa.float32()),
        ("correct", pa.bool_()),
        ("member_log_probs", pa.list_(pa.float32())),
        ("answer", pa.bool_()),
    ]
)
HEADER = ("schema", "method", "epoch", "members", "dataset", "split")  # of the metadata: what `Tokens` holds itself
ALWAYS = ("text_id", "position", "token_id", "token", "start", "end")  # known of every token


@dataclass(frozen=True)
class Tokens:
    """What M members say of T tokens, text after text.

    Args:
        text_ids: T ids; the rows of a text stand together, in order.
        positions: int [T], the token's number in its text.
        token_ids: int [T].
        tokens: T texts, of the characters `starts` to `ends` (int [T]) of the token's text.
        starts, ends: see there.
        predicted: bool [T], whether anything stands before the token; where not, the numbers below are 0.
        log_probs: float64 [T], ln p of the token by the ensemble.
        entropy: float64 [T], nats: of the ensemble's prediction, over the whole vocabulary.
        expected_entropy: float64 [T], nats: the mean of the members' own entropies.
        confidence: float64 [T], probability of the likeliest token.
        correct: bool [T], whether the likeliest token is the token.
        member_log_probs: float64 [M, T].
        members: M numbers of members.
        answer: bool [T], solved questions: which tokens are the right answer's; None for other text.
        method, epoch, dataset, split: whose, and of what.
        metadata: what else the file says of itself.
    """

    text_ids: tuple[str, ...]
    positions: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    tokens: tuple[str, ...]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    predicted: NDArray[np.bool_]
    log_probs: NDArray[np.float64]
    entropy: NDArray[np.float64]
    expected_entropy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    member_log_probs: NDArray[np.float64]
    members: tuple[int, ...]
    answer: NDArray[np.bool_] | None = None
    method: str = "ensemble"
    epoch: int = 0
    dataset: str = ""
    split: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def mutual_information(self) -> NDArray[np.float64]:
        """Float64 [T], nats: how much the members disagree (Jensen: never negative, but for rounding)."""
        return np.maximum(self.entropy - self.expected_entropy, 0.0)

    def texts(self) -> dict[str, slice]:
        """Return each text's id with its rows, in the table's order."""
        ids = self.text_ids
        starts = [n for n in range(len(ids)) if n == 0 or ids[n] != ids[n - 1]]
        return {ids[a]: slice(a, b) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)}


@dataclass(frozen=True)
class Summary:
    """A few numbers about some tokens of a table, means over those that were predicted.

    Args:
        tokens: how many were predicted.
        members: M.
        nll: nats a token.
        perplexity: exp(nll).
        entropy, expected_entropy, mutual_information: nats a token.
        accuracy: share of tokens that were the likeliest one.
    """

    tokens: int
    members: int
    nll: float
    perplexity: float
    entropy: float
    expected_entropy: float
    mutual_information: float
    accuracy: float


def summarise(tokens: Tokens, rows: NDArray[np.bool_] | slice = slice(None)) -> Summary:
    """Return the mean of each measure over the predicted tokens among some rows.

        NLL = -(1/T) sum_t ln (1/M) sum_m p_m(x_t | x_<t),   perplexity = exp NLL

    Jelinek et al. 1977 (perplexity); the loss of the paper's "next token" evaluation (arXiv:2402.12264).

    Args:
        tokens: a table.
        rows: bool [T] or a slice; all by default.

    Raises:
        ValueError: none of them is predicted.
    """
    chosen = np.zeros(len(tokens.text_ids), dtype=bool)
    chosen[rows] = True
    chosen &= tokens.predicted
    if not chosen.any():
        raise ValueError("there is no predicted token to measure")
    nll = -float(tokens.log_probs[chosen].mean())
    return Summary(
        tokens=int(chosen.sum()),
        members=len(tokens.members),
        nll=nll,
        perplexity=math.exp(min(nll, 700.0)),  # beyond it exp overflows
        entropy=float(tokens.entropy[chosen].mean()),
        expected_entropy=float(tokens.expected_entropy[chosen].mean()),
        mutual_information=float(tokens.mutual_information[chosen].mean()),
        accuracy=float(tokens.correct[chosen].mean()),
    )


def to_parquet(tokens: Tokens) -> bytes:
    """Return the parquet file of a table, the same bytes for the same content."""
    t = tokens

    def numbers(name: str, values: Any) -> pa.Array:
        return pa.array(values, type=SCHEMA.field(name).type, mask=~t.predicted)

    rows = t.member_log_probs.T.tolist()
    columns = {
        "text_id": list(t.text_ids),
        "position": t.positions,
        "token_id": t.token_ids,
        "token": list(t.tokens),
        "start": t.starts,
        "end": t.ends,
        "log_prob": numbers("log_prob", t.log_probs),
        "entropy": numbers("entropy", t.entropy),
        "expected_entropy": numbers("expected_entropy", t.expected_entropy),
        "mutual_information": numbers("mutual_information", t.mutual_information),
        "confidence": numbers("confidence", t.confidence),
        "correct": numbers("correct", t.correct),
        "member_log_probs": [row if known else None for row, known in zip(rows, t.predicted, strict=True)],
        "answer": [None] * len(t.text_ids) if t.answer is None else t.answer,
    }
    header = {
        **t.metadata,
        "schema": SCHEMA_VERSION,
        "method": t.method,
        "epoch": t.epoch,
        "members": list(t.members),
        "dataset": t.dataset,
        "split": t.split,
    }
    metadata = {b"ripieno": json.dumps(header, sort_keys=True, ensure_ascii=False).encode()}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata(metadata)), buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(path: Path) -> Tokens:
    """Read a table of tokens that `to_parquet` wrote.

    Raises:
        UserError: it is a parquet file of something else, or of a newer ripieno.
        EnvironmentFault: the file cannot be read as parquet.
    """
    with parquet(path) as file:
        table = file.read()
    header = read_header(path, table.schema, SCHEMA_VERSION)
    absent = [name for name in SCHEMA.names if table.column_names.count(name) != 1]
    if absent or not _is_whole(header):
        raise UserError(
            f"{path}: not a table of tokens ({f'no column {absent[0]}' if absent else 'no metadata'}); take it out"
        )
    with arrow(path, "a table of tokens", UserError):
        table = table.select(SCHEMA.names).cast(SCHEMA)
        table.validate(full=True)  # texts that are no UTF-8 among the rest
    holed = next((name for name in ALWAYS if table[name].null_count), None)
    if holed:
        raise UserError(f"{path}: column {holed!r} has empty cells; `ripieno read` or `evaluate` makes the file again")
    predicted = np.array(table["log_prob"].is_valid().to_pylist(), dtype=bool)

    def floats(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].fill_null(0.0), dtype=np.float64)

    def whole(name: str) -> NDArray[np.int64]:
        return np.asarray(table[name], dtype=np.int64)

    M = len(header["members"])
    rows = [row or [0.0] * M for row in table["member_log_probs"].to_pylist()]
    if any(len(row) != M or None in row for row in rows):
        raise UserError(
            f"{path}: column 'member_log_probs' has not a number for each of the {M} members; "
            "`ripieno read` or `evaluate` makes the file again"
        )
    answer = table["answer"].to_pylist()
    return Tokens(
        text_ids=tuple(table["text_id"].to_pylist()),
        positions=whole("position"),
        token_ids=whole("token_id"),
        tokens=tuple(table["token"].to_pylist()),
        starts=whole("start"),
        ends=whole("end"),
        predicted=predicted,
        log_probs=floats("log_prob"),
        entropy=floats("entropy"),
        expected_entropy=floats("expected_entropy"),
        confidence=floats("confidence"),
        correct=np.array([bool(value) for value in table["correct"].to_pylist()], dtype=bool),
        member_log_probs=np.array(rows, dtype=np.float64).reshape(len(rows), M).T,
        members=tuple(header["members"]),
        answer=None if None in answer or not answer else np.array(answer, dtype=bool),
        method=header["method"],
        epoch=header["epoch"],
        dataset=header["dataset"],
        split=header["split"],
        metadata={name: value for name, value in header.items() if name not in HEADER},
    )


def _is_whole(header: dict[str, Any]) -> bool:
    """Whether a file says of itself what a table of tokens must."""
    members = header.get("members")
    texts = all(isinstance(header.get(name), str) for name in ("method", "dataset", "split"))
    numbers = isinstance(members, list) and all(type(n) is int for n in (header.get("epoch"), *members))
    return texts and numbers
