"""Predictions of other programs: npz and jsonl give the same `Predictions` as arrays put in by hand."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import EPS, predictions_of, random_predictions, rounding
from scipy import special

from ripieno.arrays import read_predictions
from ripieno.errors import EnvironmentFault, UserError
from ripieno.measures.matching import match_choices
from ripieno.measures.uncertainty import confidence, entropy
from ripieno.parquet import to_parquet
from test_predictions import check_equal

# Two members, three questions, three choices; question "1" has no third choice.
PROBS = np.array(
    [
        [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.0, 0.0, 1.0]],
        [[0.25, 0.5, 0.25], [0.5, 0.5, 0.0], [0.125, 0.125, 0.75]],
    ]
)
MASK = np.array([[True, True, True], [True, True, False], [True, True, True]])
TARGETS = np.array([1, -1, 2])
with np.errstate(divide="ignore"):
    LOG_PROBS = np.log(PROBS)
# A row with logits far from 0, too, and one that is a distribution already.
LOGITS = np.array([[[0.0, np.log(3.0)], [1e3, 1e3]], [[np.log(0.5), np.log(0.5)], [-1e4, 0.0]]])


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "theirs.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def jsonl(folder: Path, *rows: Any, **options: Any) -> Path:
    path = folder / "theirs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), **options)
    return path


def lines_of(probs: Any, mask: Any, **columns: Any) -> list[dict[str, Any]]:
    """Return the rows that a jsonl file of the arrays has."""
    rows = [{"probs": probs[:, n, mask[n]].tolist()} for n in range(len(mask))]
    return [row | {name: column[n] for name, column in columns.items()} for n, row in enumerate(rows)]


# npz.


@pytest.mark.parametrize("axes", ["mnk", "nmk"])
def test_npz_gives_the_arrays_in_either_order(tmp_path, axes):
    given = PROBS if axes == "mnk" else PROBS.swapaxes(0, 1)
    path = npz(
        tmp_path, probs=given, mask=MASK, targets=TARGETS, ids=["a", "b", "c"], members=[4, 7], subjects=["x", "", "y"],
        features=np.zeros(9),
    )  # fmt: skip
    [found] = read_predictions(path, axes)
    fields = {"dataset": "theirs", "split": "", "question_ids": ("a", "b", "c"), "members": (4, 7)}
    check_equal(found, predictions_of(LOG_PROBS, MASK, TARGETS, subjects=("x", None, "y"), **fields))
    assert (found.method, found.epoch, found.replicate, found.metadata) == ("ensemble", 0, 0, {})
    assert found.log_probs.flags.c_contiguous


def test_probabilities_alone_are_enough(tmp_path):
    [found] = read_predictions(npz(tmp_path, probs=PROBS), "mnk")
    expected = predictions_of(LOG_PROBS, np.ones((3, 3), bool), [-1] * 3, dataset="theirs", split="")
    assert found.question_ids == ("0", "1", "2")
    assert found.subjects == (None,) * 3
    assert np.array_equal(found.log_probs, expected.log_probs)
    assert found.mask.all()
    assert not found.labelled.any()


@pytest.mark.parametrize("axes", [None, "mnk", "nmk"])
def test_two_axes_are_one_member(tmp_path, axes):
    [found] = read_predictions(npz(tmp_path, probs=PROBS[0], mask=MASK, members=[3]), axes)
    assert found.members == (3,)
    assert np.array_equal(found.log_probs, LOG_PROBS[:1])


def test_logits_go_through_a_softmax(tmp_path):
    [found] = read_predictions(npz(tmp_path, logits=LOGITS), "mnk")
    expected = [[[0.25, 0.75], [0.5, 0.5]], [[0.5, 0.5], [0.0, 1.0]]]
    assert np.abs(found.probs - expected).max() <= rounding(2, 1.0)
    # Ten thousand nats below the other one: no float has the probability, and the log-probability is exact.
    assert found.log_probs[1, 1].tolist() == [-1e4, 0.0]


def test_what_stands_in_an_absent_choices_place_is_not_read(tmp_path):
    for rubbish in (np.nan, np.inf, -np.inf, 1e300, -3.0):
        for kind, values in (("probs", PROBS), ("logits", np.where(MASK, np.log(PROBS + 1.0), 0.0))):
            [found] = read_predictions(npz(tmp_path, **{kind: np.where(MASK, values, rubbish)}, mask=MASK), "mnk")
            assert np.isneginf(found.log_probs[:, ~MASK]).all()
            [clean] = read_predictions(npz(tmp_path, **{kind: values}, mask=MASK), "mnk")
            assert np.array_equal(found.log_probs, clean.log_probs)


def test_a_choice_in_the_middle_may_be_absent(tmp_path):
    mask = np.array([[True, False, True]])
    [found] = read_predictions(npz(tmp_path, logits=[[0.0, 9.0, np.log(3.0)]], mask=mask, targets=[2]))
    # Those behind it move up, and the target with them.
    assert np.abs(found.probs - [[[0.25, 0.75, 0.0]]]).max() <= rounding(2, 1.0)
    assert found.mask.tolist() == [[True, True, False]]
    assert found.targets.tolist() == [1]


def test_gaps_do_not_lose_the_right_answer_where_choices_are_dropped(tmp_path):
    mask = np.array([[True, False, True, True], [True, True, True, True]])
    probs = [[0.1, 0.0, 0.1, 0.8], [0.1, 0.1, 0.1, 0.7]]
    [found] = read_predictions(npz(tmp_path, probs=probs, mask=mask, targets=[3, 3]))
    cut = match_choices(found, 3, seed=0)
    assert cut.targets.tolist() == [2, 2]
    assert np.abs(cut.probs.sum(axis=-1) - 1).max() <= rounding(3, 1.0)
    assert np.abs(cut.probs[0, :, 2] - [0.8, 0.7 / 0.9]).max() <= rounding(3, 1.0)


def test_logits_as_far_apart_as_floats_go(tmp_path):
    [found] = read_predictions(npz(tmp_path, logits=[[1.7e308, -1.7e308]]))
    assert found.probs.tolist() == [[[1.0, 0.0]]]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "longdouble"])
def test_any_width_of_float(tmp_path, kind):
    scores = np.random.default_rng(0).normal(size=(3, 40, 7))
    probs = special.softmax(scores, axis=-1).astype(kind)
    [found] = read_predictions(npz(tmp_path, probs=probs), "mnk")
    # Rows are made to sum to 1 again, which moves them by no more than they were rounded by.
    off = float(np.abs(probs.astype(np.float64).sum(axis=-1) - 1).max())
    assert (off > 1e-4) == (kind == "float16")
    assert np.abs(found.probs - probs.astype(np.float64)).max() <= 2 * off + rounding(7, 1.0)
    assert np.abs(found.probs.sum(axis=-1) - 1).max() <= rounding(7, 1.0)
    [found] = read_predictions(npz(tmp_path, logits=scores.astype(kind)), "mnk")
    expected = special.log_softmax(scores.astype(kind).astype(np.float64), axis=-1)
    assert np.abs(found.log_probs - expected).max() <= rounding(7, float(np.abs(expected).max()))


def test_rows_within_the_slack_are_made_to_sum_to_1(tmp_path):
    probs = np.array([[[1.00009, 0.0], [0.3333, 0.66665]]])
    for path in (npz(tmp_path, probs=probs), jsonl(tmp_path, *lines_of(probs, np.ones((2, 2), bool)))):
        [found] = read_predictions(path, "mnk")
        assert np.abs(found.probs - probs / probs.sum(axis=-1, keepdims=True)).max() <= rounding(2, 1.0)
        assert found.probs[0, 0].tolist() == [1.0, 0.0]
        assert confidence(found.probs).max() == 1.0
        assert entropy(found.probs).min() == 0.0


def test_whole_numbers_are_probabilities_too(tmp_path):
    [found] = read_predictions(npz(tmp_path, probs=np.eye(2, dtype=np.uint8)))
    assert found.probs.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), axes=st.sampled_from(["mnk", "nmk"]))
def test_any_probabilities_come_back(tmp_path_factory, data, axes):
    M, N, K = (data.draw(st.integers(low, high)) for low, high in ((1, 3), (1, 4), (2, 5)))
    seed, sharp = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0.1, 1.0, 30.0, 900.0]))
    p = random_predictions(M, N, K, seed=seed)
    probs = special.softmax(np.where(p.mask, p.log_probs, -np.inf) * sharp, axis=-1)
    path = npz(
        tmp_path_factory.mktemp("npz"), probs=probs if axes == "mnk" else probs.swapaxes(0, 1), mask=p.mask,
        targets=p.targets,
    )  # fmt: skip
    [found] = read_predictions(path, axes)
    # exp(ln p) is off by half an eps of ln p in the exponent and by half an eps of itself, or by the last bit of the
    # very smallest numbers.
    relative = EPS * (1.0 - np.log(probs, where=probs > 0, out=np.zeros_like(probs)))
    allowed = probs * relative + float(np.finfo(np.float64).smallest_subnormal)
    assert (np.abs(found.probs - probs) <= allowed).all()
    assert np.array_equal(found.mask, p.mask)
    assert np.array_equal(found.targets, p.targets)


# jsonl.


def test_jsonl_gives_the_arrays(tmp_path):
    rows = lines_of(PROBS, MASK, id=["a", "b", "c"], target=[1, None, 2], subject=["x", None, "y"])
    [found] = read_predictions(jsonl(tmp_path, *rows))
    fields = {"dataset": "theirs", "split": "", "question_ids": ("a", "b", "c"), "subjects": ("x", None, "y")}
    check_equal(found, predictions_of(LOG_PROBS, MASK, TARGETS, **fields))
    assert (found.method, found.epoch) == ("ensemble", 0)


def test_jsonl_and_npz_agree_on_random_predictions(tmp_path):
    p = random_predictions(4, 30, 6)
    [lines] = read_predictions(jsonl(tmp_path, *lines_of(p.probs, p.mask, target=p.targets.tolist())))
    [arrays] = read_predictions(npz(tmp_path, probs=p.probs, mask=p.mask, targets=p.targets), "mnk")
    check_equal(lines, arrays)
    assert lines.mask.sum(axis=1).min() < lines.mask.sum(axis=1).max()


def test_logits_and_probabilities_may_take_turns(tmp_path):
    rows = [{"logits": [[0.0, np.log(3.0)]]}, {"probs": [[1.0, 0.0, 0.0]]}, {"logits": [[5, 5, 5, 5]]}]
    [found] = read_predictions(jsonl(tmp_path, *rows))
    expected = [[[0.25, 0.75, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4]]
    assert np.abs(found.probs - expected).max() <= rounding(4, 1.0)
    assert found.mask.sum(axis=1).tolist() == [2, 3, 4]


def test_lines_of_several_sets_are_told_apart(tmp_path):
    one = {"probs": [[0.5, 0.5]]}
    rows = [
        one, one | {"dataset": "mmlu", "split": "test"}, one | {"epoch": 2}, one | {"epoch": 2.0, "target": 1.0},
        one | {"method": "laplace"},
    ]  # fmt: skip
    found = read_predictions(jsonl(tmp_path, *rows))
    assert [(p.name, p.epoch, p.method) for p in found] == [
        ("theirs", 0, "ensemble"), ("mmlu/test", 0, "ensemble"), ("theirs", 2, "ensemble"), ("theirs", 0, "laplace"),
    ]  # fmt: skip
    # Questions count within their set, so that the same ones pair up over epochs.
    assert [p.question_ids for p in found] == [("0",), ("0",), ("0", "1"), ("0",)]
    assert found[2].targets.tolist() == [-1, 1]


@pytest.mark.parametrize("options", [{"encoding": "utf-8-sig"}, {"newline": "\r\n"}])
def test_files_from_windows(tmp_path, options):
    rows = lines_of(PROBS, MASK, id=["\u00e9", "a\u2028b", "7"])
    [found] = read_predictions(jsonl(tmp_path, *rows, **options))
    assert found.question_ids == ("\u00e9", "a\u2028b", "7")
    assert np.array_equal(found.log_probs, LOG_PROBS)


def test_empty_lines_and_numbers_for_ids(tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_text('\n{"id": 3, "probs": [[1, 0]]}\n\n{"id": "4", "probs": [[0, 1]]}')
    [found] = read_predictions(path)
    assert found.question_ids == ("3", "4")
    assert found.probs.tolist() == [[[1.0, 0.0], [0.0, 1.0]]]


# The ending says what the file is.


def test_parquet_is_read_as_before(tmp_path):
    p = random_predictions(2, 5, 3)
    path = tmp_path / "ours.parquet"
    path.write_bytes(to_parquet(p))
    [found] = read_predictions(path, "nmk")
    assert np.array_equal(found.log_probs, p.log_probs.astype(np.float32))


TABLE: dict[str, Any] = {
    "question_id": ["a", "b"], "member": [0, 0], "choice_log_probs": np.log([[0.5, 0.5], [0.25, 0.75]]).tolist(),
    "target": [0, 1],
}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64(), 2), pa.large_list(pa.float64()), pa.list_(pa.float64())],
    ids=["fixed", "large", "list"],
)
def test_parquet_lists_of_any_kind(tmp_path, kind):
    columns = TABLE | {"choice_log_probs": pa.array(TABLE["choice_log_probs"], kind), "target": pa.nulls(2)}
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.table(columns | {"prompt": ["x", "y"]}), path, row_group_size=1)
    [found] = read_predictions(path)
    assert np.array_equal(found.log_probs[0], TABLE["choice_log_probs"])
    assert found.targets.tolist() == [-1, -1]


WRONG_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "a null among probabilities": (
        {"choice_log_probs": [[0.0, -np.inf], [0.0, None]]},
        "row 2: choice_log_probs holds a null; give every choice's number",
    ),
    "a null among lengths": ({"choice_tokens": [[None, 1], [1, 1]]}, "row 1: choice_tokens holds a null"),
    "lengths of each member's own": (
        {name: values * 2 for name, values in TABLE.items()}
        | {"member": [0, 0, 1, 1], "choice_bytes": [[1, 2], [3, 4], [1, 2], [3, 5]]},
        "row 4: choice_bytes differ between members for question_id 'b'; take the column out",
    ),
}


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_what_is_wrong_in_parquet_is_named(tmp_path, name):
    changes, message = WRONG_TABLES[name]
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.table(TABLE | changes), path, row_group_size=1)
    with pytest.raises(UserError, match=f"theirs.parquet: {message}"):
        read_predictions(path)


def test_two_parquet_columns_of_one_name(tmp_path):
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.Table.from_arrays([*pa.table(TABLE).columns, pa.array([1, 1])], [*TABLE, "target"]), path)
    with pytest.raises(UserError, match=r"theirs.parquet: two columns are called 'target'; rename one"):
        read_predictions(path)


def test_a_hundred_thousand_parquet_rows_in_any_order(tmp_path):
    """Ten members and ten thousand questions; in seconds of processor time, which a busy machine stretches less."""
    M, N, K = 10, 10_000, 5
    rng = np.random.default_rng(0)
    log_probs = special.log_softmax(rng.normal(size=(M, N, K)), axis=-1)
    shuffled = rng.permutation(M * N)
    member, question = np.divmod(shuffled, N)

    def lists(array: np.ndarray) -> Any:
        return pa.ListArray.from_arrays(np.arange(0, M * N * K + 1, K, dtype=np.int32), array.ravel())

    columns = {
        "question_id": [f"q{n:05}" for n in question], "member": member, "target": question % K,
        "choice_log_probs": lists(log_probs[member, question]), "choice_scores": lists(log_probs[member, question]),
        "choice_tokens": lists(np.ones((M * N, K), dtype=np.int32)),
    }  # fmt: skip
    path = tmp_path / "theirs.parquet"
    pq.write_table(pa.table(columns), path)
    before = time.process_time()
    [found] = read_predictions(path)
    assert time.process_time() - before < 1.5
    order = np.array([int(question_id[1:]) for question_id in found.question_ids])
    assert np.array_equal(order, question[member == 0])
    assert np.array_equal(found.log_probs, log_probs[:, order])
    assert np.array_equal(found.targets, order % K)


def test_gaps_among_choices_are_never_written_to_parquet():
    p = predictions_of(np.log([[[0.5, 0.25, 0.25]]]), np.array([[True, False, True]]), [0])
    with pytest.raises(ValueError, match="absent choices must stand behind"):
        to_parquet(p)


# What is wrong is named, with the place and the mend.

FINE = {"probs": PROBS, "mask": MASK, "targets": TARGETS}
HALF = np.full((2, 3, 3), 1 / 3)


def changed(array: Any, place: Any, value: Any) -> Any:
    array = np.array(array)
    array[place] = value
    return array


WRONG_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to read": (
        {"probs": None, "output": HALF},
        "has neither `probs` nor `logits` .*it has mask, output, targ",
    ),
    "both": ({"logits": HALF}, "has both `probs` and `logits`; take one of them out"),
    "texts": ({"probs": np.full((2, 3, 3), "a")}, "`probs` holds <U1, not numbers"),
    "objects": ({"probs": np.array([[None]])}, "`probs` holds Python objects .*dtype=float"),
    "objects for ids": ({"ids": np.array(["a", "b", None])}, "`ids` holds Python objects .*dtype=str"),
    "complex": ({"probs": HALF + 0j}, "`probs` holds complex128, not numbers"),
    "one axis": ({"probs": HALF[0, 0]}, r"`probs` has shape \(3,\); it needs 3 axes, or \[question, choice\]"),
    "four axes": ({"probs": HALF[None]}, r"`probs` has shape \(1, 2, 3, 3\); it needs 3 axes"),
    "no question": ({"probs": HALF[:, :0]}, r"`probs` has shape \(2, 0, 3\): it holds no predictions"),
    "a slip": ({"target": TARGETS, "targets": None}, "array `target` is not known; is it `targets`"),
    "too few targets": (
        {"targets": [0]},
        r"`targets` has shape \(1,\), not \(3,\): `probs` \(2, 3, 3\) as mnk holds 2 members, 3 questions",
    ),
    "the other axes": ({"targets": [0, 1]}, r"`targets` has shape \(2,\), not \(3,\).*is it --axes nmk\?"),
    "a short mask": ({"mask": MASK[:2]}, r"`mask` has shape \(2, 3\), not \(3, 3\): .*is it --axes nmk\?"),
    "a narrow mask": ({"mask": MASK[:, :2]}, r"`mask` has shape \(3, 2\), not \(3, 3\): .*3 choices; mend `mask`"),
    "too many members": ({"members": [0, 1, 2]}, r"`members` has shape \(3,\), not \(2,\).*is it --axes nmk\?"),
    "too few ids": ({"ids": ["a"]}, r"`ids` has shape \(1,\), not \(3,\)"),
    "a mask of numbers": ({"mask": MASK * 1.0}, "`mask` holds float64, not True and False"),
    "targets with fractions": ({"targets": TARGETS * 1.0}, "`targets` holds float64, not whole numbers"),
    "members with names": ({"members": ["a", "b"]}, "`members` holds <U1, not whole numbers"),
    "a member below 0": ({"members": [0, -1]}, "`members` holds -1; number them 0, 1"),
    "subjects by number": ({"subjects": [1, 2, 3]}, "`subjects` holds int64, not texts"),
    "ids in Latin 1": ({"ids": np.array([b"a", b"\xe9", b"c"])}, r"`ids` holds b'\\xe9', which is not UTF-8"),
    "an id twice": ({"ids": ["a", "b", "a"]}, "`ids` holds 'a' 2 times; give each question an id of its own"),
    "one choice": (
        {"mask": changed(MASK, (1, 0), False)},
        "question_id '1' has 1 choices; a question needs 2 at least",
    ),
    "a target beyond": (
        {"targets": [0, 0, 3]},
        "question_id '2': target 3 is none of its 3 choices, which are 0, 1, 2",
    ),
    "a target absent": ({"targets": [0, 2, 2]}, "question_id '1': target 2 is none of its 2 choices, which are 0, 1;"),
    "a target below": ({"targets": [0, -2, 2]}, "question_id '1': target -2 is none of its 2 choices"),
    "the largest target": (
        {"targets": np.array([0, 2**64 - 1, 0], dtype=np.uint64)},
        "question_id '1': target 18446744073709551615 is none of its",
    ),
    "not a number": (
        {"probs": changed(PROBS, (1, 2, 0), np.nan), "ids": ["a", "b", "c"], "members": [5, 9]},
        "question_id 'c', member 9: choice 0 of `probs` is nan, not a finite number",
    ),
    "an infinite probability": ({"probs": changed(PROBS, (0, 0, 1), np.inf)}, "member 0: choice 1 of `probs` is inf"),
    "a negative probability": (
        {"probs": changed(PROBS, (1, 0), [-0.25, 1.0, 0.25])},
        "question_id '0', member 1: choice 0 has the negative probability -0.25; give .* as `logits`",
    ),
    "no distribution": (
        {"probs": changed(PROBS, (0, 1, 1), 0.2502)},
        "question_id '1', member 0: `probs` sums to 1.0002, not 1",
    ),
    "more than floats hold": ({"probs": np.full((2, 3, 3), 1.7e308)}, "`probs` sums to inf, not 1"),
    "mass on an absent choice": (
        {"probs": changed(PROBS, (0, 1), [0.5, 0.25, 0.25])},
        "question_id '1', member 0: `probs` sums to 0.75, not 1",
    ),
    "an infinite logit": (
        {"probs": None, "logits": changed(HALF, (1, 1, 1), np.inf)},
        "question_id '1', member 1: choice 1 of `logits` is inf, not a finite number",
    ),
    "a logit of a choice that is there": (
        {"probs": None, "logits": changed(HALF, (0, 0, 2), -np.inf)},
        r"question_id '0', member 0: choice 2 of `logits` is -inf, .* must be absent \(npz: `mask`\)",
    ),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_what_is_wrong_in_npz_is_named(tmp_path, name):
    changes, message = WRONG_ARRAYS[name]
    path = npz(tmp_path, **{key: value for key, value in (FINE | changes).items() if value is not None})
    with pytest.raises(UserError, match=f"theirs.npz: {message}|theirs.npz: .*{message}"):
        read_predictions(path, "mnk")


def test_the_axes_are_never_guessed(tmp_path):
    """Not even where the targets would tell."""
    path = npz(tmp_path, probs=PROBS.swapaxes(0, 1)[:, :1], targets=TARGETS)
    with pytest.raises(
        UserError, match=r"`probs` has shape \(3, 1, 3\), .*; give --axes mnk .* or --axes nmk"
    ) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


GOOD = {"id": "a", "probs": [[0.5, 0.5], [0.25, 0.75]], "target": 1}
WRONG_LINES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{'id': 1}", r"line 2: not JSON \(.*\); mend it"),
    "cut off": ('{"id": "b", "probs": [[0.5', "line 2: not JSON"),
    "half a letter": ('{"id": "\\ud83d", "probs": [[0.5, 0.5], [0.5, 0.5]]}', "line 2: not JSON .*surrogate"),
    "a list": ([[0.5, 0.5]], "line 2: not a JSON object"),
    "neither": ({"probs": ..., "p": [[1]]}, "line 2: has neither `probs` nor `logits` .*it has id, p, target"),
    "both": ({"logits": [[1.0, 2.0]] * 2}, "line 2: has both `probs` and `logits`"),
    "a slip": ({"target": ..., "targets": 1}, "line 2: key `targets` is not known; is it `target`"),
    "a flat list": ({"probs": [0.5, 0.5]}, "line 2: `probs` must be a list with one list of numbers a member"),
    "no members": ({"probs": []}, "line 2: `probs` must be a list with one list"),
    "null": ({"probs": None}, "line 2: `probs` must be a list"),
    "rows of other lengths": ({"probs": [[0.5, 0.5], [1.0]]}, "line 2: member 1 has 1 probs, but member 0 has 2"),
    "one member less": ({"probs": [[0.5, 0.5]]}, "line 2: 1 members, but line 1 has 2; every line needs"),
    "a text": ({"probs": [[0.5, 0.5], ["0.5", 0.5]]}, 'line 2: member 1: `probs` holds "0.5", not a number'),
    "true": ({"probs": [[True, 0.0], [0.5, 0.5]]}, "line 2: member 0: `probs` holds true, not a number"),
    "one list deeper": ({"probs": [[[0.5], [0.5]], [[1], [0]]]}, r"line 2: member 0: `probs` holds \[0.5\], not a num"),
    "one choice": ({"probs": [[1.0], [1.0]]}, "line 2: a question needs 2 choices at least, and this one has 1"),
    "NaN": ({"probs": [[0.5, 0.5], [0.5, np.nan]]}, "line 2: member 1: choice 1 of `probs` is nan"),
    "an infinite logit": (
        {"probs": ..., "logits": [[-np.inf, 0.0], [0.0, 0.0]]},
        "line 2: member 0: choice 0 of `logits` is -inf",
    ),
    "a huge whole number": ({"probs": [[10**400, 0], [1, 0]]}, "line 2: `probs` holds a whole number beyond"),
    "a negative one": ({"probs": [[0.5, 0.5], [1.5, -0.5]]}, "line 2: member 1: choice 1 has the negative .* -0.5"),
    "no distribution": ({"probs": [[0.5, 0.5], [0.5, 0.4]]}, "line 2: member 1: `probs` sums to 0.9, not 1"),
    "a target beyond": ({"target": 2}, "line 2: target 2 is none of the 2 choices; null where it is unknown"),
    "a target below": ({"target": -2}, "line 2: target -2 is none of the 2 choices"),
    "a target as a letter": ({"target": "B"}, 'line 2: `target` must be a whole number, not "B"'),
    "a target as a bool": ({"target": True}, "line 2: `target` must be a whole number, not true"),
    "half a target": ({"target": 0.5}, "line 2: `target` must be a whole number, not 0.5"),
    "an endless epoch": ({"epoch": np.inf}, "line 2: `epoch` must be a whole number, not Infinity"),
    "an id as a list": ({"id": ["b"]}, r"line 2: `id` must be a text, not \[\"b\"\]"),
    "an empty id": ({"id": " "}, 'line 2: `id` must be a text, not " "'),
    "no id": ({"id": ...}, "line 2: has no `id`, but line 1 has one; give every line its id, or none"),
    "the same id": ({"id": "a"}, "line 2: id 'a' is also that of line 1"),
    "a subject by number": ({"subject": 3}, "line 2: `subject` must be a text, not 3"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_what_is_wrong_in_jsonl_is_named(tmp_path, name):
    change, message = WRONG_LINES[name]
    if isinstance(change, dict):
        row = GOOD | {"id": "b"} | change
        change = {key: value for key, value in row.items() if value is not ...}
    path = tmp_path / "theirs.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{change if isinstance(change, str) else json.dumps(change)}\n")
    with pytest.raises(UserError, match=f"theirs.jsonl, {message}"):
        read_predictions(path)


def test_the_line_with_an_id_is_named_where_the_first_has_none(tmp_path):
    rows = [{"probs": [[0.5, 0.5]]}, {"probs": [[0.5, 0.5]], "id": "b"}]
    with pytest.raises(UserError, match=r"theirs.jsonl, line 1: has no `id`, but line 2 has one"):
        read_predictions(jsonl(tmp_path, *rows))


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_a_file_of_no_lines(tmp_path, content):
    path = tmp_path / "theirs.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"theirs.jsonl: holds no predictions; add a line"):
        read_predictions(path)


def test_another_encoding(tmp_path):
    path = tmp_path / "theirs.jsonl"
    path.write_bytes('{"id": "é", "probs": [[0.5, 0.5]]}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"theirs.jsonl, line 1: not UTF-8 \(byte 0xe9\); save the file as UTF-8"):
        read_predictions(path)


@pytest.mark.parametrize("name", ["theirs.csv", "theirs", "theirs.npy"])
def test_another_ending(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name}: predictions are read from .parquet, .npz, .jsonl"):
        read_predictions(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npz", "a.jsonl", "a.parquet"])
def test_no_file(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: there is no such file"):
        read_predictions(tmp_path / name)


def test_npy_under_another_name(tmp_path):
    with (tmp_path / "theirs.npz").open("wb") as file:
        np.save(file, PROBS)
    with pytest.raises(UserError, match=r"theirs.npz: holds one array without a name \(npy\)"):
        read_predictions(tmp_path / "theirs.npz", "mnk")


def test_damaged_arrays_are_the_environments_fault(tmp_path):
    path = npz(tmp_path, probs=PROBS)
    whole = path.read_bytes()
    damages = [b"", b"rubbish", whole[: len(whole) // 2], whole.replace(PROBS[0].tobytes(), PROBS[1].tobytes())]
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(EnvironmentFault, match=r"theirs.npz: .*(not a readable npz file|`probs` cannot be read)"):
            read_predictions(path, "mnk")
    assert len(set(damages)) == 4


def test_a_file_that_is_no_array_inside_the_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "theirs.npz", "w") as archive:
        archive.writestr("probs", "0.5 0.5")
    with pytest.raises(UserError, match=r"theirs.npz: `probs` holds .*, not numbers"):
        read_predictions(tmp_path / "theirs.npz", "mnk")
