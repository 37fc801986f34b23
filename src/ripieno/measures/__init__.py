"""Measures of sampled predictions, on arrays `[member, question, choice]`: numpy alone, no torch.

from ripieno import measures
u = measures.decompose(predictions.probs)      # total, aleatoric, epistemic: [N] each, in nats
rows = measures.analyze([predictions])         # every measure, as one long table
"""

from ripieno.measures.about import About
from ripieno.measures.accuracy import brier, correct, macro_f1, nll, recall
from ripieno.measures.acquisition import Batch, diverse_batch, highest
from ripieno.measures.analysis import analyze
from ripieno.measures.bootstrap import holm, interval, intervals, paired_interval
from ripieno.measures.brier_parts import BrierParts, brier_decomposition
from ripieno.measures.calibration import Reliability, adaptive_ece, ece, ece_null, reliability, smooth_ece
from ripieno.measures.comparisons import Answerer, compare, compare_rows, compare_runs, compare_with_references
from ripieno.measures.debiased import debiased_ce, debiased_ce_interval
from ripieno.measures.dynamics import flows
from ripieno.measures.ensemble_size import by_members, enough_members
from ripieno.measures.estimates import Costs
from ripieno.measures.evidence import Evidence
from ripieno.measures.matching import match_choices
from ripieno.measures.ood import Detector, tell_apart
from ripieno.measures.ranking import aupr, auroc, fpr_at_tpr, ood_measures
from ripieno.measures.rescoring import rescore
from ripieno.measures.rotations import (
    RotationParts,
    RotationSummary,
    decompose_rotations,
    summarise_rotations,
)
from ripieno.measures.selective import (
    augrc,
    aurc,
    cheapest_threshold,
    cross_fitted_costs,
    excess_aurc,
    prediction_rejection_ratio,
    risk_coverage,
    selective_accuracy,
    selective_measures,
)
from ripieno.measures.table import Analysis, Comparison, Flow, Row, SizePoint
from ripieno.measures.temperature import apply_temperature, fit_temperature
from ripieno.measures.uncertainty import (
    Decomposition,
    confidence,
    decompose,
    disagreement,
    entropy,
    margin,
    mutual_information,
    normalised_entropy,
    over_vocabulary,
    pairwise_agreement,
    pairwise_kl,
    pool,
    pool_log,
    pool_logits,
    with_other,
)

__all__ = [
    "About",
    "Analysis",
    "Answerer",
    "Batch",
    "BrierParts",
    "Comparison",
    "Costs",
    "Decomposition",
    "Detector",
    "Evidence",
    "Flow",
    "Reliability",
    "RotationParts",
    "RotationSummary",
    "Row",
    "SizePoint",
    "adaptive_ece",
    "analyze",
    "apply_temperature",
    "augrc",
    "aupr",
    "aurc",
    "auroc",
    "brier",
    "brier_decomposition",
    "by_members",
    "cheapest_threshold",
    "compare",
    "compare_rows",
    "compare_runs",
    "compare_with_references",
    "confidence",
    "correct",
    "cross_fitted_costs",
    "debiased_ce",
    "debiased_ce_interval",
    "decompose",
    "decompose_rotations",
    "disagreement",
    "diverse_batch",
    "ece",
    "ece_null",
    "enough_members",
    "entropy",
    "excess_aurc",
    "fit_temperature",
    "flows",
    "fpr_at_tpr",
    "highest",
    "holm",
    "interval",
    "intervals",
    "macro_f1",
    "margin",
    "match_choices",
    "mutual_information",
    "nll",
    "normalised_entropy",
    "ood_measures",
    "over_vocabulary",
    "paired_interval",
    "pairwise_agreement",
    "pairwise_kl",
    "pool",
    "pool_log",
    "pool_logits",
    "prediction_rejection_ratio",
    "recall",
    "reliability",
    "rescore",
    "risk_coverage",
    "selective_accuracy",
    "selective_measures",
    "smooth_ece",
    "summarise_rotations",
    "tell_apart",
    "with_other",
]
