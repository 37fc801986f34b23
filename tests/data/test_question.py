import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ripieno.data.question import (
    Question,
    Text,
    content_key,
    default_id,
    number_repeats,
    questions_to_parquet,
    read_questions,
    read_texts,
)
from ripieno.errors import UserError

quick = settings(deadline=None, max_examples=50)
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    choices = tuple(draw(st.lists(texts, min_size=2, max_size=6)))
    answer = draw(st.none() | st.integers(0, len(choices) - 1))
    id_, context, subject = draw(texts), draw(st.none() | texts), draw(st.none() | texts)
    return Question(id_, draw(texts), choices, answer, context, subject)


some_questions = st.lists(questions(), min_size=1, max_size=5, unique_by=lambda question: question.id)


def as_row(question: Question) -> dict[str, Any]:
    return {name: getattr(question, name) for name in ("id", "question", "choices", "answer", "context", "subject")}


def write(folder: Path, rows: list[dict[str, Any]], name: str = "q.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "q.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("questions")


# ---- what is written is read ----------------------------------------------------------------------------------------


@quick
@given(some_questions)
def test_parquet_reads_back_as_it_was(folder: Path, written: list[Question]) -> None:
    path = folder / "q.parquet"
    path.write_bytes(questions_to_parquet(written))
    assert read_questions(path) == written


@quick
@given(some_questions)
def test_jsonl_reads_back_as_it_was(folder: Path, written: list[Question]) -> None:
    path = folder / "q.jsonl"
    path.write_text("".join(json.dumps(as_row(question), ensure_ascii=False) + "\n" for question in written))
    assert read_questions(path) == written


@quick
@given(some_questions)
def test_csv_reads_back_as_it_was(folder: Path, written: list[Question]) -> None:
    # Choices of three characters can be neither an index nor a letter.
    longer = [Question(q.id, q.question, tuple(f"{c}..." for c in q.choices), q.answer) for q in written]
    path = write_csv(folder, [as_row(q) | {"choices": json.dumps(q.choices)} for q in longer])
    assert read_questions(path) == longer


def test_csv_takes_a_byte_order_mark_crlf_and_line_breaks_in_cells(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_bytes(b'\xef\xbb\xbfquestion,choices,answer\r\n"two\nlines","[""x"", ""y""]",1\r\n')
    assert read_questions(path)[0].question == "two\nlines"
    assert read_questions(path)[0].answer == 1


def test_questions_of_one_file_may_differ_in_their_number_of_choices(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "a", "choices": ["x", "y"]}, {"question": "b", "choices": ["x", "y", "z"]}])
    assert [len(question.choices) for question in read_questions(path)] == [2, 3]


def test_parquet_of_other_programs(tmp_path: Path) -> None:
    table = pa.table({"question": ["a", "b"], "choices": [["x", "y"], ["x", "y"]], "answer": [1.0, float("nan")]})
    pq.write_table(table, tmp_path / "q.parquet")
    assert [question.answer for question in read_questions(tmp_path / "q.parquet")] == [1, None]


# ---- ids ------------------------------------------------------------------------------------------------------------


def test_default_id_is_the_hash_of_the_canonical_json() -> None:
    canonical = '["s","c","Où?",["x","y"]]'
    assert default_id("Où?", ("x", "y"), "c", "s") == hashlib.sha256(canonical.encode()).hexdigest()[:16]


def test_the_nth_repeat_of_a_default_id_gets_its_number(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "a", "choices": ["x", "y"]}] * 3)
    base = default_id("a", ("x", "y"))
    read = read_questions(path)
    assert [question.id for question in read] == [base, f"{base}-1", f"{base}-2"]
    assert number_repeats([read[0], read[0], read[0]]) == read


def test_two_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [{"id": "a", "question": word, "choices": ["x", "y"]} for word in ("p", "q")])
    with pytest.raises(UserError, match=r"q\.jsonl, line 2: id 'a' is also that of .*q\.jsonl, line 1; change one"):
        read_questions(path)


def test_a_numbers_id_is_its_text(tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, [{"id": 7, "question": "a", "choices": ["x", "y"]}]))[0].id == "7"


# ---- answers --------------------------------------------------------------------------------------------------------

XYZ = ["x-ray", "yacht", "zebra"]


@pytest.mark.parametrize(
    ("answer", "choices", "index"),
    [
        (0, XYZ, 0),
        (2.0, XYZ, 2),
        (None, XYZ, None),
        (float("nan"), XYZ, None),
        ("yacht", XYZ, 1),
        ("C", XYZ, 2),
        ("c", XYZ, 2),
        ("B", ["B", "A"], 0),  # the text comes before the letter
        ("1", ["1", "0"], 0),  # a string is never an index
        (1, ["1", "0"], 1),  # and a number never a text
        ("A", ["same", "same"], 0),  # equal choices, and the answer does not hit them as text
        (1, ["same", "same"], 1),
    ],
)
def test_answers_in_jsonl(tmp_path: Path, answer: Any, choices: list[str], index: int | None) -> None:
    path = write(tmp_path, [{"question": "a", "choices": choices, "answer": answer}])
    assert read_questions(path)[0].answer == index


@pytest.mark.parametrize(
    ("answer", "choices", "message"),
    [
        (3, XYZ, "none of the 3 choices; they count from 0 to 2"),
        (-1, XYZ, "none of the 3 choices"),
        (0.5, XYZ, "no whole number"),
        (True, XYZ, "no whole number"),
        ([1], XYZ, "no whole number"),
        ("D", XYZ, "none of the 3 choices"),
        ("yatch", XYZ, "nearest is 'yacht'"),
        ("1", XYZ, "write an index as a number"),
        ("same", ["same", "same"], "choices 0 and 1 alike; give its index"),
        ("B", ["B", "B"], "choices 0 and 1 alike"),
    ],
)
def test_wrong_answers_in_jsonl(tmp_path: Path, answer: Any, choices: list[str], message: str) -> None:
    path = write(tmp_path, [{"question": "a", "choices": choices, "answer": answer}])
    with pytest.raises(UserError, match=r"q\.jsonl, line 1: .*" + message):
        read_questions(path)


@pytest.mark.parametrize(
    ("cell", "choices", "index"),
    [
        ("", XYZ, None),
        ("1", XYZ, 1),
        ("1.0", XYZ, 1),  # a column of numbers with gaps, as data frames write it
        (" 1 ", XYZ, 1),
        ("yacht", XYZ, 1),
        ("b", XYZ, 1),
        ("0", ["0", "1"], 0),  # two readings that agree
        ("7", ["5", "7"], 1),  # there is no choice 7
        ("E", ["D", "E"], 1),  # nor a choice E
    ],
)
def test_answers_in_csv(tmp_path: Path, cell: str, choices: list[str], index: int | None) -> None:
    path = write_csv(tmp_path, [{"question": "a", "choices": json.dumps(choices), "answer": cell}])
    assert read_questions(path)[0].answer == index


@pytest.mark.parametrize(
    ("cell", "choices", "message"),
    [
        ("0", ["1", "0"], r"the text of choice 1, and also the index of choice 0 \('1'\)"),
        ("B", ["B", "A"], r"the text of choice 0, and also the letter of choice 1 \('A'\)"),
        ("3", XYZ, "none of the 3 choices"),
        ("-1", XYZ, "none of the 3 choices"),
        ("D", XYZ, "none of the 3 choices"),
        ("yatch", XYZ, "nearest is 'yacht'"),
        ("same", ["same", "same"], "choices 0 and 1 alike"),
    ],
)
def test_wrong_answers_in_csv(tmp_path: Path, cell: str, choices: list[str], message: str) -> None:
    path = write_csv(tmp_path, [{"question": "a", "choices": json.dumps(choices), "answer": cell}])
    with pytest.raises(UserError, match=r"q\.csv, line 2: .*" + message):
        read_questions(path)


# ---- what is wrong with a file --------------------------------------------------------------------------------------

FINE = {"question": "a", "choices": ["x", "y"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["x", "y"]}, "has no `question`"),
        (FINE | {"question": "  "}, "has no `question`"),
        (FINE | {"question": 3}, "`question` must be a text, not 3"),
        ({"question": "a"}, "has no `choices`"),
        (FINE | {"choices": "x, y"}, "`choices` must be a list of texts"),
        (FINE | {"choices": [1, 2]}, "`choices` must be a list of texts"),
        (FINE | {"choices": ["x"]}, "a question needs 2 choices at least, and this one has 1"),
        (FINE | {"choices": ["x", " "]}, "choice 1 is empty"),
        (FINE | {"context": ["c"]}, "`context` must be a text"),
        (FINE | {"subject": 1}, "`subject` must be a text"),
        (FINE | {"id": ""}, "`id` must be a text"),
        (FINE | {"anwser": 1}, "column `anwser` is not known; is it `answer`"),
        (FINE | {"question": "\ud800"}, "not JSON .*surrogate"),
        ({"text": "a", "label": "x"}, "needs `labels:` in the config"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"q\.jsonl, line 2: .*" + message):
        read_questions(write(tmp_path, [FINE, row]))


def test_a_text_in_a_column_of_another_name_is_asked_for_as_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2: has no `text`; fill it in, or rename a column \(columns: message\)"):
        read_questions(write_csv(tmp_path, [{"message": "a"}]), ["x", "y"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b"", "holds no rows"),
        ("q.jsonl", b"\n{\n", "line 2: not JSON"),
        ("q.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("q.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("q.jsonl", b'{"question": "\xff"}', "not UTF-8"),
        ("q.csv", b"", "holds no rows"),
        ("q.csv", b"question,choices\n", "holds no rows"),
        ("q.csv", b"id,id\n", "line 1: two columns have the same name"),
        ("q.csv", b'question,choices\n"a\nb",x,y\n', "line 2: 3 cells under 2 column names"),
        ("q.csv", b'question,choices\n"a\nb","[""x"", ""y""]"\na,x\n', "line 4: `choices` 'x' is not a JSON list"),
        ("q.csv", b'question,choices\n"a"b,c\n', "line 2: not csv"),
        ("q.csv", b"text,label\n,yes\n", "line 2: has no `text`"),
        ("q.parquet", b"no", "not a readable parquet file"),
        ("q.txt", b"", "read from .jsonl, .csv, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_questions(path, ["yes", "no"])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"q\.csv: there is no such file"):
        read_questions(tmp_path / "q.csv")


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a", None], "choices": [["x", "y"]] * 2}), tmp_path / "q.parquet")
    with pytest.raises(UserError, match=r"q\.parquet, row 2: has no `question`"):
        read_questions(tmp_path / "q.parquet")


def test_other_columns_are_welcome(tmp_path: Path) -> None:
    assert len(read_questions(write(tmp_path, [FINE | {"source": "exam", "uid": 1, "text": "the page"}]))) == 1


# ---- labels and running text ----------------------------------------------------------------------------------------

LABELS = [f"intent {number}" for number in range(77)]


def test_labels_are_the_choices(tmp_path: Path) -> None:
    path = write_csv(tmp_path, [{"text": "lost card", "label": "intent 40"}, {"text": "hello", "label": ""}])
    known, unknown = read_questions(path, LABELS)
    assert (known.question, known.choices, known.answer) == ("lost card", tuple(LABELS), 40)
    assert unknown.answer is None


def test_a_label_that_is_none_of_them_names_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, [{"text": "a", "label": "yess"}])
    with pytest.raises(UserError, match="line 1: label 'yess' is not one of `labels:`; the nearest is 'yes'"):
        read_questions(path, ["no", "yes"])


def test_a_number_is_the_label_of_that_name(tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, [{"text": "a", "label": 1}]), ["2", "1"])[0].answer == 1


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "a"], ["a", " "]])
def test_labels_must_be_different_texts(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(UserError, match="labels: "):
        read_questions(write(tmp_path, [{"text": "a", "label": "a"}]), labels)


def test_running_text(tmp_path: Path) -> None:
    rows = [{"text": "once"}, {"text": "upon", "id": "u"}, {"text": "once"}]
    base = default_id("once", ())
    expected = [Text(base, "once"), Text("u", "upon"), Text(f"{base}-1", "once")]
    assert read_texts(write(tmp_path, rows)) == expected
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"text": row.text, "id": row.id} for row in expected]), buffer)
    (tmp_path / "t.parquet").write_bytes(buffer.getvalue())
    assert read_texts(tmp_path / "t.parquet") == expected


def test_running_text_needs_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: has no `text`"):
        read_texts(write(tmp_path, [FINE]))


# ---- the same question twice ----------------------------------------------------------------------------------------


@quick
@given(st.text("abc ", min_size=1).filter(str.strip), st.text("abc", min_size=1))
def test_content_is_compared_without_case_and_white_space(question: str, choice: str) -> None:
    plain = Question("1", question, (choice, "no"), 0, None, "s")
    louder = Question("2", f" {question.upper()}\n".replace(" ", "\t "), (choice.upper(), "No "), 1, None, "t")
    assert content_key(plain) == content_key(louder)


def test_content_is_the_question_its_choices_in_order_and_its_context() -> None:
    base = Question("1", "what?", ("x", "y"))
    others = [
        Question("1", "who?", ("x", "y")),
        Question("1", "what?", ("y", "x")),
        Question("1", "what?", ("x", "y", "z")),
        Question("1", "what? x", ("y",)),
        Question("1", "what?", ("x", "y"), context="a story"),
    ]
    assert len({content_key(question) for question in [base, *others]}) == 6
    assert content_key(Question("1", "ﬁn", ("１", "y"))) == content_key(Question("1", "fin", ("1", "y")))


def test_equal_choices_are_seen() -> None:
    assert Question("1", "a", ("x", "y", "x")).has_equal_choices
    assert not Question("1", "a", ("x", "y")).has_equal_choices
