"""Every question of a report, packed for the page's explorer: texts, answers, and each member's distribution.

The explorer (explorer.html, explorer.js) is a section of the page. What it shows lies in the page as one compressed,
base64 block: texts of data sets never stand in the page as HTML or JavaScript, and 10,000 questions stay small. What
would be too large all the same goes in this order, and the page says so: the middle of long texts, the probabilities of
members beyond the first few, of all members, and questions.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripieno.data.question import Question
from ripieno.measures import accuracy, uncertainty
from ripieno.measures.uncertainty import Floats
from ripieno.predictions import Predictions
from ripieno.seeds import derive

MEASURES = {
    "correct": "Answer",
    "confidence": "Confidence",
    "predictive_entropy": "Entropy",
    "mutual_information": "Mutual information",
    "disagreement": "Disagreement",
    "margin": "Margin",
    "nll": "NLL",
    "choices": "Choices",
}
OF_SEVERAL = ("mutual_information", "disagreement")  # say nothing of a single member
STEPS = 1000  # probabilities are kept in thousandths, as they are shown
BUDGET = 3_600_000  # bytes of base64; leaves more than 1 MB of a 5 MB page to figures and tables
LENGTHS = (4000, 2000, 1000, 500, 250)  # characters, to which texts are shortened where whole ones exceed the budget
LIMIT = 4_300_000  # bytes that the shortest texts may take, before anything else is left out
DRAWN = (32, 16, 8, 0)  # how many members are drawn one by one, where all of them exceed the limit


@dataclass(frozen=True, slots=True)
class Explored:
    """The questions of a page, packed.

    Args:
        payload: base64 of zlib of: the header's length in bytes (uint64), the header (JSON, padded with spaces to whole
            8 bytes), and the columns one after another, each padded with zeros to whole 4 bytes, all little-endian.
            For the page: each measure of the header, float32 [N], NaN where unknown; right choice, int16 [N], -1
            where unknown; answer and number of choices, uint16 [N] each. Then for each set: thousandths of
            probabilities, uint16 [n, 1 + D, K], the ensemble first, then D members; each of the M members' own answer,
            uint16 [n, M].
        questions: N, how many.
        asked: how many there are; N of them, where they are too many, are drawn at random from each set, so that what
            the page counts among them is what it would count among all.
        longest: characters to which longer texts are shortened, None where every text is whole.
        members: M, of the set with the most.
        drawn: D, of how many members the probabilities are there; M where it is of all.
    """

    payload: str
    questions: int
    asked: int
    longest: int | None
    members: int
    drawn: int


def data(
    predictions: Sequence[Predictions],
    questions: Mapping[str, Sequence[Question]],
    out_of_domain: Collection[str] = (),
    method: str = "ensemble",
) -> Explored:
    """Pack the method's last epoch of every set, the first of several replicates.

    Args:
        predictions: of every evaluated set; other methods, earlier epochs and questions that were asked again with
            fewer choices are left out.
        questions: the texts by `Predictions.name`; a question that is not there is shown by its id.
        out_of_domain: names of the sets that are.
        method: which predictions, as `Predictions.method` has it.

    Raises:
        ValueError: nothing of this method, or a question with more or fewer choices than its predictions.
    """
    own = [p for p in predictions if p.method == method and p.choices_kept is None]
    if not own:
        raise ValueError(f"no predictions of method {method!r}")
    epoch = max(p.epoch for p in own)
    at_last: dict[str, Predictions] = {}
    for p in own:
        if p.epoch == epoch:
            at_last.setdefault(p.name, p)
    last = list(at_last.values())
    N, M = sum(len(p.question_ids) for p in last), max(len(p.members) for p in last)

    def head(some: Sequence[Predictions], drawn: int, longest: int | None) -> bytes:
        sets = [_texts(p, questions.get(p.name, ()), p.name in out_of_domain, drawn, longest) for p in some]
        header = {"measures": [[name, MEASURES[name]] for name in _names(M)], "sets": sets}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":"))
        return _padded(text.encode("utf-8", "replace"), 8, b" ")  # a lone half of a surrogate pair becomes "?"

    texts = (t for p in last for q in questions.get(p.name, ()) for t in (q.question, q.context or "", *q.choices))
    most = max(map(len, texts), default=0)
    lengths = (None, *(length for length in LENGTHS if length < most))
    steps = (M, *(few for few in DRAWN if few < M)) if M > 1 else (M,)
    # To find what fits, head and tail are compressed alone, and fast: a few percent more than together and well.
    heads: dict[int | None, int] = {}
    size = 0.0
    for drawn in steps:
        tail = _columns(last, _names(M), drawn)
        of_tail = len(zlib.compress(tail))
        for longest in lengths:
            # Before fewer members are drawn, or fewer questions, the page may come near its limit.
            limit = LIMIT if longest == lengths[-1] and drawn in (M, steps[-1]) else BUDGET
            size = of_tail * 4 / 3
            if size > 1.05 * limit:
                continue
            if longest not in heads:
                heads[longest] = len(zlib.compress(head(last, drawn, longest)))
            size = (of_tail + heads[longest]) * 4 / 3
            if size > 1.05 * limit:
                continue
            payload = _payload(head(last, drawn, longest), tail)
            if len(payload) <= limit:
                return Explored(payload, N, N, longest, M, drawn)
    # Sorted by hashes, not drawn by a generator, whose stream may change with numpy's version.
    drawn, longest = steps[-1], lengths[-1]
    orders = [np.argsort([derive(0, "explorer", p.name, question) for question in p.question_ids]) for p in last]
    share = 1.0
    while True:
        share *= 0.97 * LIMIT / size
        kept = [np.sort(order[: max(1, int(share * len(order)))]) for order in orders]
        some = [p.select(index) for p, index in zip(last, kept, strict=True)]
        payload = _payload(head(some, drawn, longest), _columns(some, _names(M), drawn))
        size = len(payload)
        if size <= LIMIT or max(map(len, kept)) == 1:
            return Explored(payload, sum(map(len, kept)), N, longest, M, drawn)


def _names(members: int) -> list[str]:
    return [name for name in MEASURES if members > 1 or name not in OF_SEVERAL]


def _columns(last: Sequence[Predictions], names: Sequence[str], drawn: int) -> bytes:
    measured = [_measure(p) for p in last]
    columns: list[NDArray[Any]] = [np.concatenate([m[name] for m in measured]).astype("<f4") for name in names]
    columns.append(np.concatenate([p.targets for p in last]).astype("<i2"))
    columns.append(np.concatenate([uncertainty.pool(p.probs).argmax(axis=1) for p in last]).astype("<u2"))
    columns.append(np.concatenate([p.mask.sum(axis=1) for p in last]).astype("<u2"))
    for p in last:
        shown = np.concatenate([uncertainty.pool(p.probs)[None], p.probs[:drawn]]).transpose(1, 0, 2)
        columns.append(np.rint(STEPS * shown).astype("<u2"))
        columns.append(p.log_probs.argmax(axis=2).T.astype("<u2"))
    return b"".join(_padded(column.tobytes(), 4, b"\0") for column in columns)


def _payload(head: bytes, tail: bytes) -> str:
    return base64.b64encode(zlib.compress(len(head).to_bytes(8, "little") + head + tail, 9)).decode("ascii")


def _measure(p: Predictions) -> dict[str, Floats]:
    """Return each measure of `MEASURES`, [n]: NaN where the right choice is not known and the measure asks for it."""
    pooled = uncertainty.pool(p.probs)
    parts = uncertainty.decompose(p.probs)
    known = p.labelled
    correct, nll = np.full((2, len(known)), np.nan)
    correct[known] = accuracy.correct(pooled[known], p.targets[known])
    nll[known] = accuracy.nll(uncertainty.pool_log(p.log_probs)[known], p.targets[known])
    return {
        "correct": correct,
        "confidence": uncertainty.confidence(pooled),
        "predictive_entropy": parts.total,
        "mutual_information": parts.epistemic,
        "disagreement": uncertainty.disagreement(p.probs),
        "margin": uncertainty.margin(pooled),
        "nll": nll,
        "choices": p.mask.sum(axis=1).astype(np.float64),
    }


def _texts(p: Predictions, questions: Sequence[Question], out: bool, drawn: int, longest: int | None) -> dict[str, Any]:
    """Return one set's part of the header: what it is, and its texts in the order of the predictions."""
    asked = {question.id: question for question in questions}
    found = [asked.get(id_) for id_ in p.question_ids]
    for question, size in zip(found, p.mask.sum(axis=1), strict=True):
        if question and len(question.choices) != size:
            raise ValueError(
                f"{p.name}: question {question.id!r} has {len(question.choices)} choices, its predictions {size}"
            )
    subjects = p.subjects or tuple(question.subject if question else None for question in found)
    contexts = [question.context if question else None for question in found]
    # Many questions of one passage or subject: each is written once, and referred to by its place.
    passages, kinds = ({text: i for i, text in enumerate(dict.fromkeys(filter(None, t)))} for t in (contexts, subjects))
    return {
        "name": p.name,
        "out": out,
        "members": list(p.members),
        "drawn": min(drawn, len(p.members)),
        "width": p.mask.shape[1],
        "ids": list(p.question_ids),
        "questions": [_shortened(question.question, longest) if question else None for question in found],
        "choices": [[_shortened(c, longest) for c in question.choices] if question else None for question in found],
        "passages": [_shortened(text, longest) for text in passages],
        "passage": [passages[text] if text else -1 for text in contexts] if passages else None,
        "subjects": list(kinds),
        "subject": [kinds[text] if text else -1 for text in subjects] if kinds else None,
    }


def _shortened(text: str, longest: int | None) -> str:
    """Return the text, its middle left out and counted where it is too long: what is asked often stands at the end."""
    if longest is None or len(text) <= longest:
        return text
    head = longest * 3 // 5
    tail = longest - head
    return f"{text[:head]} [… {len(text) - longest:,} characters left out …] {text[-tail:]}"


def _padded(content: bytes, multiple: int, filler: bytes) -> bytes:
    return content + filler * (-len(content) % multiple)
