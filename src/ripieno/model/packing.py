"""Token trees and texts to one stream of tokens without padding, and who in it sees whom.

A stream holds the rows of one member after another. A row is a question with all but the last token of each of its
branches, or a text without its last token: what is only predicted is not read. Rows may begin alike; the tokens that
they share (few-shot examples, a template's heading) then stand before them once, or are not in the stream at all where
their keys and values are known already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from ripieno.model.batching import Row, on_device, token_keys
from ripieno.model.trees import TokenSequence, TokenTree

# Fewer shared tokens than these cost more in cut and joined keys than their products cost.
LEAST_SHARED = 8
# Keys (with values) that weigh as much as a token's activations in a forward pass.
KEYS_A_TOKEN = 32

Tokens = tuple[int, ...]
# Keys and values of a run of tokens, [1, heads, tokens, size] each, by the number of the layer.
KeyValues = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of one length, side by side in the stream, which one call computes the attention of.

    Args:
        rows: G, how many.
        length: L, tokens each has of its own.
        shared: tokens that stand before each of them, all the same ones; 0 for none.
        known: the number of those tokens' keys and values among those that the pass is given, or
        source: the block of the stream that they are.
        segments: G lists of L numbers, 0 for a question's token and k + 1 for one of branch k; None: no branches.
    """

    rows: int
    length: int
    shared: int = 0
    known: int | None = None
    source: int | None = None
    segments: tuple[Tokens, ...] | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the stream."""
        return self.rows * self.length


@dataclass(eq=False)
class Packing:
    """Who sees whom in a stream: what the attention function of a packed pass is told.

    Args:
        blocks: the stream's, in order.
        device: of the masks.
        known: keys and values of the shared tokens that the stream does not hold.
        kept: takes in every layer's keys and values of the stream, where somebody asks for them.
    """

    blocks: Sequence[Block]
    device: torch.device
    known: Sequence[KeyValues] = ()
    kept: KeyValues | None = None
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    _runs: Runs | None = None

    @property
    def sizes(self) -> list[int]:
        """Tokens of each block."""
        return [block.tokens for block in self.blocks]

    def mask(self, number: int, window: int | None) -> Tensor | None:
        """Return bool [rows or 1, 1, length, shared + length], who is seen in a block; None where it is plain causal.

        A token sees what is shared, its question and its own branch, up to itself, and `window` tokens back at most.
        """
        block = self.blocks[number]
        if window is not None and window >= block.shared + block.length:
            window = None
        if not block.shared and block.segments is None and window is None:
            return None
        if (number, window) not in self._masks:
            self._masks[number, window] = _mask(block, window).to(self.device)
        return self._masks[number, window]

    def runs(self) -> Runs:
        """Return the stream as runs of queries, each with its own run of keys: what a varlen kernel is told."""
        if self._runs is None:
            self._runs = _runs(self.blocks, self.known, self.device)
        return self._runs


def _mask(block: Block, window: int | None) -> Tensor:
    places = positions_of(block)
    segments = torch.tensor(block.segments or [(0,) * block.length])
    own = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    shared = torch.arange(block.shared).expand(len(places), -1)
    back = places[:, :, None] - torch.cat([shared, places], dim=1)[:, None, :]
    seen = (back >= 0) & torch.cat([own.new_ones(*own.shape[:2], block.shared), own], dim=2)
    if window is not None:
        seen &= back < window
    return seen[:, None]


def positions_of(block: Block) -> Tensor:
    """Return int64 [rows or 1, length]: a token's place in its question and branch, the shared tokens before it."""
    if block.segments is None:
        return block.shared + torch.arange(block.length)[None]
    rows = []
    for segments in block.segments:
        question = segments.count(0)
        of_branches = [question + n for _, run in groupby(segments[question:]) for n, _ in enumerate(run)]
        rows.append([*range(question), *of_branches])
    return block.shared + torch.tensor(rows)


@dataclass(frozen=True, eq=False)
class Runs:
    """R runs of queries, in the stream's order, each of which sees one run of keys, aligned at their ends.

    Args:
        keys: int64 [S], which of the keys (the known ones, then the stream's) stand in the runs of keys.
        query_ends, key_ends: int32 [R + 1], where runs begin and end.
        longest_query, longest_key: tokens.
    """

    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


def _runs(blocks: Sequence[Block], known: Sequence[KeyValues], device: torch.device) -> Runs:
    """Cut rows into questions and branches: a branch's keys are the shared ones, its question's and its own."""
    lengths = [next(iter(of_layers.values()))[0].shape[2] for of_layers in known]
    of_known = [*accumulate(lengths, initial=0)]
    starts = [*accumulate((block.tokens for block in blocks), initial=of_known[-1])]
    keys: list[int] = []
    of_queries, of_keys = [], []
    for number, block in enumerate(blocks):
        first = of_known[block.known] if block.known is not None else starts[block.source or 0]
        shared = range(first, first + block.shared)
        for row in range(block.rows):
            begin = starts[number] + row * block.length
            segments = block.segments[row] if block.segments else (0,) * block.length
            question = segments.count(0)
            pieces = [range(begin, begin + question)]
            for _, run in groupby(segments[question:]):
                pieces.append(range(pieces[-1].stop, pieces[-1].stop + len(list(run))))
            for piece in pieces:
                seen = [*shared, *(pieces[0] if piece is not pieces[0] else ()), *piece]
                keys += seen
                of_queries.append(len(piece))
                of_keys.append(len(seen))
    query_ends, key_ends = (
        torch.tensor([*accumulate(n, initial=0)], dtype=torch.int32, device=device) for n in (of_queries, of_keys)
    )
    return Runs(on_device(keys, device), query_ends, key_ends, max(of_queries), max(of_keys))


@dataclass(frozen=True, eq=False)
class Stream:
    """Rows as one stream of T tokens.

    Args:
        tokens, positions: int64 [1, T].
        counts: tokens of each member.
        packing: who sees whom.
        scored: int64 [S], the places whose logits are needed.
        answers: for each row in the order given, where in `scored` its answer's first token is predicted.
        predictions: for each predicted token: where in `scored` that is done, the token, and the run that it belongs
            to (the branches of all rows, or all texts, in the order given).
        rows: for each token of the stream, its row and segment; without meaning for a shared one.
    """

    tokens: Tensor
    positions: Tensor
    counts: tuple[int, ...]
    packing: Packing
    scored: Tensor
    answers: list[int]
    predictions: tuple[list[int], list[int], list[int]]
    rows: list[tuple[int, int]]

    def token_keys(self, table: Tensor) -> Tensor:
        """Return int64 [1, T]: what each token's dropout masks are drawn by (see `batching.token_keys`)."""
        row, segment = on_device([self.rows], self.tokens.device).unbind(-1)
        return token_keys(table, row, segment, self.positions)


def lay_out(
    rows: Sequence[Sequence[Row]],
    shared: Sequence[Sequence[int]],
    device: torch.device,
    known: Callable[[int, Tokens], int] | None = None,
    given: Sequence[KeyValues] = (),
) -> Stream:
    """Lay out the rows of P members.

    Args:
        rows: P lists of n rows each.
        shared: for each row, how many of its first tokens are shared with others of its member.
        device: of the tensors.
        known: (member, shared tokens) -> their number in `given`; None puts them into the stream, once a member.
        given: keys and values that are known.
    """
    made = _Maker(rows, shared, known)
    return Stream(
        tokens=on_device([made.tokens], device),
        positions=on_device(torch.cat(made.positions)[None], device),
        counts=tuple(made.counts),
        packing=Packing(made.blocks, device, given),
        scored=on_device(made.scored, device),
        answers=made.answers,
        predictions=made.predictions,
        rows=made.rows,
    )


class _Maker:
    """Grows a stream row by row."""

    def __init__(
        self,
        rows: Sequence[Sequence[Row]],
        shared: Sequence[Sequence[int]],
        known: Callable[[int, Tokens], int] | None,
    ):
        self.tokens: list[int] = []
        self.positions: list[Tensor] = []
        self.blocks: list[Block] = []
        self.counts: list[int] = []
        self.scored: list[int] = []
        self.rows: list[tuple[int, int]] = []
        flat = [row for of_member in rows for row in of_member]
        self.answers = [0] * len(flat)
        self.predictions: tuple[list[int], list[int], list[int]] = ([], [], [])
        runs = [len(row.branches) if isinstance(row, TokenTree) else 1 for row in flat]
        self.first_run = [*accumulate(runs, initial=0)]
        number = 0
        for p, of_member in enumerate(rows):
            begin = len(self.tokens)
            whole = [
                (_front(row)[:n], row, number + k) for k, (row, n) in enumerate(zip(of_member, shared[p], strict=True))
            ]
            number += len(of_member)
            self._member(p, whole, known)
            self.counts.append(len(self.tokens) - begin)

    def _member(self, p: int, rows: list[tuple[Tokens, Row, int]], known: Callable[[int, Tokens], int] | None) -> None:
        sources: dict[Tokens, int] = {}
        if known is None:
            for front in dict.fromkeys(front for front, _, _ in rows if front):
                sources[front] = len(self.blocks)
                self._block(Block(1, len(front)), [front], [[(0, 0)] * len(front)])

        def alike(item: tuple[Tokens, Row, int]) -> tuple[Tokens, int, bool]:
            front, row, _ = item
            return front, row.read - len(front), isinstance(row, TokenTree) and row.fed > 0

        # Longest first; what one call can serve stands side by side.
        for (front, length, branches), run in groupby(sorted(rows, key=alike, reverse=True), alike):
            group = list(run)
            places = [_segments(row)[len(front) :] for _, row, _ in group]
            block = Block(
                rows=len(group),
                length=length,
                shared=len(front),
                known=known(p, front) if front and known else None,
                source=sources[front] if front and not known else None,
                segments=tuple(places) if branches else None,
            )
            begin = len(self.tokens)
            own = [_tokens(row)[len(front) :] for _, row, _ in group]
            self._block(block, own, [[(n, s) for s in of_row] for (_, _, n), of_row in zip(group, places, strict=True)])
            for k, (_, row, n) in enumerate(group):
                self._score(row, n, begin + k * length, length)

    def _block(self, block: Block, tokens: Sequence[Sequence[int]], rows: Sequence[list[tuple[int, int]]]) -> None:
        self.blocks.append(block)
        self.positions.append(positions_of(block).expand(block.rows, -1).flatten())
        for own, of_row in zip(tokens, rows, strict=True):
            self.tokens += own
            self.rows += of_row

    def _score(self, row: Row, number: int, begin: int, length: int) -> None:
        """Note which tokens are predicted where, for a row that begins at a place of the stream."""
        where, token, of_run = self.predictions
        first = len(self.scored)
        self.answers[number] = first
        if isinstance(row, TokenSequence):
            predicted = row.tokens[1:]
            self.scored += range(begin, begin + length)
            where += range(first, first + len(predicted))
            token += predicted
            of_run += [self.first_run[number]] * len(predicted)
            return
        self.scored += range(begin + length - row.fed - 1, begin + length)
        inside = first + 1
        for k, branch in enumerate(row.branches):
            # The first token of a branch is predicted at the question's end, the others one token before.
            where += [first, *range(inside, inside + len(branch) - 1)]
            token += branch
            of_run += [self.first_run[number] + k] * len(branch)
            inside += len(branch) - 1


def _front(row: Row) -> Tokens:
    return row.question if isinstance(row, TokenTree) else row.tokens


def _tokens(row: Row) -> Tokens:
    if isinstance(row, TokenSequence):
        return row.tokens[:-1] or row.tokens
    return (*row.question, *(token for branch in row.branches for token in branch[:-1]))


def _segments(row: Row) -> Tokens:
    if isinstance(row, TokenSequence):
        return (0,) * row.read
    of_branches = (k + 1 for k, branch in enumerate(row.branches) for _ in branch[:-1])
    return (*[0] * len(row.question), *of_branches)


def shared_fronts(rows: Sequence[Row]) -> list[int]:
    """Return for each row how many of its first tokens are computed once for it and for others that begin alike.

    Every row has one shared front at most. In the tree of common fronts, either a node's own front is shared by all
    below it, or its children choose for themselves, whichever saves more tokens.
    A question's last token is never shared: the answer is read there. Texts share nothing.
    """
    fronts = [row.question[:-1] if isinstance(row, TokenTree) else () for row in rows]
    order = sorted(range(len(rows)), key=fronts.__getitem__)
    common = [_common(fronts[a], fronts[b]) for a, b in pairwise(order)]
    found = [0] * len(rows)
    for first, last, length in _choose(common):
        for n in order[first : last + 1]:
            found[n] = length
    return found


@dataclass
class _Node:
    """Neighbours that share a front: from which row, how many tokens, and the best that its children save."""

    first: int
    length: int
    saved: int = 0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)


def _choose(common: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return runs (first row, last row, length) that save the most, given neighbours' common lengths.

    Goes once along the rows with a stack of the nodes that are open, as one finds the intervals of a suffix array.
    """
    chosen: list[tuple[int, int, int]] = []
    opened: list[_Node] = []
    for last, length in enumerate([*common, 0]):
        node = _Node(last, 0)
        while opened and opened[-1].length > length:
            parent = opened.pop()
            parent.saved += node.saved
            parent.chosen += node.chosen
            own = (last - parent.first) * parent.length
            if own > parent.saved and parent.length >= LEAST_SHARED:
                parent.saved, parent.chosen = own, [(parent.first, last, parent.length)]
            node = parent
        if not length:
            chosen += node.chosen
        elif opened and opened[-1].length == length:
            opened[-1].saved += node.saved
            opened[-1].chosen += node.chosen
        else:
            opened.append(_Node(node.first, length, node.saved, node.chosen))
    return chosen


def _common(a: Tokens, b: Tokens) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def cost(row: Row, shared: int) -> int:
    """Return how much of a pass's token budget a row takes: its own tokens, or what its keys weigh if that is more.

    Each branch's attention may hold a copy of all the keys that it sees.
    """
    own = row.read - shared
    runs = 1 + (sum(len(branch) > 1 for branch in row.branches) if isinstance(row, TokenTree) else 0)
    return max(own, runs * row.read // KEYS_A_TOKEN)


def parts(rows: Sequence[Sequence[Row]], budget: int, share: bool) -> list[list[list[Row]]]:
    """Cut P members' lists of N rows each into parts of at most `budget` tokens, each member's in an order of its own.

    A part holds as many rows of each member; one row of each is a part even where it alone exceeds the budget.

    Args:
        rows: P lists.
        budget: most tokens of a part.
        share: rows of one part that begin alike hold what they share once, so they stand together.
    """
    ordered = []
    for of_member in rows:
        shared = shared_fronts(of_member) if share else [0] * len(of_member)
        items = [(_front(row)[:n], cost(row, n), row) for row, n in zip(of_member, shared, strict=True)]
        ordered.append(sorted(items, key=lambda item: item[:2], reverse=True))
    found: list[list[list[Row]]] = []
    total, fronts = 0, [set[Tokens]() for _ in rows]
    for column in zip(*ordered, strict=True):
        fresh = [len(front) * (front not in seen) for (front, _, _), seen in zip(column, fronts, strict=True)]
        size = sum(own for _, own, _ in column) + sum(fresh)
        if not found or total + size > budget:
            found.append([[] for _ in rows])
            total, fronts = 0, [set() for _ in rows]
            size = sum(own + len(front) for front, own, _ in column)
        total += size
        for part, seen, (front, _, row) in zip(found[-1], fronts, column, strict=True):
            part.append(row)
            seen.add(front)
    return found
