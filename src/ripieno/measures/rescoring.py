"""A choice's score, normalised otherwise than when it was asked: nothing is asked again."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ripieno.measures.uncertainty import log_softmax
from ripieno.predictions import Predictions

Normalisation = Literal["sum", "token", "byte", "unconditional"]


def rescore(p: Predictions, normalisation: Normalisation) -> Predictions:
    """Return the predictions by another rule of scoring, from the stored log-likelihoods of the choices' tokens.

        sum: s_k     token: s_k / tokens_k     byte: s_k / bytes_k     unconditional: s_k - u_k;   softmax over k

    "sum" favours short choices, the means long ones of common words; "unconditional" takes off the choice's own
    log-likelihood u_k after the bare cue for an answer, so that only what the question adds counts (Holtzman et al.
    2021, arXiv:2104.08315, domain-conditional PMI). Members were trained under one rule: another one is a check on how
    much hangs on it, not a better prediction.

    Args:
        p: predictions of a text template.
        normalisation: the rule.

    Returns:
        The same questions and members, with `log_probs` by the rule, which the metadata names.

    Raises:
        ValueError: the predictions do not hold what the rule needs (letters have no lengths).
    """
    if p.scores is None:
        raise ValueError(f"{p.name}: no choice_scores are stored to normalise in another way")
    if p.tokens is None or p.bytes is None:
        raise ValueError(f"{p.name}: its choices are letters, which have no length; this needs a text template")
    scores = p.scores
    if normalisation == "token":
        scores = scores / np.maximum(p.tokens, 1)
    elif normalisation == "byte":
        scores = scores / np.maximum(p.bytes, 1)
    elif normalisation == "unconditional":
        if p.unconditional is None:
            raise ValueError(
                f"{p.name}: no unconditional scores are stored; `ripieno evaluate RUN --unconditional` stores them"
            )
        scores = scores - p.unconditional
    rule = {**p.metadata.get("scoring", {}), "rule": "text", "normalisation": normalisation}
    return replace(
        p, log_probs=log_softmax(np.where(p.mask, scores, -np.inf)), metadata={**p.metadata, "scoring": rule}
    )
