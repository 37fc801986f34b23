"""Repeated experiments: what a measure would be, were the members trained again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ripieno.measures.table import BASELINES, OOD, Row
from ripieno.predictions import BASE

# What trivial baselines tell apart, without asking a member.
TRIVIAL = {f"{measure}_{baseline}" for measure in OOD for baseline in BASELINES}

# 97.5% quantiles of Student's t with 1 to 30 degrees of freedom (Student 1908).
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL_QUANTILE = 1.959964


def over_replicates(tables: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the rows of one experiment as they are, or of several repeated ones as their mean.

        mean +- t_{R-1, .975} s / sqrt(R)

    Student 1908. The questions are the same in each, so the interval speaks of training again on other seeds, to these
    questions. It takes the R values for normal, so with two or three it may reach beyond what the measure can be.

    Args:
        tables: R tables of the same rows, one a replicate.

    Returns:
        For R = 1 its rows. Otherwise a row for each that every replicate has, `scope` "training"; null where any of
        them is, with its reason. Rows of single members are left out: member 3 of one run is not that of another. What
        was not trained (the base, the trivial baselines of telling sets apart) is the same in each, so that of the
        first stays, with its interval for other questions.
    """
    if len(tables) == 1:
        return list(tables[0])
    indexed = [{_key(row): row for row in table if not isinstance(row.who, int)} for table in tables]
    R = len(tables)
    quantile = t_quantile(R - 1)
    merged = []
    for key, first in indexed[0].items():
        rows = [of[key] for of in indexed if key in of]
        if len(rows) < R:
            continue
        if first.method == BASE or first.measure in TRIVIAL:
            merged.append(first)
            continue
        unknown = next((row for row in rows if row.value is None), None)
        if unknown is not None:
            merged.append(replace(unknown, scope="training"))
            continue
        values = np.array([row.value for row in rows])
        half = quantile * float(values.std(ddof=1)) / math.sqrt(R)
        mean = float(values.mean())
        merged.append(replace(first, value=mean, low=mean - half, high=mean + half, scope="training"))
    return merged


def t_quantile(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t, to 5e-4.

        z + (z^3 + z) / (4 nu) + (5 z^5 + 16 z^3 + 3 z) / (96 nu^2),   z the normal one, beyond 30 degrees of freedom

    Abramowitz and Stegun 1964, 26.7.5, whose next term is 9e-5 at 31 degrees of freedom.
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NORMAL_QUANTILE
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def t_p_value(t: float, freedom: int) -> float:
    """Return the two-sided p-value of Student's t, P(|T| >= |t|).

        1 - 2/pi (a + sin a (cos a + 2/3 cos^3 a + ...)) for odd, 1 - sin a (1 + 1/2 cos^2 a + ...) for even nu,
        a = arctan(|t| / sqrt(nu)), the last term in cos^(nu - 2) a

    Abramowitz and Stegun 1964, 26.7.3 and 26.7.4. Exact to 1e-15 of 1, so a p-value below that is 0.
    """
    angle = math.atan(abs(t) / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    within = 2.0 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return max(0.0, 1.0 - within)


def _key(row: Row) -> tuple[object, ...]:
    return row.who, row.measure, row.pooling, row.variant, row.against
