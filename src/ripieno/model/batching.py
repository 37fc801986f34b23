"""Token trees to padded batches, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ripieno.model.trees import TokenSequence, TokenTree


@dataclass(frozen=True)
class Padded:
    """Rows of tokens, padded to one length.

    Args:
        tokens: int64 [rows, length], 0 where padded.
        mask: bool [rows, length], False where padded.
    """

    tokens: Tensor
    mask: Tensor


def pad(rows: Sequence[Sequence[int]], device: torch.device, left: bool = False) -> Padded:
    """Pad rows of tokens to the longest, at their end or (`left`) at their beginning."""
    width = max(len(row) for row in rows)
    padding = [[0] * (width - len(row)) for row in rows]
    tokens = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, padding, strict=True)]
    counts = torch.tensor([len(row) for row in rows], device=device)[:, None]
    places = torch.arange(width, device=device)[None]
    mask = places >= width - counts if left else places < counts
    return Padded(torch.tensor(tokens, device=device), mask)


def cut(members: Sequence[Sequence[TokenTree | TokenSequence]], budget: int) -> list[slice]:
    """Cut P members' lists of N rows each into slices whose padded forward pass stays within a budget of tokens.

    All members' rows of one slice run together. One row is a slice even where it alone exceeds the budget. Lists
    sorted by length waste the least padding.
    """
    slices, start, longest, branches, longest_branch = [], 0, 0, 0, 0
    for stop in range(len(members[0])):
        rows = [rows[stop] for rows in members]
        shared = max(len(row.question) if isinstance(row, TokenTree) else row.length for row in rows)
        fed = [max(map(len, row.branches)) - 1 if isinstance(row, TokenTree) else 0 for row in rows]
        count = max(len(row.branches) if isinstance(row, TokenTree) else 0 for row in rows)
        grown = (max(longest, shared), branches + count, max(longest_branch, *fed))
        if stop > start and len(members) * ((stop + 1 - start) * grown[0] + grown[1] * grown[2]) > budget:
            slices.append(slice(start, stop))
            start, grown = stop, (shared, count, max(fed))
        longest, branches, longest_branch = grown
    return [*slices, slice(start, len(members[0]))]
