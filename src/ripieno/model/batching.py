"""Rows of tokens: padded batches within a budget, and what every layout knows a token by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ripieno.model.trees import TokenSequence, TokenTree

Row = TokenTree | TokenSequence


@dataclass(frozen=True)
class Rows:
    """A batch: each of its tensors is [rows, T].

    Args:
        tokens: int64, 0 where padded.
        mask: bool, False where padded.
        segments: int64, 0 for a token of the question (or of a sequence), k + 1 for one of branch k.
        positions: int64, a token's place in its own question and branch.
        scored_columns: how many of the last columns predict a branch's token.
    """

    tokens: Tensor
    mask: Tensor
    segments: Tensor
    positions: Tensor
    scored_columns: int


def lay_out_trees(trees: Sequence[TokenTree], device: torch.device) -> Rows:
    """Lay out each tree as one row: its question, then all but the last token of each branch.

    The questions' last tokens share a column, so padding stands before questions and after branches.
    """
    longest = max(len(tree.question) for tree in trees)
    fed = max(tree.fed for tree in trees)
    tokens, mask, segments, positions = [], [], [], []
    for tree in trees:
        before, after = longest - len(tree.question), fed - tree.fed
        branches = [(k, j, token) for k, branch in enumerate(tree.branches) for j, token in enumerate(branch[:-1])]
        tokens.append([0] * before + [*tree.question, *(token for _, _, token in branches)] + [0] * after)
        mask.append([False] * before + [True] * (len(tree.question) + tree.fed) + [False] * after)
        segments.append([0] * longest + [k + 1 for k, _, _ in branches] + [0] * after)
        of_branches = [len(tree.question) + j for _, j, _ in branches]
        positions.append([0] * before + [*range(len(tree.question)), *of_branches] + [0] * after)
    return _rows(tokens, mask, segments, positions, 1 + fed, device)


def lay_out_sequences(rows: Sequence[tuple[Row, int | None]], device: torch.device) -> Rows:
    """Lay out whole sequences, padded at their end: running text, or a question with the branch of that number."""
    tokens, segments = [], []
    for row, branch in rows:
        if isinstance(row, TokenSequence):
            tokens.append(list(row.tokens))
            segments.append([0] * len(row.tokens))
        else:
            assert branch is not None
            tokens.append([*row.question, *row.branches[branch]])
            segments.append([0] * len(row.question) + [branch + 1] * len(row.branches[branch]))
    T = max(map(len, tokens))
    mask = [[True] * len(row) + [False] * (T - len(row)) for row in tokens]
    padded = [[[*row, *[0] * (T - len(row))] for row in part] for part in (tokens, segments)]
    return _rows(padded[0], mask, padded[1], [list(range(T)) for _ in tokens], T, device)


def _rows(
    tokens: list[list[int]],
    mask: list[list[bool]],
    segments: list[list[int]],
    positions: list[list[int]],
    scored_columns: int,
    device: torch.device,
) -> Rows:
    return Rows(
        torch.tensor(tokens, device=device),
        torch.tensor(mask, device=device),
        torch.tensor(segments, device=device),
        torch.tensor(positions, device=device),
        scored_columns,
    )


def cut(members: Sequence[Sequence[Row]], budget: int, whole_sequences: bool = False) -> list[slice]:
    """Cut P members' lists of N rows each into slices whose padded forward pass stays within a budget of tokens.

    All members' rows of one slice run together. One row is a slice even where it alone exceeds the budget. Lists
    sorted by length waste the least padding.

    Args:
        members: P lists.
        budget: most tokens, padding included.
        whole_sequences: each choice is a row of its own.
    """
    slices, start, rows, question, fed = [], 0, 0, 0, 0
    for stop in range(len(members[0])):
        sizes = [_size(of_member[stop], whole_sequences) for of_member in members]
        count, *longest = (max(size) for size in zip(*sizes, strict=True))
        grown = (rows + count, max(question, longest[0]), max(fed, longest[1]))
        if stop > start and len(members) * grown[0] * (grown[1] + grown[2]) > budget:
            slices.append(slice(start, stop))
            start, grown = stop, (count, longest[0], longest[1])
        rows, question, fed = grown
    return [*slices, slice(start, len(members[0]))]


def _size(row: Row, whole_sequences: bool) -> tuple[int, int, int]:
    """Return how many rows of a batch it takes, and the longest question and branches in them."""
    if isinstance(row, TokenSequence):
        return 1, row.length, 0
    if whole_sequences:
        return len(row.branches), row.length, 0
    return 1, len(row.question), row.fed


def key_table(rows: Sequence[Row], seeds: Sequence[int], device: torch.device) -> Tensor:
    """Return int64 [rows, segments]: what the dropout masks of a row's question (segment 0) and branches come from.

    Args:
        rows: R rows.
        seeds: R seeds, of this step and the row's member.
        device: of the table.
    """
    width = 1 + max(len(row.branches) if isinstance(row, TokenTree) else 0 for row in rows)
    table = [[_hash(seed, row.key, s) for s in range(width)] for seed, row in zip(seeds, rows, strict=True)]
    return torch.tensor(table, device=device)


def token_keys(table: Tensor, row: Tensor, segment: Tensor, position: Tensor) -> Tensor:
    """Return int64, in the shape of the places given: what each token's dropout masks are drawn by.

    A token is known by the step's seed, its question, its segment and its position: the same in any batch and layout.
    """
    return table[row, segment] + position * 0x632BE59BD9B4E019


def on_device(numbers: Any, device: torch.device) -> Tensor:
    """Return integers as an int64 tensor on a device; to a GPU they go from pinned memory, while it still computes."""
    tensor = torch.as_tensor(numbers, dtype=torch.int64)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _hash(*parts: int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
