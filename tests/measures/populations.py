"""Predictions to measure: random ones, and hypothesis' idea of any."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from ripieno.predictions import Predictions

EPS = float(np.finfo(np.float64).eps)


def rounding(terms: int, size: float) -> float:
    """Bound the error of a sum of `terms` products or logarithms whose absolute values sum to `size`.

    Each term is off by a few eps of itself (three roundings, and inputs normalised to within `terms` eps), and adding
    n terms one by one costs at most n eps of the sum of their absolute values.
    """
    return (2 * terms + 10) * EPS * size


def log_softmax(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    scores = np.where(mask, scores, -np.inf)
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def predictions_of(log_probs: np.ndarray, mask: np.ndarray, targets: Any, **fields: Any) -> Predictions:
    M, N, _ = log_probs.shape
    defaults: dict[str, Any] = {
        "question_ids": tuple(f"q{n}" for n in range(N)),
        "members": tuple(range(M)),
        "dataset": "set",
        "split": "test",
    }
    return Predictions(log_probs, mask, targets=np.asarray(targets, dtype=np.int64), **(defaults | fields))


def from_probs(probs: Any, targets: Any, **fields: Any) -> Predictions:
    """Build predictions from probabilities [M, N, K]; a choice that nobody gives any is present all the same."""
    probs = np.asarray(probs, dtype=np.float64)
    log_probs = np.where(probs > 0, np.log(np.where(probs > 0, probs, 1.0)), -np.inf)
    mask = fields.pop("mask", np.ones(probs.shape[1:], dtype=bool))
    return predictions_of(log_probs, mask, targets, **fields)


def random_predictions(members: int, questions: int, choices: int, /, seed: int = 0, **fields: Any) -> Predictions:
    """Return members that share an opinion and add their own; each question has its own number of choices.

    The questions follow from their number and K alone; the seed is that of the answers.
    """
    M, N, K = members, questions, choices
    asked, rng = np.random.default_rng(0), np.random.default_rng([seed, 1])
    sizes = asked.integers(2, K + 1, size=N)
    sizes[0] = K
    mask = np.arange(K) < sizes[:, None]
    log_probs = log_softmax(rng.normal(size=(M, N, K)) + 2 * rng.normal(size=(N, K)), mask)
    targets = fields.pop("targets", asked.integers(0, sizes))
    return predictions_of(log_probs, mask, targets, **fields)


@st.composite
def any_predictions(draw: st.DrawFn, min_members: int = 1) -> Predictions:
    """Any members, questions and numbers of choices; scores so far apart that probabilities of 0 and 1 occur."""
    M, N, K = draw(st.integers(min_members, 5)), draw(st.integers(1, 6)), draw(st.integers(2, 6))
    sizes = np.array(draw(st.lists(st.integers(2, K), min_size=N, max_size=N)))
    score = st.one_of(st.floats(-5, 5), st.sampled_from([0.0, -900.0, 900.0]))
    scores = np.array(draw(st.lists(score, min_size=M * N * K, max_size=M * N * K))).reshape(M, N, K)
    mask = np.arange(K) < sizes[:, None]
    targets = [draw(st.integers(-1, int(size) - 1)) for size in sizes]
    return predictions_of(log_softmax(scores, mask), mask, targets)
