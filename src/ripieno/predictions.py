"""The table of predictions: its schema, and the arrays that the measures read.

One parquet row a member and question. In memory, one `Predictions` is one data set's split, as one method answered it
at one epoch: arrays `[member, question, choice]`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripieno.errors import EnvironmentFault, UserError

SCHEMA_VERSION = 1

SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("subject", pa.string()),
        ("epoch", pa.int32()),
        ("member", pa.int32()),
        ("replicate", pa.int32()),
        ("draw", pa.int32()),
        ("choice_log_probs", pa.list_(pa.float32())),
        ("choice_scores", pa.list_(pa.float32())),
        ("choice_tokens", pa.list_(pa.int32())),
        ("choice_bytes", pa.list_(pa.int32())),
        ("outside_mass", pa.float32()),
        ("letter_log_probs", pa.list_(pa.float32())),
        ("top_tokens", pa.list_(pa.int32())),
        ("top_log_probs", pa.list_(pa.float32())),
        ("target", pa.int32()),
    ]
)
REQUIRED = ("question_id", "member", "choice_log_probs", "target")


@dataclass(frozen=True)
class Predictions:
    """What M members answered to N questions of at most K choices.

    Args:
        log_probs: float64 [M, N, K], log p(choice), normalised over the question's own choices; -inf where absent.
        mask: bool [N, K], whether the question has the choice.
        question_ids: N ids.
        targets: int [N], index of the right choice; -1 where unknown.
        members: M numbers of members; a number that repeats is several samples (draws) from that member.
        dataset, split, method, epoch, replicate: which predictions these are.
        subjects: N subjects (None where there is none).
        scores: float64 [M, N, K], choice scores before any length normalisation, or None.
        tokens, bytes: int [N, K], the choices' lengths (text scoring), or None.
        outside_mass: float64 [M, N], letters only, or None.
        letter_log_probs: float64 [M, N, L], a fixed set of L letters, or None.
        top_tokens, top_log_probs: [M, N, T], the T likeliest tokens of the vocabulary at the answer, or None.
        metadata: what the file says of itself (method, config hash, base, prompt template, scoring rule).
    """

    log_probs: NDArray[np.float64]
    mask: NDArray[np.bool_]
    question_ids: tuple[str, ...]
    targets: NDArray[np.int64]
    members: tuple[int, ...]
    dataset: str = ""
    split: str = ""
    method: str = "ensemble"
    epoch: int = 0
    replicate: int = 0
    subjects: tuple[str | None, ...] = ()
    scores: NDArray[np.float64] | None = None
    tokens: NDArray[np.int64] | None = None
    bytes: NDArray[np.int64] | None = None
    outside_mass: NDArray[np.float64] | None = None
    letter_log_probs: NDArray[np.float64] | None = None
    top_tokens: NDArray[np.int64] | None = None
    top_log_probs: NDArray[np.float64] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def probs(self) -> NDArray[np.float64]:
        """Float64 [M, N, K]: p(choice), 0 where the choice is absent."""
        return np.exp(self.log_probs)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Bool [N]: whether the right choice is known."""
        return self.targets >= 0

    @property
    def name(self) -> str:
        """`DATASET/SPLIT`, as configs name it."""
        return f"{self.dataset}/{self.split}" if self.split else self.dataset

    def select(self, questions: NDArray[Any]) -> Predictions:
        """Return the same predictions of some questions: a bool [N] mask or an array of indices."""
        index = np.arange(len(self.question_ids))[questions]

        def of_members(array: Any) -> Any:
            return None if array is None else array[:, index]

        return replace(
            self,
            log_probs=self.log_probs[:, index],
            mask=self.mask[index],
            question_ids=tuple(self.question_ids[i] for i in index),
            targets=self.targets[index],
            subjects=tuple(self.subjects[i] for i in index) if self.subjects else (),
            scores=of_members(self.scores),
            tokens=None if self.tokens is None else self.tokens[index],
            bytes=None if self.bytes is None else self.bytes[index],
            outside_mass=of_members(self.outside_mass),
            letter_log_probs=of_members(self.letter_log_probs),
            top_tokens=of_members(self.top_tokens),
            top_log_probs=of_members(self.top_log_probs),
        )


def to_parquet(predictions: Predictions) -> bytes:
    """Return the parquet file of one `Predictions`, the same bytes for the same content."""
    p = predictions
    M, N, _ = p.log_probs.shape
    sizes = p.mask.sum(axis=1)

    def per_member_choices(array: NDArray[Any] | None) -> list[Any]:
        if array is None:
            return [None] * (M * N)
        return [array[m, n, : sizes[n]].tolist() for m in range(M) for n in range(N)]

    def per_choice(array: NDArray[Any] | None) -> list[Any]:
        if array is None:
            return [None] * (M * N)
        return [array[n, : sizes[n]].tolist() for n in range(N)] * M

    def per_member_row(array: NDArray[Any] | None) -> list[Any]:
        if array is None:
            return [None] * (M * N)
        return [row.tolist() for row in array.reshape(M * N, *array.shape[2:])]

    columns = {
        "question_id": list(p.question_ids) * M,
        "dataset": [p.dataset] * (M * N),
        "split": [p.split] * (M * N),
        "subject": (list(p.subjects) or [None] * N) * M,
        "epoch": [p.epoch] * (M * N),
        "member": [member for member in p.members for _ in range(N)],
        "replicate": [p.replicate] * (M * N),
        # Samples from one member stand under its number, told apart by their draw.
        "draw": [p.members[:m].count(member) for m, member in enumerate(p.members) for _ in range(N)],
        "choice_log_probs": per_member_choices(p.log_probs),
        "choice_scores": per_member_choices(p.scores),
        "choice_tokens": per_choice(p.tokens),
        "choice_bytes": per_choice(p.bytes),
        "outside_mass": per_member_row(p.outside_mass),
        "letter_log_probs": per_member_row(p.letter_log_probs),
        "top_tokens": per_member_row(p.top_tokens),
        "top_log_probs": per_member_row(p.top_log_probs),
        "target": [None if t < 0 else int(t) for t in p.targets] * M,
    }
    header = {"schema": SCHEMA_VERSION, "method": p.method, **p.metadata}
    metadata = {b"ripieno": json.dumps(header, sort_keys=True, ensure_ascii=False).encode()}
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(path: Path) -> list[Predictions]:
    """Read a parquet file of predictions: one `Predictions` a data set, split, epoch and replicate found in it.

    Raises:
        UserError: a column is missing, members saw different questions, or a row is not a distribution.
        EnvironmentFault: the file cannot be read as parquet.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise EnvironmentFault(f"{path}: not a readable parquet file ({error})") from error
    absent = [name for name in REQUIRED if name not in table.column_names]
    if absent:
        raise UserError(f"{path}: column {absent[0]!r} is missing; predictions need {', '.join(REQUIRED)}")
    header = json.loads((table.schema.metadata or {}).get(b"ripieno", b"{}"))
    if header.get("schema", SCHEMA_VERSION) > SCHEMA_VERSION:
        raise UserError(f"{path}: written by a newer ripieno (schema {header['schema']}); upgrade ripieno to read it")
    columns = {name: _column(path, table[name], name) for name in SCHEMA.names if name in table.column_names}
    for name in ("question_id", "member"):
        if None in columns[name]:
            raise UserError(f"{path}: row {columns[name].index(None) + 1}: {name} is null")
    rows_of: dict[tuple[str, str, int, int], list[int]] = {}
    for row in range(table.num_rows):
        key = (
            _value(columns, "dataset", row, path.stem),
            _value(columns, "split", row, ""),
            _value(columns, "epoch", row, 0),
            _value(columns, "replicate", row, 0),
        )
        rows_of.setdefault(key, []).append(row)
    return [_assemble(path, columns, rows, key, header) for key, rows in rows_of.items()]


def _column(path: Path, column: Any, name: str) -> list[Any]:
    """Return a column's values; other programs' integers and floats of other widths are as good as ours."""
    kind = SCHEMA.field(name).type
    wide = {pa.int32(): pa.int64(), pa.float32(): pa.float64()}
    wide |= {pa.list_(narrow): pa.list_(wider) for narrow, wider in wide.items()}
    try:
        return column.cast(wide.get(kind, kind)).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path}: column {name!r} holds {column.type}, not {kind}") from error


def _value(columns: dict[str, list[Any]], name: str, row: int, default: Any) -> Any:
    value = columns[name][row] if name in columns else None
    return default if value is None else value


def _assemble(
    path: Path, columns: dict[str, list[Any]], rows: list[int], key: tuple[str, str, int, int], header: dict[str, Any]
) -> Predictions:
    """Build the arrays of one data set, split, epoch and replicate from its rows, in the first member's order."""
    member_of = [(columns["member"][r], _value(columns, "draw", r, 0)) for r in rows]
    members = sorted(set(member_of))
    first = [r for r, m in zip(rows, member_of, strict=True) if m == members[0]]
    ids = tuple(columns["question_id"][r] for r in first)
    position = {question: n for n, question in enumerate(ids)}
    if len(position) < len(ids):
        twice = next(q for q in ids if ids.count(q) > 1)
        raise UserError(f"{path}: question_id {twice!r} stands twice for member {members[0][0]}")
    sizes = [len(columns["choice_log_probs"][r] or ()) for r in first]
    M, N, K = len(members), len(ids), max(sizes)
    mask = np.arange(K) < np.array(sizes)[:, None]
    log_probs = np.full((M, N, K), -np.inf)
    filled = np.zeros((M, N), dtype=bool)
    place: list[tuple[int, int, int]] = []
    for r, member in zip(rows, member_of, strict=True):
        m, n = members.index(member), position.get(columns["question_id"][r])
        if n is None or filled[m, n]:
            raise UserError(f"{path}: member {member[0]} and member {members[0][0]} answer different questions")
        values = columns["choice_log_probs"][r]
        if values is None or len(values) != sizes[n]:
            raise UserError(f"{path}: row {r + 1}: choice_log_probs differ in length between members")
        if columns["target"][r] != columns["target"][first[n]]:
            raise UserError(f"{path}: row {r + 1}: target differs between members for question_id {ids[n]!r}")
        log_probs[m, n, : sizes[n]] = values
        filled[m, n] = True
        place.append((r, m, n))
    if not filled.all():
        m, n = np.argwhere(~filled)[0]
        raise UserError(f"{path}: member {members[m][0]} has no row for question_id {ids[n]!r}")
    with np.errstate(over="ignore"):  # logits in their place may be anything
        totals = np.exp(log_probs).sum(axis=2)
    # 26 float32 probabilities, each rounded by 6e-8 of a log-probability of at most ~100, stay well within 1e-4.
    if not np.all(np.abs(totals - 1) < 1e-4):
        m, n = np.argwhere(~(np.abs(totals - 1) < 1e-4))[0]
        raise UserError(
            f"{path}: question_id {ids[n]!r}, member {members[m][0]}: exp(choice_log_probs) sums to "
            f"{totals[m, n]:.4g}, not 1; give log-probabilities normalised over the question's choices"
        )

    def fill(name: str, width: int | None, kind: type, each: bool) -> Any:
        """Gather a nullable column: `each` member its own rows, or one row for all; None where any is null."""
        if name not in columns or any(columns[name][r] is None for r, _, _ in place):
            return None
        shape = ((M, N) if each else (N,)) + (() if width is None else (width,))
        array: NDArray[Any] = np.zeros(shape, dtype=kind)
        for r, m, n in place:
            value = columns[name][r]
            target = (m, n) if each else (n,)
            if width is None:
                array[target] = value
                continue
            length = sizes[n] if name.startswith("choice_") else width
            if len(value) != length:
                raise UserError(f"{path}: row {r + 1}: {name} has {len(value)} values, not {length}")
            array[(*target, slice(length))] = value
        return array

    def width_of(name: str) -> int:
        return max((len(columns[name][r] or ()) for r, _, _ in place), default=0) if name in columns else 0

    targets = np.array([-1 if columns["target"][r] is None else columns["target"][r] for r in first], dtype=np.int64)
    if np.any(targets >= np.array(sizes)):
        n = int(np.argmax(targets >= np.array(sizes)))
        raise UserError(f"{path}: question_id {ids[n]!r}: target {targets[n]} is outside its {sizes[n]} choices")
    dataset, split, epoch, replicate = key
    return Predictions(
        log_probs=log_probs,
        mask=mask,
        question_ids=ids,
        targets=targets,
        members=tuple(member for member, _ in members),
        dataset=dataset,
        split=split,
        method=header.get("method", "ensemble"),
        epoch=epoch,
        replicate=replicate,
        subjects=tuple(_value(columns, "subject", r, None) for r in first),
        scores=fill("choice_scores", K, np.float64, each=True),
        tokens=fill("choice_tokens", K, np.int64, each=False),
        bytes=fill("choice_bytes", K, np.int64, each=False),
        outside_mass=fill("outside_mass", None, np.float64, each=True),
        letter_log_probs=fill("letter_log_probs", width_of("letter_log_probs"), np.float64, each=True),
        top_tokens=fill("top_tokens", width_of("top_tokens"), np.int64, each=True),
        top_log_probs=fill("top_log_probs", width_of("top_log_probs"), np.float64, each=True),
        metadata={k: v for k, v in header.items() if k not in ("schema", "method")},
    )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Join the same members' answers to different questions; all that is optional must be in every part or none."""
    K = max(p.mask.shape[1] for p in parts)

    def wide(array: NDArray[Any], fill: Any) -> NDArray[Any]:
        width = [(0, 0)] * (array.ndim - 1) + [(0, K - array.shape[-1])]
        return np.pad(array, width, constant_values=fill)

    def join(name: str, axis: int, fill: Any = None) -> Any:
        arrays = [getattr(p, name) for p in parts]
        if any(a is None for a in arrays):
            return None
        return np.concatenate([a if fill is None else wide(a, fill) for a in arrays], axis=axis)

    return replace(
        parts[0],
        log_probs=join("log_probs", 1, -np.inf),
        mask=join("mask", 0, False),
        question_ids=tuple(q for p in parts for q in p.question_ids),
        targets=join("targets", 0),
        subjects=tuple(s for p in parts for s in (p.subjects or (None,) * len(p.question_ids))),
        scores=join("scores", 1, 0.0),
        tokens=join("tokens", 0, 0),
        bytes=join("bytes", 0, 0),
        outside_mass=join("outside_mass", 1),
        letter_log_probs=join("letter_log_probs", 1),
        top_tokens=join("top_tokens", 1),
        top_log_probs=join("top_log_probs", 1),
    )
