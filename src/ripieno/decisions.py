"""Answer, or hand over: what a certificate makes of predictions, a row a question."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripieno.data.question import Question
from ripieno.data.rows import write_rows
from ripieno.errors import EnvironmentFault, UserError
from ripieno.features import Features, read_features
from ripieno.measures import certificate as certificates
from ripieno.measures.certificate import Certificate, Rule
from ripieno.measures.certify import Promise, at_least, at_most
from ripieno.measures.shift import FEWEST, Shift, compare
from ripieno.measures.uncertainty import decompose, pool
from ripieno.predictions import Predictions
from ripieno.runs import RunFolder, sha256_of
from ripieno.untrusted import check_inside

UNLIKE = "nothing is promised, as these questions are not like the certified ones"
UNCALIBRATED = Rule("confidence", 1.0)  # of an ensemble that nothing is certified of
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("answer", pa.int32()),
        ("answer_text", pa.string()),
        ("probs", pa.list_(pa.float64())),
        ("total", pa.float64()),
        ("aleatoric", pa.float64()),
        ("epistemic", pa.float64()),
        ("prediction_set", pa.list_(pa.int32())),
        ("answered", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What is said of one question. All but `id`, `answered` and `reason` is None for a question that was not asked.

    Args:
        id: of the question.
        answer: the likeliest choice, counted from 0; given for a question that is handed over too.
        answer_text: its text.
        probs: of each choice, pooled, at the certificate's temperature.
        total, aleatoric, epistemic: nats, of the same.
        prediction_set: choices, counted from 0; None where nothing is certified.
        answered: yes, or no: a person should decide. None where no risk was named.
        reason: why, in words.
    """

    id: str
    answer: int | None
    answer_text: str | None
    probs: tuple[float, ...] | None
    total: float | None
    aleatoric: float | None
    epistemic: float | None
    prediction_set: tuple[int, ...] | None
    answered: str | None
    reason: str


def decide(
    p: Predictions | None,
    questions: Sequence[Question],
    certificate: Certificate | None,
    max_risk: float | None,
    shift: Shift | None = None,
) -> list[Decision]:
    """Decide each question.

    Args:
        p: the members' answers, None where no question could be asked; questions that are not in it were too long,
            and are handed over.
        questions: N of different ids, in the order of the decisions.
        certificate: what was promised, None where nothing was.
        max_risk: at most this share of the answered wrong; None answers nothing and hands over nothing.
        shift: whether these questions are like the certified ones; said with every reason where they are not.

    Raises:
        UserError: that risk was not promised, or two questions have one id.
    """
    if len({question.id for question in questions}) < len(questions):
        raise UserError("two questions have the same id; give each its own")
    rule, promise = UNCALIBRATED if certificate is None else certificate.rule, promise_of(certificate, max_risk)
    of_asked: dict[str, Decision] = {}
    if p is not None:
        probs = rule.probs(p)
        pooled, parts, uncertainty = pool(probs), decompose(probs), rule.uncertainties(p)
        texts = {question.id: question.choices for question in questions}
        sets = None
        if certificate is not None:
            sets = certificate.sets.sets(p, pooled, [texts[question_id] for question_id in p.question_ids])
        for n, question_id in enumerate(p.question_ids):
            answer = int(pooled[n].argmax())
            answered, reason = _verdict(rule, promise, float(uncertainty[n]), float(pooled[n, answer]))
            if promise is not None and shift is not None and shift.warns:
                reason = f"{UNLIKE}; else: {reason}"
            of_asked[question_id] = Decision(
                id=question_id,
                answer=answer,
                answer_text=texts[question_id][answer],
                probs=tuple(pooled[n, p.mask[n]].tolist()),
                total=float(parts.total[n]),
                aleatoric=float(parts.aleatoric[n]),
                epistemic=float(parts.epistemic[n]),
                prediction_set=None if sets is None else tuple(np.flatnonzero(sets[n]).tolist()),
                answered=answered,
                reason=reason,
            )
    too_long = "not asked: it is longer than evaluation.max_tokens, or than the model reads"
    handed_over = (None, None, None, None, None, None, None, None if max_risk is None else "no", too_long)
    return [of_asked.get(question.id) or Decision(question.id, *handed_over) for question in questions]


def promise_of(certificate: Certificate | None, max_risk: float | None) -> Promise | None:
    """Return the promise that keeps a risk; None where no risk is named.

    Raises:
        UserError: that risk was not promised.
    """
    if max_risk is None:
        return None
    check_share("--max-risk", max_risk)
    if certificate is None:
        raise UserError(f"--max-risk {max_risk:g}: nothing is certified of these members; run `ripieno certify` first")
    promise = certificate.promised(max_risk)
    if promise is None:
        risks = [certificate.asked_risk] if certificate.promise else []
        # Up, so that what is said here is promised when it is asked for.
        risks += [math.ceil(p.risk * 1e4) / 1e4 for p in certificate.listed]
        said = (
            f"give {' or '.join(f'{risk:g}' for risk in sorted(risks)[:2])}" if risks else "no risk could be promised"
        )
        raise UserError(f"--max-risk {max_risk:g}: was not promised; {said} (see `ripieno certify`)")
    return promise


def check_share(option: str, share: float) -> None:
    """Check a share that a user names.

    Raises:
        UserError: it is none.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"{option} {share:g}: give a share between 0 and 1, such as 0.05 for 5%")


def cautions(
    file: Path,
    questions: Sequence[Question],
    decided: Sequence[Decision],
    certificate: Certificate | None,
    max_risk: float | None,
) -> Iterator[str]:
    """Yield what whoever asked a file of questions should know beside the decisions.

    Args:
        file: of the questions.
        questions, decided: N, in the same order.
        certificate, max_risk: as in `decide`.
    """
    if any(decision.reason.startswith(UNLIKE) for decision in decided):
        yield f"warning: {file}: {UNLIKE} (their hidden states or lengths differ)"
    elif max_risk is not None and (asked := sum(decision.probs is not None for decision in decided)) < FEWEST:
        yield f"{asked} questions are too few to see whether they are like the certified ones"
    if certificate is not None:
        sets = certificate.sets
        if unknown := sets.uncertified([q.subject for q in questions], [q.choices for q in questions]):
            yield (
                f"warning: {file}: {unknown} of {len(questions)} questions are of no {sets.by} that was certified; "
                "every choice is in their prediction sets"
            )


def _verdict(rule: Rule, promise: Promise | None, uncertainty: float, confidence: float) -> tuple[str | None, str]:
    if promise is None:
        return None, f"{confidence:.1%} sure; no risk was named, so nothing is decided"
    kept = f"at most {at_most(promise.risk)} wrong at {at_least(promise.confidence)} confidence"
    answered = uncertainty <= promise.threshold
    if promise.threshold == np.inf:
        return "yes", f"every question is answered: {kept} over all questions like the certified ones"
    if rule.uncertainty == "mi":
        said = f"the members {'agree' if answered else 'disagree too much'}: {uncertainty:.3g} nats"
        limit = f"{promise.threshold:.3g} nats"
    else:
        said, limit = f"{certificates.sure(uncertainty)} sure", certificates.sure(promise.threshold)
    if answered:
        return "yes", f"{said}; of all such answers ({'up to' if rule.uncertainty == 'mi' else 'from'} {limit}) {kept}"
    return "no", f"{said}, and the promise ({kept}) ends at {limit}; a person should decide"


# ---- a run's certificate --------------------------------------------------------------------------------------------


def recorded(run: RunFolder) -> Mapping[str, Any] | None:
    """Return what a run recorded of its promise: what was asked, when, and the certificate; None where nothing was.

    Raises:
        UserError: another version of this program wrote it.
        EnvironmentFault: the file was written, and is missing or damaged.
    """
    written = run.certificate.relative_to(run.path).as_posix() in run.recorded()
    if not written and not run.certificate.exists():
        return None
    # One that is not on record was cut off from it, by a kill or by damage: its questions are used up all the same.
    try:
        if written and not run.whole(run.certificate):
            raise ValueError
        found: dict[str, Any] = json.loads(run.certificate.read_bytes())
        schema = found["certificate"]["schema"]
    except (ValueError, TypeError, KeyError):
        raise EnvironmentFault(
            f"{run.certificate}: missing or damaged, and its questions are used up; take it from a copy of the run"
        ) from None
    if schema != certificates.SCHEMA:
        raise UserError(f"{run.certificate}: was written by another version of ripieno, and only that one can read it")
    for name in (*found["adapters"], *found["features"]):
        check_inside(name, run.certificate)
    return found


@dataclass(frozen=True)
class Certified:
    """What a run certified, and the questions that it was certified on.

    Args:
        certificate: what was promised.
        features: of the certification questions; () where the base gives none, and no shift can be seen.
    """

    certificate: Certificate
    features: tuple[Features, ...] = ()

    def compare(self, hidden: NDArray[np.float32], lengths: NDArray[np.int64]) -> Shift | None:
        """Return whether new prompts are like the certified ones; None where there are too few to tell.

        Args:
            hidden, lengths: [N, D] and [N], as in `Features`.
        """
        if not self.features:
            return None
        certified = np.concatenate([features.hidden for features in self.features])
        of_certified = np.concatenate([features.prompt_tokens for features in self.features])
        if min(len(certified), len(hidden)) < FEWEST:
            return None
        return compare(certified, hidden, of_certified, lengths)


def load(run: RunFolder) -> Certified | None:
    """Return what a run certified, None where nothing is.

    Raises:
        UserError: the members are not those that were certified.
        EnvironmentFault: a file of it is missing or damaged.
    """
    found = recorded(run)
    if found is None:
        return None
    for path, sha256 in found["adapters"].items():
        if not (run.path / path).is_file() or sha256_of(run.path / path) != sha256:
            raise UserError(
                f"{run.path}: what was promised does not hold for these members: {path} is not the one that was "
                f"certified; take it from a copy of the run, or train and certify another run"
            )
    files = [run.path / path for path in found["features"]]
    for file in files:
        if not run.whole(file):
            raise EnvironmentFault(f"{file}: missing or damaged, so no shift could be seen; take it from a copy")
    return Certified(Certificate.from_json(found["certificate"]), tuple(read_features(file) for file in files))


# ---- files ----------------------------------------------------------------------------------------------------------


def write(path: Path, decided: Sequence[Decision]) -> None:
    """Write decisions as jsonl, csv or parquet, by the file's ending; whole or not at all.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    write_rows(path, [asdict(decision) for decision in decided], SCHEMA)
