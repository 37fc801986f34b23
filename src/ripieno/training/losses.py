"""Losses: what a step of training minimises, each a sum over a member's rows, which the loop divides by their count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ripieno.model.scoring import Engine, Normalisation, Scores, choice_log_probs
from ripieno.model.trees import TokenSequence, TokenTree


def choices(scores: Scores, trees: Sequence[Sequence[TokenTree]], normalisation: Normalisation) -> Tensor:
    """Return [P]: summed cross-entropy over each question's own K choices, by the rule used at evaluation."""
    log_probs = choice_log_probs(scores.choices, trees, normalisation)
    return -log_probs.gather(-1, _answers(trees, log_probs))[..., 0].sum(dim=1)


def answer_token(scores: Scores, trees: Sequence[Sequence[TokenTree]]) -> Tensor:
    """Return [P]: summed cross-entropy over the whole vocabulary at the answer's token (the paper's "single token")."""
    return -scores.choices.gather(-1, _answers(trees, scores.choices))[..., 0].sum(dim=1)


def next_token(
    engine: Engine, members: Sequence[int], rows: Sequence[Sequence[TokenSequence]], dropout_seeds: Sequence[int]
) -> Tensor:
    """Return [P]: summed cross-entropy of every token but the first (the paper's "next token")."""
    return -engine.text_likelihoods(members, rows, dropout_seeds).sum(dim=1)


def _answers(trees: Sequence[Sequence[TokenTree]], like: Tensor) -> Tensor:
    return torch.tensor([[tree.answer for tree in row] for row in trees], device=like.device)[..., None]
