"""Do the two parts of uncertainty mean what they claim? Expected entropy should follow noise, mutual information size.

Train again and again, once with more and more wrong labels and once with fewer and fewer questions. Both cost accuracy;
the first is uncertainty of the data, the second of the model. de Jong, Sburlea, Sabatelli and Valdenegro-Toro 2024
(arXiv:2408.12175).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ripieno.measures.uncertainty import Floats


@dataclass(frozen=True, slots=True)
class Series:
    """One ensemble a point, along which either the labels' noise or the number of questions changes.

    Args:
        accuracy: [points], with labels as noisy as those that the members were trained on.
        aleatoric: [points], mean expected entropy, in nats.
        epistemic: [points], mean mutual information, in nats.
    """

    accuracy: Floats
    aleatoric: Floats
    epistemic: Floats


@dataclass(frozen=True, slots=True)
class Disentanglement:
    """How the estimates go with what was changed: Pearson's correlations with the loss of accuracy.

    Args:
        aleatoric_noise, epistemic_size: of an estimate with its own cause; 1 is best.
        aleatoric_size, epistemic_noise: with the other one's cause; 0 is best.
    """

    aleatoric_noise: float
    epistemic_size: float
    aleatoric_size: float
    epistemic_noise: float

    @property
    def error(self) -> float:
        """The disentanglement error: 0 where each follows its own cause alone, 0.5 where both follow both.

        (|rho(u_a, U_a) - 1| + |rho(u_e, U_e) - 1| + |rho(u_a, U_e)| + |rho(u_e, U_a)|) / 4
        """
        own = abs(self.aleatoric_noise - 1) + abs(self.epistemic_size - 1)
        return (own + abs(self.aleatoric_size) + abs(self.epistemic_noise)) / 4


def disentanglement(noise: Series, size: Series) -> Disentanglement:
    """Return how far the two estimates of uncertainty are what they claim.

    Args:
        noise: where the share of wrong labels changes, and nothing else.
        size: where the number of training questions changes, and nothing else.

    Raises:
        ValueError: along a series something does not change at all, so that nothing can go with it.
    """
    return Disentanglement(
        aleatoric_noise=_with_loss(noise.aleatoric, noise),
        epistemic_size=_with_loss(size.epistemic, size),
        aleatoric_size=_with_loss(size.aleatoric, size),
        epistemic_noise=_with_loss(noise.epistemic, noise),
    )


def correlation_by_chance(points: int) -> float:
    """Return the mean size of Pearson's correlation of two series of so many points that have nothing in common.

        E|r| = Gamma((n - 1) / 2) / (sqrt(pi) Gamma(n / 2)),   normal, independent points

    0.64 for 3 points, 0.5 for 4: of so few an estimate that follows its own cause alone is no 0 with the other's.
    """
    if points < 3:
        raise ValueError(f"{points} points: two series of fewer than 3 always go together")
    return math.gamma((points - 1) / 2) / (math.sqrt(math.pi) * math.gamma(points / 2))


def _with_loss(estimate: Floats, series: Series) -> float:
    """Return Pearson's correlation of an estimate with the loss of accuracy."""
    if not (np.ptp(estimate) and np.ptp(series.accuracy)):
        raise ValueError(
            f"{len(estimate)} points on which accuracy or uncertainty is the same: there is no correlation"
        )
    return float(np.corrcoef(estimate, -series.accuracy)[0, 1])
