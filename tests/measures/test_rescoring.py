from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from populations import EPS, from_probs

from ripieno.measures import rescore
from ripieno.predictions import Predictions

SCORES = np.array([[[-2.0, -6.0, -9.0], [-4.0, -3.0, 0.0]]])


def scored() -> Predictions:
    """One member, a question of three choices and one of two."""
    mask = np.array([[True] * 3, [True, True, False]])
    p = from_probs([[[0.5, 0.3, 0.2], [0.5, 0.5, 0.0]]], [0, 1], mask=mask)
    return replace(
        p,
        scores=SCORES,
        tokens=np.array([[1, 2, 3], [2, 1, 0]]),
        bytes=np.array([[4, 6, 18], [8, 2, 0]]),
        unconditional=np.array([[[-1.0, -5.5, -9.5], [-4.0, -1.0, 0.0]]]),
        metadata={"template": {"name": "text"}, "scoring": {"rule": "text", "terminator": "newline"}},
    )


def softmax(*scores: float) -> list[float]:
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores] + [0.0] * (3 - len(scores))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", [softmax(-2, -6, -9), softmax(-4, -3)]),
        ("token", [softmax(-2, -3, -3), softmax(-2, -3)]),
        ("byte", [softmax(-0.5, -1, -0.5), softmax(-0.5, -1.5)]),
        ("unconditional", [softmax(-1, -0.5, 0.5), softmax(0, -2)]),
    ],
)
def test_each_rule_by_hand(rule, expected):
    p = scored()
    again = rescore(p, rule)
    assert again.probs[0] == pytest.approx(np.array(expected), abs=20 * EPS)
    assert np.isneginf(again.log_probs[0, 1, 2])
    assert again.metadata["scoring"] == {"rule": "text", "terminator": "newline", "normalisation": rule}
    assert again.metadata["template"] == {"name": "text"}
    assert (again.question_ids, again.targets.tolist()) == (p.question_ids, [0, 1])
    assert p.metadata["scoring"] == {"rule": "text", "terminator": "newline"}  # what was given stays as it was


def test_a_constant_in_the_scores_changes_nothing():
    p = scored()
    shifted = replace(p, scores=SCORES - np.array([700.0, 3.0])[:, None])
    assert rescore(shifted, "sum").probs == pytest.approx(rescore(p, "sum").probs, abs=710 * EPS)


@pytest.mark.parametrize(
    ("missing", "rule", "message"),
    [
        ({"scores": None}, "sum", "set/test: no choice_scores are stored"),
        ({"tokens": None, "bytes": None}, "byte", "choices are letters"),
        ({"unconditional": None}, "unconditional", "evaluate RUN --unconditional"),
    ],
)
def test_what_is_not_stored_is_an_error(missing, rule, message):
    with pytest.raises(ValueError, match=message):
        rescore(replace(scored(), **missing), rule)
