"""How good predictions are: one loss a question, so that means, bootstrap and paired differences all start from these.

Every loss takes `[..., question, choice]` (one prediction, or `[member, question, choice]`) and labelled questions
only: select those first (`predictions.select(predictions.labelled)`), then take the mean over the question axis.
Where the choices are the same labels in every question, `recall` and `macro_f1` say how each label fares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripieno.measures.uncertainty import Floats


def correct(probs: Floats, targets: NDArray[np.int64]) -> Floats:
    """Return whether the likeliest choice is the right one; the mean is the accuracy.

        1[argmax_k p_k = y]

    Among equal highest probabilities the choice of the lowest index is the answer.

    Args:
        probs: [..., N, K], probabilities or log-probabilities.
        targets: int [N], the right choice.

    Returns:
        [..., N], 0.0 or 1.0.

    Raises:
        ValueError: a target is unknown (negative) or outside the K choices, or there is not one a question.
    """
    _check(probs, targets)
    return (probs.argmax(axis=-1) == targets).astype(np.float64)


def nll(log_probs: Floats, targets: NDArray[np.int64]) -> Floats:
    """Return the negative log-likelihood of the right choice (log loss).

        -ln p_y

    Good 1952. A uniform guess among K choices has ln K.

    Args:
        log_probs: [..., N, K]; `pool_log(log_probs)` for an ensemble.
        targets: int [N], the right choice.

    Returns:
        [..., N], nats, >= 0; +inf where the right choice has probability 0.

    Raises:
        ValueError: a target is unknown (negative) or outside the K choices, or there is not one a question.
    """
    _check(log_probs, targets)
    # From 0.0, so that a certain right answer costs 0.0 and not -0.0.
    return 0.0 - log_probs[..., np.arange(len(targets)), targets]


def brier(probs: Floats, targets: NDArray[np.int64]) -> Floats:
    """Return the Brier score, summed over the choices.

        sum_k (p_k - 1[k = y])^2

    Brier 1950 (this original form; for two choices it is twice the one-sided score that many libraries mean).

    Args:
        probs: [..., N, K], 0 where a choice is absent.
        targets: int [N], the right choice.

    Returns:
        [..., N], between 0 and 2; a uniform guess among K choices has 1 - 1/K.

    Raises:
        ValueError: a target is unknown (negative) or outside the K choices, or there is not one a question.
    """
    _check(probs, targets)
    right = np.arange(probs.shape[-1]) == targets[:, None]
    return ((probs - right) ** 2).sum(axis=-1)


@dataclass(frozen=True, slots=True)
class Recall:
    """How many questions of each label are found.

    Args:
        count: int [classes], questions whose right label this is.
        value: [classes], the share of them that got it; 0 where there is none (count 0: not defined, show a gap).
    """

    count: NDArray[np.int64]
    value: Floats


def recall(predicted: NDArray[np.int64], targets: NDArray[np.int64], classes: int) -> Recall:
    """Return the recall of each label: of the questions it is right for, the share that got it.

        #(predicted = c and y = c) / #(y = c)

    For labels that mean the same in every question (yes / no, topics), not for letters of listed choices. It misleads
    alone: a model that always answers c has recall 1 there.

    Args:
        predicted: int [N], the answers.
        targets: int [N], the right labels.
        classes: how many labels there are, numbered from 0.

    Returns:
        Counts and recalls.

    Raises:
        ValueError: the two differ in shape, or a label is unknown (negative) or not below `classes`.
    """
    hit, _, count = _label_counts(predicted, targets, classes)
    return Recall(count=count, value=hit / np.maximum(count, 1))


def macro_f1(predicted: NDArray[np.int64], targets: NDArray[np.int64], classes: int) -> float:
    """Return the mean over labels of F1, the harmonic mean of precision and recall.

        F1_c = 2 #(predicted = c and y = c) / (#(predicted = c) + #(y = c)),   the mean over c with a denominator > 0

    van Rijsbergen 1979; the mean of the labels' F1, not the F1 of mean precision and recall (Opitz and Burst 2019,
    arXiv:1911.03347, tell the two apart). Labels that are neither answered nor right anywhere do not enter, as in
    scikit-learn when it is given no list of labels; one that is only one of both has 0. It misleads where a label is
    rare: three questions can move it as much as all the others.

    Args:
        predicted: int [N], the answers.
        targets: int [N], the right labels.
        classes: how many labels there are, numbered from 0.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: there is no question, the two differ in shape, or a label is unknown (negative) or not below
            `classes`.
    """
    hit, answered, count = _label_counts(predicted, targets, classes)
    if len(targets) == 0:
        raise ValueError("there is no question to measure")
    occurs = answered + count > 0
    return float((2.0 * hit[occurs] / (answered + count)[occurs]).mean())


def _label_counts(
    predicted: NDArray[np.int64], targets: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return int [classes] each: how often a label is answered and right, answered, and right."""
    if predicted.shape != targets.shape:
        raise ValueError(f"not the same questions: shapes {predicted.shape} and {targets.shape}")
    for what, labels in (("answer", predicted), ("target", targets)):
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            n = int(outside.argmax())
            raise ValueError(f"{what} {labels[n]} of question {n} is none of the {classes} labels")
    hit = np.bincount(targets[predicted == targets], minlength=classes)
    return hit, np.bincount(predicted, minlength=classes), np.bincount(targets, minlength=classes)


def _check(probs: Floats, targets: NDArray[np.int64]) -> None:
    if targets.shape != probs.shape[-2:-1]:
        raise ValueError(f"not the same questions: shapes {probs.shape} and {targets.shape}")
    outside = (targets < 0) | (targets >= probs.shape[-1])
    if outside.any():
        n = int(outside.argmax())
        raise ValueError(
            f"target {targets[n]} of question {n} is none of its choices; select the labelled questions first"
        )
