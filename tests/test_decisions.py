"""What a certificate makes of predictions, where a threshold parts the questions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ripieno.data.question import Question
from ripieno.decisions import UNLIKE, decide, promise_of
from ripieno.errors import UserError
from ripieno.measures.certificate import Certificate, Rule, make, refusal, sure
from ripieno.measures.certify import Promise, at_least, at_most
from ripieno.measures.estimates import Costs
from ripieno.measures.sets import SetGroup, SetRule
from ripieno.measures.shift import Shift
from ripieno.predictions import Predictions

QUESTIONS = [Question(f"q{n}", f"{n}?", ("a", "b", "c"), None) for n in range(4)]
# Two members: sure and agreed; unsure; each sure of another choice; of a question with two choices.
PROBS = np.array(
    [
        [[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.98, 0.01, 0.01], [0.3, 0.7, 0.0]],
        [[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.01, 0.98, 0.01], [0.2, 0.8, 0.0]],
    ]
)
SETS = SetRule("lac", None, 0.95, (SetGroup(None, 0.61, 200),))
MASK = np.array([[True] * 3, [True] * 3, [True] * 3, [True, True, False]])


def predictions(**fields: Any) -> Predictions:
    log_probs = np.log(np.where(MASK, PROBS, 1.0))
    given: dict[str, Any] = {
        "log_probs": np.where(MASK, log_probs, -np.inf),
        "mask": MASK,
        "question_ids": tuple(q.id for q in QUESTIONS),
        "targets": np.full(4, -1),
        "members": (0, 1),
    }
    return Predictions(**(given | fields))


def certificate(kind: str = "confidence", threshold: float = 0.25, **fields: Any) -> Certificate:
    promise = Promise(0.05, 0.95, threshold, 200, 120, 1)
    listed = (Promise(0.08123, 0.95, threshold, 200, 120, 1), Promise(0.2, 0.95, math.inf, 200, 200, 20))
    rule = Rule("mi" if kind == "mi" else "confidence", 1.0)
    given = Certificate(rule, 0.05, 0.95, 150, 200, promise, None, 0.01, listed, SETS)
    return replace(given, **fields)


def test_the_threshold_parts_answers_from_hand_overs() -> None:
    decided = decide(predictions(), QUESTIONS, certificate(), 0.05)
    # 1 - confidence is 0.1, 0.6, 0.505 and 0.25: at the threshold itself it is answered.
    assert [d.answered for d in decided] == ["yes", "no", "no", "yes"]
    assert [d.answer_text for d in decided] == ["a", "a", "a", "b"]
    assert decided[0].reason == "90.0% sure; of all such answers (from 75.0%) at most 5% wrong at 95% confidence"
    assert decided[1].reason == (
        "40.0% sure, and the promise (at most 5% wrong at 95% confidence) ends at 75.0%; a person should decide"
    )
    assert [d.prediction_set for d in decided] == [(0,), (0,), (0, 1), (1,)]
    assert decided[3].probs == pytest.approx((0.25, 0.75))
    for d in decided:
        assert d.total == pytest.approx(d.aleatoric + d.epistemic)  # type: ignore[operator]


def test_members_that_disagree_are_handed_over() -> None:
    decided = decide(predictions(), QUESTIONS, certificate("mi", threshold=0.1), 0.05)
    assert [d.answered for d in decided] == ["yes", "yes", "no", "yes"]
    assert decided[1].reason.startswith("the members agree: 0 nats; of all such answers (up to 0.1 nats)")
    assert decided[2].reason.startswith("the members disagree too much: 0.6")


def test_no_threshold_reads_as_certain() -> None:
    said = {0.2: "80.0%", 0.001: "99.9%", 0.0004: "99.96%", 3.2e-5: "99.997%", 0.0: "100.0%"}
    for uncertainty, shown in said.items():
        assert sure(uncertainty) == shown
        assert Rule("confidence", 1.0).when(uncertainty) == f"when at least {shown} sure"
    assert Rule("mi", 1.0).when(3.2e-5) == "when the members disagree by at most 3.2e-05 nats"
    assert [Rule("mi", 1.0).when(end) for end in (math.inf, -1.0)] == ["always", "never"]


def test_what_was_not_asked_or_is_not_alike_is_said() -> None:
    some = predictions().select(np.array([0, 1]))
    decided = decide(some, QUESTIONS, certificate(), 0.05, Shift(0.001, 0.5, 0.01))
    assert [d.answered for d in decided] == ["yes", "no", "no", "no"]
    assert decided[2].answer is None
    assert decided[2].reason.startswith("not asked: it is longer than")
    assert decided[0].reason.startswith(f"{UNLIKE}; else: 90.0% sure")
    assert not decide(some, QUESTIONS, certificate(), 0.05, Shift(0.3, 0.5, 0.01))[0].reason.startswith(UNLIKE)
    assert [d.answered for d in decide(None, QUESTIONS, certificate(), 0.05)] == ["no"] * 4
    assert [d.answered for d in decide(predictions(), QUESTIONS, None, None)] == [None] * 4
    with pytest.raises(UserError, match="the same id"):
        decide(predictions(), [QUESTIONS[0]] * 2, None, None)


def test_each_risk_has_one_promise() -> None:
    given = certificate()
    assert promise_of(given, 0.05) == given.promise
    assert promise_of(given, 0.0813) == given.listed[0]
    assert promise_of(given, 0.5) == given.listed[1]  # that answers all
    with pytest.raises(UserError, match=r"--max-risk 0\.06: was not promised; give 0\.05 or 0\.0813 "):
        promise_of(given, 0.06)
    with pytest.raises(UserError, match="no risk could be promised"):
        promise_of(replace(given, promise=None, listed=()), 0.05)
    with pytest.raises(UserError, match="between 0 and 1"):
        promise_of(given, 5)


def sample(count: int, seed: int, sharp: float = 8.0) -> Predictions:
    """Return two members that are nearly calibrated, and surer the sharper."""
    rng = np.random.default_rng(seed)
    scores = sharp * rng.normal(size=(count, 3))
    truth = np.exp(scores - scores.max(axis=1, keepdims=True))
    truth /= truth.sum(axis=1, keepdims=True)
    targets = (rng.random(count)[:, None] > truth.cumsum(axis=1)).sum(axis=1).clip(max=2)
    log_probs = np.log(np.stack([truth, truth]) + 1e-12)
    log_probs -= np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
    ids = tuple(f"s{seed}-{n}" for n in range(count))
    return Predictions(log_probs, np.ones((count, 3), bool), ids, targets, (0, 1))


def test_a_certificate_survives_its_file() -> None:
    roles = [sample(count, seed) for seed, count in enumerate((200, 50, 300))]
    for risk, costs in ((0.05, Costs(10, 1)), (0.0001, None), (0.9, Costs(1, 1e6))):
        made = make(*roles, risk=risk, confidence=0.95, costs=costs)
        assert Certificate.from_json(json.loads(json.dumps(made.to_json(), allow_nan=False))) == made
    assert made.promise is not None
    assert made.promise.threshold == math.inf


def test_refusals_say_why_and_what_would_do() -> None:
    few = make(sample(200, 0), sample(50, 1), sample(40, 2), risk=0.05, confidence=0.95)
    assert few.promise is None
    said = refusal(few)
    assert said.startswith(
        "even without an error that takes 59 answered questions, and there are 40; by the validation"
    )
    assert few.labels_needed is not None
    assert f"about {math.ceil(few.labels_needed / 10) * 10} labelled ones would do" in said  # 100 to 999 of them
    assert 100 <= few.labels_needed < 1000
    unsure = make(sample(300, 3, 0.1), sample(50, 4, 0.1), sample(300, 5, 0.1), risk=0.05, confidence=0.95)
    assert refusal(unsure).endswith("on validation too many are wrong however few are answered")
    untold = make(sample(10, 6, 30.0), sample(50, 7, 30.0), sample(40, 8, 30.0), risk=0.01, confidence=0.95)
    assert refusal(untold).endswith("10 validation questions are too few to tell how many labels would do")


def test_shares_never_sound_better_than_they_are() -> None:
    assert [at_most(x) for x in (0.05, 0.12341, 0.0004, 0.00001)] == ["5%", "12.35%", "0.04%", "0.01%"]
    assert [at_least(x) for x in (0.95, 0.999, 0.99999)] == ["95%", "99.9%", "99.99%"]
