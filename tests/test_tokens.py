"""The table of tokens: what is written is read back, and its summary is what numpy says by hand."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ripieno.errors import EnvironmentFault, UserError
from ripieno.tokens import SCHEMA, Tokens, read_parquet, summarise, to_parquet


def table(members: int = 3, seed: int = 0, **changes: Any) -> Tokens:
    """Return two texts, "a é!" in bytes and "ok", whose numbers are random float32 distributions over 6 tokens."""
    texts = {"one": ["a", " ", "", "é", "!"], "two": ["o", "k"]}
    ids = tuple(text for text, words in texts.items() for _ in words)
    T, rng = len(ids), np.random.default_rng(seed)
    logits = rng.normal(size=(members, T, 6)) * 2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pooled, chosen = p.mean(0), rng.integers(0, 6, T)
    predicted = np.array([n > 0 and ids[n] == ids[n - 1] for n in range(T)])
    lengths = [np.cumsum([0, *map(len, words)]) for words in texts.values()]

    def known(values: np.ndarray) -> np.ndarray:
        return np.where(predicted, values, 0).astype(np.float32).astype(np.float64)

    given: dict[str, Any] = {
        "text_ids": ids,
        "positions": np.array([0, 1, 2, 3, 4, 0, 1]),
        "token_ids": chosen,
        "tokens": tuple(word for words in texts.values() for word in words),
        "starts": np.concatenate([cuts[:-1] for cuts in lengths]),
        "ends": np.concatenate([cuts[1:] for cuts in lengths]),
        "predicted": predicted,
        "log_probs": known(np.log(pooled[range(T), chosen])),
        "entropy": known(-(pooled * np.log(pooled)).sum(-1)),
        "expected_entropy": known(-(p * np.log(p)).sum(-1).mean(0)),
        "confidence": known(pooled.max(-1)),
        "correct": (pooled.argmax(-1) == chosen) & predicted,
        "member_log_probs": known(np.log(p[:, range(T), chosen])),
        "members": tuple(range(members)),
        "epoch": 2,
        "metadata": {"config_hash": "abc", "text": {"file": "é.txt"}},
    }
    return Tokens(**(given | changes))


def assert_same(a: Tokens, b: Tokens) -> None:
    for item in fields(Tokens):
        ours, theirs = getattr(a, item.name), getattr(b, item.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=item.name)
        else:
            assert ours == theirs, item.name


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("answer", [None, np.array([False, False, True, True, True, False, True])])
def test_what_is_written_is_read_back(members: int, answer: Any, tmp_path: Path) -> None:
    t = table(members, answer=answer, dataset="d", split="test")
    content = to_parquet(t)
    assert content == to_parquet(t)  # the same bytes for the same content
    (tmp_path / "t.parquet").write_bytes(content)
    assert_same(read_parquet(tmp_path / "t.parquet"), t)


def test_the_file_is_as_the_schema_says_and_null_where_nothing_was_predicted(tmp_path: Path) -> None:
    t = table()
    (tmp_path / "t.parquet").write_bytes(to_parquet(t))
    found = pq.read_table(tmp_path / "t.parquet")
    assert found.schema.remove_metadata() == SCHEMA
    rows = found.to_pylist()
    for row, predicted in zip(rows, t.predicted, strict=True):
        values = [row[name] for name in SCHEMA.names[6:-1]]
        assert all(value is None for value in values) != predicted
    assert rows[1]["member_log_probs"] == pytest.approx(t.member_log_probs[:, 1], rel=1e-6)
    assert rows[1]["mutual_information"] == pytest.approx(t.mutual_information[1], abs=1e-6)
    assert {row["answer"] for row in rows} == {None}
    assert "".join(row["token"] for row in rows if row["text_id"] == "one") == "a é!"


def test_the_summary_is_the_mean_over_predicted_tokens() -> None:
    t = table()
    s = summarise(t)
    assert s.tokens == 5
    assert s.members == 3
    assert s.nll == pytest.approx(-sum(t.log_probs[[1, 2, 3, 4, 6]]) / 5, rel=1e-12)
    assert s.perplexity == pytest.approx(math.exp(s.nll), rel=1e-12)
    # Jensen's gap is positive for members that differ, so no token's is cut off at 0.
    assert s.mutual_information == pytest.approx(s.entropy - s.expected_entropy, abs=1e-12)
    assert s.accuracy == t.correct[t.predicted].mean()
    of_second = summarise(t, t.texts()["two"])
    assert (of_second.tokens, of_second.nll) == (1, -t.log_probs[6])
    assert summarise(t, np.arange(7) == 6) == of_second


def test_an_even_guess_has_the_vocabularys_size_as_its_perplexity() -> None:
    V = 6
    even = np.where(table().predicted, -math.log(V), 0.0)
    t = table(log_probs=even, entropy=-even, expected_entropy=-even)
    s = summarise(t)
    assert s.perplexity == pytest.approx(V, rel=1e-12)
    assert (s.entropy, s.mutual_information) == (pytest.approx(math.log(V)), 0.0)


def test_disagreement_is_never_negative_and_perplexity_never_infinite() -> None:
    t = table()
    t = replace(t, expected_entropy=t.entropy + 1e-7, log_probs=np.where(t.predicted, -1e4, 0.0))
    assert not t.mutual_information.any()
    assert math.isfinite(summarise(t).perplexity)


def test_nothing_predicted_has_no_mean() -> None:
    t = table()
    with pytest.raises(ValueError, match="no predicted token"):
        summarise(t, np.arange(7) == 0)


def test_files_that_are_no_table_of_tokens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(EnvironmentFault, match=r"t\.parquet"):
        read_parquet(path)
    pq.write_table(pa.table({"text_id": ["a"]}), path)
    with pytest.raises(UserError, match="no column position"):
        read_parquet(path)
    path.write_bytes(to_parquet(table()))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(UserError, match="no metadata"):
        read_parquet(path)
    newer = pq.read_table(path).replace_schema_metadata({b"ripieno": b'{"schema": 99, "members": [0]}'})
    pq.write_table(newer, path)
    with pytest.raises(UserError, match="newer"):
        read_parquet(path)
