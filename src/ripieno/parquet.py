"""The table of predictions as a parquet file: its schema, and how it is written and read.

One row a member and question. In memory it is one `Predictions` a data set, split, epoch and replicate.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripieno.errors import UserError
from ripieno.predictions import SUM_TOLERANCE, Predictions
from ripieno.untrusted import MEND_HEADER, parquet, read_header

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
        ("unconditional_scores", pa.list_(pa.float32())),
        ("outside_mass", pa.float32()),
        ("letter_log_probs", pa.list_(pa.float32())),
        ("top_tokens", pa.list_(pa.int32())),
        ("top_log_probs", pa.list_(pa.float32())),
        ("target", pa.int32()),
    ]
)
REQUIRED = ("question_id", "member", "choice_log_probs", "target")
PER_CHOICE = ("choice_scores", "choice_tokens", "choice_bytes", "unconditional_scores")


def to_parquet(*predictions: Predictions) -> bytes:
    """Return the parquet file of one `Predictions`, or of several replicates of one: the same for the same content.

    The file says of itself what the first one does.

    Raises:
        ValueError: two are of the same data set, split, epoch and replicate, or of different methods.
    """
    keys = {(p.dataset, p.split, p.epoch, p.replicate) for p in predictions}
    if len(keys) < len(predictions) or len({p.method for p in predictions}) > 1:
        raise ValueError("a file holds one method, and one `Predictions` a data set, split, epoch and replicate")
    header = {"schema": SCHEMA_VERSION, "method": predictions[0].method, **predictions[0].metadata}
    schema = SCHEMA.with_metadata(_metadata(header))
    table = pa.concat_tables([pa.table(_rows(p), schema=schema) for p in predictions])
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def join(parts: Sequence[Path], changed: Mapping[str, Any], file: BinaryIO) -> None:
    """Write files of the same members' answers to different questions as one, a part at a time in memory.

    Args:
        parts: files that `to_parquet` made, at least one.
        changed: what the new one says of itself in another way than the first part; `too_long` is that of all.
        file: where to.
    """
    headers = [json.loads(pq.read_schema(part).metadata[b"ripieno"]) for part in parts]
    about = {**headers[0], "too_long": [question for header in headers for question in header["too_long"]], **changed}
    if not all("labels" in header for header in headers):  # of one part's questions alone
        about.pop("labels", None)
    schema = SCHEMA.with_metadata(_metadata(about))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))


def _metadata(header: Mapping[str, Any]) -> dict[bytes, bytes]:
    return {b"ripieno": json.dumps(header, sort_keys=True, ensure_ascii=False).encode()}


def _rows(p: Predictions) -> dict[str, list[Any]]:
    """Return the columns of one `Predictions`."""
    M, N, K = p.log_probs.shape
    sizes = p.mask.sum(axis=1)
    if not np.array_equal(p.mask, np.arange(K) < sizes[:, None]):
        raise ValueError("a question's absent choices must stand behind those that it has: a list has no gaps")

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

    return {
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
        "unconditional_scores": per_member_choices(p.unconditional),
        "outside_mass": per_member_row(p.outside_mass),
        "letter_log_probs": per_member_row(p.letter_log_probs),
        "top_tokens": per_member_row(p.top_tokens),
        "top_log_probs": per_member_row(p.top_log_probs),
        "target": [None if t < 0 else int(t) for t in p.targets] * M,
    }


def read_parquet(path: Path) -> list[Predictions]:
    """Read a parquet file of predictions: one `Predictions` a data set, split, epoch and replicate found in it.

    Probabilities that sum to 1 but for the rounding of log-probabilities to float32 stay as they are, so that our own
    files give the same numbers back; those further off (by 1e-4 at most) are normalised.

    Raises:
        UserError: a column is missing, members saw different questions, a row is not a distribution, or what the file
            says of itself (metadata `ripieno`) is not what this program writes.
        EnvironmentFault: the file cannot be read as parquet.
    """
    columns = _columns(path)
    group = _ranks([columns.numbers[name].values for name in ("dataset", "split", "epoch", "replicate")])
    if not group.size:
        return []
    parts = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    # In the order in which the file has them; the rows of each, too.
    return [_assemble(columns, rows) for rows in sorted(parts, key=lambda rows: int(rows[0]))]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A column of numbers, or of codes that equal texts share: `values[r]`, unless `present[r]` says null."""

    values: NDArray[Any]
    present: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Lists:
    """A column of lists: row r is `values[starts[r] : starts[r] + lengths[r]]`, empty where `present[r]` says null."""

    values: NDArray[Any]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    present: NDArray[np.bool_]

    def dense(self, rows: NDArray[np.int64], width: int, fill: float) -> NDArray[Any]:
        """Return [rows, width], with `fill` behind the end of a row's list."""
        array = np.full((len(rows), width), fill, dtype=self.values.dtype)
        place = np.arange(width)
        there = place < self.lengths[rows, None]
        array[there] = self.values[(self.starts[rows, None] + place)[there]]
        return array


@dataclass(frozen=True, slots=True)
class _Columns:
    """A file's columns, all of the schema's; one that the file does not have is null throughout."""

    path: Path
    header: dict[str, Any]
    texts: dict[str, Any]
    numbers: dict[str, _Numbers]
    lists: dict[str, _Lists]

    def check_rows(self, rows: NDArray[np.int64], wrong: NDArray[np.bool_], message: Callable[[int], str]) -> None:
        """Raise for the first of the `rows` that is wrong, with a message about its place among them."""
        if wrong.any():
            i = _first(wrong)
            raise UserError(f"{self.path}: row {rows[i] + 1}: {message(i)}")


def _columns(path: Path) -> _Columns:
    """Read what the schema names of a file, as numpy arrays."""
    with parquet(path, SCHEMA.names) as file:
        found = file.schema_arrow.names
        twice = [name for name in SCHEMA.names if found.count(name) > 1]
        if twice:
            raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one")
        # Another program's own columns (its prompts, its logits) may be far larger than all of ours.
        table = file.read(columns=[name for name in SCHEMA.names if name in found])
        table.validate(full=True)  # texts that are no UTF-8 among the rest
    header = _header(path, table.schema)
    absent = [name for name in REQUIRED if name not in found]
    if absent:
        raise UserError(f"{path}: column {absent[0]!r} is missing; predictions need {', '.join(REQUIRED)}")
    columns = _Columns(path, header, {}, {}, {})
    defaults = {"dataset": path.stem, "split": "", "epoch": 0, "replicate": 0, "draw": 0}
    for name in SCHEMA.names:
        array = _column(path, table, name)
        if name in ("question_id", "member") and array.null_count:
            raise UserError(f"{path}: row {_first(~_present(array)) + 1}: {name} is null; fill it in")
        if name in defaults:
            array = array.fill_null(defaults[name])
        if pa.types.is_large_list(array.type):
            columns.lists[name] = _lists(path, array, name)
        elif pa.types.is_large_string(array.type):
            columns.texts[name] = array.dictionary_encode()
            codes = columns.texts[name].indices.fill_null(-1).to_numpy()
            columns.numbers[name] = _Numbers(codes, _present(array))
        else:
            columns.numbers[name] = _Numbers(array.fill_null(0).to_numpy(), _present(array))
    return columns


def _header(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """Read what a file says of itself; what is read of it later is checked here, the rest may be anything."""
    header = read_header(path, schema, SCHEMA_VERSION)
    labels, choices = header.get("labels"), header.get("choices")
    template, too_long = header.get("template", {}), header.get("too_long", [])
    expected = {
        "schema": ("a whole number", type(header.get("schema", SCHEMA_VERSION)) is int),
        "method": ("a text", isinstance(header.get("method", ""), str)),
        "labels": ("a list of texts", labels is None or _texts(labels)),
        "choices": ("a whole number, 2 or more", choices is None or (type(choices) is int and choices >= 2)),
        "template": (
            "an object whose `name` is a text",
            isinstance(template, dict) and isinstance(template.get("name", ""), str),
        ),
        "scoring": ("an object", isinstance(header.get("scoring", {}), dict)),
        "too_long": ("a list of texts", _texts(too_long)),
    }
    for name, (what, right) in expected.items():
        if not right:
            raise UserError(f"{path}: `{name}` of its metadata `ripieno` is not {what}; {MEND_HEADER}")
    return header


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _column(path: Path, table: Any, name: str) -> Any:
    """Return a column as one array; other programs' integers and floats of other widths are as good as ours."""
    kind = SCHEMA.field(name).type
    wide = {pa.int32(): pa.int64(), pa.float32(): pa.float64(), pa.string(): pa.large_string()}
    wide |= {pa.list_(narrow): pa.large_list(wider) for narrow, wider in wide.items()}
    if name not in table.column_names:
        return pa.nulls(table.num_rows, wide[kind])
    try:
        return table[name].cast(wide[kind]).combine_chunks()
    except pa.ArrowException as error:
        raise UserError(f"{path}: column {name!r} holds {table[name].type}, not {kind}; convert it") from error


def _present(array: Any) -> NDArray[np.bool_]:
    present: NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return present


def _lists(path: Path, array: Any, name: str) -> _Lists:
    present, offsets = _present(array), array.offsets.to_numpy()
    lengths = np.where(present, np.diff(offsets), 0)
    values, starts = array.values, offsets[:-1]
    if values.null_count:
        # Behind a null list there may be nulls that nobody sees.
        nulls = np.concatenate([[0], np.cumsum(~_present(values))])
        holds = nulls[starts + lengths] > nulls[starts]
        if holds.any():
            raise UserError(f"{path}: row {_first(holds) + 1}: {name} holds a null; give every choice's number")
    return _Lists(values.fill_null(0).to_numpy(), starts, lengths, present)


def _first(wrong: NDArray[np.bool_]) -> int:
    return int(np.argmax(wrong))


def _ranks(columns: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return each row's rank [R] among the different rows, sorted by the first column, then the second ..."""
    ranks = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        if (column == column[:1]).all():  # nearly always so; sorting is what takes time
            continue
        values, place = np.unique(column, return_inverse=True)
        _, ranks = np.unique(ranks * len(values) + place, return_inverse=True)
    return ranks


def _assemble(columns: _Columns, rows: NDArray[np.int64]) -> Predictions:
    """Build the arrays of one data set, split, epoch and replicate from its rows, in the first member's order."""
    path, numbers, lists = columns.path, columns.numbers, columns.lists
    m_of = _ranks([numbers["member"].values[rows], numbers["draw"].values[rows]])
    members = numbers["member"].values[rows[np.unique(m_of, return_index=True)[1]]].tolist()
    first = rows[m_of == 0]
    ids = tuple(columns.texts["question_id"].take(pa.array(first)).to_pylist())
    M, N = len(members), len(ids)
    met, code = np.unique(numbers["question_id"].values[rows], return_inverse=True)
    code_of_first = code[m_of == 0]
    counts = np.bincount(code_of_first, minlength=len(met))
    if counts.max() > 1:
        twice = ids[_first(counts[code_of_first] > 1)]
        raise UserError(f"{path}: question_id {twice!r} stands twice for member {members[0]}; take one out")
    position = np.full(len(met), -1)
    position[code_of_first] = np.arange(N)
    n_of = position[code]
    # Which of the rows stands at [m, n]; of several the first.
    at = np.full(M * N, -1)
    known = np.flatnonzero(n_of >= 0)
    at[(m_of * N + n_of)[known[::-1]]] = known[::-1]
    alien = at[m_of * N + n_of] != np.arange(len(rows))
    alien[n_of < 0] = True
    log_probs, target = lists["choice_log_probs"], numbers["target"]
    sizes = log_probs.lengths[first]
    uneven = ~log_probs.present[rows] | (log_probs.lengths[rows] != sizes[n_of])
    asked = first[n_of]
    other = (target.values[rows] != target.values[asked]) | (target.present[rows] != target.present[asked])
    wrong = alien | uneven | other

    def said(i: int) -> str:
        """Return what is wrong with a row."""
        [question] = columns.texts["question_id"].take(pa.array(rows[[i]])).to_pylist()
        row, one = f"question_id {question!r} of member {members[m_of[i]]}", f"member {members[0]}"
        if n_of[i] < 0:
            return f"{row} is not among those of {one}; every member must answer the same questions"
        if alien[i]:
            return f"{row} stands there twice; take one out"
        if uneven[i]:
            return f"{row} has {log_probs.lengths[rows[i]]} choices, and {sizes[n_of[i]]} of {one}; give all of them"
        return f"{row} has another target than that of {one}; make them the same"

    columns.check_rows(rows, wrong, said)
    if at.min() < 0:
        m, n = divmod(_first(at < 0), N)
        raise UserError(
            f"{path}: member {members[m]} has no row for question_id {ids[n]!r}; members must answer the same questions"
        )
    place = rows[at]  # the file's row of [m, n]
    K = int(sizes.max())
    values = log_probs.dense(place, K, -np.inf).reshape(M, N, K)
    with np.errstate(over="ignore"):  # logits in their place may be anything
        totals = np.exp(values).sum(axis=2)
    if not np.all(np.abs(totals - 1) < SUM_TOLERANCE):
        m, n = np.argwhere(~(np.abs(totals - 1) < SUM_TOLERANCE))[0]
        none = ~(values[m, n] < SUM_TOLERANCE)  # above 0 by more than rounding, or NaN
        what = f"exp(choice_log_probs) sums to {totals[m, n]:.4g}, not 1"
        if none.any():
            k = _first(none)
            what = f"choice {k} has the log-probability {values[m, n, k]:g}, which must be a number, 0 at most"
        raise UserError(
            f"{path}: row {place[m * N + n] + 1} (question_id {ids[n]!r}, member {members[m]}): {what}; give "
            "log-probabilities normalised over the question's choices"
        )
    targets = np.where(target.present, target.values, -1)[first]
    outside = (targets < -1) | (targets >= sizes)
    if outside.any():
        n = _first(outside)
        raise UserError(
            f"{path}: question_id {ids[n]!r}: target {targets[n]} is none of its {sizes[n]} choices; they count from "
            "0, and null is where it is unknown"
        )

    def per_member(name: str) -> Any:
        """Gather a nullable column of lists, [M, N, K] or as wide as its longest; None where any is null."""
        column = lists[name]
        if not column.present[rows].all():
            return None
        lengths = column.lengths[rows]
        width = K if name in PER_CHOICE else int(lengths.max())
        expected = sizes[n_of] if name in PER_CHOICE else np.full(len(rows), width)
        columns.check_rows(rows, lengths != expected, lambda i: f"{name} has {lengths[i]} values, not {expected[i]}")
        return column.dense(place, width, 0).reshape(M, N, width)

    def per_question(name: str) -> Any:
        """Gather a nullable column of lists that all members share, [N, K]."""
        array = per_member(name)
        if array is None:
            return None
        differs = (array != array[0]).any(axis=2)[m_of, n_of]
        columns.check_rows(
            rows,
            differs,
            lambda i: f"{name} differ between members for question_id {ids[n_of[i]]!r}; take the column out",
        )
        return array[0]

    outside, scores = numbers["outside_mass"], per_member("choice_scores")
    return Predictions(
        log_probs=_normalised(values, totals, scores),
        mask=np.arange(K) < sizes[:, None],
        question_ids=ids,
        targets=targets,
        members=tuple(members),
        dataset=columns.texts["dataset"][rows[0]].as_py(),
        split=columns.texts["split"][rows[0]].as_py(),
        method=columns.header.get("method", "ensemble"),
        epoch=int(numbers["epoch"].values[rows[0]]),
        replicate=int(numbers["replicate"].values[rows[0]]),
        subjects=tuple(columns.texts["subject"].take(pa.array(first)).to_pylist()),
        scores=scores,
        tokens=per_question("choice_tokens"),
        bytes=per_question("choice_bytes"),
        unconditional=per_member("unconditional_scores"),
        outside_mass=outside.values[place].reshape(M, N) if outside.present[rows].all() else None,
        letter_log_probs=per_member("letter_log_probs"),
        top_tokens=per_member("top_tokens"),
        top_log_probs=per_member("top_log_probs"),
        metadata={k: v for k, v in columns.header.items() if k not in ("schema", "method")},
    )


def _normalised(
    log_probs: NDArray[np.float64], totals: NDArray[np.float64], scores: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Normalise the rows whose probabilities sum to something else than 1 by more than rounding explains.

    Rounding to float32 moves each log-probability by 2^-24 of itself, and so the sum by at most 2^-24 times the row's
    entropy. A softmax in float32 (a score less the logarithm of a sum) is off by 2^-24 of the scores before that, and
    by as much for each term of the sum. Twice as much covers what is of second order. The rest is float64's rounding.

    Args:
        log_probs: [M, N, K], -inf where absent.
        totals: [M, N], sums of the probabilities.
        scores: [M, N, K], 0 where absent, which the log-probabilities were computed from, or None.
    """
    K = log_probs.shape[-1]
    entropy = -(np.exp(log_probs) * np.where(np.isneginf(log_probs), 0.0, log_probs)).sum(axis=-1)
    before = 0.0 if scores is None else np.abs(np.where(np.isfinite(scores), scores, 0.0)).max(axis=-1) + K + 2
    slack = 2.0**-23 * (entropy + before) + (2 * K + 10) * np.finfo(np.float64).eps
    off = np.where(np.abs(totals - 1) > slack, totals, 1.0)
    return np.asarray(log_probs - np.log(off)[..., None])
