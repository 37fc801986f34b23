"""Other programs' predictions: npz arrays and jsonl lines, read into the same `Predictions` as a parquet file.

Which axis is the member's is never guessed, and neither is which choices a question has: predictions read wrongly
would pass for an ensemble that answers wrongly. Whatever a file gets wrong is a `UserError` that names the place and
the mend.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripieno.errors import EnvironmentFault, UserError
from ripieno.parquet import read_parquet
from ripieno.predictions import SUM_TOLERANCE, Predictions, without_gaps
from ripieno.published import PICKLES, conversion, from_laplace_lora, is_laplace_lora, metrics_in
from ripieno.untrusted import check_unpacked
from ripieno.userfiles import json_lines, nearest, require_file, short

Axes = Literal["mnk", "nmk"]
Floats = NDArray[np.float64]

SUFFIXES = (".parquet", ".npz", ".jsonl", ".json")
KINDS = ("probs", "logits")
TEXTS = ("ids", "subjects")
ARRAYS = (*KINDS, "targets", "mask", "members", *TEXTS)
KEYS = (*KINDS, "id", "target", "subject", "dataset", "split", "epoch", "method")

# Of members and epochs, which are int32 in the table of predictions.
LARGEST = 2**31 - 1


def read_predictions(path: Path, axes: Axes | None = None) -> list[Predictions]:
    """Read a file of predictions, ours or another program's, by its ending.

    `.parquet`: see `parquet.read_parquet`.

    `.npz` (numpy's, without pickle) holds one of `probs` and `logits`, [M, N, K] or [N, M, K] of any float type, or
    [N, K] from one member. It may hold `targets`, int [N], -1 where unknown; `mask`, bool [N, K], whether the question
    has the choice (by default it has all; what stands in the place of an absent one is not read, and the choices behind
    it move up, the target with them); `ids` and `subjects`, N texts; `members`, M whole numbers, where one that repeats
    is several draws from that member. Default ids are "0", "1", ...

    `.jsonl`: a question a line, `{"id": "q1", "probs": [[0.9, 0.1], [0.6, 0.4]], "target": 0}` with one row a member,
    or `logits` in the place of `probs`. K may differ between lines, M may not. `id` may be left out on every line
    alike: then it is the question's place ("0", "1", ...) in its data set. `target` (null or -1: unknown), `subject`,
    `dataset`, `split`, `epoch` and `method` may be left out. Lines of another data set, split, epoch or method make
    another `Predictions`.

    `.json`: the same; or the lines that Laplace-LoRA's evaluation writes (see `published`), of one member.

    Logits become log-probabilities by a softmax over the choices that are there, in float64. Probabilities are divided
    by their sum, which rounding may have moved from 1 by 1e-4.

    Args:
        path: the file.
        axes: the order of an npz file's three axes: member, question, choice. Files that say it themselves ignore it.

    Returns:
        One `Predictions` a data set, split, epoch and method in the file.

    Raises:
        UserError: the file holds no such predictions; names the file, the array or line, and the mend.
        EnvironmentFault: the file is damaged.
    """
    if path.suffix not in (*SUFFIXES, *PICKLES):
        raise UserError(f"{path}: predictions are read from {', '.join(SUFFIXES)}; rename or convert the file")
    require_file(path)
    if path.suffix in PICKLES:
        raise UserError(conversion(path))
    if path.suffix == ".parquet":
        return read_parquet(path)
    return [_read_npz(path, axes)] if path.suffix == ".npz" else _read_jsonl(path)


# npz.


def _read_npz(path: Path, axes: Axes | None) -> Predictions:
    arrays = _load(path)
    kind = _kind(arrays, f"{path}")
    _check_slips(arrays, ARRAYS, f"{path}: array")
    given = arrays[kind]
    if given.dtype.kind not in "fiu":
        raise UserError(f"{path}: `{kind}` holds {given.dtype}, not numbers; save it as float32 or float64")
    order = ""
    if given.ndim == 3:
        if axes is None:
            raise UserError(
                f"{path}: `{kind}` has shape {given.shape}, and which axis is the member's is never guessed; "
                "give --axes mnk (member, question, choice) or --axes nmk (question, member, choice)"
            )
        order = f" as {axes}"
        values = given.transpose({"mnk": (0, 1, 2), "nmk": (1, 0, 2)}[axes])
    elif given.ndim == 2:
        values = given[None]
    else:
        raise UserError(f"{path}: `{kind}` has shape {given.shape}; it needs 3 axes, or [question, choice] of 1 member")
    M, N, K = values.shape
    if not values.size:
        raise UserError(
            f"{path}: `{kind}` has shape {given.shape}: it holds no predictions; save some, or take the file out"
        )

    def of_shape(name: str, shape: tuple[int, ...], kinds: str, what: str) -> NDArray[Any] | None:
        """Return an optional array, checked against the shape of the predictions."""
        if name not in arrays:
            return None
        array = arrays[name]
        if array.shape != shape:
            swapped = {"mnk": "nmk", "nmk": "mnk"}.get(axes or "", "") if given.ndim == 3 else ""
            fits = array.shape[:1] == ((N,) if name == "members" else (M,)) and M != N
            raise UserError(
                f"{path}: `{name}` has shape {array.shape}, not {shape}: `{kind}` {given.shape}{order} holds "
                f"{M} members, {N} questions and {K} choices"
                + (f"; is it --axes {swapped}?" if swapped and fits else f"; mend `{name}`")
            )
        if array.dtype.kind not in kinds:
            raise UserError(f"{path}: `{name}` holds {array.dtype}, not {what}; convert it before you save it")
        return array

    mask = of_shape("mask", (N, K), "b", "True and False")
    targets = of_shape("targets", (N,), "iu", "whole numbers (-1 where unknown)")
    members = of_shape("members", (M,), "iu", "whole numbers")
    ids = of_shape("ids", (N,), "USiu", "texts")
    subjects = of_shape("subjects", (N,), "US", "texts")
    question_ids = tuple(str(n) for n in range(N)) if ids is None else tuple(_texts(path, "ids", ids))
    [(often, count)] = Counter(question_ids).most_common(1)
    if count > 1:
        raise UserError(f"{path}: `ids` holds {often!r} {count} times; give each question an id of its own")
    mask = np.ones((N, K), dtype=bool) if mask is None else mask
    sizes = mask.sum(axis=1)
    if sizes.min() < 2:
        n = int(sizes.argmin())
        raise UserError(
            f"{path}: question_id {question_ids[n]!r} has {sizes[n]} choices; a question needs 2 at least "
            "(yes or no with probability p: [1 - p, p])"
        )
    if targets is None:
        targets = np.full(N, -1)
    else:
        # Before they become int64, where the largest of uint64 would turn into -1.
        outside = (targets < -1) | (targets >= K)
        known = ~outside & (targets >= 0)
        outside[known] = ~mask[known, targets[known].astype(np.int64)]
        if outside.any():
            n = int(outside.argmax())
            raise UserError(
                f"{path}: question_id {question_ids[n]!r}: target {targets[n]} is none of its {sizes[n]} choices, "
                f"which are {', '.join(str(k) for k in np.flatnonzero(mask[n])[:30])}; -1 where it is unknown"
            )
    if members is None:
        members = np.arange(M)
    elif members.min() < 0 or members.max() > LARGEST:
        m = int(np.argmax((members < 0) | (members > LARGEST)))
        raise UserError(f"{path}: `members` holds {members[m]}; number them 0, 1, ...")

    def where(m: int, n: int) -> str:
        return f"{path}: question_id {question_ids[n]!r}, member {members[m]}"

    # Half precision rounds each probability by up to 2^-11 of itself, and so their sum.
    half = given.dtype == np.float16
    with np.errstate(over="ignore"):  # beyond float64 is infinite, which is then named
        numbers = values.astype(np.float64, order="C")
    log_probs = _log_probs(numbers, mask, kind, where, SUM_TOLERANCE + (2.0**-11 if half else 0.0))
    found = Predictions(
        log_probs=log_probs,
        mask=mask,
        question_ids=question_ids,
        targets=targets.astype(np.int64),
        members=tuple(int(member) for member in members),
        dataset=path.stem,
        subjects=(None,) * N
        if subjects is None
        else tuple(text or None for text in _texts(path, "subjects", subjects)),
    )
    return without_gaps(found)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays that predictions are made of, and the names of all others with nothing in them."""
    try:
        file = path.open("rb")  # by ourselves, since numpy leaves a damaged file open
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error
    arrays: dict[str, NDArray[Any]] = {}
    with file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            why = short(error)
            raise EnvironmentFault(f"{path}: not a readable npz file ({why}); write it again by numpy.savez") from error
        if not isinstance(archive, np.lib.npyio.NpzFile) or archive.zip is None:
            raise UserError(f"{path}: holds one array without a name (npy); save it by numpy.savez(file, probs=...)")
        read = [member for member in archive.zip.infolist() if member.filename.removesuffix(".npy") in ARRAYS]
        check_unpacked(path, sum(member.file_size for member in read))
        for name in archive.files:
            if name not in ARRAYS:  # another program's own matter; never loaded, so that it may be of any size
                arrays[name] = np.empty(0)
                continue
            try:
                arrays[name] = np.asarray(archive[name])
            except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
                if "allow_pickle" in str(error):
                    raise UserError(
                        f"{path}: `{name}` holds Python objects (a pickle, which could run any program), not plain "
                        f"numbers or texts; save it as numpy.array(..., dtype={'str' if name in TEXTS else 'float'})"
                    ) from None
                why = short(error)
                raise EnvironmentFault(f"{path}: `{name}` cannot be read ({why}); write the file again") from error
    return arrays


def _texts(path: Path, name: str, array: NDArray[Any]) -> Iterator[str]:
    for value in array.tolist():
        try:
            yield value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise UserError(f"{path}: `{name}` holds {value!r}, which is not UTF-8; save it as str") from None


# jsonl.


@dataclass(frozen=True, slots=True)
class _Line:
    """A question as one line has it: `values` [M, K], float64."""

    number: int
    id: str | None
    kind: str
    values: Floats
    target: int
    subject: str | None


def _read_jsonl(path: Path) -> list[Predictions]:
    groups: dict[tuple[str, str, int, str], list[_Line]] = {}
    first: _Line | None = None
    rows = _rows(path)
    head = next(rows, None)
    if head is not None:
        rows = chain([head], rows)
        if is_laplace_lora(head[1]):
            rows = iter(from_laplace_lora(path, list(rows), SUM_TOLERANCE))
    for number, row in rows:
        where = f"{path}, line {number}"
        line = _line(row, number, where)
        first = first or line
        M = len(line.values)
        if len(first.values) != M:
            raise UserError(
                f"{where}: {M} members, but line {first.number} has {len(first.values)}; every line needs a row of "
                "each member"
            )
        if (line.id is None) != (first.id is None):
            without, having = (number, first.number) if line.id is None else (first.number, number)
            raise UserError(
                f"{path}, line {without}: has no `id`, but line {having} has one; give every line its id, or none"
            )
        key = (
            _text(row, "dataset", where) or path.stem,
            _text(row, "split", where) or "",
            _whole(row, "epoch", where, 0),
            _text(row, "method", where) or "ensemble",
        )
        groups.setdefault(key, []).append(line)
    if not groups:
        raise UserError(f"{path}: holds no predictions; add a line a question, or take the file out")
    return [_joined(path, lines, *key) for key, lines in groups.items()]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's number and object; empty lines are skipped."""
    slips_checked: set[frozenset[str]] = set()  # nearly every line has the same keys
    try:
        for number, row in json_lines(path):
            where = f"{path}, line {number}"
            if names := metrics_in(row):
                raise UserError(
                    f"{path}: holds metrics ({short(', '.join(names))}), and no predictions to measure; BayesAdapt "
                    "saves those beside it, as test_logits_seed*.pt"
                )
            if not isinstance(row, dict):
                raise UserError(f"{where}: not a JSON object; write one {{...}} a line")
            keys = frozenset(row)
            if keys not in slips_checked:
                _check_slips(row, KEYS, f"{where}: key")
                slips_checked.add(keys)
            yield number, row
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error


def _line(row: dict[str, Any], number: int, where: str) -> _Line:
    kind = _kind(row, where)
    given = row[kind]
    if not isinstance(given, list) or not given or not all(isinstance(one, list) for one in given):
        raise UserError(f"{where}: `{kind}` must be a list with one list of numbers a member: [[0.9, 0.1], [0.6, 0.4]]")
    K = len(given[0])
    for m, one in enumerate(given):
        if len(one) != K:
            raise UserError(f"{where}: member {m} has {len(one)} {kind}, but member 0 has {K}; give every choice's")
        for value in one:
            if type(value) is not float and type(value) is not int:  # True is an int too
                raise UserError(f"{where}: member {m}: `{kind}` holds {short(json.dumps(value))}, not a number")
    if K < 2:
        raise UserError(
            f"{where}: a question needs 2 choices at least, and this one has {K} "
            "(yes or no with probability p: [1 - p, p])"
        )
    try:
        values = np.array(given, dtype=np.float64)
    except OverflowError:
        raise UserError(f"{where}: `{kind}` holds a whole number beyond what a float can hold") from None
    target = _whole(row, "target", where, -1)
    if not -1 <= target < K:
        raise UserError(f"{where}: target {target} is none of the {K} choices; null where it is unknown")
    given_id = row.get("id")
    if type(given_id) is int:
        given_id = str(given_id)
    if given_id is not None and (not isinstance(given_id, str) or not given_id.strip()):
        said = short(json.dumps(given_id))
        raise UserError(f"{where}: `id` must be a text, not {said}; fill it in, or leave out every id")
    return _Line(number, given_id, kind, values, target, _text(row, "subject", where) or None)


def _joined(path: Path, lines: list[_Line], dataset: str, split: str, epoch: int, method: str) -> Predictions:
    """Build the arrays of one data set, split, epoch and method from its lines."""
    ids = tuple(str(n) if line.id is None else line.id for n, line in enumerate(lines))
    met: dict[str, int] = {}
    for question, line in zip(ids, lines, strict=True):
        if question in met:
            raise UserError(
                f"{path}, line {line.number}: id {question!r} is also that of line {met[question]}; "
                "change one, or leave every id out"
            )
        met[question] = line.number
    M, N = len(lines[0].values), len(lines)
    sizes = np.array([line.values.shape[1] for line in lines])
    mask = np.arange(sizes.max()) < sizes[:, None]
    values = np.zeros((M, *mask.shape))
    for n, line in enumerate(lines):
        values[:, n, : sizes[n]] = line.values
    log_probs = np.empty_like(values)
    for kind in KINDS:
        index = np.array([n for n in range(N) if lines[n].kind == kind], dtype=np.int64)

        def where(m: int, n: int, index: NDArray[np.int64] = index) -> str:
            return f"{path}, line {lines[index[n]].number}: member {m}"

        log_probs[:, index] = _log_probs(values[:, index], mask[index], kind, where, SUM_TOLERANCE)
    return Predictions(
        log_probs=log_probs,
        mask=mask,
        question_ids=ids,
        targets=np.array([line.target for line in lines], dtype=np.int64),
        members=tuple(range(M)),
        dataset=dataset,
        split=split,
        method=method,
        epoch=epoch,
        subjects=tuple(line.subject for line in lines),
    )


def _text(row: dict[str, Any], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: `{key}` must be a text, not {short(json.dumps(value))}")
    return value


def _whole(row: dict[str, Any], key: str, where: str, default: int) -> int:
    """Return a whole number; pandas writes 1.0 where others in the column are missing."""
    value = row.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 or abs(value) > LARGEST:
        raise UserError(f"{where}: `{key}` must be a whole number, not {short(json.dumps(value))}")
    return int(value)


# What both have in common.


def _kind(found: Iterable[str], where: str) -> str:
    """Return which of probs and logits is there."""
    names = sorted(found)
    kinds = [kind for kind in KINDS if kind in names]
    if len(kinds) == 2:
        raise UserError(f"{where}: has both `probs` and `logits`; take one of them out")
    if not kinds:
        raise UserError(
            f"{where}: has neither `probs` nor `logits` (log-probabilities are logits too); "
            f"it has {short(', '.join(names)) or 'nothing'}; call one of them so"
        )
    return kinds[0]


def _check_slips(found: Iterable[str], known: tuple[str, ...], what: str) -> None:
    """Other names are welcome; one that is almost the name of what is missing is a slip, and would pass silently."""
    names = set(found)
    missing = [name for name in known if name not in names and name not in KINDS]
    for name in sorted(names - set(known)):
        if meant := nearest(name, missing, 0.8):
            raise UserError(f"{what} `{name}` is not known; is it `{meant}`? Rename it or take it out")


def _log_probs(
    values: Floats, mask: NDArray[np.bool_], kind: str, where: Callable[[int, int], str], slack: float
) -> Floats:
    """Return log p(choice) [M, N, K], -inf where absent, of probabilities or logits [M, N, K].

    Args:
        values: [M, N, K]; whatever stands in the place of an absent choice is not looked at.
        mask: bool [N, K], whether the question has the choice.
        kind: "probs" or "logits".
        where: names the place of member m (axis 0) and question n (axis 1) for messages.
        slack: how far from 1 a row of probabilities may sum; it is divided by its sum.

    Raises:
        UserError: a value is not finite, a probability is negative, or a row does not sum to 1.
    """

    def first(wrong: NDArray[np.bool_]) -> tuple[int, int, int]:
        m, n, k = np.argwhere(wrong)[0]
        return int(m), int(n), int(k)

    wrong = mask & ~np.isfinite(values)
    if wrong.any():
        m, n, k = first(wrong)
        absent = (
            "a choice that the question does not have must be absent (npz: `mask`)" if kind == "logits" else "mend it"
        )
        raise UserError(f"{where(m, n)}: choice {k} of `{kind}` is {values[m, n, k]:g}, not a finite number; {absent}")
    if kind == "logits":
        present = np.where(mask, values, -np.inf)
        with np.errstate(over="ignore"):  # logits 1e308 apart: the smaller one's probability is 0
            present -= present.max(axis=2, keepdims=True, initial=-np.inf)
        return present - np.log(np.exp(present).sum(axis=2, keepdims=True))
    probs = np.where(mask, values, 0.0)
    wrong = probs < 0
    if wrong.any():
        m, n, k = first(wrong)
        raise UserError(
            f"{where(m, n)}: choice {k} has the negative probability {probs[m, n, k]:g}; "
            "give log-probabilities and scores as `logits`"
        )
    with np.errstate(over="ignore"):  # scores in their place may be anything
        totals = probs.sum(axis=2)
    if not np.all(np.abs(totals - 1) < slack):
        m, n, _ = first(~(np.abs(totals - 1) < slack)[..., None])
        raise UserError(
            f"{where(m, n)}: `probs` sums to {totals[m, n]:.6g}, not 1; "
            "give probabilities over the question's own choices, or scores as `logits`"
        )
    # Sums that are off by no more than the rounding of float64 are 1, so that exact probabilities come back.
    exact = np.abs(totals - 1) <= (2 * probs.shape[-1] + 10) * np.finfo(np.float64).eps
    with np.errstate(divide="ignore"):  # ln 0 = -inf is the log-probability of an impossible choice
        return np.asarray(np.log(probs) - np.log(np.where(exact, 1.0, totals))[..., None])
