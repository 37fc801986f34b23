"""The service's addresses: what they take, what they answer, and whom they refuse."""

# Without `from __future__ import annotations`: what a request may hold depends on the run, so its types are made here.
import asyncio
import secrets
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import ConfigDict, Field, create_model

from ripieno.data.question import questions_of_rows
from ripieno.errors import UserError
from ripieno.runs import RunFolder
from ripieno.serving.batcher import Batcher, Full
from ripieno.serving.gate import BodyLimit, OwnHost
from ripieno.serving.page import HEADERS, REPORT_HEADERS, page
from ripieno.serving.schema import About, Decisions, Health, Limits, Problem, describe, mistake, row_of

PROBLEMS = {
    400: "The request's body is no text in UTF-8.",
    401: "The bearer token is missing or wrong.",
    404: "It was not made yet.",
    408: "The request's body did not come in time.",
    413: "The request's body is too large.",
    422: "The request is not as it is described here.",
    503: "Nothing is accepted now; where too much waits, Retry-After says in how many seconds to ask again.",
    504: "The answers were not there in time.",
}


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
    rows: Any = list[row_of(config)]  # type: ignore[misc]
    some = Field(min_length=1, max_length=limits.questions)
    asked = create_model("Asked", __config__=ConfigDict(extra="forbid"), questions=(rows, some))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": mistake(error.errors())}, 422)

    @app.exception_handler(UserError)
    async def mistaken(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.post("/v1/decide", dependencies=guarded, responses=_problems(400, 401, 408, 413, 422, 503, 504))
    async def decide(body: asked) -> Decisions:  # type: ignore[valid-type]
        """Decide questions: answer, or hand over to a person."""
        rows = [row.model_dump(exclude_none=True) for row in body.questions]  # type: ignore[attr-defined]
        ids = [row.pop("id", None) for row in rows]  # the caller's own business, so two may be the same
        named = [(f"questions.{number}", row) for number, row in enumerate(rows)]
        read = questions_of_rows(named, config.data.labels)
        questions = [replace(q, id=given) if given else q for q, given in zip(read, ids, strict=True)]
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
        return describe(run, config, batcher, limits)

    @app.get("/v1/report", dependencies=guarded, response_class=HTMLResponse, responses=_problems(401, 404))
    def report() -> HTMLResponse:
        """The run's report, one page."""
        file = run.report / "index.html"
        if not file.is_file():
            raise HTTPException(404, f"there is no report yet; make one: ripieno report {run.path}")
        return HTMLResponse(file.read_bytes(), headers=REPORT_HEADERS)

    @app.get("/healthz", responses=_problems(503))
    async def healthz() -> Health:
        """Whether the process can answer at all; where it cannot, it has to be started again."""
        if not batcher.alive:
            raise HTTPException(503, "nothing can be answered any more; start the service again")
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


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": Problem.model_json_schema()}}
    return {code: {"description": PROBLEMS[code], "content": content} for code in codes}
