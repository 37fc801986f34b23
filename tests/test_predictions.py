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
from ripieno.measures.uncertainty import confidence, entropy
from ripieno.parquet import read_parquet, to_parquet
from ripieno.predictions import Predictions, concatenate, without_gaps

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


def test_a_file_holds_several_replicates(tmp_path):
    parts = [predictions(seed, replicate=seed) for seed in range(2)]
    path = tmp_path / "predictions.parquet"
    path.write_bytes(to_parquet(*parts))
    for found, expected in zip(read_parquet(path), parts, strict=True):
        check_equal(found, expected)
    with pytest.raises(ValueError, match="one `Predictions` a data set"):
        to_parquet(parts[0], parts[0])


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
    "other questions": (
        {"question_id": ["a", "c", "b", "a"]},
        "row 2: question_id 'c' of member 1 is not among those of member 0",
    ),
    "a question twice later": (
        {"question_id": ["a", "a", "b", "a"]},
        "row 2: question_id 'a' of member 1 stands there twice",
    ),
    "a question too few": (
        {name: values[1:] for name, values in ROWS.items()},
        "member 1 has no row for question_id 'a'",
    ),
    "other choices": (
        {"choice_log_probs": [np.log([0.2, 0.3, 0.5]), *LISTS[1:]]},
        "row 1: question_id 'a' of member 1 has 3 choices, and 2",
    ),
    "no choices": ({"choice_log_probs": [None, *LISTS[1:]]}, "row 1: question_id 'a' of member 1 has 0 choices"),
    "probabilities for log-probabilities": (
        {"choice_log_probs": [np.exp(values) for values in LISTS]},
        r"row 3 \(question_id 'b', member 0\): choice 0 has the log-probability 0.\d+, which must be",
    ),
    "huge logits": (
        {"choice_log_probs": [np.array([1e4, 0.0]), *LISTS[1:]]},
        "choice 0 has the log-probability 10000, which must be",
    ),
    "not a number": (
        {"choice_log_probs": [np.array([np.nan, 0.0]), *LISTS[1:]]},
        "choice 0 has the log-probability nan, which must be",
    ),
    "a target below": ({"target": [-2, None, None, -2]}, "question_id 'a': target -2 is none of its 2 choices"),
    "a target outside": ({"target": [2, None, None, 2]}, "question_id 'a': target 2 is none of its 2 choices"),
    "two targets": ({"target": [0, None, None, 1]}, "row 1: question_id 'a' of member 1 has another target"),
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
    with pytest.raises(UserError, match=r"newer.parquet: written by a newer version of ripieno \(schema 2\)"):
        read_parquet(path)


WRONG_HEADERS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"theirs", "is not JSON"),
    "not UTF-8": (b"\xff\xfe{", "is not JSON"),
    "too deep": (b"[" * 100_000, "is not JSON"),
    "not an object": (b'["ripieno"]', "is not a JSON object"),
    "a schema of text": (b'{"schema": "2"}', "`schema` .*is not a whole number"),
    "no schema": (b'{"schema": null}', "`schema` .*is not a whole number"),
    "a method that is a list": (b'{"method": ["x"]}', "`method` .*is not a text"),
    "labels that are a number": (b'{"labels": 3}', "`labels` .*is not a list of texts"),
    "labels that are one text": (b'{"labels": "no,yes"}', "`labels` .*is not a list of texts"),
    "labels that are numbers": (b'{"labels": [0, 1]}', "`labels` .*is not a list of texts"),
    "a template that is a text": (b'{"template": "text"}', "`template` .*is not an object"),
    "a template without a text": (b'{"template": {"name": ["text"]}}', "`template` .*is not an object whose `name`"),
    "a template of null": (b'{"template": null}', "`template` .*is not an object"),
    "a number of choices in words": (b'{"choices": "four"}', "`choices` .*is not a whole number, 2 or more"),
    "a rule that is a text": (b'{"scoring": "sum"}', "`scoring` .*is not an object"),
    "a number of long ones": (b'{"too_long": 3}', "`too_long` .*is not a list of texts"),
}


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_what_a_file_says_of_itself_is_checked(tmp_path, name):
    header, message = WRONG_HEADERS[name]
    table = pq.read_table(write(tmp_path / "theirs.parquet"))
    pq.write_table(table.replace_schema_metadata({b"ripieno": header}), tmp_path / "theirs.parquet")
    with pytest.raises(
        UserError, match=f"theirs.parquet: .*metadata `ripieno` {message}|theirs.parquet: {message}"
    ) as e:
        read_parquet(tmp_path / "theirs.parquet")
    assert "or take `ripieno` out of the schema's metadata" in str(e.value)


def test_what_else_a_file_says_of_itself_may_be_anything(tmp_path):
    header = b'{"labels": null, "template": {}, "notes": [1, {"schema": "x"}]}'
    table = pq.read_table(write(tmp_path / "theirs.parquet"))
    pq.write_table(table.replace_schema_metadata({b"ripieno": header}), tmp_path / "theirs.parquet")
    [p] = read_parquet(tmp_path / "theirs.parquet")
    assert p.metadata == {"labels": None, "template": {}, "notes": [1, {"schema": "x"}]}


# Rows that do not sum to exactly 1.


def test_rows_that_are_further_off_than_rounding_explains_are_normalised(tmp_path):
    """Within the 1e-4 that are forgiven: otherwise confidences above 1 and entropies below 0 would follow."""
    rows = np.array([[1.00009, 0.0], [0.5, 0.49991], [0.25, 0.75], [1.0, 1e-9]])
    with np.errstate(divide="ignore"):
        [p] = read_parquet(write(tmp_path / "theirs.parquet", question_id=list("aabb"), member=[0, 1] * 2,
                                 choice_log_probs=list(np.log(rows)), target=[None] * 4))  # fmt: skip
    eps = float(np.finfo(np.float64).eps)
    found = p.probs.transpose(1, 0, 2).reshape(4, 2)
    assert np.abs(found.sum(axis=-1) - 1).max() <= 4 * eps
    assert np.abs(found - rows / rows.sum(axis=-1, keepdims=True)).max() <= 8 * eps
    assert entropy(p.probs).min() >= -2 * eps
    assert confidence(p.probs).max() <= 1 + 2 * eps
    assert p.log_probs[0, 1].tolist() == np.log([0.25, 0.75]).tolist()


def test_float32_from_elsewhere_is_normalised(tmp_path):
    """3e-6 is more than float32 explains here, with no scores that would."""
    rows = [(np.log(np.array([0.25, 0.75])) + 3e-6).astype(np.float32)] * 4
    lists = pa.array([row.tolist() for row in rows], pa.list_(pa.float32()))
    [p] = read_parquet(
        write(
            tmp_path / "theirs.parquet",
            question_id=list("aabb"),
            member=[0, 1] * 2,
            choice_log_probs=lists,
            target=[0] * 4,
        )
    )
    assert np.abs(p.probs.sum(axis=-1) - 1).max() <= 4 * float(np.finfo(np.float64).eps)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(2, 26), min_size=1, max_size=6), st.integers(0, 999), st.sampled_from([0.1, 1, 10, 100]),
    st.sampled_from([0, 1, 100]),
)  # fmt: skip
def test_our_own_rounding_is_left_alone(tmp_path_factory, sizes, seed, spread, below):
    """Whether float64 was rounded once to be stored, or all was computed in float32 from scores far below 0."""
    p = predictions(seed, tuple(sizes), optional=False)
    rng = np.random.default_rng(seed)
    scores = np.where(p.mask, spread * rng.normal(size=p.log_probs.shape) - below, -np.inf).astype(np.float32)
    largest = scores.max(axis=-1, keepdims=True)
    apart = scores.astype(np.float64) - largest
    within = (apart - np.log(np.exp(apart).sum(axis=-1, keepdims=True))).astype(np.float32)
    total = np.log(np.exp(scores - largest).sum(axis=-1, keepdims=True, dtype=np.float32))
    before = (scores - (largest + total)).astype(np.float32)
    stored = np.where(p.mask, scores, 0.0).astype(np.float64)
    for log_probs, known in ((within, None), (before, stored)):
        own = dataclasses.replace(p, log_probs=log_probs.astype(np.float64), scores=known)
        [found] = round_trip(own, tmp_path_factory.mktemp("predictions"))
        check_equal(found, own)


def test_a_damaged_file_is_the_environments_fault(tmp_path):
    path = tmp_path / "damaged.parquet"
    path.write_bytes(to_parquet(predictions())[:-10])
    with pytest.raises(EnvironmentFault, match=r"damaged.parquet: not a readable parquet file"):
        read_parquet(path)


def test_the_number_of_choices_kept_is_the_files_own_word(tmp_path):
    assert predictions().choices_kept is None
    [found] = round_trip(predictions(metadata={"choices": 4}), tmp_path)
    assert found.choices_kept == 4


# Gaps.

GAPS = np.array([[True, False, True, True], [True, True, True, True], [False, True, False, True]])
PACKED = [[0, 2, 3], [0, 1, 2, 3], [1, 3]]  # the columns that stay, by question


def with_gaps() -> Predictions:
    """Everything stored a choice, with its own column in the number."""
    p = predictions(sizes=(4, 4, 4))
    with np.errstate(divide="ignore"):
        return dataclasses.replace(
            p, mask=GAPS, targets=np.array([3, -1, 1]), log_probs=np.where(GAPS, p.log_probs, -np.inf)
        )


def test_gaps_close_and_all_moves_along():
    p = with_gaps()
    found = without_gaps(p)
    sizes = [len(kept) for kept in PACKED]
    assert np.array_equal(found.mask, np.arange(4) < np.array(sizes)[:, None])
    assert found.targets.tolist() == [2, -1, 0]
    for n, kept in enumerate(PACKED):
        for name in ("log_probs", "scores", "unconditional"):
            assert np.array_equal(getattr(found, name)[:, n, : sizes[n]], getattr(p, name)[:, n, kept]), name
        for name in ("tokens", "bytes"):
            assert np.array_equal(getattr(found, name)[n, : sizes[n]], getattr(p, name)[n, kept]), name
    assert np.isneginf(found.log_probs[:, ~found.mask]).all()
    assert found.letter_log_probs is None  # c is no longer the third
    for name in ("outside_mass", "top_tokens", "top_log_probs"):
        assert np.array_equal(getattr(found, name), getattr(p, name)), name
    assert (found.question_ids, found.members, found.metadata) == (p.question_ids, p.members, p.metadata)
    assert p.targets.tolist() == [3, -1, 1]  # the argument stays as it was
    to_parquet(found)  # which refuses gaps


def test_without_gaps_nothing_moves():
    p = predictions()
    assert without_gaps(p) is p


@pytest.mark.parametrize("target", [0, 4])
def test_a_target_that_is_none_of_the_choices(target):
    p = dataclasses.replace(with_gaps(), targets=np.array([-1, -1, target]))
    with pytest.raises(ValueError, match=f"question 'q0-2': target {target} is none of its choices"):
        without_gaps(p)


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
