"""Predictions to measure by two programs, and how far the two may differ."""

from __future__ import annotations

import numpy as np

EPS64, EPS32 = float(np.finfo(np.float64).eps), float(np.finfo(np.float32).eps)
M, N = 4, 500
CHOICES = (2, 4, 10)


def rounding(terms: int, size: float, eps: float = EPS64) -> float:
    """Bound how far two ways of summing `terms` numbers of absolute sum `size` can differ."""
    return (2 * terms + 10) * eps * size


def log_softmax(scores: np.ndarray) -> np.ndarray:
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def population(
    choices: int = 4, *, seed: int = 0, questions: int = N, sharpness: float = 1.7
) -> tuple[np.ndarray, np.ndarray]:
    """Return members' log-probabilities [M, N, K] and targets [N].

    The targets are drawn from the members' mean scores divided by `sharpness`: above 1 the members are more confident
    than right, as after fine-tuning (4: by far); below 1 less.
    """
    rng = np.random.default_rng([seed, choices])
    scores = 2 * rng.normal(size=(questions, choices)) + rng.normal(size=(M, questions, choices))
    right = np.exp(log_softmax(scores.mean(axis=0) / sharpness))
    return log_softmax(scores), np.array([rng.choice(choices, p=row / row.sum()) for row in right])


def of_unequal_size(*, seed: int = 0, questions: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log-probabilities [M, N, 5], targets [N] and the mask [N, 5] of questions of 2 to 5 choices."""
    rng = np.random.default_rng([seed, 5])
    sizes = rng.integers(2, 6, size=questions)
    mask = np.arange(5) < sizes[:, None]
    scores = 2 * rng.normal(size=(questions, 5)) + rng.normal(size=(M, questions, 5))
    return log_softmax(np.where(mask, scores, -np.inf)), rng.integers(0, sizes), mask


def counts(questions: int, *, rows: int = 5, seed: int = 0) -> np.ndarray:
    """Return weights [rows, N] as the bootstrap draws them: how often each question is taken, many of them never."""
    return np.random.default_rng([seed, 7]).multinomial(questions, np.full(questions, 1 / questions), size=rows) * 1.0
