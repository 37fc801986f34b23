"""Measures of sampled predictions, on arrays `[member, question, choice]`: numpy alone, no torch.

from ripieno import measures
u = measures.decompose(predictions.probs)      # total, aleatoric, epistemic: [N] each, in nats
rows = measures.analyze([predictions])         # every measure, as one long table
"""

from ripieno.measures.accuracy import brier, correct, nll
from ripieno.measures.analysis import Comparison, Row, analyze, compare_with_references, to_json
from ripieno.measures.bootstrap import interval, intervals, paired_interval
from ripieno.measures.calibration import Reliability, apply_temperature, ece, ece_null, fit_temperature, reliability
from ripieno.measures.uncertainty import (
    Decomposition,
    confidence,
    decompose,
    disagreement,
    entropy,
    margin,
    mutual_information,
    normalised_entropy,
    pairwise_kl,
    pool,
    pool_log,
)

__all__ = [
    "Comparison",
    "Decomposition",
    "Reliability",
    "Row",
    "analyze",
    "apply_temperature",
    "brier",
    "compare_with_references",
    "confidence",
    "correct",
    "decompose",
    "disagreement",
    "ece",
    "ece_null",
    "entropy",
    "fit_temperature",
    "interval",
    "intervals",
    "margin",
    "mutual_information",
    "nll",
    "normalised_entropy",
    "paired_interval",
    "pairwise_kl",
    "pool",
    "pool_log",
    "reliability",
    "to_json",
]
