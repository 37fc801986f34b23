"""What an analysis says: rows of one long table, paired comparisons, courses over members and flows over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ripieno.measures.selective import COVERAGES

SCHEMA_VERSION = 1

# What a question's uncertainty is measured by; each ends the names of the measures that rank questions by it.
UNCERTAINTIES = ("entropy", "mi", "confidence")
# Trivial baselines of telling two data sets apart, which an uncertainty has to beat.
BASELINES = ("choices", "prompt_length", "perplexity", "mahalanobis")

SELECTIVE = (
    *("error_auroc", "error_aupr", "aurc", "eaurc", "augrc", "prr"),
    *(f"selective_accuracy_{coverage}" for coverage in COVERAGES),
)
DECISION = ("decision_threshold", "decision_coverage", "decision_cost", "decision_saving")
OOD = ("ood_auroc", "ood_aupr_in", "ood_aupr_out", "ood_fpr95")

# The order of a table's rows: first what needs the right choices, then what does not, then what ranks questions.
MEASURES = (
    *("temperature", "accuracy", "macro_f1", "nll", "brier"),
    *("brier_reliability", "brier_resolution", "brier_uncertainty"),
    *("ece", "ece_null_mean", "ece_null_q95", "adaptive_ece", "smooth_ece", "debiased_ce"),
    *("mean_confidence", "confidence_gap"),
    *("predictive_entropy", "normalised_entropy", "expected_entropy", "mutual_information"),
    *("pairwise_kl", "disagreement", "pairwise_agreement", "error_correlation", "margin", "outside_mass"),
    *("shortest_answered", "shortest_right"),
    *(f"{measure}_{uncertainty}" for uncertainty in UNCERTAINTIES for measure in (*SELECTIVE, *DECISION)),
    *(f"{measure}_{score}" for score in (*UNCERTAINTIES, *BASELINES) for measure in OOD),
)

# A row's keys in JSON, in the contract's order.
ROW_KEYS = (
    *("dataset", "split", "method", "epoch", "who", "pooling", "variant", "against"),
    *("measure", "value", "low", "high", "scope", "n", "reason"),
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a row says of its measure (see `Row`)."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table (the contract of `analyze --json` and report/metrics.json).

    Args:
        dataset, split, method, epoch: which predictions.
        who: "ensemble" (pooled), "members_mean" (the mean of the members' values), or a member's number.
        measure: its name in the contract; entropies, nll and divergences are in nats.
        value: None where the measure is not defined; `reason` then says why.
        n: the questions it was measured on (of both sets, where two are compared); for the measure "temperature",
            those it was fitted to.
        low, high: 95% interval, None where there is none (a measure whose bootstrap interval would be wrong, fewer
            than two questions).
        pooling: how the members' predictions were pooled: "prob", the mean of probabilities, or "logit", the mean of
            logits.
        variant: None for the predictions as they are; "temperature" after temperature scaling; "other" over five fixed
            letters and everything else; "vocabulary" over every token; "k_matched" with as many choices in both sets.
        against: the in-domain set that this one is told apart from, where the measure compares.
        scope: what the interval speaks of: "questions", other questions for these members, or "training", training
            again on other seeds (several replicates).
        reason: why value is None.
    """

    dataset: str
    split: str
    method: str
    epoch: int
    who: str | int
    measure: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    pooling: str = "prob"
    variant: str | None = None
    against: str | None = None
    scope: str = "questions"
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference `first - second` of a measure on the same questions; negative: `first` is lower.

    Args:
        dataset, split: which questions.
        measure: accuracy, nll, brier, or one that ranks questions (aurc_confidence, error_auroc_confidence ...).
        first, second: what is compared: a method's name ("ensemble"), "uniform guess", "base", "mean member", a run's
            name, or one of them with ", temperature-scaled".
        difference: the measure of first less that of second.
        low, high: its paired 95% interval.
        p: two-sided p-value of no difference.
        p_holm: p, corrected for all comparisons on this data set (Holm 1979).
        n: the questions that both answered.
    """

    dataset: str
    split: str
    measure: str
    first: str
    second: str
    difference: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class SizePoint:
    """A measure of an ensemble of m of the M members, as the mean over subsets of that size.

    Args:
        dataset, split, method, epoch: which predictions.
        measure: its name in the contract.
        members: m.
        subsets: how many different subsets were averaged: all of that size, or those of 20 chains that add one member
            at a time.
        value: the mean over all subsets of that size, or its estimate from the chains.
        low, high: 95% interval of the value, for other questions and for all subsets; None for measures that are no
            means.
        gain: value at m less value at m - 1; None at m = 1.
        gain_low, gain_high: its paired 95% interval.
        n: questions (of both sets, where two are told apart).
        against: the in-domain set that this one is told apart from, or None.
        variant: "k_matched" there, None elsewhere.
    """

    dataset: str
    split: str
    method: str
    epoch: int
    measure: str
    members: int
    subsets: int
    value: float
    low: float | None
    high: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    n: int
    against: str | None = None
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """How many questions went from one state to another between two epochs.

    Args:
        dataset, split, method: which predictions.
        epoch_from, epoch_to: 0 is the base.
        state_from, state_to: "right" or "wrong" and, between epochs of several members, "low" or "high" mutual
            information: "right, low"; from the base (epoch 0), which has one member, "right" or "wrong" alone.
        count: questions.
        n: questions of both epochs with a known answer.
        boundary: nats; "high" is above it. None from the base.
    """

    dataset: str
    split: str
    method: str
    epoch_from: int
    epoch_to: int
    state_from: str
    state_to: str
    count: int
    n: int
    boundary: float | None = None


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything that is measured of a run, or of another program's predictions."""

    rows: Sequence[Row] = ()
    comparisons: Sequence[Comparison] = ()
    sizes: Sequence[SizePoint] = ()
    flows: Sequence[Flow] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what `analyze --json` prints and report/metrics.json holds, keys in the contract's order."""
        return {
            "schema": SCHEMA_VERSION,
            "rows": [{key: getattr(row, key) for key in ROW_KEYS} for row in self.rows],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "ensemble_sizes": [asdict(point) for point in self.sizes],
            "flows": [asdict(flow) for flow in self.flows],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Analysis:
        """Read back what `to_json` gave."""
        return cls(
            rows=[Row(**row) for row in content["rows"]],
            comparisons=[Comparison(**comparison) for comparison in content["comparisons"]],
            sizes=[SizePoint(**point) for point in content["ensemble_sizes"]],
            flows=[Flow(**flow) for flow in content["flows"]],
        )
