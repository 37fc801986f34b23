"""How good predictions are: one loss a question, so that means, bootstrap and paired differences all start from these.

Every function takes `[..., question, choice]` (one prediction, or `[member, question, choice]`) and labelled questions
only: select those first (`predictions.select(predictions.labelled)`), then take the mean over the question axis.
"""

from __future__ import annotations

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
        ValueError: a target is unknown (negative) or outside the K choices.
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
        ValueError: a target is unknown (negative) or outside the K choices.
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
        ValueError: a target is unknown (negative) or outside the K choices.
    """
    _check(probs, targets)
    right = np.arange(probs.shape[-1]) == targets[:, None]
    return ((probs - right) ** 2).sum(axis=-1)


def _check(probs: Floats, targets: NDArray[np.int64]) -> None:
    outside = (targets < 0) | (targets >= probs.shape[-1])
    if outside.any():
        n = int(outside.argmax())
        raise ValueError(
            f"target {targets[n]} of question {n} is none of its choices; select the labelled questions first"
        )
