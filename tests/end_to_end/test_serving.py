"""`ripieno serve`: it answers what `predict` answers, whoever asks beside; what it refuses, and how it stops."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import schemathesis
from commands import one_line, ripieno, rows, works, write_config, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError, create_model
from served import LIMITS, RISK, TOKEN, certified_run
from served import serving as in_thread

from pages import blocks, run_python
from ripieno import Ensemble
from ripieno.data.question import Question, read_questions
from ripieno.decisions import UNLIKE, Decision
from ripieno.errors import UserError
from ripieno.runs import RunFolder
from ripieno.serving import recent
from ripieno.serving.batcher import Batcher, Full
from ripieno.serving.schema import AskedQuestion, AskedText, Limits, mistake

# Probabilities of a tiny float32 model in batches of other sizes: logits below 10, 2^-24 a rounding, some hundred of
# them in a row.
BOUND = 1e-5


@dataclass(frozen=True)
class Certified:
    """A run with a promise, the ensemble, and questions with what `predict` says of them."""

    run: RunFolder
    ensemble: Ensemble
    questions: list[Question]
    decided: list[Decision]


@pytest.fixture(scope="module")
def certified(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    folder = tmp_path_factory.mktemp("served")
    counts = {"train": 8, "validation": 30, "calibration": 10, "certification": 40}
    run = certified_run(folder, base, counts, evaluation={"max_tokens": 60})
    asked = rows(40, 9, (2, 3, 4))
    asked[3]["question"] = "too long " * 60
    asked[4] |= {"context": "a house near the window", "subject": "plants"}
    file = Path(write_rows(folder / "asked.jsonl", asked))
    ensemble, questions = Ensemble.load(run), read_questions(file)
    # Of fewer than `FEWEST` at a time, so that no shift is said; the service says it of what it is asked over time.
    decided = [d for n in range(0, 40, 8) for d in ensemble.decide(questions[n : n + 8], RISK)]
    return Certified(RunFolder(run), ensemble, questions, decided)


def row(question: Question) -> dict[str, Any]:
    given = asdict(question)
    return {key: given[key] for key in ("id", "question", "choices", "context", "subject") if given[key] is not None}


@dataclass
class Served:
    """A service that listens, in a thread of this process."""

    port: int
    batcher: Batcher

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
        connection.request(
            method or ("GET" if body is None else "POST"), path, sent,
            {"Content-Type": "application/json", **(headers or {})},
        )  # fmt: skip
        response = connection.getresponse()
        said = response.read()
        connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, json.loads(said) if "json" in found.get("content-type", "") else said, found

    def decide(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        status, said, _ = self.ask("/v1/decide", {"questions": [row(question) for question in questions]})
        assert status == 200, said
        found: list[dict[str, Any]] = said["decisions"]
        return found


@contextmanager
def serving(
    certified: Certified,
    limits: Limits = LIMITS,
    token: str | None = None,
    risk: float | None = RISK,
) -> Iterator[Served]:
    # An ensemble of its own: one thread alone may ask it, and another service may still be at work.
    ensemble = Ensemble.load(certified.run.path)
    with in_thread(certified.run.path, ensemble, risk, limits, token) as (port, batcher):
        yield Served(port, batcher)


@pytest.fixture(scope="module")
def service(certified: Certified) -> Iterator[Served]:
    with serving(certified) as served:
        yield served


@contextmanager
def held(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """Let no batch be answered before the event; say of how many questions each was."""
    go, sizes, answer = threading.Event(), list[int](), Ensemble.answer

    def waits(self: Ensemble, asked: Any, *arguments: Any) -> Any:
        sizes.append(len(asked.questions))
        assert go.wait(60)
        return answer(self, asked, *arguments)

    monkeypatch.setattr(Ensemble, "answer", waits)
    try:
        yield go, sizes
    finally:
        go.set()


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def same(got: dict[str, Any], expected: Decision) -> None:
    want = json.loads(json.dumps(asdict(expected)))
    for key in ("probs", "total", "aleatoric", "epistemic"):
        if want[key] is None:
            assert got[key] is None
        else:
            np.testing.assert_allclose(got[key], want.pop(key), rtol=0, atol=BOUND)
    assert {key: got[key] for key in want} == want


# ---- answers ----------------------------------------------------------------------------------------------------


def test_many_callers_get_what_predict_says_each_their_own(service: Served, certified: Certified) -> None:
    parts = [certified.questions[n : n + 5] for n in range(0, 40, 5)]
    found: dict[int, list[dict[str, Any]]] = {}
    callers = [
        threading.Thread(target=lambda n=n, part=part: found.update({n: service.decide(part)}))  # type: ignore[misc]
        for n, part in enumerate(parts)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    answers = [answer for n in range(len(parts)) for answer in found[n]]
    for answer, question, expected in zip(answers, certified.questions, certified.decided, strict=True):
        same(answer, expected)
        if answer["members"] is None:
            assert question is certified.questions[3], "too long for all the members"
        else:
            # What is pooled is the members' mean.
            np.testing.assert_allclose(np.mean(answer["members"], axis=0), answer["probs"], rtol=0, atol=1e-12)
            assert [len(member) for member in answer["members"]] == [len(question.choices)] * 2


def test_python_of_the_page_asks(service: Served, certified: Certified) -> None:
    names = {"service": f"http://127.0.0.1:{service.port}"}
    [block] = blocks("docs/serving.md", "python")
    [line] = run_python(block, names).splitlines()
    question = Question("x", "Where does a plant get light?", ("near a window", "in a drawer"))
    [expected] = certified.ensemble.decide([question], RISK)
    assert line == f"{expected.answered} {expected.answer_text} {expected.reason}"


def test_callers_may_choose_the_same_id(service: Served, certified: Certified) -> None:
    one, other = (replace(question, id="mine") for question in certified.questions[:2])
    answers = [*service.decide([one, other]), *service.decide([one])]
    for answer, expected in zip(answers, [*certified.decided[:2], certified.decided[0]], strict=True):
        same(answer, replace(expected, id="mine"))


def test_what_waits_is_answered_together(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(Ensemble.load(certified.run.path), None, waiting=100)
    with held(certified, monkeypatch) as (go, sizes):
        futures = [batcher.submit([question]) for question in certified.questions[4:10]]
        until(lambda: sizes)
        futures += [batcher.submit([question]) for question in certified.questions[10:16]]
        go.set()
        answers = [answer for future in futures for answer in future.result(60)]
    batcher.close()
    assert sum(sizes) == 12
    assert len(sizes) <= 3, "the first may have been alone, and the rest of its callers together"
    assert [answer.decision.id for answer in answers] == [question.id for question in certified.questions[4:16]]


def test_without_a_risk_nothing_is_decided(certified: Certified) -> None:
    with serving(certified, risk=None) as served:
        [answer] = served.decide(certified.questions[:1])
        assert answer["answered"] is None
        assert served.ask("/v1/run")[1]["promise"] is None


def test_what_answers_says_what_it_is(service: Served, certified: Certified) -> None:
    status, about, _ = service.ask("/v1/run")
    assert status == 200
    assert about["name"] == "tiny"
    assert about["members"] == [0, 1]
    promise = certified.ensemble.certified.certificate.promise  # type: ignore[union-attr]
    assert (about["promise"]["risk"], about["promise"]["answered"]) == (RISK, promise.answered / promise.questions)
    assert not about["report"]
    status, said, _ = service.ask("/v1/report")
    assert (status, said["detail"]) == (404, f"there is no report yet; make one: ripieno report {certified.run.path}")


def test_a_text_is_asked_with_the_labels_of_the_run(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    lines = [f"text {n} of the house,{'yes' if n % 2 else 'no'}" for n in range(8)]
    file.write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    config = write_config(tmp_path, base, {"train": [str(file)], "labels": ["no", "yes"]})
    works("train", config, "--run", tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    of_texts = Certified(run, Ensemble.load(run.path), [], [])
    with serving(of_texts, risk=None) as served:
        status, said, _ = served.ask("/v1/decide", {"questions": [{"text": "a cat"}]})
        assert status == 200
        assert said["decisions"][0]["answer_text"] in ("no", "yes")
        assert served.ask("/v1/run")[1]["labels"] == ["no", "yes"]


def test_it_is_said_when_questions_are_not_like_the_certified_ones(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "EVERY", 1)
    monkeypatch.setattr(recent, "WINDOW", 30)
    own = read_questions(certified.run.path.parent / "validation.jsonl")
    foreign = [replace(question, question=question.question + " cat" * 12) for question in own]
    with serving(certified) as served:
        served.decide(own[:30])
        until(lambda: served.batcher.recent.shift)  # type: ignore[union-attr]
        assert not served.ask("/v1/run")[1]["lately"]["unlike"]
        served.decide(foreign[:30])
        until(lambda: served.batcher.recent.shift.warns)  # type: ignore[union-attr]
        assert served.ask("/v1/run")[1]["lately"]["unlike"]
        assert served.decide(own[:1])[0]["reason"].startswith(UNLIKE)


# ---- refusals ---------------------------------------------------------------------------------------------------


def test_a_full_queue_is_503_and_says_when_to_ask_again(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(certified, Limits(waiting=3)) as served, held(certified, monkeypatch) as (go, _):
        waits = served.batcher.submit(certified.questions[:3])
        body = {"questions": [row(certified.questions[5])]}
        status, said, headers = served.ask("/v1/decide", body)
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert said["detail"] == f"too many questions are waiting; ask again in {headers['retry-after']} s"
        assert served.ask("/readyz")[0] == 503
        assert served.ask("/healthz")[0] == 200
        go.set()
        assert len(waits.result(60)) == 3
        assert served.ask("/v1/decide", body)[0] == 200
        assert served.ask("/readyz")[0] == 200


def test_what_could_not_be_answered_in_time_is_refused_at_once(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To wait in vain helps nobody; a service that is at rest always takes a question, however slow it was."""
    batcher = Batcher(Ensemble.load(certified.run.path), None, waiting=100, seconds=3.0)
    batcher._pace = 2.0  # seconds a question
    with held(certified, monkeypatch) as (go, _):
        waits = [batcher.submit([question]) for question in certified.questions[4:6]]
        with pytest.raises(Full) as refused:
            batcher.submit(certified.questions[6:7])
        assert refused.value.seconds == 4
        assert not batcher.ready
        go.set()
        assert [len(future.result(60)) for future in waits] == [1, 1]
    until(lambda: batcher.ready)
    batcher.close()


def test_a_request_is_given_up_in_time_and_then_not_asked(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(certified, Limits(seconds=0.3)) as served, held(certified, monkeypatch) as (go, sizes):
        first = served.batcher.submit(certified.questions[5:6])
        until(lambda: sizes)
        status, said, _ = served.ask("/v1/decide", {"questions": [row(certified.questions[6])]})
        assert (status, said["detail"]) == (504, "the answers were not there after 0.3 s; ask again later")
        go.set()
        first.result(60)
    assert sizes == [1]
    until(lambda: served.batcher._accepted == 0)


def test_a_question_that_cannot_be_asked_harms_no_other(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Ensemble.encode

    def refuses(self: Ensemble, questions: Sequence[Question], **given: Any) -> Any:
        if questions[0].subject == "bad":
            raise UserError("a letter is not one token")
        return encode(self, questions, **given)

    monkeypatch.setattr(Ensemble, "encode", refuses)
    with serving(certified) as served, held(certified, monkeypatch) as (go, _):
        good = [served.batcher.submit([question]) for question in certified.questions[5:7]]
        bad = served.batcher.submit([certified.questions[7], replace(certified.questions[8], subject="bad")])
        go.set()
        assert [future.result(60)[0].decision.id for future in good] == [q.id for q in certified.questions[5:7]]
        with pytest.raises(UserError, match="one token"):
            bad.result(60)
        status, said, _ = served.ask("/v1/decide", {"questions": [row(replace(certified.questions[8], subject="bad"))]})
        assert (status, said["detail"]) == (422, "a letter is not one token")
        until(lambda: served.batcher._accepted == 0)


def test_a_fault_of_one_batch_is_said_to_its_callers_alone(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(Ensemble.load(certified.run.path), None, waiting=10)
    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "answer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batcher.submit(certified.questions[5:7]).result(60)
    assert len(batcher.submit(certified.questions[5:7]).result(60)) == 2
    batcher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_service_that_can_answer_no_more_says_so(certified: Certified, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails outside of a batch, such as looking for drift, is a fault that nobody could mend by asking again."""
    with serving(certified) as served, held(certified, monkeypatch) as (go, sizes):
        monkeypatch.setattr(recent.Recent, "read", lambda *_: 1 / 0)
        answered = served.batcher.submit(certified.questions[5:6])
        until(lambda: sizes)
        waits = served.batcher.submit(certified.questions[6:7])
        go.set()
        assert len(answered.result(60)) == 1
        with pytest.raises(RuntimeError, match="start it again"):
            waits.result(60)
        until(lambda: not served.batcher.alive)
        assert [served.ask(path)[0] for path in ("/healthz", "/readyz")] == [503, 503]
        assert served.ask("/v1/decide", {"questions": [row(certified.questions[5])]})[0] == 503


def test_what_was_accepted_is_answered_at_the_end_and_nothing_is_accepted_after(
    certified: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(Ensemble.load(certified.run.path), None, waiting=100)
    with held(certified, monkeypatch) as (go, sizes):
        futures = [batcher.submit([question]) for question in certified.questions]
        cancelled = futures.pop()
        assert cancelled.cancel()
        closing = threading.Thread(target=batcher.close)
        closing.start()
        until(lambda: batcher._closing)
        with pytest.raises(Full):
            batcher.submit(certified.questions[:1])
        go.set()
        closing.join()
    assert [future.result(0)[0].decision.id for future in futures] == [q.id for q in certified.questions[:-1]]
    with pytest.raises(CancelledError):
        cancelled.result(0)
    assert not batcher.ready
    assert sum(sizes) == len(futures) - 1, "but for the one that is too long"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"questions": []}, "questions: List should have at least 1 item after validation, not 0"),
        ({"questions": [{"question": "a?"}]}, "questions.0.choices: Field required"),
        ({"questions": [{"question": "a?", "choices": ["b"]}]}, "questions.0.choices: List should have at least 2"),
        ({"questions": [{"question": "a?", "choices": ["b", "c"], "choises": 1}]}, "questions.0.choises: Extra inputs"),
        ({"questions": [{"question": " ", "choices": ["b", "c"]}]}, "questions.0.question: is empty; fill it in"),
        ("{", "the body: not JSON (Expecting property name enclosed in double quotes at character 2); mend it"),
        ({"questions": [{"question": "a?", "choices": ["b", "c"]}], "max_risk": 1}, "max_risk: Extra inputs"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said_in_a_line(service: Served, body: Any, said: str) -> None:
    status, problem, _ = service.ask("/v1/decide", body)
    assert status == 422
    assert problem["detail"].startswith(said)
    assert "\n" not in problem["detail"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a?"}, "questions.0.choices: Field required"),
        ({"question": "a?", "choices": ["b"]}, "questions.0.choices: List should have at least 2 items"),
        ({"text": "a", "label": "b"}, "questions.0.label: Extra inputs are not permitted"),
        ({"text": " "}, "questions.0.text: is empty; fill it in"),
    ],
)  # fmt: skip
def test_of_a_text_or_a_question_the_one_that_was_meant_is_mended(row: dict[str, Any], said: str) -> None:
    asked = create_model("Asked", questions=(list[AskedText | AskedQuestion], ...))
    with pytest.raises(ValidationError) as raised:
        asked.model_validate({"questions": [row]})
    errors = [error | {"loc": ("body", *error["loc"])} for error in raised.value.errors()]
    assert mistake(errors).startswith(said)


def test_a_body_is_bounded_in_bytes_and_in_time(certified: Certified) -> None:
    with serving(certified, Limits(body=1000, seconds=0.5)) as served:
        large = json.dumps({"questions": [row(certified.questions[0])], "x": "x" * 2000})
        status, said, _ = served.ask("/v1/decide", large)
        assert (status, said["detail"]) == (413, "the request is larger than 1,000 bytes; ask fewer questions at once")
        # The same in chunks, which say nothing of its length.
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        connection.request("POST", "/v1/decide", iter([large.encode()] * 3), {"Content-Type": "application/json"})
        assert connection.getresponse().status == 413
        connection.close()
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as slow:
            slow.sendall(b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            slow.sendall(b'Content-Length: 100\r\n\r\n{"questions"')
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_token_keeps_strangers_out(certified: Certified) -> None:
    with serving(certified, token=TOKEN) as served:
        body = {"questions": [row(certified.questions[0])]}
        for headers in ({}, {"Authorization": "Bearer another"}, {"Authorization": f"Basic {TOKEN}"}):
            for path, content in (("/v1/decide", body), ("/v1/run", None), ("/v1/report", None)):
                status, said, found = served.ask(path, content, headers)
                assert (status, found["www-authenticate"]) == (401, "Bearer")
                assert said["detail"] == "give the service's token: Authorization: Bearer TOKEN"
        assert served.ask("/v1/decide", body, {"Authorization": f"Bearer {TOKEN}"})[0] == 200
        assert {served.ask(path)[0] for path in ("/", "/healthz", "/readyz", "/openapi.json", "/docs")} == {200}


def test_a_page_of_another_name_is_refused(service: Served) -> None:
    """A name that a web page chose may lead to this machine (DNS rebinding)."""
    assert service.ask("/v1/run", headers={"Host": "evil.example:8000"})[0] == 421
    assert service.ask("/v1/run", headers={"Host": "localhost:8000"})[0] == 200
    assert service.ask("/v1/run", headers={"Host": "[::1]:8000"})[0] == 200
    # Nor is a body read that a form of such a page can send.
    assert service.ask("/v1/decide", '{"questions": []}', {"Content-Type": "text/plain"})[0] == 422


def test_the_documentation_needs_no_network(service: Served) -> None:
    page = service.ask("/docs")[1].decode()
    assert "swagger-ui" in page
    assert "http://" not in page
    assert "https://" not in page


# ---- the description --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema(certified: Certified) -> Iterator[Any]:
    with serving(certified, token=TOKEN) as served:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json")


def test_the_description_names_every_address(schema: Any) -> None:
    operations = {f"{found.ok().method.upper()} {found.ok().path}" for found in schema.get_all_operations()}
    assert operations == {"POST /v1/decide", "GET /v1/run", "GET /v1/report", "GET /healthz", "GET /readyz"}


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_answer_is_as_the_description_says(schema: Any, data: Any) -> None:
    """What is as described is answered, other requests and strangers are refused, and all answers are as described."""
    operations = [found.ok() for found in schema.get_all_operations()]
    operation = data.draw(st.sampled_from(operations))
    mode = data.draw(st.sampled_from(list(schemathesis.GenerationMode)))
    case = data.draw(operation.as_strategy(generation_mode=mode))
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})


# ---- the process ------------------------------------------------------------------------------------------------


def test_a_service_under_load_is_killed_started_again_and_stopped(certified: Certified, tmp_path: Path) -> None:
    """The script that measures a service with a real model; it ends with an error on any wrong or lost answer."""
    asked = tmp_path / "asked.jsonl"
    write_rows(asked, [row(question) for question in certified.questions])
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "serve.py"
    done = subprocess.run(
        [sys.executable, script, certified.run.path, asked, "--max-risk", str(RISK), "--seconds", "5"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("overload: latency p50 ", "killed: ready again after ", "stopped: exit code 143"):
        assert said in done.stdout
    refused = next(line for line in done.stdout.splitlines() if line.startswith("overload:"))
    assert " refused" in refused, "twice what it can answer is too much"


def test_an_address_that_is_taken_is_said_so(certified: Certified) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    said = one_line(ripieno("serve", certified.run.path, "--port", str(taken.getsockname()[1])), 1)
    assert "Address already in use); choose another port" in said
    taken.close()


def test_a_risk_that_was_not_promised_is_refused_before_it_listens(certified: Certified, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(certified.run.path, run)
    said = one_line(ripieno("serve", run, "--max-risk", "0.0001"), 2)
    assert "--max-risk 0.0001: was not promised" in said
