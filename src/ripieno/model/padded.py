"""The padded engine: a batch of rows, each as long as the longest.

A token tree is one row: the question, then the branches side by side, each at the positions that follow the question.
The mask lets a branch see the question and itself. Questions are padded at their beginning and branches at their end,
so that the last columns, from the end of the question on, are all that become logits.

Models that take no such mask (recurrent ones, ALiBi) run each choice as one whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.model.batching import Row, Rows, cut, key_table, lay_out_sequences, lay_out_trees, token_keys
from ripieno.model.speed import Meter
from ripieno.model.trees import TokenSequence, TokenTree


@dataclass
class PaddedEngine:
    """Computes what a pass says of its rows (see `scoring.Engine`).

    Args:
        backbone: the base.
        stack: its adapters; None for the base alone.
        whole_sequences: run each choice with its question, for models that take no mask of trees.
    """

    backbone: Backbone
    stack: AdapterStack | None
    whole_sequences: bool = False
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.backbone)

    def parts(self, rows: Sequence[Sequence[Row]], budget: int) -> list[list[list[Row]]]:
        """Cut P members' rows, into parts whose pass stays within a budget of tokens, padding included."""
        ordered = [sorted(of_member, key=lambda row: row.length, reverse=True) for of_member in rows]
        return [[of_member[part] for of_member in ordered] for part in cut(ordered, budget, self.whole_sequences)]

    def likelihoods(
        self, members: Sequence[int], trees: Sequence[Sequence[TokenTree]], seeds: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the branches' summed log-likelihoods, in order, and the answers' logits with their log-sum-exps."""
        flat = [tree for of_member in trees for tree in of_member]
        of_rows = None if seeds is None else [seed for seed in seeds for _ in trees[0]]
        of_branches = self._of_sequences if self.whole_sequences else self._of_trees
        return of_branches(members, flat, of_rows)

    def text_likelihoods(
        self, members: Sequence[int], rows: Sequence[Sequence[TokenSequence]], seeds: Sequence[int] | None
    ) -> Tensor:
        """Return float32 [P, n], the summed log-probability of every token but the first."""
        flat = [row for of_member in rows for row in of_member]
        of_rows = None if seeds is None else [seed for seed in seeds for _ in rows[0]]
        batch = lay_out_sequences([(row, None) for row in flat], self.backbone.device)
        logits = self._forward(members, batch, flat, of_rows, attention_mask=batch.mask.long()).logits
        log_probs = _log_prob_of(logits[:, :-1], batch.tokens[:, 1:]) * batch.mask[:, 1:]
        return log_probs.sum(dim=1).view(len(rows), -1)

    def _of_trees(
        self, members: Sequence[int], trees: Sequence[TokenTree], seeds: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch = lay_out_trees(trees, self.backbone.device)
        T = batch.tokens.shape[1]
        masks = {kind: self._mask(batch, window) for kind, window in self.backbone.windows.items()}
        output = self._forward(
            members,
            batch,
            trees,
            seeds,
            # Models with several kinds of layers take a mask for each kind.
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=batch.positions,
            # Numbers of columns, not their count: a count makes a strided view, whose product is several times slower.
            logits_to_keep=torch.arange(T - batch.scored_columns, T, device=batch.tokens.device),
        )
        logits = output.logits[:, -batch.scored_columns :].float()
        normaliser = torch.logsumexp(logits, dim=-1)
        # Where each branch's tokens are predicted: the first at the question's end, the others one token before.
        row, column, token, branch = (
            torch.tensor(values, device=logits.device) for values in zip(*_predictions(trees), strict=True)
        )
        log_probs = logits[row, column, token] - normaliser[row, column]
        count = sum(len(tree.branches) for tree in trees)
        likelihoods = log_probs.new_zeros(count).index_add(0, branch, log_probs)
        return likelihoods, logits[:, 0], normaliser[:, 0]

    def _of_sequences(
        self, members: Sequence[int], trees: Sequence[TokenTree], seeds: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_of_trees`, each choice as a whole sequence: any causal model, at the cost of repeated tokens."""
        rows = [(r, k) for r, tree in enumerate(trees) for k in range(len(tree.branches))]
        per_member = len(trees) // max(len(members), 1)
        groups = [[(r, k) for r, k in rows if r // per_member == p] for p in range(len(trees) // per_member)]
        # Every member needs the same number of rows; the missing ones repeat one, and nobody reads them.
        most = max(map(len, groups))
        rows = [row for group in groups for row in group + group[-1:] * (most - len(group))]
        place = {row: n for n, row in enumerate(rows)}
        of_rows = [trees[r] for r, _ in rows]
        batch = lay_out_sequences([(trees[r], k) for r, k in rows], self.backbone.device)
        of_seeds = None if seeds is None else [seeds[r] for r, _ in rows]
        logits = self._forward(members, batch, of_rows, of_seeds, attention_mask=batch.mask.long()).logits
        log_probs = _log_prob_of(logits[:, :-1], batch.tokens[:, 1:]) * (batch.segments[:, 1:] > 0) * batch.mask[:, 1:]
        which = [place[r, k] for r, tree in enumerate(trees) for k in range(len(tree.branches))]
        first = [place[r, 0] for r in range(len(trees))]
        ends = [len(tree.question) - 1 for tree in trees]
        answers = logits[first, ends].float()
        return log_probs.sum(dim=1)[which], answers, torch.logsumexp(answers, dim=-1)

    def _mask(self, batch: Rows, window: int | None) -> Tensor:
        """Return the additive mask [rows, 1, T, T]: a token sees its question and its own branch, up to itself."""
        segments, positions = batch.segments, batch.positions
        own = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        back = positions[:, :, None] - positions[:, None, :]
        seen = own & (back >= 0) & batch.mask[:, None, :]
        if window is not None:
            seen &= back < window
        dtype = self.backbone.model.dtype
        # The least finite number, not -inf: rows of padding see nothing, and must not become NaN.
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    def _forward(
        self, members: Sequence[int], batch: Rows, rows: Sequence[Row], seeds: Sequence[int] | None, **inputs: Any
    ) -> Any:
        """Run the library's own model on a batch, with the members' updates in its targeted layers."""
        self.meter.note(int(batch.mask.sum()), len(rows) * batch.scored_columns)
        if not self.backbone.accepts("logits_to_keep"):
            inputs.pop("logits_to_keep", None)
        if self.stack is None:
            return self.backbone.model(input_ids=batch.tokens, use_cache=False, **inputs)
        keys = None
        if seeds is not None and self.stack.config.dropout:
            table = key_table(rows, seeds, batch.tokens.device)
            row = torch.arange(len(rows), device=batch.tokens.device)[:, None]
            keys = token_keys(table, row, batch.segments, batch.positions)
        with self.stack.running_pass(members, keys):
            return self.backbone.model(input_ids=batch.tokens, use_cache=False, **inputs)


def _predictions(trees: Sequence[TokenTree]) -> list[tuple[int, int, int, int]]:
    """Return, for each token of each branch: its row, the scored column that predicts it, itself, its branch."""
    found, branch = [], 0
    for r, tree in enumerate(trees):
        column = 1  # column 0 is the question's last token
        for tokens in tree.branches:
            found.append((r, 0, tokens[0], branch))
            found += [(r, column + n, token, branch) for n, token in enumerate(tokens[1:])]
            column += len(tokens) - 1
            branch += 1
    return found


def _log_prob_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return float32 log p(token), without a copy of the log-probabilities of the whole vocabulary."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0].float()
    return chosen - torch.logsumexp(logits.float(), dim=-1)
