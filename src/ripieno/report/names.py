"""What the measures are called on a page, what they mean in a sentence, and which way is better."""

from __future__ import annotations

from ripieno.report.results import Answerer

ANSWERER_NAMES: dict[Answerer, str] = {
    "base": "Base",
    "base_temperature": "Base, temperature-scaled",
    "members_mean": "Mean member",
    "ensemble": "Ensemble",
    "ensemble_temperature": "Ensemble, temperature-scaled",
    "ensemble_logit": "Ensemble, mean of logits",
    "ensemble_other": "Ensemble, letters A to E and “other”",
    "ensemble_vocabulary": "Ensemble, whole vocabulary",
}

# Label and meaning of each measure of one set.
MEASURES: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "The share of questions whose likeliest choice is right. Higher is better."),
    "macro_f1": ("Macro F1", "F1 of each label, averaged over labels; only where the choices are fixed labels."),
    "nll": (
        "NLL",
        "Negative log-likelihood: −ln of the probability given to the right choice. Lower is better; a uniform guess "
        "among K choices has ln K (5 choices: 1.61).",
    ),
    "brier": ("Brier", "Squared distance between the probabilities and the truth, 0 to 2. Lower is better."),
    "brier_reliability": ("Brier: reliability", "The part of it that is wrong confidence. Lower is better."),
    "brier_resolution": ("Brier: resolution", "How much the confidences tell questions apart. Higher is better."),
    "brier_uncertainty": ("Brier: uncertainty", "What the questions themselves leave open, whoever answers."),
    "ece": (
        "ECE",
        "Expected calibration error: how far confidence and share right lie apart, on average over bins of "
        "confidence. It is above 0 even for a perfectly calibrated model, which stays below “chance” in 95 of 100 "
        "samples.",
    ),
    "ece_null_mean": ("ECE by chance, mean", "The ECE of a perfectly calibrated model with these confidences."),
    "ece_null_q95": ("ECE by chance, 95%", "An ECE below this is no evidence of a wrong confidence."),
    "adaptive_ece": ("Adaptive ECE", "The same over bins that hold as many questions each."),
    "smooth_ece": ("Smooth ECE", "The same without bins, by a kernel of a width chosen by the data."),
    "debiased_ce": ("Debiased calibration error", "Root mean squared, with what chance adds taken out."),
    "mean_confidence": ("Confidence", "The mean probability of its own answer."),
    "confidence_gap": ("Confidence gap", "Confidence less accuracy: above 0, it is too sure."),
    "predictive_entropy": (
        "Entropy",
        "How spread out the ensemble's probabilities are, in nats: 0 is certain, ln K is even odds.",
    ),
    "normalised_entropy": ("Entropy / ln K", "The same as a share of the most there can be."),
    "expected_entropy": (
        "Expected entropy",
        "The mean of the members' own entropies (aleatoric: each member is unsure).",
    ),
    "mutual_information": (
        "Mutual information",
        "Entropy less expected entropy: how much the members disagree (epistemic). It grows with their number.",
    ),
    "pairwise_kl": ("Pairwise KL", "How far two members' probabilities lie apart, in nats."),
    "disagreement": ("Disagreement", "The share of members that do not give the most frequent answer."),
    "pairwise_agreement": ("Agreement of two members", "How often two members give the same answer."),
    "error_correlation": ("Correlation of errors", "1: the members err together, so averaging mends nothing."),
    "margin": ("Margin", "The likeliest choice's probability less the next one's."),
    "outside_mass": ("Mass outside the choices", "The probability of any token that is none of the letters."),
    "shortest_answered": ("Answers the shortest choice", "The share of questions answered by their shortest choice."),
    "shortest_right": ("Shortest choice right", "The share of questions whose shortest choice is right."),
}
UNCERTAINTIES = {"confidence": "Confidence", "entropy": "Entropy", "mi": "Mutual information"}
BASELINES = {
    "choices": "Number of choices",
    "prompt_length": "Prompt length",
    "perplexity": "Base's perplexity of the prompt",
    "mahalanobis": "Distance of the base's hidden state",
}
SELECTIVE_NAMES = {
    "error_auroc": "Error AUROC",
    "error_aupr": "Error AUPR",
    "aurc": "AURC",
    "eaurc": "Excess AURC",
    "augrc": "AUGRC",
    "prr": "PRR",
    "selective_accuracy_50": "Right at 50%",
    "selective_accuracy_80": "Right at 80%",
    "selective_accuracy_90": "Right at 90%",
    "selective_accuracy_95": "Right at 95%",
}
OOD_NAMES = {"ood_auroc": "AUROC", "ood_aupr_in": "AUPR, in", "ood_aupr_out": "AUPR, out", "ood_fpr95": "FPR at 95%"}
HIGHER_IS_BETTER = (
    "accuracy",
    "macro_f1",
    "brier_resolution",
    "error_auroc",
    "error_aupr",
    "prr",
    "selective_accuracy",
)


def label(measure: str) -> str:
    """Return what a measure is called, "Error AUROC by entropy" for one of an uncertainty."""
    if measure in MEASURES:
        return MEASURES[measure][0]
    for names in (SELECTIVE_NAMES, OOD_NAMES):
        for name, text in names.items():
            if measure.startswith(f"{name}_"):
                score = measure.removeprefix(f"{name}_")
                by = (UNCERTAINTIES | BASELINES).get(score, score)
                return f"{text} by {by[0].lower()}{by[1:]}"
    return measure


def better(measure: str) -> int:
    """Return 1 where a higher value is better, -1 where a lower one is."""
    return 1 if measure.startswith(HIGHER_IS_BETTER) else -1
