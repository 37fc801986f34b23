"""The padded engine: members x questions to the log-likelihoods of their choices.

A token tree is one row of a batch: the question, then the branches side by side, each at the positions that follow
the question. The mask lets a branch see the question and itself. Questions are padded at their beginning and branches
at their end, so that the last columns, from the end of the question on, are all that become logits.

Models that take no such mask (recurrent ones, ALiBi) run each choice as one whole sequence: `Engine.probe` decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.model.batching import Row, Rows, cut, lay_out_sequences, lay_out_trees
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
        """Compare trees with whole sequences on a few questions, and keep to the latter where they differ.

        Run it once before scoring.
        """
        # Recurrent states cannot branch, nor can positions that are counted along the mask (ALiBi).
        branches = all(self.backbone.accepts(argument) for argument in ("attention_mask", "position_ids"))
        branches = branches and not getattr(self.backbone.model.config, "alibi", False)
        self.whole_sequences = not branches or set(self._windows()) - {"full_attention", "sliding_attention"} != set()
        if self.whole_sequences:
            return
        trees = list(trees) or _probing_trees(self.backbone.model.config.vocab_size)
        with torch.no_grad():
            branched = self._tree_likelihoods((), trees, None)[0]
            whole = self._whole_likelihoods((), trees, None)[0]
        # Two orders of the same float32 (bfloat16) sums: thousands of roundings, far below what a wrong mask changes.
        scale = 1e-4 if self.backbone.model.dtype == torch.float32 else 5e-2
        self.whole_sequences = not bool((branched - whole).abs().max() <= scale * (1 + whole.abs().max()))

    def slices(self, trees: Sequence[Sequence[Row]]) -> list[slice]:
        """Cut P members' rows into passes within the token budget."""
        return cut(trees, self.batch_tokens, self.whole_sequences)

    def score(
        self,
        members: Sequence[int],
        trees: Sequence[Sequence[TokenTree]],
        dropout_seeds: Sequence[int] | None = None,
    ) -> Scores:
        """Score each running member's own questions in one pass.

        Args:
            members: P positions in the stack, or () for the base alone.
            trees: P lists (one for the base) of n trees each.
            dropout_seeds: P seeds of this step's dropout masks; None for none.
        """
        flat = [tree for of_member in trees for tree in of_member]
        seeds = None if dropout_seeds is None else [seed for seed in dropout_seeds for _ in trees[0]]
        of_branches = self._whole_likelihoods if self.whole_sequences else self._tree_likelihoods
        likelihoods, answer = of_branches(members, flat, seeds)
        K, device = max(len(tree.branches) for tree in flat), likelihoods.device
        row = torch.tensor([r for r, tree in enumerate(flat) for _ in tree.branches], device=device)
        choice = torch.tensor([k for tree in flat for k in range(len(tree.branches))], device=device)
        choices = likelihoods.new_full((len(flat), K), -torch.inf).index_put((row, choice), likelihoods)
        shape = (len(trees), len(trees[0]), -1)
        return Scores(choices.view(shape), answer.view(shape))

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
        batch = lay_out_sequences([(row, None) for row in flat], self.backbone.device)
        logits = self._forward(members, batch, flat, seeds, attention_mask=batch.mask.long()).logits
        log_probs = _log_prob_of(logits[:, :-1], batch.tokens[:, 1:]) * batch.mask[:, 1:]
        shape = (len(rows), len(rows[0]), -1)
        return log_probs.view(shape), batch.mask[:, 1:].reshape(shape)

    def _tree_likelihoods(
        self, members: Sequence[int], trees: Sequence[TokenTree], seeds: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Return the branches' summed log-likelihoods, in order, and the log-probabilities at each answer."""
        batch = lay_out_trees(trees, self.backbone.device)
        T = batch.tokens.shape[1]
        masks = {kind: self._mask(batch, window) for kind, window in self._windows().items()}
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
        return likelihoods, logits[:, 0] - normaliser[:, :1]

    def _whole_likelihoods(
        self, members: Sequence[int], trees: Sequence[TokenTree], seeds: Sequence[int] | None
    ) -> tuple[Tensor, Tensor]:
        """As `_tree_likelihoods`, each choice as a whole sequence: any causal model, at the cost of repeated tokens."""
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
        return log_probs.sum(dim=1)[which], torch.log_softmax(logits[first, ends].float(), dim=-1)

    def _windows(self) -> dict[str, int | None]:
        """Return how far back each kind of the model's layers sees: kind -> tokens, None for all."""
        config = self.backbone.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            kinds = ["full_attention" if window is None else "sliding_attention"]
        return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}

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
        if not self.backbone.accepts("logits_to_keep"):
            inputs.pop("logits_to_keep", None)
        if self.stack is None:
            return self.backbone.model(input_ids=batch.tokens, use_cache=False, **inputs)
        keys = self._token_keys(batch, rows, seeds) if seeds is not None and self.stack.config.dropout else None
        with self.stack.running_pass(members, keys):
            return self.backbone.model(input_ids=batch.tokens, use_cache=False, **inputs)

    def _token_keys(self, batch: Rows, rows: Sequence[Row], seeds: Sequence[int]) -> Tensor:
        """Return int64 [rows, T]: what each token's dropout masks are drawn by, the same in any batch and layout.

        A token is known by the step's seed, its question, its segment (0: the question, else the branch) and position.
        """
        width = 1 + max(len(row.branches) if isinstance(row, TokenTree) else 0 for row in rows)
        streams = [[_hash(seed, row.key, s) for s in range(width)] for seed, row in zip(seeds, rows, strict=True)]
        of_segment = torch.tensor(streams, device=batch.tokens.device).gather(1, batch.segments)
        return of_segment + batch.positions * 0x632BE59BD9B4E019


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
