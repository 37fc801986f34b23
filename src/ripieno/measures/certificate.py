"""From predictions on the validation, calibration and certification questions to a rule with a promise.

Which uncertainty, which temperature and which thresholds: all chosen on validation and calibration. The certification
questions are asked one thing alone: how many of the answers are wrong at those thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ripieno.measures.bootstrap import interval
from ripieno.measures.certify import Promise, certify, even_ladder, fewest_answered, labels_needed, ladder, promises
from ripieno.measures.estimates import Costs
from ripieno.measures.selective import aurc, cheapest_threshold
from ripieno.measures.sets import By, Score, SetGroup, SetRule, find_sets
from ripieno.measures.temperature import apply_temperature, fit_temperature
from ripieno.measures.uncertainty import Floats, decompose, pool
from ripieno.predictions import Predictions

SCHEMA = 2
Kind = Literal["confidence", "mi"]
KINDS: tuple[Kind, ...] = ("confidence", "mi")


def sure(uncertainty: float) -> str:
    """Return 1 less an uncertainty as percent, with as many digits as keep it from reading 100%: 94.6%, 99.96%."""
    digits = 1 if not 0 < uncertainty < 1e-3 else -math.floor(math.log10(uncertainty)) - 2
    return f"{100 * (1 - uncertainty):.{digits}f}%"


@dataclass(frozen=True, slots=True)
class Rule:
    """How an answer and its uncertainty come from what members say.

    Args:
        uncertainty: `confidence` (1 less the pooled probability of the answer) or `mi` (mutual information).
        temperature: that divides every member's scores before pooling.
    """

    uncertainty: Kind
    temperature: float

    def probs(self, p: Predictions) -> Floats:
        """Return [M, N, K], the members' probabilities at the temperature."""
        return np.exp(apply_temperature(p.log_probs, p.mask, self.temperature))

    def uncertainties(self, p: Predictions) -> Floats:
        """Return [N], the uncertainty that is held against a threshold."""
        probs = self.probs(p)
        return decompose(probs).epistemic if self.uncertainty == "mi" else 1.0 - pool(probs).max(axis=1)

    def when(self, threshold: float) -> str:
        """Say which questions are answered at a threshold: "when at least 94.6% sure"."""
        if threshold == math.inf:
            return "always"
        if threshold < 0:
            return "never"
        if self.uncertainty == "mi":
            return f"when the members disagree by at most {threshold:.3g} nats"
        return f"when at least {sure(threshold)} sure"

    def wrong(self, p: Predictions) -> Floats:
        """Return [N], 1 where the pooled answer is not the right one; every right one must be known."""
        return (pool(self.probs(p)).argmax(axis=1) != p.targets).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Saving:
    """What a threshold chosen on validation by the user's costs saved on the certification questions.

    Args:
        error, handover: the costs.
        threshold: answer where the uncertainty is at most this; -inf: nothing.
        answered: the share of the certification questions that is answered.
        cost: a question's mean cost.
        saving, low, high: how much less that is than the better of answering all and none, as validation chose it,
            with its 95% interval over questions.
    """

    error: float
    handover: float
    threshold: float
    answered: float
    cost: float
    saving: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was promised, and all that is needed to keep it.

    Args:
        rule: how an answer's uncertainty is found.
        asked_risk, confidence: what was asked for.
        validation, questions: how many questions it was chosen, and certified on.
        promise: None: it cannot be promised.
        labels_needed: how many certification questions would probably do, by the validation questions; None where the
            promise could be made, or where they do not say.
        lowest_rate: the lowest error rate on validation among the thresholds that answer a twentieth of it and more.
        listed: every risk that can be promised, all of them at once.
        sets: prediction sets.
        saving: with the user's costs.
    """

    rule: Rule
    asked_risk: float
    confidence: float
    validation: int
    questions: int
    promise: Promise | None
    labels_needed: int | None
    lowest_rate: float
    listed: tuple[Promise, ...]
    sets: SetRule
    saving: Saving | None = None

    def promised(self, risk: float) -> Promise | None:
        """Return the promise that answers the most questions at a risk of at most this, or None.

        The risk that was asked for has its own promise, every other one what is listed: to take the better of two
        would be two chances to be wrong.
        """
        if risk == self.asked_risk:
            return self.promise
        return max((p for p in self.listed if p.risk <= risk), key=lambda p: p.answered, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return JSON; infinite thresholds are null."""
        content: dict[str, Any] = _finite(asdict(self))
        return {"schema": SCHEMA, **content}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Certificate:
        """Read what `to_json` returned."""
        groups = tuple(SetGroup(**_with_inf(given)) for given in content["sets"]["groups"])
        return cls(
            rule=Rule(**content["rule"]),
            promise=Promise(**_with_inf(content["promise"])) if content["promise"] else None,
            listed=tuple(Promise(**_with_inf(given)) for given in content["listed"]),
            sets=SetRule(**{**content["sets"], "groups": groups}),
            saving=Saving(**_with_inf(content["saving"])) if content["saving"] else None,
            **{
                k: content[k]
                for k in ("asked_risk", "confidence", "validation", "questions", "labels_needed", "lowest_rate")
            },
        )


def choose(validation: Predictions, calibration: Predictions) -> Rule:
    """Choose temperature and uncertainty: confidence, but where mutual information did better on validation.

    Better is a lower area under the risk-coverage curve.
    """
    temperature = fit_temperature(calibration.log_probs, calibration.mask, calibration.targets)
    rules = [Rule(kind, temperature) for kind in KINDS]
    return min(rules, key=lambda rule: float(aurc(rule.uncertainties(validation), rule.wrong(validation))))


def make(
    validation: Predictions,
    calibration: Predictions,
    certification: Predictions,
    *,
    risk: float,
    confidence: float,
    costs: Costs | None = None,
    score: Score = "lac",
    by: By | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
) -> Certificate:
    """Certify a risk.

    Args:
        validation, calibration, certification: the same members' answers; questions of an unknown right choice are
            left out.
        risk, confidence: at most `risk` of the answered wrong, with this confidence.
        costs: of an error and of a hand-over.
        score, by: of the prediction sets, as in `SetRule`.
        choices: of each certification question by its id, which sets by label need.

    Raises:
        ValueError: a role has no question with a known answer, or a share is not between 0 and 1.
    """
    validation, calibration, certification = (p.select(p.labelled) for p in (validation, calibration, certification))
    rule = choose(validation, calibration)
    known = rule.uncertainties(validation), rule.wrong(validation)
    new = rule.uncertainties(certification), rule.wrong(certification)
    N = len(new[0])
    promise = certify(*new, ladder(*known, risk, confidence, N), risk, confidence)
    of_each = [(choices or {}).get(question_id, ()) for question_id in certification.question_ids]
    return Certificate(
        rule=rule,
        asked_risk=risk,
        confidence=confidence,
        validation=len(known[0]),
        questions=N,
        promise=promise,
        labels_needed=None if promise else labels_needed(*known, risk, confidence),
        lowest_rate=float(min(known[1][known[0] <= t].mean() for t in even_ladder(known[0]))),
        listed=tuple(promises(*new, even_ladder(known[0]), confidence)),
        sets=find_sets(certification, pool(rule.probs(certification)), confidence, score, by, of_each),
        saving=_saving(known, new, costs) if costs else None,
    )


def _saving(known: tuple[Floats, Floats], new: tuple[Floats, Floats], costs: Costs) -> Saving:
    chosen = cheapest_threshold(*known, costs.error, costs.handover)
    uncertainty, wrong = new
    answered = uncertainty <= chosen.threshold
    paid = np.where(answered, wrong * costs.error, costs.handover)
    # The better of the two simple policies is chosen on validation too: to choose it here would be to look ahead.
    all_answered = chosen.cost_of_answering_all <= chosen.cost_of_handing_over_all
    otherwise = wrong * costs.error if all_answered else np.full(len(wrong), costs.handover)
    saved = otherwise - paid
    low, high = interval(saved)
    return Saving(
        costs.error,
        costs.handover,
        chosen.threshold,
        float(answered.mean()),
        float(paid.mean()),
        float(saved.mean()),
        low,
        high,
    )


def refusal(certificate: Certificate) -> str:
    """Say in words why a risk cannot be promised, and what would do."""
    risk, confidence = certificate.asked_risk, certificate.confidence
    fewest = fewest_answered(risk, confidence)
    needed = certificate.labels_needed
    if certificate.questions < fewest:
        why = f"even without an error that takes {fewest} answered questions, and there are {certificate.questions}"
    else:
        why = f"too many of the {certificate.questions} answers are wrong at the thresholds that were to be tested"
    if needed is None and certificate.lowest_rate >= risk:
        return f"{why}; no number of labels would do: on validation too many are wrong however few are answered"
    if needed is None:
        return f"{why}; {certificate.validation:,} validation questions are too few to tell how many labels would do"
    if needed <= certificate.questions:
        return f"{why}; by the validation questions {needed:,} would usually have done"
    step = 10 ** max(len(str(needed)) - 2, 0)  # two digits, rounded up: it is an estimate
    about = -(-needed // step) * step
    return f"{why}; by the validation questions about {about:,} labelled ones would do"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    # JSON has no infinity. -inf, "answer nothing", is the only threshold below all uncertainties: -1 says the same.
    return value if not isinstance(value, float) or math.isfinite(value) else (None if value > 0 else -1.0)


def _with_inf(given: dict[str, Any]) -> dict[str, Any]:
    """Put the infinite threshold back that JSON has as null."""
    return {**given, "threshold": math.inf if given["threshold"] is None else given["threshold"]}
