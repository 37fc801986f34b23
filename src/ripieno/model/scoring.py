"""The padded engine: members x questions to the log-likelihoods of their choices.

A batch runs in two forward passes of the library's own model: the questions, padded at their beginning so that all
end at the last column, whose logits predict every branch's first token; then the rest of the branches, padded at their
end, over the question's cached keys and values. No column of padding lies between a question and its branch, so
positions, causal masks and sliding windows are those of the plain sequence. Only answer rows become logits.

Models whose cache does not allow that (`Engine.probe`) take each choice as one whole sequence instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.model.batching import cut, pad
from ripieno.model.trees import TokenSequence, TokenTree

Normalisation = Literal["sum", "token", "byte"]


@dataclass(frozen=True)
class Scores:
    """What a pass says of P x n questions.

    Args:
        choices: float32 [P, n, K], summed log-likelihoods of the branches; -inf where a choice is absent.
        answer: float32 [P, n, V], log-probabilities of the whole vocabulary at the first token of the answer.
    """

    choices: Tensor
    answer: Tensor


class Engine:
    """Scores token trees with one base and its stacked adapters.

    Args:
        backbone: the base.
        stack: its adapters; None scores with the base alone.
        batch_tokens: most tokens, padding included, in a forward pass.
    """

    def __init__(self, backbone: Backbone, stack: AdapterStack | None, batch_tokens: int):
        self.backbone = backbone
        self.stack = stack
        self.batch_tokens = batch_tokens
        self.whole_sequences = False

    def probe(self, trees: Sequence[TokenTree] = ()) -> None:
        """Compare cached branches with whole sequences on a few trees, and keep to the latter where they differ."""
        # Recurrent states cannot be padded at their beginning, nor branched like keys and values.
        recurrent = getattr(self.backbone.model, "_is_stateful", False)
        self.whole_sequences = recurrent or not self.backbone.accepts("past_key_values")
        if self.whole_sequences:
            return
        trees = list(trees) or _probing_trees(self.backbone.model.config.vocab_size)
        with torch.no_grad():
            cached = self._cached_branches((), trees, None)
            whole = self._whole_branches((), trees, None)
        # Two orders of the same float32 (bfloat16) sums: thousands of roundings, far below what a wrong mask changes.
        scale = 1e-4 if self.backbone.model.dtype == torch.float32 else 5e-2
        difference = (cached[0] - whole[0]).abs().max()
        self.whole_sequences = not bool(difference <= scale * (1 + whole[0].abs().max()))

    def score(
        self, members: Sequence[int], trees: Sequence[Sequence[TokenTree]], dropout_seeds: Sequence[int] | None = None
    ) -> Scores:
        """Score each running member's own questions in one pass.

        Args:
            members: P positions in the stack, or () for the base alone.
            trees: P lists (one for the base) of n trees each.
            dropout_seeds: P seeds of this step's dropout masks; None for none.
        """
        rows = [tree for of_member in trees for tree in of_member]
        seeds = None if dropout_seeds is None else [seed for seed in dropout_seeds for _ in trees[0]]
        branches = self._whole_branches if self.whole_sequences else self._cached_branches
        likelihoods, answer = branches(members, rows, seeds)
        K = max(len(tree.branches) for tree in rows)
        row = torch.tensor([r for r, tree in enumerate(rows) for _ in tree.branches], device=likelihoods.device)
        choice = torch.tensor([k for tree in rows for k in range(len(tree.branches))], device=likelihoods.device)
        choices = likelihoods.new_full((len(rows), K), -torch.inf).index_put((row, choice), likelihoods)
        shape = (len(trees), len(trees[0]))
        return Scores(choices.view(*shape, K), answer.view(*shape, -1))

    def sequence_log_probs(
        self,
        members: Sequence[int],
        rows: Sequence[Sequence[TokenSequence]],
        dropout_seeds: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probability of every token but the first of each member's rows.

        Returns:
            log_probs: float32 [P, n, T - 1], 0 where padded.
            mask: bool [P, n, T - 1].
        """
        flat = [row for of_member in rows for row in of_member]
        seeds = None if dropout_seeds is None else [seed for seed in dropout_seeds for _ in rows[0]]
        batch = pad([row.tokens for row in flat], self.backbone.device)
        keys = self._token_keys(seeds, flat, [0] * len(flat), [0] * len(flat), batch.tokens.shape[1])
        logits = self._forward(members, keys, input_ids=batch.tokens, attention_mask=batch.mask.long()).logits
        log_probs = _log_prob_of(logits[:, :-1], batch.tokens[:, 1:]) * batch.mask[:, 1:]
        shape = (len(rows), len(rows[0]), -1)
        return log_probs.view(shape), batch.mask[:, 1:].reshape(shape)

    def _cached_branches(
        self, members: Sequence[int], trees: list[TokenTree], seeds: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the branches' summed log-likelihoods, in order, and the log-probabilities at each answer."""
        device = self.backbone.device
        questions = pad([tree.question for tree in trees], device, left=True)
        Q = questions.tokens.shape[1]
        fed = [(r, k, branch) for r, tree in enumerate(trees) for k, branch in enumerate(tree.branches)]
        longer = [(r, k, branch) for r, k, branch in fed if len(branch) > 1]
        cache = DynamicCache() if longer else None
        starts = [len(tree.question) - Q for tree in trees]  # the position of column 0; negative under padding
        keys = self._token_keys(seeds, trees, [0] * len(trees), starts, Q)
        output = self._forward(
            members,
            keys,
            input_ids=questions.tokens,
            attention_mask=questions.mask.long(),
            position_ids=(questions.mask.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=1,
        )
        answer = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
        row = torch.tensor([r for r, _, _ in fed], device=device)
        first = torch.tensor([branch[0] for _, _, branch in fed], device=device)
        likelihoods = answer[row, first]
        if cache is None:
            return likelihoods, answer
        # Every member needs the same number of rows; the missing ones repeat one and are read by nobody.
        groups = self._by_member(longer, len(trees) // max(len(members), 1), len(members))
        rows = [item for group in groups for item in group]
        index = torch.tensor([r for r, _, _ in rows], device=device)
        branches = pad([branch[:-1] for _, _, branch in rows], device)
        b = branches.tokens.shape[1]
        cache.batch_select_indices(index)
        lengths = torch.tensor([len(trees[r].question) for r, _, _ in rows], device=device)
        keys = self._token_keys(
            seeds and [seeds[r] for r, _, _ in rows],
            [trees[r] for r, _, _ in rows],
            [k + 1 for _, k, _ in rows],
            [len(trees[r].question) for r, _, _ in rows],
            b,
        )
        output = self._forward(
            members,
            keys,
            input_ids=branches.tokens,
            attention_mask=torch.cat([questions.mask[index], branches.mask], dim=1).long(),
            position_ids=lengths[:, None] + torch.arange(b, device=device),
            past_key_values=cache,
            use_cache=True,
        )
        targets = pad([branch[1:] for _, _, branch in rows], device)
        rest = (_log_prob_of(output.logits, targets.tokens) * targets.mask).sum(dim=1)
        place = {(r, k): n for n, (r, k, _) in enumerate(rows)}
        where = torch.tensor([n for n, (_, _, branch) in enumerate(fed) if len(branch) > 1], device=device)
        which = torch.tensor([place[r, k] for r, k, _ in longer], device=device)
        return likelihoods.index_add(0, where, rest[which]), answer

    def _whole_branches(
        self, members: Sequence[int], trees: list[TokenTree], seeds: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """As `_cached_branches`, each choice as a whole sequence: any causal model, at the cost of repeated tokens."""
        device = self.backbone.device
        fed = [(r, k, branch) for r, tree in enumerate(trees) for k, branch in enumerate(tree.branches)]
        groups = self._by_member(fed, len(trees) // max(len(members), 1), len(members))
        rows = [item for group in groups for item in group]
        batch = pad([trees[r].question + branch for r, _, branch in rows], device)
        T = batch.tokens.shape[1]
        keys = self._token_keys(
            seeds and [seeds[r] for r, _, _ in rows],
            [trees[r] for r, _, _ in rows],
            [k + 1 for _, k, _ in rows],
            [0] * len(rows),
            T,
        )
        logits = self._forward(members, keys, input_ids=batch.tokens, attention_mask=batch.mask.long()).logits
        starts = torch.tensor([len(trees[r].question) for r, _, _ in rows], device=device)
        scored = batch.mask[:, 1:] & (torch.arange(1, T, device=device) >= starts[:, None])
        sums = (_log_prob_of(logits[:, :-1], batch.tokens[:, 1:]) * scored).sum(dim=1)
        place = {(r, k): n for n, (r, k, _) in enumerate(rows)}
        which = torch.tensor([place[r, k] for r, k, _ in fed], device=device)
        first = torch.tensor([place[r, 0] for r in range(len(trees))], device=device)
        answer = torch.log_softmax(logits[first, starts[first] - 1].float(), dim=-1)
        return sums[which], answer

    @staticmethod
    def _by_member(rows: list[Any], questions: int, members: int) -> list[list[Any]]:
        """Group rows (question, ...) by member, and repeat the last row until each group has as many."""
        if members <= 1:
            return [rows]
        groups = [[row for row in rows if row[0] // questions == p] for p in range(members)]
        most = max(map(len, groups))
        spare = [group[-1] if group else (p * questions, 0, (0, 0)) for p, group in enumerate(groups)]
        return [group + [spare[p]] * (most - len(group)) for p, group in enumerate(groups)]

    def _token_keys(
        self,
        seeds: list[int] | None,
        rows: Sequence[TokenTree | TokenSequence],
        branches: Sequence[int],
        starts: Sequence[int],
        width: int,
    ) -> Tensor | None:
        """Return int64 [rows, width]: what each token's dropout masks are drawn by, the same in any layout.

        A token is known by the step's seed, its question, its branch (0 for the question's own) and its position.
        """
        if seeds is None or self.stack is None or not self.stack.config.dropout:
            return None
        keys = [_hash(seed, row.key, branch) for seed, row, branch in zip(seeds, rows, branches, strict=True)]
        device = self.backbone.device
        position = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        return torch.tensor(keys, device=device)[:, None] + position * 0x632BE59BD9B4E019

    def _forward(self, members: Sequence[int], keys: Tensor | None, **inputs: Any) -> Any:
        for optional in ("position_ids", "logits_to_keep"):
            if optional in inputs and not self.backbone.accepts(optional):
                del inputs[optional]
        inputs.setdefault("use_cache", False)
        if self.stack is None:
            return self.backbone.model(**inputs)
        with self.stack.running_pass(members, keys):
            return self.backbone.model(**inputs)

    def slices(self, trees: Sequence[Sequence[TokenTree | TokenSequence]]) -> list[slice]:
        """Cut P members' rows into passes within the token budget."""
        return cut(trees, self.batch_tokens)


def choice_log_probs(scores: Tensor, trees: Sequence[Sequence[TokenTree]], normalisation: Normalisation) -> Tensor:
    """Return log p(choice), normalised over each question's own choices, by the scoring rule.

    Args:
        scores: float32 [P, n, K], summed log-likelihoods, -inf where a choice is absent.
        trees: P lists of n trees.
        normalisation: of a choice's score: its sum, or its mean over its tokens or its bytes.
    """
    if normalisation != "sum":
        K = scores.shape[-1]
        lengths = [[_lengths(tree, normalisation, K) for tree in row] for row in trees]
        scores = scores / torch.tensor(lengths, device=scores.device)
    return torch.log_softmax(scores, dim=-1)


def _lengths(tree: TokenTree, normalisation: Normalisation, width: int) -> list[float]:
    of_choices = [len(branch) for branch in tree.branches] if normalisation == "token" else tree.choice_bytes
    return [*map(float, of_choices), *[1.0] * (width - len(of_choices))]


def _probing_trees(vocabulary: int) -> list[TokenTree]:
    """Return two trees of different lengths, of tokens spread over the vocabulary."""
    tokens = [(7 + 7919 * n) % vocabulary for n in range(64)]
    branches = tuple(tuple(tokens[n : n + 2 + n]) for n in range(3))
    return [TokenTree(length, tuple(tokens[:length]), branches, (1, 1, 1), 0) for length in (40, 9)]


def _log_prob_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return float32 log p(token), without a copy of the log-probabilities of the whole vocabulary."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0].float()
    return chosen - torch.logsumexp(logits.float(), dim=-1)


def _hash(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
