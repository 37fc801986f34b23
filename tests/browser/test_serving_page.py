"""The service's page, as somebody who asks meets it: by keyboard, on a phone, in the dark, and when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from asked import HOSTILE
from axe_playwright_python.sync_playwright import Axe
from commands import rows, works, write_config, write_rows
from playwright.sync_api import Browser, Error, Page, expect
from served import RISK, TOKEN, certified_run, serving

from families import save_tiny
from ripieno.data.question import questions_of_rows
from ripieno.decisions import Certified
from ripieno.ensemble import Ensemble
from ripieno.measures.shift import Shift
from ripieno.serving.batcher import Batcher, Full
from ripieno.serving.schema import Limits

LABELS = ["bird", "cat", "fish"]
SMALL = Limits(waiting=16, body=4000)
DARK_PHONE = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
GONE = "The service does not answer; it may have been stopped. Try again once it runs."
LONG = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"
FOCUSED = (
    "document.activeElement.id || document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
)


@dataclass(frozen=True)
class Service:
    """A service that listens, and questions: one that it answers, one that it hands over."""

    url: str
    batcher: Batcher
    answered: dict[str, Any]
    handed_over: dict[str, Any]

    def decides(self, page: Page, question: dict[str, Any]) -> dict[str, Any]:
        """Return what the service itself says of a question."""
        reply = page.request.post(f"{self.url}/v1/decide", data={"questions": [question]})
        assert reply.status == 200, reply.text()
        return reply.json()["decisions"][0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def certified(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two members with a promise and a report."""
    counts = {"train": 4, "validation": 12, "certification": 12, "test": 4}
    run = certified_run(tmp_path_factory.mktemp("certified"), base, counts)
    works("evaluate", run, "--quiet")
    works("report", run)
    return run


@pytest.fixture(scope="module")
def labelled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one member that classifies texts; nothing is certified, and there is no report."""
    folder = tmp_path_factory.mktemp("labelled")
    texts = [{"text": f"a plant near {n}", "label": LABELS[n % 3]} for n in range(4)]
    data = {"train": [write_rows(folder / "train.jsonl", texts)], "labels": LABELS}
    works("train", write_config(folder, base, data, training={"members": 1}), "--run", folder / "run", "--quiet")
    return folder / "run"


@pytest.fixture(scope="module")
def service(certified: Path) -> Iterator[Service]:
    """Its threshold is set between two questions, so that it answers the one and hands the other over."""
    ensemble = Ensemble.load(certified)
    asked = [{key: row[key] for key in ("question", "choices")} for row in rows(6, 9, (3,))]
    decided = ensemble.decide(questions_of_rows([("", row) for row in asked]))
    ordered = sorted(range(6), key=lambda n: max(decided[n].probs or ()))
    unsure, sure = ordered[0], ordered[-1]
    assert ensemble.certified
    certificate = ensemble.certified.certificate
    assert certificate.promise
    between = 1 - (max(decided[unsure].probs or ()) + max(decided[sure].probs or ())) / 2
    changed = replace(
        certificate,
        rule=replace(certificate.rule, uncertainty="confidence"),
        promise=replace(certificate.promise, threshold=between),
    )
    ensemble = replace(ensemble, certified=Certified(changed, ensemble.certified.features))
    with serving(certified, ensemble, RISK, SMALL) as (port, batcher):
        yield Service(f"http://127.0.0.1:{port}", batcher, asked[sure], asked[unsure])


@pytest.fixture(scope="module")
def guarded(certified: Path) -> Iterator[str]:
    with serving(certified, Ensemble.load(certified), RISK, SMALL, TOKEN) as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def of_labels(labelled: Path) -> Iterator[str]:
    with serving(labelled, Ensemble.load(labelled), None, SMALL) as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def origins(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The service of the test alone, and what the page made of its answers."""
    name = next(name for name in ("service", "guarded", "of_labels") if name in request.fixturenames)
    found = request.getfixturevalue(name)
    url = found.url if isinstance(found, Service) else found
    return (f"{url}/", f"blob:{url}/", "data:,")


def start(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_selector("#ask:visible")


def fill(page: Page, question: dict[str, Any]) -> None:
    page.fill("#question", question["question"])
    for k, choice in enumerate(question["choices"]):
        if page.locator("#rows li").count() <= k:
            page.click("#add")
        page.fill(f"#choice-{k}", choice)
    for k in range(len(question["choices"]), page.locator("#rows li").count()):
        page.fill(f"#choice-{k}", "")  # is left out


def ask(page: Page, question: dict[str, Any]) -> None:
    fill(page, question)
    page.click("#send")
    page.wait_for_selector("#opened:visible")


def is_as_decided(page: Page, decision: dict[str, Any], texts: list[str]) -> None:
    """The numbers of the page are those of the service: as text, in the table, and as places of the marks."""
    everybody = [decision["probs"], *decision["members"]]
    shown = page.locator("#opened .members tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].slice(1).map(cell => cell.textContent))"
    )
    assert shown == [[f"{p:.3f}" for p in probs] for probs in everybody]
    assert page.locator("#opened .percent").all_inner_texts() == [f"{p:.1%}" for p in decision["probs"]]
    assert page.locator("#opened .choices bdi").evaluate_all("them => them.map(it => it.textContent)") == texts
    places = page.locator("#opened .lanes i").evaluate_all("them => them.map(it => parseFloat(it.style.left) / 100)")
    each_choice = zip(*decision["members"], strict=True) if len(decision["members"]) > 1 else ()
    # Marks are placed by what CSS keeps of a number: six digits.
    assert places == pytest.approx([p for of_choice in each_choice for p in of_choice], abs=1e-6)
    said = page.inner_text("#said")
    assert decision["reason"][1:] in said
    assert f"{'ABC'[decision['answer']]}, {decision['answer_text']}" in said


def violations(page: Page) -> list[str]:
    """Return what axe-core finds, at any level; what is hidden at the time is not looked at."""
    found = Axe().run(page, {"exclude": [["iframe"]]}).response["violations"]
    return [f"{it['id']}: {[node['html'][:200] for node in it['nodes']]}" for it in found]


def test_asked_by_keyboard_alone(page: Page, service: Service) -> None:
    start(page, service.url)
    press = page.keyboard
    seen = []

    def tab() -> str:
        press.press("Tab")
        seen.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
        return str(page.evaluate(FOCUSED))

    assert tab() == "question"
    first, _, rest = service.answered["question"].partition(" ")
    press.type(first)
    press.press("Enter")  # a line of its own, and nothing is asked or lost
    press.type(rest)
    assert tab() == "A passage to read first (optional)"
    press.press("Enter")
    assert tab() == "context"
    press.type("A passage.")
    for k in range(2):
        assert tab() == f"choice-{k}"
        press.type(service.answered["choices"][k])
    assert tab() == "add"
    press.press("Enter")
    assert page.evaluate(FOCUSED) == "choice-2"
    press.type(service.answered["choices"][2])
    assert tab() == "Remove choice C"
    press.press("Enter")
    assert page.evaluate(FOCUSED) == "choice-1"
    assert page.locator("#rows button:visible").count() == 0  # two choices stay
    assert tab() == "add"
    press.press("Enter")
    press.type(service.answered["choices"][2])
    assert [tab(), tab(), tab()] == ["Remove choice C", "add", "send"]
    assert set(seen) == {"solid"}
    press.press("Enter")
    page.wait_for_selector("#opened:visible")
    assert page.evaluate(FOCUSED) == "send"
    question = {**service.answered, "question": f"{first}\n{rest}", "context": "A passage."}
    assert page.input_value("#question") == question["question"]
    is_as_decided(page, service.decides(page, question), question["choices"])


def test_answers_and_hands_over(page: Page, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    start(page, service.url)
    promise = page.request.get(f"{service.url}/v1/run").json()["promise"]
    assert page.inner_text("#promise").startswith("Promised: at most 90% wrong among the answered, at 90% confidence")
    assert promise["rule"] in page.inner_text("#promise")
    for question, answered in ((service.answered, "yes"), (service.handed_over, "no")):
        ask(page, question)
        decision = service.decides(page, question)
        assert decision["answered"] == answered
        is_as_decided(page, decision, question["choices"])
        said = page.inner_text("#said strong")
        assert said.startswith("Answered: ") if answered == "yes" else said == "Handed over to a person"
        if decision["prediction_set"] and len(decision["prediction_set"]) < 3:
            letters = ", ".join("ABC"[k] for k in decision["prediction_set"])
            assert f"cannot be ruled out: {letters}." in page.inner_text("#opened .why")
        share = decision["epistemic"] / decision["total"]
        assert f"{100 * share:.0f}% of that (mutual information" in page.inner_text("#opened .why")
    assert page.inner_text("#lately") == ""
    monkeypatch.setattr(service.batcher.recent, "shift", Shift(hidden=0.0, length=1.0, false_alarms=0.01))
    ask(page, service.answered)
    page.wait_for_selector("#lately .warning")
    assert "nothing is promised" in page.inner_text("#lately")
    assert "nothing is promised, as these questions are not like the certified ones" in page.inner_text("#said").lower()


def test_hostile_texts_stay_texts(page: Page, service: Service) -> None:
    """A script that ran would open a dialog, which fails in the fixture."""
    start(page, service.url)
    for some in (HOSTILE[:4], HOSTILE[4:]):
        question = {"question": "\n".join(some), "choices": [" ".join(text.split()) for text in some]}
        ask(page, question)
        shown = page.locator("#opened h2").evaluate("it => it.textContent")
        assert shown == question["question"].replace("\r\n", "\n")
        assert page.locator("#opened bdi").evaluate_all("them => them.map(it => it.textContent)") == question["choices"]
        assert page.locator(":is(#opened, #said) :is(script, img, a, b)").count() == 0


def test_what_is_too_long_is_handed_over(page: Page, service: Service) -> None:
    start(page, service.url)
    fill(page, {"question": "a " * 600, "choices": ["a", "b"]})
    page.click("#send")
    page.wait_for_selector("#said .verdict")
    assert page.inner_text("#said strong") == "Handed over to a person"
    assert "Not asked: it is longer than" in page.inner_text("#said")
    assert page.is_hidden("#opened")


def test_a_run_of_labels_takes_a_text(page: Page, of_labels: str) -> None:
    start(page, of_labels)
    assert page.is_hidden("#own")
    assert page.inner_text("#labels") == "It chooses among bird, cat, fish."
    assert page.inner_text("#promise").startswith("Nothing is promised here")
    page.get_by_label("Text").fill("a plant near the window")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#opened:visible")
    reply = page.request.post(f"{of_labels}/v1/decide", data={"questions": [{"text": "a plant near the window"}]})
    [decision] = reply.json()["decisions"]
    is_as_decided(page, decision, LABELS)
    assert page.inner_text("#said strong").startswith("Likeliest: ")
    why = page.inner_text("#opened .why")
    assert "One member answered, so there is no second opinion." in why
    assert "There is no prediction set" in why
    assert "mutual information" not in why
    page.click("#report > summary")
    page.wait_for_selector("#report-said:not(:empty)")
    assert page.inner_text("#report-said") == "There is none yet; ripieno report RUN makes one."


def test_a_token_opens_it_and_its_report(page: Page, guarded: str) -> None:
    page.goto(guarded)
    page.wait_for_selector("#token-form:visible")
    assert page.is_hidden("#ask")
    assert page.inner_text("#trouble") == ""
    assert page.evaluate(FOCUSED) == "token"
    page.keyboard.type("a wrong one")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:not(:empty)")
    assert page.inner_text("#trouble") == "This is not the service's token."
    assert violations(page) == []
    assert page.evaluate(FOCUSED) == "token"
    page.keyboard.type(TOKEN)  # over the wrong one, which is selected
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask:visible")
    assert page.is_hidden("#token-form")
    assert page.evaluate(FOCUSED) == "question"
    ask(page, {"question": "q?", "choices": ["a", "b"]})
    report = page.frame_locator("#report iframe")
    report.locator("#explorer[aria-busy=false]").wait_for()  # its scripts run
    assert report.locator("h1").inner_text() == "How far can the answers of “tiny” be trusted?"
    assert report.locator("body").evaluate("() => origin") == "null"
    stored = page.evaluate("[location.href, document.cookie, JSON.stringify([localStorage, sessionStorage])]")
    assert stored == [f"{guarded}/", "", "[{},{}]"]


REFUSALS = (
    (422, '{"detail": "questions.0: choice 0 is empty"}', "Questions.0: choice 0 is empty."),
    (500, "Internal Server Error", "The service failed at this question (500); its log says why."),
    (503, "<h1>of a proxy</h1>", "The service cannot answer this (503); try again in 9 s."),
    (504, '{"detail": "the answers were not there after 30 s"}', "The answers were not there after 30 s."),
)


def test_what_goes_wrong_is_said_in_place(page: Page, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was asked, in an alert; the focus stays, and what was typed."""
    start(page, service.url)
    page.press("#question", "Control+Enter")
    assert page.inner_text("#problem") == "Type a question first."
    page.fill("#question", "q?")
    page.click("#send")
    assert page.inner_text("#problem") == "Give two choices at least."
    assert page.evaluate(FOCUSED) == "choice-0"
    assert page.get_attribute("#choice-0", "aria-describedby") == "problem"
    ask(page, {"question": "q?", "choices": ["a", "b"]})
    assert page.inner_text("#problem") == ""
    assert page.locator("[aria-invalid]").count() == 0

    def says(words: str) -> None:
        page.click("#send")
        expect(page.locator("#problem")).to_have_text(words)
        assert page.get_attribute("#problem", "role") == "alert"
        assert page.evaluate(FOCUSED) == "send"
        assert page.is_hidden("#opened")
        assert page.inner_text("#said") == ""
        assert [page.input_value(f"#{name}") for name in ("question", "choice-1")] == ["q?", "b"]

    page.fill("#choice-0", "a" * 4000)
    says("The request is larger than 4,000 bytes; ask fewer questions at once.")
    page.fill("#choice-0", "a")

    def full(_: object) -> None:
        raise Full(7)

    with monkeypatch.context() as patch:
        patch.setattr(service.batcher, "submit", full)
        says("Too many questions are waiting; ask again in 7 s.")
    for status, body, words in REFUSALS:
        reply = {"status": status, "body": body, "headers": {"Retry-After": "9"}}
        page.route("**/decide", lambda route, _, reply=reply: route.fulfill(**reply))
        says(words)
        page.unroute("**/decide")
    page.context.set_offline(True)
    says(GONE)
    page.context.set_offline(False)
    ask(page, service.answered)  # as if nothing had been
    assert page.inner_text("#problem") == ""


@pytest.mark.parametrize("page", [{}, DARK_PHONE], indirect=True, ids=["wide", "dark phone"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(page: Page, service: Service) -> None:
    fits = "document.documentElement.scrollWidth <= innerWidth"
    start(page, service.url)
    wide = page.viewport_size == {"width": 1280, "height": 900}
    assert page.locator("#report[open]").count() == wide
    page.click("#add")
    page.click("#send")
    assert page.inner_text("#problem") != ""
    assert violations(page) == []
    page.click("#passage > summary")
    page.fill("#context", LONG)
    ask(page, {"question": LONG, "choices": [LONG, f"b {LONG}", "c", "d", "e"]})
    page.click("#what > summary")
    if not wide:
        page.focus("#report > summary")
        page.keyboard.press("Enter")
    page.wait_for_selector("#report iframe")
    assert violations(page) == []
    assert page.evaluate(fits)
    frame, asked = (page.locator(it).bounding_box() for it in ("#report iframe", "#ask"))
    assert frame
    assert asked
    beside = frame["x"] >= asked["x"] + asked["width"]
    assert beside == wide
    assert page.frame_locator("#report iframe").locator("body").evaluate(f"() => {fits}")


def test_a_service_that_is_not_there_yet_can_be_tried_again(page: Page, service: Service) -> None:
    page.route("**/v1/run", lambda route: route.abort())
    page.goto(service.url)
    page.wait_for_selector("#again:visible")
    assert page.inner_text("#trouble") == GONE
    assert page.is_hidden("#ask")
    page.unroute("**/v1/run")
    page.click("#again")
    page.wait_for_selector("#ask:visible")
    assert page.inner_text("#trouble") == ""
    assert page.evaluate(FOCUSED) == "question"


def test_headers_keep_it_to_itself(browser: Browser, service: Service) -> None:
    page = browser.new_page()  # what the policy forbids is said in the console
    for address, directives in (
        ("", {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"}),
        ("v1/report", {"sandbox allow-scripts", "default-src 'none'", "frame-ancestors 'none'"}),
    ):
        headers = page.request.get(f"{service.url}/{address}").headers
        assert directives <= set(headers["content-security-policy"].split("; "))
        assert headers["x-content-type-options"] == "nosniff"
    start(page, service.url)
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>markup</b>'")
    other = service.url.replace("127.0.0.1", "127.0.0.2")
    forbidden = f"""new Promise(done => {{
      addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
      fetch("{other}").catch(() => 0);
    }})"""
    assert page.evaluate(forbidden) == "connect-src"
    page.close()


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript_it_says_so(page: Page, service: Service) -> None:
    page.goto(service.url)
    assert "takes JavaScript" in page.inner_text("noscript")
