"""How often an interval for the L2 calibration error holds the population's: why one is given, and when it is not.

    python benchmarks/calibration_interval.py [--quick]

Each row: a population (how confident, and how often right at that confidence), its true error over 15 bins of equal
mass, and of three nominal 95% intervals the share that holds it: `percentile`, the bootstrap of the plug-in error;
`normal`, the debiased estimate's limit where the model is miscalibrated (Sun et al. 2024, arXiv:2408.08998), cut off at
0; `inverted`, which is `measures.debiased_ce_interval`. `given` is how often the last is not None; its
coverage is of those. `width` is its mean width. About 8 minutes on one core, one with --quick.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np

from ripieno.measures.bootstrap import generator
from ripieno.measures.calibration import BINS
from ripieno.measures.debiased import debiased_ce_interval
from ripieno.measures.uncertainty import Floats

SIZES = (300, 1000, 5000)
Z = 1.959964  # the normal's 97.5% quantile


def middling(rng: np.random.Generator, n: int) -> Floats:
    return 0.2 + 0.8 * rng.beta(4, 2, size=n)


def sure(rng: np.random.Generator, n: int) -> Floats:
    return 0.5 + 0.5 * rng.beta(8, 1.2, size=n)


def very_sure(rng: np.random.Generator, n: int) -> Floats:
    return 0.9 + 0.1 * rng.beta(3, 1, size=n)


def spread(rng: np.random.Generator, n: int) -> Floats:
    return 0.25 + 0.75 * rng.random(n)


def upper(rng: np.random.Generator, n: int) -> Floats:
    return 0.7 + 0.3 * rng.random(n)


def scaled(factor: float) -> Callable[[Floats], Floats]:
    """Return the accuracy at each confidence whose log-odds are the confidence's times `factor`."""
    return lambda c: c**factor / (c**factor + (1.0 - c) ** factor)


POPULATIONS: dict[str, tuple[Callable[[np.random.Generator, int], Floats], Callable[[Floats], Floats]]] = {
    "calibrated": (middling, lambda c: c),
    "mildly over-confident": (middling, scaled(0.8)),
    "strongly over-confident": (middling, scaled(0.4)),
    "mildly under-confident": (middling, scaled(1.2)),
    "under-confident": (middling, scaled(1.6)),
    "over by .05 everywhere": (middling, lambda c: c - 0.05),
    "over and under in waves": (middling, lambda c: np.clip(c + 0.1 * np.sin(12 * c), 0, 1)),
    "over in one bin": (middling, lambda c: np.where(c > 0.92, c - 0.3, c)),
    "spread, half as right": (spread, lambda c: 0.25 + 0.5 * (c - 0.25)),
    "sure, calibrated": (sure, lambda c: c),
    "sure, over-confident": (sure, scaled(0.6)),
    "sure, right at 30%": (sure, lambda c: np.full_like(c, 0.3)),
    "very sure, calibrated": (very_sure, lambda c: c),
    "very sure, over by .05": (very_sure, lambda c: c - 0.05),
    "nearly always right": (upper, lambda c: 1 - 0.3 * (1 - c)),
}


def true_error(population: str) -> float:
    """Return the error over bins of equal mass of 1.5 million draws: within 1e-4 of the population's."""
    confident, right_at = POPULATIONS[population]
    c = np.sort(confident(generator(0, population), 100_000 * BINS))
    return math.sqrt(((right_at(c) - c).reshape(BINS, -1).mean(axis=1) ** 2).mean())


def percentile(confidence: Floats, right: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Return the bootstrap's interval of the error that is not debiased: 200 resamples, in the sample's bins."""
    N, resamples = len(confidence), 200
    bin_of = np.empty(N, dtype=np.int64)
    bin_of[np.argsort(confidence)] = np.arange(N) * BINS // N
    drawn = rng.integers(N, size=(resamples, N))
    cell = (bin_of[drawn] + BINS * np.arange(resamples)[:, None]).ravel()
    gaps = np.bincount(cell, weights=(right - confidence)[drawn].ravel(), minlength=BINS * resamples)
    count = np.maximum(np.bincount(cell, minlength=BINS * resamples), 1)
    errors = np.sqrt((gaps**2 / count).reshape(resamples, BINS).sum(axis=1) / N)
    low, high = np.quantile(errors, [0.025, 0.975])
    return float(low), float(high)


def normal(confidence: Floats, right: Floats) -> tuple[float, float]:
    """Return the interval of the squared error from its normal limit away from 0, and its root."""
    N = len(confidence)
    parts = np.array_split((right - confidence)[np.argsort(confidence)], BINS)
    share = np.array([len(u) / N for u in parts])
    gap = np.array([u.mean() for u in parts])
    variance = np.array([u.var(ddof=1) for u in parts])
    estimate = (share * gap**2).sum() - variance.sum() / N
    # A question's influence is 2 d u - d^2: its variance within bins, and that of d^2 between them.
    influence = (share * 4 * gap**2 * variance).sum() + (share * gap**4).sum() - (share * gap**2).sum() ** 2
    half = Z * math.sqrt(max(influence, 0.0) / N)
    return math.sqrt(max(estimate - half, 0.0)), math.sqrt(max(estimate + half, 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description="Coverage of intervals for the L2 calibration error")
    parser.add_argument("--quick", action="store_true", help="fewer trials: within 3 points instead of 1")
    trials = 250 if parser.parse_args().quick else 2000
    print(f"{trials} trials; a share of 95% is measured within {196 * math.sqrt(0.95 * 0.05 / trials):.1f} points")
    print(
        f"{'population':24} {'error':>6} {'n':>5} {'percentile':>10} {'normal':>7} {'inverted':>8} {'given':>6} width"
    )
    for population, (confident, right_at) in POPULATIONS.items():
        error = true_error(population)
        for n in SIZES:
            rng = generator(n, population)
            held, given, widths = np.zeros(3), 0, []
            for _ in range(trials):
                c = confident(rng, n)
                right = (rng.random(n) < right_at(c)).astype(np.float64)
                inverted = debiased_ce_interval(c, right)
                ours = (1.0, 0.0) if inverted is None else inverted
                if inverted is not None:
                    given += 1
                    widths.append(ours[1] - ours[0])
                held += [low <= error <= high for low, high in (percentile(c, right, rng), normal(c, right), ours)]
            bootstrap, limit, ours_held = held / [trials, trials, max(given, 1)]
            inverted_share = f"{ours_held:.1%}" if given else "none"
            width = f"{np.mean(widths):.3f}" if given else "-"
            print(
                f"{population:24} {error:6.3f} {n:5} {bootstrap:10.1%} {limit:7.1%} {inverted_share:>8} "
                f"{given / trials:6.1%} {width}",
                flush=True,
            )


if __name__ == "__main__":
    main()
