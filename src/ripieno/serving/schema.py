"""What requests and answers hold: the service's description is made from these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ripieno.config import Config
from ripieno.data.prompts import TEMPLATES
from ripieno.runs import RunFolder
from ripieno.serving.batcher import Batcher

LETTERS = 26


class Limits(BaseModel):
    """What is accepted."""

    model_config = ConfigDict(frozen=True)

    waiting: Annotated[int, Field(description="Questions accepted and not yet answered, of all callers.")] = 256
    questions: Annotated[int, Field(description="Questions of one request.")] = 64
    body: Annotated[int, Field(description="Bytes of one request.")] = 2**20
    seconds: Annotated[float, Field(description="Until a request has come, and until it is answered.")] = 30.0


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    """That all is well."""

    status: str = "ok"


# One character at least that is no white space, whichever program's rules of it are applied.
Text = Annotated[str, Field(pattern=r"[^\s\x1c-\x1f\x85\ufeff]")]


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


KINDS = {kind.__name__ for kind in (AskedQuestion, AskedLetters, AskedText)}


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
    limits: Limits
    report: Annotated[bool, Field(description="Whether /v1/report has a page.")]


def row_of(config: Config) -> Any:
    """Return what a question of a run may be; one that classifies takes texts, and questions as well."""
    own = AskedLetters if TEMPLATES[config.prompt.template].letters else AskedQuestion
    return own if config.data.labels is None else AskedText | own


def mistake(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return the first thing that is wrong with a request, and where, in a line.

    A row that is neither a text nor a question gets complaints of both kinds: the one with fewer of them was meant.

    Args:
        errors: of a request that is not as described, as pydantic lists them; one at least.
    """
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body: not JSON ({first['ctx']['error']} at character {first['loc'][1] + 1}); mend it"

    def kind(error: Mapping[str, Any]) -> str:
        return next((part for part in error["loc"] if part in KINDS), "")

    of_row = [error for error in errors if error["loc"][:3] == first["loc"][:3]]
    complaints = Counter(map(kind, of_row))
    nearest = min(of_row, key=lambda error: complaints[kind(error)])
    place = ".".join(str(part) for part in nearest["loc"][1:] if part not in KINDS) or "the body"
    return f"{place}: {'is empty; fill it in' if nearest['type'] == 'string_pattern_mismatch' else nearest['msg']}"


def describe(run: RunFolder, config: Config, batcher: Batcher, limits: Limits) -> About:
    """Return what answers, what it promises, and what it accepts."""
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
        limits=limits,
        report=(run.report / "index.html").is_file(),
    )
