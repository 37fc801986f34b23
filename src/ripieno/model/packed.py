"""The packed engine: one stream of tokens without padding, and nothing computed twice.

Rows of a pass that begin alike share what they begin with. In training it stands in the stream once, so its gradient is
the sum of theirs. In evaluation its keys and values are kept from pass to pass: a few-shot prompt is computed once a
member and subject, and its questions alone after that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ripieno.model.adapters import AdapterStack
from ripieno.model.attention import PackedAttention
from ripieno.model.backbone import Backbone
from ripieno.model.batching import Row, key_table, on_device
from ripieno.model.packing import KeyValues, Stream, Tokens, cost, lay_out, parts, shared_fronts
from ripieno.model.speed import Meter
from ripieno.model.trees import TokenSequence, TokenTree

KEPT_BYTES = 2**30  # keys and values kept for later calls; 600 tokens of a 7B model in bfloat16 take 300 MiB


class KeyValueCache:
    """Keys and values of shared tokens, the ones used last, by what computed them: a stale one is never found.

    Args:
        most: bytes kept.
    """

    def __init__(self, most: int = KEPT_BYTES):
        self.most = most
        self.bytes = 0
        self._kept: OrderedDict[tuple[str, Tokens], KeyValues] = OrderedDict()
        self._used: set[tuple[str, Tokens]] = set()

    def get(self, computed_by: str, tokens: Tokens) -> KeyValues | None:
        """Return what is kept of some tokens, or None.

        Args:
            computed_by: the adapter's content, "" for the base; the base itself is the engine's.
            tokens: from the beginning of the text.
        """
        found = self._kept.get((computed_by, tokens))
        if found is not None:
            self._kept.move_to_end((computed_by, tokens))
            self._used.add((computed_by, tokens))
        return found

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._used.clear()
        self.bytes = 0

    def drop_unused(self) -> None:
        """Drop what was neither found nor put since the last time."""
        for key in self._kept.keys() - self._used:
            self.bytes -= _size(self._kept.pop(key))
        self._used.clear()

    def put(self, computed_by: str, tokens: Tokens, computed: KeyValues) -> None:
        """Keep what was computed of some tokens, and drop what was used longest ago where it is too much."""
        replaced = self._kept.pop((computed_by, tokens), None)
        self._kept[computed_by, tokens] = computed
        self._used.add((computed_by, tokens))
        self.bytes += _size(computed) - (_size(replaced) if replaced else 0)
        while self.bytes > self.most:
            self.bytes -= _size(self._kept.popitem(last=False)[1])


def _size(computed: KeyValues) -> int:
    return sum(tensor.nbytes for pair in computed.values() for tensor in pair)


class PackedEngine:
    """Computes what a pass says of its rows (see `scoring.Engine`).

    Args:
        backbone: the base.
        stack: its adapters; None for the base alone.
    """

    def __init__(self, backbone: Backbone, stack: AdapterStack | None):
        self.backbone = backbone
        self.stack = stack
        self.meter = Meter(backbone)
        self.cache = KeyValueCache()
        self._attention = PackedAttention(backbone.model)

    def parts(self, rows: Sequence[Sequence[Row]], budget: int) -> list[list[list[Row]]]:
        """Cut P members' rows into parts whose pass of training stays within a budget of tokens."""
        return parts(rows, budget, share=not self._dropout)

    def likelihoods(
        self, members: Sequence[int], trees: Sequence[Sequence[TokenTree]], seeds: Sequence[int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the branches' summed log-likelihoods, in order, and the answers' logits with their log-sum-exps."""
        if torch.is_grad_enabled():
            self.cache.clear()  # a step changes the weights: what was kept of them will not be found again
        alone = self._alone(seeds)
        shared = [[0] * len(of_member) if alone else shared_fronts(of_member) for of_member in trees]
        return self._likelihoods(members, trees, lay_out(trees, shared, self.backbone.device), seeds)

    def text_likelihoods(
        self, members: Sequence[int], rows: Sequence[Sequence[TokenSequence]], seeds: Sequence[int] | None
    ) -> Tensor:
        """Return float32 [P, n], the summed log-probability of every token but the first."""
        stream = lay_out(rows, [[0] * len(of_member) for of_member in rows], self.backbone.device)
        log_probs, _ = _log_probs(self._logits(members, stream, rows, seeds), stream)
        of_rows = on_device(stream.predictions[2], log_probs.device)
        found = log_probs.new_zeros(len(rows) * len(rows[0])).index_add(0, of_rows, log_probs)
        return found.view(len(rows), -1)

    def scan(
        self, members: Sequence[int], trees: Sequence[TokenTree], budget: int, seeds: Sequence[int] | None = None
    ) -> Iterator[tuple[list[int], tuple[Tensor, Tensor, Tensor]]]:
        """Yield which trees a pass reads, and what it says of them (as `likelihoods`, member by member).

        Shared tokens are computed once, before the first pass that needs them; a pass is filled with rows of as many
        shared fronts as it takes. Under dropout nothing is shared.
        """
        of_members = [self.stack.digest(p) for p in members] if self.stack and members else [""]
        shared = [0] * len(trees) if self._alone(seeds) else shared_fronts(trees)
        fronts = [tree.question[:n] for tree, n in zip(trees, shared, strict=True)]
        own = [cost(tree, n) for tree, n in zip(trees, shared, strict=True)]
        order = sorted(range(len(trees)), key=lambda n: (fronts[n], own[n]), reverse=True)
        held: dict[tuple[int, Tokens], KeyValues] = {}
        for index in _within(order, own, budget // len(of_members), fronts):
            needed = list(dict.fromkeys(fronts[n] for n in index if fronts[n]))
            held = self._compute(members, of_members, needed, budget, held)
            known = [held[p, front] for front in needed for p in range(len(of_members))]
            some = [[trees[n] for n in index]] * len(of_members)
            places = {front: n for n, front in enumerate(needed)}
            stream = lay_out(
                some,
                [[shared[n] for n in index]] * len(of_members),
                self.backbone.device,
                lambda p, front: places[front] * len(of_members) + p,  # noqa: B023 (used at once)
                known,
            )
            yield index, self._likelihoods(members, some, stream, seeds)

    def _compute(
        self,
        members: Sequence[int],
        of_members: Sequence[str],
        fronts: Sequence[Tokens],
        budget: int,
        held: Mapping[tuple[int, Tokens], KeyValues],
    ) -> dict[tuple[int, Tokens], KeyValues]:
        """Return the keys and values of shared tokens by member (counted from 0) and tokens, computing what is missing.

        Args:
            members, of_members: the members, and what their keys and values are found by.
            fronts: the shared tokens.
            budget: most tokens in a pass.
            held: those of the pass before: the cache may be too small for all members of a pass.
        """
        found: dict[tuple[int, Tokens], KeyValues] = {}
        for p, by in enumerate(of_members):
            for front in fronts:
                kept_one = held.get((p, front)) or self.cache.get(by, front)
                if kept_one is not None:
                    found[p, front] = kept_one
        missing = [front for front in fronts if any((p, front) not in found for p in range(len(of_members)))]
        for index in _within(range(len(missing)), [len(front) for front in missing], budget // len(of_members)):
            rows = [[TokenTree(0, missing[n], ((0,),), (0,), None) for n in index]] * len(of_members)
            stream = lay_out(rows, [[0] * len(index)] * len(of_members), self.backbone.device)
            kept: KeyValues = {}
            stream.packing.kept = kept
            self._logits(members, stream, rows, None)
            begin = 0
            in_stream = sorted(index, key=lambda n: len(missing[n]), reverse=True)
            for p, by in enumerate(of_members):
                for n in in_stream:
                    stop = begin + len(missing[n])
                    part = {layer: _part(pair, begin, stop) for layer, pair in kept.items()}
                    found[p, missing[n]] = part
                    self.cache.put(by, missing[n], part)
                    begin = stop
        return found

    @property
    def _dropout(self) -> bool:
        return self.stack is not None and self.stack.config.dropout > 0

    def _alone(self, seeds: Sequence[int] | None) -> bool:
        """Whether each question has dropout masks of its own, so that no two compute the same of what they share."""
        return seeds is not None and self._dropout

    def _likelihoods(
        self,
        members: Sequence[int],
        trees: Sequence[Sequence[TokenTree]],
        stream: Stream,
        seeds: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = self._logits(members, stream, trees, seeds)
        log_probs, normaliser = _log_probs(logits, stream)
        count = sum(len(tree.branches) for of_member in trees for tree in of_member)
        of_branches = on_device(stream.predictions[2], logits.device)
        likelihoods = log_probs.new_zeros(count).index_add(0, of_branches, log_probs)
        answers = on_device(stream.answers, logits.device)
        return likelihoods, logits[answers], normaliser[answers]

    def _logits(
        self,
        members: Sequence[int],
        stream: Stream,
        rows: Sequence[Sequence[Row]],
        seeds: Sequence[int] | None,
    ) -> Tensor:
        """Return float32 [S, V], the logits of the places that are scored."""
        self.meter.note(stream.tokens.numel(), len(stream.scored))
        keys = None
        if seeds is not None and self._dropout:
            flat = [row for of_member in rows for row in of_member]
            of_rows = [seed for seed, of_member in zip(seeds, rows, strict=True) for _ in of_member]
            keys = stream.token_keys(key_table(flat, of_rows, self.backbone.device))
        with (
            self._attention.on(),
            self.stack.running_pass(members, keys, stream.counts) if self.stack else nullcontext(),
        ):
            output = self.backbone.model(
                input_ids=stream.tokens,
                position_ids=stream.positions,
                use_cache=False,
                logits_to_keep=stream.scored,
                packing=stream.packing,
            )
        logits: Tensor = output.logits[0].float()
        return logits


def _log_probs(logits: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
    """Return the predicted tokens' log-probabilities [n], and the log-sum-exp of each scored place [S]."""
    where, token, _ = (on_device(numbers, logits.device) for numbers in stream.predictions)
    normaliser = torch.logsumexp(logits, dim=-1)
    return logits[where, token] - normaliser[where], normaliser


def _within(
    order: Sequence[int], sizes: Sequence[int], budget: int, fronts: Sequence[Tokens] | None = None
) -> Iterator[list[int]]:
    """Yield runs of an order whose sizes sum to the budget at most, one element at least.

    Each shared front of a run takes a quarter of its tokens too: its keys and values have to be held.
    """
    run: list[int] = []
    total = 0
    held: set[Tokens] = set()
    for n in order:
        front = fronts[n] if fronts else ()
        if run and total + sizes[n] + len(front) // 4 * (front not in held) > budget:
            yield run
            run, total, held = [], 0, set()
        run.append(n)
        total += sizes[n] + len(front) // 4 * (front not in held)
        held.add(front)
    if run:
        yield run


def _part(pair: tuple[Tensor, Tensor], begin: int, stop: int) -> tuple[Tensor, Tensor]:
    """Return copies of a stretch of keys and values: a view would keep the whole stream's."""
    keys, values = (tensor[:, :, begin:stop].clone() for tensor in pair)
    return keys, values
