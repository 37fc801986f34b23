import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ripieno.errors import EnvironmentFault, UserError
from ripieno.predictions import Predictions, concatenate, read_parquet, to_parquet

OPTIONAL = (
    "scores", "tokens", "bytes", "unconditional", "outside_mass", "letter_log_probs", "top_tokens", "top_log_probs",
    "subjects",
)  # fmt: skip


def predictions(seed: int = 0, sizes: tuple[int, ...] = (2, 4, 3), optional: bool = True, **fields: Any) -> Predictions:
    """Three members' answers in float32's own values, so that a file gives the very same numbers back."""
    rng = np.random.default_rng(seed)
    M, N, K = 3, len(sizes), max(sizes)
    mask = np.arange(K) < np.array(sizes)[:, None]
    scores = np.where(mask, rng.normal(size=(M, N, K)), -np.inf)
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    p = Predictions(
        log_probs=log_probs.astype(np.float32).astype(np.float64),
        mask=mask,
        question_ids=tuple(f"q{seed}-{n}" for n in range(N)),
        targets=rng.integers(-1, np.array(sizes)),
        members=(0, 2, 5),
        dataset="mmlu:stem",
        split="test",
        epoch=3,
        replicate=1,
        subjects=tuple("physics" if n else None for n in range(N)),
        metadata={"config_hash": "ab12", "scoring": {"rule": "letters"}},
    )
    if optional:
        p = dataclasses.replace(
            p,
            scores=np.where(mask, scores, 0.0).astype(np.float32).astype(np.float64),
            tokens=mask * rng.integers(1, 9, size=(N, K)),
            bytes=mask * rng.integers(1, 99, size=(N, K)),
            unconditional=(mask * rng.normal(-9, 1, size=(M, N, K))).astype(np.float32).astype(np.float64),
            outside_mass=rng.random((M, N)).astype(np.float32).astype(np.float64),
            letter_log_probs=rng.normal(size=(M, N, 5)).astype(np.float32).astype(np.float64),
            top_tokens=rng.integers(0, 50_000, size=(M, N, 7)),
            top_log_probs=rng.normal(size=(M, N, 7)).astype(np.float32).astype(np.float64),
        )
    return dataclasses.replace(p, **fields)


def check_equal(found: Predictions, expected: Predictions) -> None:
    for field in dataclasses.fields(Predictions):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert np.array_equal(a, b), field.name
        else:
            assert a == b, field.name


def round_trip(p: Predictions, folder: Path) -> list[Predictions]:
    path = folder / "predictions.parquet"
    path.write_bytes(to_parquet(p))
    return read_parquet(path)


@pytest.mark.parametrize("optional", [True, False])
def test_a_file_gives_the_same_back(tmp_path, optional):
    p = predictions(optional=optional)
    [found] = round_trip(p, tmp_path)
    check_equal(found, p)
    assert found.name == "mmlu:stem/test"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 7), min_size=1, max_size=8), st.integers(0, 99), st.booleans())
def test_any_numbers_of_choices_survive(tmp_path_factory, sizes, seed, optional):
    p = predictions(seed, tuple(sizes), optional)
    [found] = round_trip(p, tmp_path_factory.mktemp("predictions"))
    check_equal(found, p)


def test_the_same_content_gives_the_same_bytes():
    p = predictions()
    again = dataclasses.replace(predictions(), metadata=dict(reversed(p.metadata.items())))
    assert to_parquet(p) == to_parquet(again)
    assert to_parquet(p) != to_parquet(predictions(1))


def test_probabilities_of_exactly_zero_and_one_survive(tmp_path):
    p = predictions(sizes=(2,), optional=False)
    log_probs = np.array([[[0.0, -np.inf]], [[-np.inf, 0.0]], [[np.log(np.float32(0.5))] * 2]], dtype=np.float32)
    p = dataclasses.replace(p, log_probs=log_probs.astype(np.float64))
    [found] = round_trip(p, tmp_path)
    check_equal(found, p)


def test_draws_from_one_member_stay_apart(tmp_path):
    p = predictions(members=(4, 4, 4), method="mc_dropout")
    [found] = round_trip(p, tmp_path)
    check_equal(found, p)
    assert pq.read_table(tmp_path / "predictions.parquet")["draw"].to_pylist() == [0] * 3 + [1] * 3 + [2] * 3


def test_absent_choices_have_probability_zero():
    p = predictions()
    assert not p.probs[:, ~p.mask].any()
    assert p.labelled.tolist() == (p.targets >= 0).tolist()


# Other programs' files.

ROWS: dict[str, list[Any]] = {
    "question_id": ["a", "b", "b", "a"],
    "member": [1, 1, 0, 0],
    "choice_log_probs": [np.log([0.25, 0.75]), np.log([0.5, 0.25, 0.25]), np.log([0.2, 0.3, 0.5]), np.log([1.0, 1e-9])],
    "target": [1, None, None, 1],
}


def write(path: Path, **changes: Any) -> Path:
    """Write ROWS with some columns changed, or left out where the change is None."""
    columns = {name: values for name, values in (ROWS | changes).items() if values is not None}
    pq.write_table(pa.table(columns), path)
    return path


def test_four_columns_are_enough_in_any_order(tmp_path):
    [p] = read_parquet(write(tmp_path / "theirs.parquet"))
    assert (p.dataset, p.split, p.method, p.epoch, p.replicate) == ("theirs", "", "ensemble", 0, 0)
    assert p.members == (0, 1)
    assert p.question_ids == ("b", "a")  # as the first member met them
    assert p.targets.tolist() == [-1, 1]
    assert p.mask.sum(axis=1).tolist() == [3, 2]
    assert all(not getattr(p, name) for name in OPTIONAL if name != "subjects")
    assert p.subjects == (None, None)
    # Their double precision is kept.
    assert p.log_probs[1, 0].tolist() == np.log([0.5, 0.25, 0.25]).tolist()
    assert p.log_probs[1, 1].tolist() == [*np.log([0.25, 0.75]), -np.inf]


def test_other_types_of_the_same_meaning_are_read(tmp_path):
    lists = pa.array([list(values) for values in ROWS["choice_log_probs"]], pa.large_list(pa.float64()))
    path = write(
        tmp_path / "theirs.parquet",
        question_id=pa.array([7, 8, 8, 7]),
        member=pa.array([1.0, 1.0, 0.0, 0.0]),
        choice_log_probs=lists,
        dataset=pa.array(["x"] * 4).dictionary_encode(),
    )
    [p] = read_parquet(path)
    assert (p.dataset, p.question_ids, p.members) == ("x", ("8", "7"), (0, 1))


def test_one_file_may_hold_several_data_sets_and_epochs(tmp_path):
    path = write(tmp_path / "all.parquet", dataset=["x", "y", "y", "x"], epoch=[2, 2, 2, 2], member=[0, 0, 1, 1])
    x, y = read_parquet(path)
    assert [(p.name, p.epoch, p.question_ids) for p in (x, y)] == [("x", 2, ("a",)), ("y", 2, ("b",))]


def test_no_rows_are_no_predictions(tmp_path):
    path = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(write(tmp_path / "all.parquet")).slice(0, 0), path)
    assert read_parquet(path) == []


LISTS = ROWS["choice_log_probs"]
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a column is missing": ({"target": None}, "column 'target' is missing; predictions need question_id, member,"),
    "a column of another type": ({"member": ["x"] * 4}, "column 'member' holds string, not int32"),
    "a null question": ({"question_id": ["a", None, "b", "a"]}, "row 2: question_id is null"),
    "a null member": ({"member": [1, 1, None, 0]}, "row 3: member is null"),
    "a question twice": ({"question_id": ["a", "b", "b", "b"]}, "question_id 'b' stands twice for member 0"),
    "other questions": ({"question_id": ["a", "c", "b", "a"]}, "member 1 and member 0 answer different questions"),
    "a question twice later": ({"question_id": ["a", "a", "b", "a"]}, "member 1 and member 0 answer different"),
    "a question too few": (
        {name: values[1:] for name, values in ROWS.items()},
        "member 1 has no row for question_id 'a'",
    ),
    "other choices": ({"choice_log_probs": [np.log([0.2, 0.3, 0.5]), *LISTS[1:]]}, "row 1: choice_log_probs differ"),
    "no choices": ({"choice_log_probs": [None, *LISTS[1:]]}, "row 1: choice_log_probs differ in length"),
    "probabilities for log-probabilities": (
        {"choice_log_probs": [np.exp(values) for values in LISTS]},
        r"question_id 'b', member 0: exp\(choice_log_probs\) sums to .*, not 1",
    ),
    "huge logits": ({"choice_log_probs": [np.array([1e4, 0.0]), *LISTS[1:]]}, "sums to inf, not 1"),
    "not a number": ({"choice_log_probs": [np.array([np.nan, 0.0]), *LISTS[1:]]}, "sums to nan, not 1"),
    "a target outside": ({"target": [2, None, None, 2]}, "question_id 'a': target 2 is outside its 2 choices"),
    "two targets": ({"target": [0, None, None, 1]}, "row 1: target differs between members for question_id 'a'"),
    "too few unconditional scores": (
        {"unconditional_scores": [[0.0] * 2, [0.0] * 3, [0.0], [0.0] * 2]},
        "row 3: unconditional_scores has 1 values, not 3",
    ),
    "too few scores": (
        {"choice_scores": [[0.0], [0.0] * 3, [0.0] * 3, [0.0] * 2]},
        "row 1: choice_scores has 1 values, not 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path, name):
    changes, message = WRONG[name]
    path = write(tmp_path / "theirs.parquet", **changes)
    with pytest.raises(UserError, match=f"theirs.parquet: .*{message}"):
        read_parquet(path)


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "newer.parquet"
    table = pa.table(ROWS)
    pq.write_table(table.replace_schema_metadata({b"ripieno": b'{"schema": 2}'}), path)
    with pytest.raises(UserError, match=r"newer.parquet: written by a newer ripieno \(schema 2\)"):
        read_parquet(path)


def test_a_damaged_file_is_the_environments_fault(tmp_path):
    path = tmp_path / "damaged.parquet"
    path.write_bytes(to_parquet(predictions())[:-10])
    with pytest.raises(EnvironmentFault, match=r"damaged.parquet: not a readable parquet file"):
        read_parquet(path)


def test_the_number_of_choices_kept_is_the_files_own_word(tmp_path):
    assert predictions().choices_kept is None
    [found] = round_trip(predictions(metadata={"choices": 4}), tmp_path)
    assert found.choices_kept == 4


# Parts and wholes.


@pytest.mark.parametrize("questions", [np.array([True, False, True]), np.array([2, 0]), np.array([], dtype=int)])
def test_select_takes_everything_along(questions):
    p = predictions()
    part = p.select(questions)
    index = np.arange(3)[questions]
    assert part.question_ids == tuple(p.question_ids[i] for i in index)
    assert part.subjects == tuple(p.subjects[i] for i in index)
    for name in ("mask", "targets", "tokens", "bytes"):
        assert np.array_equal(getattr(part, name), getattr(p, name)[index]), name
    for name in (
        "log_probs",
        "scores",
        "unconditional",
        "outside_mass",
        "letter_log_probs",
        "top_tokens",
        "top_log_probs",
    ):
        assert np.array_equal(getattr(part, name), getattr(p, name)[:, index]), name
    assert (part.members, part.epoch, part.metadata) == (p.members, p.epoch, p.metadata)


@pytest.mark.parametrize("optional", [True, False])
def test_concatenate_undoes_select(optional):
    p = predictions(optional=optional)
    check_equal(concatenate([p.select(np.array([0, 1])), p.select(np.array([2]))]), p)


def test_concatenate_widens_to_the_most_choices():
    narrow, wide = predictions(0, (2, 2)), predictions(1, (5,))
    joined = concatenate([narrow, wide])
    assert joined.mask.sum(axis=1).tolist() == [2, 2, 5]
    assert np.isneginf(joined.log_probs[:, :2, 2:]).all()
    assert joined.question_ids == (*narrow.question_ids, *wide.question_ids)


def test_concatenate_keeps_only_what_every_part_has():
    joined = concatenate([predictions(0), predictions(1, optional=False, subjects=())])
    assert all(getattr(joined, name) is None for name in OPTIONAL if name != "subjects")
    assert joined.subjects == (None, "physics", "physics", None, None, None)
