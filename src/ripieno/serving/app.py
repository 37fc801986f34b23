"""The service's addresses: what they take, what they answer, and whom they refuse."""

# Without `from __future__ import annotations`: what a request may hold depends on the run, so its types are made here.
import asyncio
import secrets
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field, create_model

from ripieno.config import Config
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import questions_of_rows
from ripieno.errors import UserError
from ripieno.runs import RunFolder
from ripieno.serving.batcher import Batcher, Full
from ripieno.serving.gate import BodyLimit, OwnHost
from ripieno.serving.page import HEADERS, REPORT_HEADERS, page

LETTERS = 26
PROBLEMS = {
    400: "The request's body is no text in UTF-8.",
    404: "It was not made yet.",
    401: "The bearer token is missing or wrong.",
    408: "The request's body did not come in time.",
    413: "The request's body is too large.",
    422: "The request is not as it is described here.",
    503: "Too many questions are waiting; Retry-After says in how many seconds to ask again.",
    504: "The answers were not there in time.",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted.

    Args:
        waiting: questions accepted and not yet answered, of all callers.
        questions: of one request.
        body: bytes of one request.
        seconds: until a request is answered, or given up.
    """

    waiting: int = 256
    questions: int = 64
    body: int = 2**20
    seconds: float = 30.0


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    """That all is well."""

    status: str = "ok"


Text = Annotated[str, Field(pattern=r"\S")]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Annotated[Text | None, Field(description="Given back with the decision; made of the content by default.")] = (
        None
    )
    context: Annotated[str | None, Field(description="A passage to read first.")] = None
    subject: Annotated[str | None, Field(description="A group, for prediction sets by subject.")] = None


class AskedQuestion(_Row):
    """A question with choices of its own."""

    question: Text
    choices: Annotated[list[Text], Field(min_length=2)]


class AskedLetters(_Row):
    """A question with choices of its own, each of which is a letter."""

    question: Text
    choices: Annotated[list[Text], Field(min_length=2, max_length=LETTERS)]


class AskedText(_Row):
    """A text, whose choices are the run's labels."""

    text: Text


class Decided(BaseModel):
    """What is said of one question: the fields of `ripieno predict`, and what each member said."""

    id: str
    answer: Annotated[int | None, Field(description="The likeliest choice, from 0; given also when it is handed over.")]
    answer_text: str | None
    probs: Annotated[list[float] | None, Field(description="Of each choice, all members pooled, calibrated.")]
    total: Annotated[float | None, Field(description="Entropy of `probs`, in nats.")]
    aleatoric: Annotated[float | None, Field(description="The members' mean entropy, in nats.")]
    epistemic: Annotated[float | None, Field(description="How much the members disagree: mutual information, nats.")]
    prediction_set: Annotated[list[int] | None, Field(description="Choices, from 0; null where nothing is certified.")]
    answered: Annotated[str | None, Field(description="yes, or no: a person should decide; null without --max-risk.")]
    reason: Annotated[str, Field(description="Why, in words.")]
    members: Annotated[list[list[float]] | None, Field(description="Of each member, each choice's probability.")]


class Decisions(BaseModel):
    """A decision a question, in their order."""

    decisions: list[Decided]


class PromiseMade(BaseModel):
    """What holds of the answers that are given, for questions like those that it was certified on."""

    risk: Annotated[float, Field(description="At most this share of the answered is wrong.")]
    confidence: float
    answered: Annotated[float, Field(description="The share of the certification questions that is answered.")]
    rule: Annotated[str, Field(description="When a question is answered, in words.")]


class LimitsSet(BaseModel):
    """What is accepted: questions that wait, questions and bytes of a request, seconds until it is given up."""

    waiting: int
    questions: int
    body: int
    seconds: float


class Lately(BaseModel):
    """What the last questions looked like beside the certified ones; `unlike`: nothing is promised for such ones."""

    unlike: bool
    hidden: Annotated[float, Field(description="p-value of the base's hidden states.")]
    length: Annotated[float, Field(description="p-value of the prompts' lengths.")]


class About(BaseModel):
    """The run that answers."""

    name: str
    version: Annotated[str, Field(description="Of ripieno.")]
    base: str
    members: list[int]
    epoch: int
    template: Annotated[str, Field(description="How questions are put.")]
    labels: Annotated[list[str] | None, Field(description="Fixed choices, where the run classifies texts.")]
    max_risk: float | None
    promise: PromiseMade | None
    lately: Annotated[Lately | None, Field(description="null until enough questions were asked.")]
    limits: LimitsSet
    report: Annotated[bool, Field(description="Whether /v1/report has a page.")]


def create_app(run: RunFolder, batcher: Batcher, limits: Limits, token: str | None, hosts: set[str] | None) -> FastAPI:
    """Return the application.

    Args:
        run: whose ensemble answers.
        batcher: the queue in front of it; closed when the application ends.
        limits: of requests.
        token: that callers have to know; None: everybody may ask.
        hosts: names under which it is called; None: any. A web page that somebody visits can reach a service on their
            own machine under a name of the page's choosing, and is kept out by this.
    """
    config = run.config()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        yield
        await asyncio.to_thread(batcher.close)

    app = FastAPIOffline(
        title=f"ripieno: {config.name}",
        version=version("ripieno"),
        description="Answers questions with every member of an ensemble, or hands them over at a promised risk.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit=limits.body, seconds=limits.seconds)
    if hosts is not None:
        app.add_middleware(OwnHost, hosts=hosts)
    bearer = HTTPBearer(auto_error=False, description="The service's token.")

    def allowed(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        given = "" if credentials is None else credentials.credentials
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            said = "give the service's token: Authorization: Bearer TOKEN"
            raise HTTPException(401, said, {"WWW-Authenticate": "Bearer"})

    guarded = [] if token is None else [Depends(allowed)]
    rows: Any = list[_row(config)]  # type: ignore[misc]
    asked = create_model("Asked", questions=(rows, Field(min_length=1, max_length=limits.questions)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:])) or "the body"
        return JSONResponse({"detail": f"{place}: {first['msg']}"}, 422)

    @app.exception_handler(UserError)
    async def mistaken(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/v1/decide", dependencies=guarded, responses=_problems(400, 401, 408, 413, 422, 503, 504))
    async def decide(body: asked) -> Decisions:  # type: ignore[valid-type]
        """Decide questions: answer, or hand over to a person."""
        rows = [row.model_dump(exclude_none=True) for row in body.questions]  # type: ignore[attr-defined]
        named = [(f"questions.{number}", row) for number, row in enumerate(rows)]
        questions = questions_of_rows(named, config.data.labels)
        try:
            future = batcher.submit(questions)
        except Full as full:
            raise HTTPException(503, str(full), {"Retry-After": str(full.seconds)}) from None
        try:
            async with asyncio.timeout(limits.seconds):
                answers = await asyncio.wrap_future(future)
        except TimeoutError:
            raise HTTPException(
                504, f"the answers were not there after {limits.seconds:g} s; ask again later"
            ) from None
        return Decisions.model_validate({"decisions": [asdict(a.decision) | {"members": a.members} for a in answers]})

    @app.get("/v1/run", dependencies=guarded, responses=_problems(401))
    async def about() -> About:
        """What answers, what it promises, and what it accepts."""
        return _about(run, config, batcher, limits)

    @app.get("/v1/report", dependencies=guarded, response_class=HTMLResponse, responses=_problems(401, 404))
    def report() -> HTMLResponse:
        """The run's report, one page."""
        file = run.report / "index.html"
        if not file.is_file():
            raise HTTPException(404, f"there is no report yet; make one: ripieno report {run.path}")
        return HTMLResponse(file.read_bytes(), headers=REPORT_HEADERS)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the process runs."""
        return Health()

    @app.get("/readyz", responses=_problems(503))
    async def readyz() -> Health:
        """Whether a question would be accepted now."""
        if not batcher.ready:
            raise HTTPException(503, "no question is accepted now", {"Retry-After": "1"})
        return Health()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page(), headers=HEADERS)

    return app


def _row(config: Config) -> Any:
    """Return what a question of a run may be; one that classifies takes texts, and questions as well."""
    own = AskedLetters if TEMPLATES[config.prompt.template].letters else AskedQuestion
    return own if config.data.labels is None else AskedText | own


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": Problem.model_json_schema()}}
    return {code: {"description": PROBLEMS[code], "content": content} for code in codes}


def _about(run: RunFolder, config: Config, batcher: Batcher, limits: Limits) -> About:
    promise, shift = batcher.promise, batcher.recent.shift if batcher.recent else None
    made = None
    if promise is not None and batcher.certificate is not None:
        made = PromiseMade(
            risk=promise.risk,
            confidence=promise.confidence,
            answered=promise.coverage,
            rule=batcher.certificate.rule.when(promise.threshold),
        )
    return About(
        name=config.name,
        version=version("ripieno"),
        base=config.base.model,
        members=list(batcher.ensemble.stack.members),
        epoch=config.training.epochs,
        template=config.prompt.template,
        labels=None if config.data.labels is None else list(config.data.labels),
        max_risk=batcher.max_risk,
        promise=made,
        lately=None if shift is None else Lately(unlike=shift.warns, hidden=shift.hidden, length=shift.length),
        limits=LimitsSet(**asdict(limits)),
        report=(run.report / "index.html").is_file(),
    )
