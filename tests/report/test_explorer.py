from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from asked import HOSTILE, asked
from synthetic import answers, run, summary

from ripieno.data.question import Question
from ripieno.measures import uncertainty
from ripieno.measures.analysis import analyze
from ripieno.measures.table import Analysis
from ripieno.predictions import Predictions
from ripieno.report import explorer
from ripieno.report.build import build


def unpack(explored: explorer.Explored) -> tuple[dict[str, Any], dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Read a payload by its description: the header, the page's columns, and each set's."""
    content = zlib.decompress(base64.b64decode(explored.payload))
    length = int.from_bytes(content[:8], "little")
    header, at = json.loads(content[8 : 8 + length]), 8 + length

    def take(kind: str, *shape: int) -> np.ndarray:
        nonlocal at
        column = np.frombuffer(content, kind, int(np.prod(shape)), at).reshape(shape)
        at += -(-column.nbytes // 4) * 4
        return column

    N = explored.questions
    columns = {name: take("<f4", N) for name, _ in header["measures"]}
    columns |= {"target": take("<i2", N), "answer": take("<u2", N), "size": take("<u2", N)}
    sets = []
    for each in header["sets"]:
        n, M = len(each["ids"]), len(each["members"])
        sets.append({"probs": take("<u2", n, 1 + each["drawn"], each["width"]), "votes": take("<u2", n, M)})
    assert at == len(content)
    return header, columns, sets


@pytest.fixture(scope="module")
def predictions() -> list[Predictions]:
    return run({"a/test": {"sizes": (2, 5)}, "b/test": {"sizes": (3,), "labelled": False}}, n=51, members=3)


def test_columns_are_the_last_epochs(predictions: list[Predictions]) -> None:
    header, columns, sets = unpack(explorer.data(predictions, {}, ["b/test"]))
    last = [p for p in predictions if p.epoch == 2]
    assert [(s["name"], s["out"], s["members"], s["width"]) for s in header["sets"]] == [
        ("a/test", False, [0, 1, 2], 5),
        ("b/test", True, [0, 1, 2], 3),
    ]
    np.testing.assert_array_equal(columns["target"], np.concatenate([p.targets for p in last]))
    for p, packed in zip(last, sets, strict=True):
        shown = np.concatenate([p.probs.mean(axis=0)[None], p.probs]).transpose(1, 0, 2)
        # Half a thousandth is what rounding to thousandths moves at most.
        np.testing.assert_allclose(packed["probs"] / explorer.STEPS, shown, rtol=0, atol=0.0005 * (1 + 1e-9))
        np.testing.assert_array_equal(packed["votes"], p.probs.argmax(axis=2).T)


def test_means_are_the_tables(predictions: list[Predictions]) -> None:
    """What a reader averages in the explorer is what the page's table says."""
    _, columns, _ = unpack(explorer.data(predictions, {}))
    rows = {
        (row.dataset, row.measure): row.value
        for row in analyze(predictions, resamples=2)
        if (row.epoch, row.who, row.pooling, row.variant, row.against) == (2, "ensemble", "prob", None, None)
    }
    named = {"correct": "accuracy", "confidence": "mean_confidence"}
    for measure in set(columns) - {"choices", "target", "answer", "size"}:
        for dataset, part in (("a", slice(0, 51)), ("b", slice(51, 102))):
            own, tables = columns[measure][part].astype(float), rows[dataset, named.get(measure, measure)]
            if tables is None:
                assert np.isnan(own).all()
            else:
                # Each value was rounded to float32, by half of 2^-23 of itself at most.
                assert own.mean() == pytest.approx(tables, rel=2**-23)
    assert {m for m in columns if np.isnan(columns[m]).any()} == {"correct", "nll"}


def test_texts_come_back_as_they_are() -> None:
    p = answers("a/test", seed=0, n=20, sizes=(2, 4))
    p = replace(p, subjects=(None, "law", *["x"] * 18))
    questions = asked(p)
    explored = explorer.data([p], {"a/test": [questions[3], *questions[:3], *questions[4:]]})
    (own,) = unpack(explored)[0]["sets"]
    assert explored.longest is None
    assert own["questions"] == [q.question for q in questions]
    assert own["choices"] == [list(q.choices) for q in questions]
    passages = [None if i < 0 else own["passages"][i] for i in own["passage"]]
    assert passages == [q.context for q in questions]
    assert len(own["passages"]) == len({q.context for q in questions} - {None})
    assert [None if i < 0 else own["subjects"][i] for i in own["subject"]] == list(p.subjects)


def test_unknown_questions_keep_their_id() -> None:
    p = answers("a/test", seed=0, n=3)
    header, _, _ = unpack(explorer.data([p], {"b/test": asked(p)}))
    assert header["sets"][0]["questions"] == [None] * 3
    assert header["sets"][0]["ids"] == ["q0", "q1", "q2"]


def test_one_member_has_nothing_to_disagree_with() -> None:
    header, _, _ = unpack(explorer.data([answers("a/test", seed=0, n=4, members=1)], {}))
    assert [name for name, _ in header["measures"]] == [m for m in explorer.MEASURES if m not in explorer.OF_SEVERAL]


def test_certain_and_wrong_is_infinite_not_nan() -> None:
    p = answers("a/test", seed=0, n=8)
    with np.errstate(divide="ignore"):
        sure = replace(p, log_probs=np.log(np.eye(5)[np.zeros((3, 8), int)]))
    _, columns, _ = unpack(explorer.data([sure], {}))
    assert set(columns["nll"].tolist()) == {0.0, np.inf}


def test_long_texts_are_shortened_in_their_middle_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the page is small enough; what a question asks at its end stays."""
    p = answers("a/test", seed=0, n=30, sizes=(2,))
    words = np.random.default_rng(0).integers(0, 16, (30, 9000))
    texts = ["".join("0123456789abcdef"[w] for w in row) + "Which?" for row in words]
    questions = [Question(f"q{i}", t, ("yes", "no"), 0) for i, t in enumerate(texts)]
    monkeypatch.setattr(explorer, "BUDGET", 80_000)
    explored = explorer.data([p], {"a/test": questions})
    assert explored.longest == 2000
    assert len(explored.payload) <= 80_000
    (own,) = unpack(explored)[0]["sets"]
    assert own["questions"][0] == f"{texts[0][:1200]} [… 7,006 characters left out …] {texts[0][-800:]}"
    assert own["choices"][0] == ["yes", "no"]


def test_numbers_stay_where_no_length_is_short_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "BUDGET", 10)
    p = answers("a/test", seed=0, n=30)
    questions = asked(p)
    explored = explorer.data([p], {"a/test": questions})
    assert explored.longest is None  # no text is longer than the shortest length
    assert (explored.questions, explored.asked, explored.drawn) == (30, 30, 3)
    explored = explorer.data([p], {"a/test": [replace(questions[0], context="x" * 251), *questions[1:]]})
    assert explored.longest == min(explorer.LENGTHS) == 250
    assert (explored.questions, explored.asked, explored.drawn) == (30, 30, 3)


def random_texts(p: Predictions) -> list[Question]:
    """As many characters as a question of CommonsenseQA has, but of random letters, which hardly compress."""
    random = np.random.default_rng(0)
    texts = (random.bytes(65).hex() for _ in p.question_ids)
    sizes = p.mask.sum(axis=1).tolist()
    return [Question(i, t, tuple("abcdefgh"[:k])) for i, t, k in zip(p.question_ids, texts, sizes, strict=True)]


def test_fifty_members_and_ten_thousand_questions_fit() -> None:
    """Fewer members are there one by one; the ensemble, the measures and the votes are of all."""
    p = answers("a/test", seed=0, n=10_000, sizes=(4,), members=50)
    explored = explorer.data([p], {"a/test": random_texts(p)})
    assert len(explored.payload) <= explorer.BUDGET
    assert (explored.questions, explored.asked, explored.longest) == (10_000, 10_000, None)
    assert (explored.members, explored.drawn) == (50, 16)
    header, columns, [own] = unpack(explored)
    assert header["sets"][0]["members"] == list(range(50))
    shown = np.concatenate([p.probs.mean(axis=0)[None], p.probs[:16]]).transpose(1, 0, 2)
    np.testing.assert_allclose(own["probs"] / explorer.STEPS, shown, rtol=0, atol=0.0005 * (1 + 1e-9))
    np.testing.assert_array_equal(own["votes"], p.probs.argmax(axis=2).T)
    information = uncertainty.mutual_information(p.probs).astype(np.float32)
    np.testing.assert_array_equal(columns["mutual_information"], information)


def test_ten_members_and_ten_thousand_questions_are_all_there() -> None:
    p = answers("a/test", seed=0, n=10_000, sizes=(5,), members=10)
    explored = explorer.data([p], {"a/test": random_texts(p)})
    assert len(explored.payload) <= explorer.BUDGET
    assert (explored.questions, explored.longest, explored.drawn) == (10_000, None, 10)


def test_forty_thousand_questions_are_drawn_from(predictions: list[Predictions]) -> None:
    """At random from each set, so that what the page counts among them is what it would count among all."""
    parts = [answers(f"{name}/test", seed=s, n=n) for name, s, n in (("a", 1, 30_000), ("b", 2, 10_000), ("c", 3, 3))]
    parts = [replace(p, log_probs=np.tile(p.log_probs, (4, 1, 1))[:10], members=tuple(range(10))) for p in parts]
    explored = explorer.data(parts, {p.name: random_texts(p) for p in parts})
    assert 0.9 * explorer.LIMIT < len(explored.payload) <= explorer.LIMIT
    assert (explored.asked, explored.members, explored.drawn) == (40_003, 10, 0)
    header, columns, _ = unpack(explored)
    sizes = [len(s["ids"]) for s in header["sets"]]
    share = sizes[0] / 30_000
    assert sizes[1] == pytest.approx(10_000 * share, abs=1)
    assert sizes[2] in (1, 2)
    at = [p.question_ids.index(id_) for p, s in zip(parts[1:], header["sets"][1:], strict=True) for id_ in s["ids"]]
    assert at[: sizes[1]] == sorted(at[: sizes[1]])  # in the order of the file, each once
    assert len(set(at[: sizes[1]])) == sizes[1]
    for p, part in zip(parts, (slice(0, sizes[0]), slice(sizes[0], -sizes[2])), strict=False):
        for measure, each in (("correct", p.probs.mean(axis=0).argmax(axis=1) == p.targets),
                              ("confidence", p.probs.mean(axis=0).max(axis=1))):  # fmt: skip
            # Four standard errors of a mean of draws without replacement.
            error = each.std() * np.sqrt((1 - share) / (share * len(each)))
            assert columns[measure][part].mean() == pytest.approx(each.mean(), abs=4 * error)


def test_whatever_the_limit_each_set_keeps_a_question(
    predictions: list[Predictions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explorer, "BUDGET", 10)
    monkeypatch.setattr(explorer, "LIMIT", 10)
    explored = explorer.data(predictions, {})
    assert [len(s["ids"]) for s in unpack(explored)[0]["sets"]] == [1, 1]
    assert (explored.questions, explored.asked, explored.drawn) == (2, 102, 0)
    alone = explorer.data([answers("a/test", seed=0, n=9, members=1)], {})
    assert (alone.questions, alone.asked, alone.drawn) == (1, 9, 1)  # whose numbers are the ensemble's


VOTES = "all are in the ensemble's numbers and in the votes"
SAMPLE = "the explorer holds 20 of 1,234 questions, drawn at random from each set"
REST = "The rest of the page is made of all questions."


def test_the_page_says_what_was_left_out() -> None:
    p = answers("a/test", seed=0, n=20)
    whole = explorer.data([p], {"a/test": asked(p)})
    parts = [
        replace(whole, drawn=1),
        replace(whole, drawn=0),
        replace(whole, asked=1234),
        replace(whole, asked=1234, drawn=0),
    ]
    pages = [build(summary(("a/test",)), [p], Analysis(), explored) for explored in (whole, *parts)]
    found = [re.search('<p id="explorer-left-out">(.*?)</p>', page, re.DOTALL) for page in pages]
    assert [match and " ".join(match[1].split()) for match in found] == [
        None,
        f"So that the page stays small, 1 of 3 members are shown one by one, the first; {VOTES}.",
        f"So that the page stays small, no member is shown one by one; {VOTES}.",
        f"So that the page stays small, {SAMPLE}. {REST}",
        f"So that the page stays small, {SAMPLE}, and no member is shown one by one; {VOTES}. {REST}",
    ]


def test_refuses_questions_that_are_not_those_answered() -> None:
    p = answers("a/test", seed=0, n=3, sizes=(4,))
    with pytest.raises(ValueError, match="question 'q1' has 2 choices, its predictions 4"):
        explorer.data([p], {"a/test": [Question("q1", "?", ("a", "b"))]})
    with pytest.raises(ValueError, match="no predictions of method 'laplace'"):
        explorer.data([p], {}, method="laplace")


def test_page_runs_its_own_script_only() -> None:
    """Nothing of a data set stands in the page as markup or code, and the data cannot end its element."""
    p = answers("a/test", seed=0, n=20)
    explored = explorer.data([p], {"a/test": asked(p)})
    html = build(summary(("a/test",)), [p], Analysis(analyze([p], resamples=20)), explored)
    assert html.count("<script") == html.count("</script>") == 2
    assert " src=" not in html
    assert "http:" not in html
    assert f'<script type="application/octet-stream" id="explorer-data">{explored.payload}</script>' in html
    assert not any(text in html for text in HOSTILE)


def test_first_replicate_with_all_its_choices_is_shown() -> None:
    p = answers("a/test", seed=0, n=6)
    second = replace(answers("a/test", seed=1, n=6), replicate=1)
    reduced = replace(p, metadata={"choices": 4}, targets=np.full(6, -1))
    assert explorer.data([reduced, p, second], {}) == explorer.data([p], {})


def test_same_input_same_payload(predictions: list[Predictions]) -> None:
    assert explorer.data(predictions, {}) == explorer.data(predictions, {})
