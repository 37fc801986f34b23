"""Files that are nearly right: valid ones, mutated, and others that are made to do harm."""

from __future__ import annotations

import copy
import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

TEXTS = [
    "", " ", "\0", "yes", "A", "1", "-1", "1.0", "nan", "null", "=1+1", "\ud800", "\ufeff", "\u202e", "\u2028", "é",
    "ﬁ",
    "x" * 20_000, "a\nb", "{", "[" * 500, "&a", "*a", "10" * 200, "../../etc/passwd", "%", "$x$", "questoin", "-",
    "'", '"',
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan")]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


values = st.one_of(
    st.sampled_from([*TEXTS, *NUMBERS, None, True, False, [], {}, [[]], [None], ["a", "a"], nested(90)]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=6,
    ),
)


def places(content: Any) -> list[tuple[Any, ...]]:
    """Return the way to each value inside."""
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(content, dict):
        inside = content.items()
    elif isinstance(content, list):
        inside = enumerate(content)
    return [(), *((key, *rest) for key, sub in inside for rest in places(sub))]


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """Draw the content with one to three of its values changed, taken out, or moved to another key."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(content)[1:] or [(0,)]))
        inside = content
        for key in way:
            inside = inside[key]
        what = draw(st.sampled_from(["change", "change", "change", "take out", "rename", "repeat"]))
        if not inside:
            break
        if what == "take out":
            del inside[last]
        elif what == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from(TEXTS) | st.text(max_size=8))] = inside.pop(last)
        elif what == "repeat" and isinstance(inside, list):
            inside.extend([inside[last]] * draw(st.sampled_from([1, 5, 300])))
        else:
            inside[last] = copy.deepcopy(draw(values))
    return content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw the bytes with one to four of them cut, flipped, spliced or repeated."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        what = draw(st.sampled_from(["cut", "flip", "byte", "splice", "repeat", "number"]))
        if what == "cut":
            del found[at : at + draw(st.sampled_from([1, 8, 100, len(found)]))]
        elif what == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "byte" and found:
            found[at] = draw(st.sampled_from([0, 0x7F, 0x80, 0xFF, 0x22, 0x2C, 0x5B, 0x7B]))
        elif what == "splice":
            spliced = st.binary(max_size=8) | st.sampled_from([text.encode("utf-8", "surrogatepass") for text in TEXTS])
            found[at:at] = draw(spliced)
        elif what == "repeat":
            found[at:at] = found[at : at + draw(st.integers(1, 60))] * draw(st.sampled_from([1, 2, 1000]))
        elif what == "number":
            number = draw(st.sampled_from([b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0" * 8, struct.pack("<q", 2**40)]))
            found[at : at + len(number)] = number
    return bytes(found)


def lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def cells(rows: Sequence[dict[str, Any]]) -> bytes:
    rows = [row if isinstance(row, dict) else {"row": row} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(names)
    for row in rows:
        found = (row.get(name) for name in names)
        writer.writerow([json.dumps(value) if isinstance(value, list | dict) else value for value in found])
    return buffer.getvalue().encode("utf-8", "surrogatepass")


TYPES = [
    pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.bool_(),
    pa.null(),
    pa.date32(), pa.timestamp("ns"), pa.decimal128(20, 3), pa.list_(pa.string()), pa.large_list(pa.float64()),
    pa.list_(pa.int64(), 2), pa.list_(pa.list_(pa.float32())), pa.struct([("a", pa.int32())]),
    pa.map_(pa.string(), pa.int8()),
    pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.dictionary(pa.int32(), pa.string())), pa.duration("s"),
]  # fmt: skip


def depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inside), default=0)


def column(values: Sequence[Any]) -> pa.Array:
    """Return values as one column where parquet has a type for them all, else as texts."""
    try:
        if depth(list(values)) > 8:  # pyarrow's guess of the type would end in a segmentation fault
            raise OverflowError
        found = pa.array(values)
        parquet(pa.table({"column": found}))
        return found
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array([str(value).encode("utf-8", "replace").decode() for value in values])


def table(rows: Sequence[Any]) -> pa.Table:
    rows = [row if isinstance(row, dict) else {"row": row} for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [column([row.get(name) for row in rows]) for name in names]
    names = [name.encode("utf-8", "replace").decode() for name in names]
    return pa.Table.from_arrays(columns, names=names)


@st.composite
def recast(draw: st.DrawFn, given: pa.Table) -> pa.Table:
    """Draw a table with a column of another type, of nulls, doubled or in chunks."""
    at = draw(st.integers(0, given.num_columns - 1)) if given.num_columns else 0
    kind = draw(st.sampled_from(TYPES))
    what = draw(st.sampled_from(["cast", "nulls", "twice", "chunks", "header"]))
    if not given.num_columns:
        return given
    if what == "cast":
        try:
            return given.set_column(at, given.column_names[at], given.column(at).cast(kind, safe=False))
        except (pa.ArrowException, UnicodeDecodeError):
            what = "nulls"
    if what == "nulls":
        return given.set_column(at, given.column_names[at], pa.nulls(given.num_rows, kind))
    if what == "twice":
        return given.append_column(given.column_names[at], given.column(at))
    if what == "header":
        header = draw(values)
        return given.replace_schema_metadata({b"ripieno": json.dumps(header).encode()})
    return pa.concat_tables([given, given.slice(1), given.slice(0, 0)])


def parquet(given: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(given, buffer, **options)
    return buffer.getvalue()


def arrow(given: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, given.schema) as stream:
        stream.write_table(given)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(header: str, content: bytes = b"") -> bytes:
    """Return an array's file that says of itself whatever it likes."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


@st.composite
def arrays(draw: st.DrawFn, given: dict[str, Any]) -> bytes:
    """Draw an npz file with one of its arrays of another type, another shape, or lying about either."""
    given = dict(given)
    name = draw(st.sampled_from([*given, "logits", "mask", "members", "ids", "subjects", "porbs"]))
    array = given.get(name, given["probs"])
    kinds = ["f2", "f8", "f16", "c16", "i1", "u8", "b1", "U3", "S3", "O", "M8[s]", "V4", [("a", "i4")]]
    what = draw(st.sampled_from(["type", "shape", "value", "lie", "take out"]))
    if what == "take out":
        given.pop(name, None)
    elif what == "type":
        try:
            given[name] = np.asarray(array).astype(np.dtype(draw(st.sampled_from(kinds))))
        except (TypeError, ValueError):
            given[name] = np.array([None, {}], dtype=object)
    elif what == "shape":
        shape = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 0, 3), (0, 3, 2), (1, 1), (2, 2, 2, 2), (40, 1)]))
        given[name] = np.resize(array, shape)
    elif what == "value":
        array = np.array(array)
        if array.size and array.dtype.kind == "f":
            array.flat[draw(st.integers(0, array.size - 1))] = draw(st.floats(width=32))
        given[name] = array
    else:
        kind = draw(st.sampled_from(["<f8", "|O", "<U1000000000", "|S0", "<f8,<f8", "x", "<M8[ns]", "|V0"]))
        shape = draw(st.sampled_from(["(2,2,3)", "(1000000000000,2,3)", "(-1,2)", "()", "(0,0,0)", "1", "(2**9999,)"]))
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
        return zipped(**{name: npy(header, bytes(96))})
    return npz(**given)


SNIPPETS = [
    "a: &a [x, x]\nb: *a\n", "<<: *a\n", "? [1]\n: 2\n", "!!python/object/apply:os.system ['true']\n",
    "!!timestamp x\n",
    "!!int ''\n", "!!bool x\n", "!!float y\n", "2001-99-99\n", "0b_\n", "0x_\n", "1:" * 300 + "1.5\n",
    "9" * 5000 + "\n",
    "[" * 2000, "- " * 300 + "x\n", "&a [*a]\n", "--- \n", "...\n", "%YAML 9.9\n---\n", "\t", "!!binary =\n",
    "!!set {a}\n",
    "!!omap [a]\n", "!!pairs [[]]\n", "~: ~\n", "=\n", "1e999\n", ".nan\n", "{{}: 1}\n", "x: " + "y" * 60_000 + "\n",
    "!!null x\n", "!<tag:yaml.org,2002:seq> {}\n", "!!map []\n", "k: !!str [a]\n", "0o9\n", "1_000\n", "-0x_\n",
    "+.inf\n",
]  # fmt: skip


@st.composite
def yaml_text(draw: st.DrawFn, content: dict[str, Any]) -> bytes:
    """Draw a YAML file: other values, or other text between its lines."""
    if draw(st.booleans()):
        return yaml.safe_dump(draw(changed(content)), allow_unicode=True).encode("utf-8", "surrogatepass")
    found = yaml.safe_dump(content).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 2))):
        snippet = draw(st.sampled_from(SNIPPETS))
        at = draw(st.integers(0, len(found) - 1))
        if draw(st.booleans()):
            found[at] = found[at].partition(":")[0] + ": " + snippet
        else:
            found.insert(at, snippet)
    return "".join(found).encode()


def laughs(depth: int, width: int = 10) -> bytes:
    """Return a few lines that stand for width ** depth."""
    text = "l0: &l0 lol\n"
    for n in range(1, depth):
        text += f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]\n"
    return (text + f"name: *l{depth - 1}\n").encode()


def either(*ways: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.one_of(*ways, st.binary(max_size=200))


def mutated(content: Any, write: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    """Draw a file whose values are changed, or whose bytes are damaged."""
    return either(changed(content).map(write), damaged(write(content)))
