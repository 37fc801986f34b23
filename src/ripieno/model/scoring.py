"""Scoring: members x questions to the log-likelihoods of their choices.

One interface over two engines: the packed one, and the padded one, which is its fallback and its truth. At load a probe
decides which one a model is served by, so that no family ever gets a wrong number for being fast.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ripieno import memory
from ripieno.model.adapters import AdapterStack
from ripieno.model.attention import NotServedError
from ripieno.model.backbone import Backbone
from ripieno.model.batching import Row, cut
from ripieno.model.packed import PackedEngine
from ripieno.model.padded import PaddedEngine
from ripieno.model.speed import Meter
from ripieno.model.trees import TokenSequence, TokenTree
from ripieno.userfiles import short

Normalisation = Literal["sum", "token", "byte"]
KINDS = {"full_attention", "sliding_attention"}  # of layers that a mask describes
MLP_WIDTHS = ("intermediate_size", "moe_intermediate_size")  # which no mask or position depends on
ROPE_OF_PASS = {"dynamic", "longrope"}  # kinds of position embedding that the longest text of a pass decides
SMALL_VOCABULARY = 256  # of the copy of a model that is probed
PROBED_WINDOW = 4  # tokens: shorter than any probe, as a real window of thousands is not


@dataclass(frozen=True)
class Scores:
    """What a pass says of P x n questions.

    Args:
        choices: float32 [P, n, K], summed log-likelihoods of the branches; -inf where a choice is absent.
        logits: float32 [P, n, V], of the whole vocabulary at the first token of the answer.
        normaliser: float32 [P, n], their log-sum-exps.
    """

    choices: Tensor
    logits: Tensor
    normaliser: Tensor

    @property
    def answer(self) -> Tensor:
        """Float32 [P, n, V], log-probabilities of the whole vocabulary at the first token of the answer."""
        return self.logits - self.normaliser[..., None]


class Engine:
    """Scores token trees with one base and its stacked adapters.

    Args:
        backbone: the base.
        stack: its adapters; None scores with the base alone.
        batch_tokens: most tokens in a forward pass, padding included where there is any.
    """

    def __init__(self, backbone: Backbone, stack: AdapterStack | None, batch_tokens: int):
        self.backbone = backbone
        self.stack = stack
        self.batch_tokens = batch_tokens
        self.padded = PaddedEngine(backbone, stack)
        self.packed: PackedEngine | None = None
        self.notice: str | None = None

    @property
    def meter(self) -> Meter:
        """Counts what is read."""
        return (self.packed or self.padded).meter

    @property
    def whole_sequences(self) -> bool:
        """Whether each choice runs as one whole sequence."""
        return self.packed is None and self.padded.whole_sequences

    def probe(self) -> None:
        """Decide how this model is served: packed, padded, or each choice as a whole sequence.

        Each way must give the numbers of the next simpler one, on a few questions on the real model, and packed
        streams also on a small random copy of it whose windows are shorter than those questions. `notice` says why
        the model is not packed. Run it once before scoring.
        """
        self.packed, self.notice = None, None
        some = _probing_trees(self.backbone.text_config.vocab_size)
        branched = self._branched(some)
        self.padded.whole_sequences = branched is None
        if branched is None:
            self.notice = "its attention takes no token trees"
        else:
            self.notice = self._why_padded(some, branched)
        if self.notice is None:
            self.packed = PackedEngine(self.backbone, self.stack)

    @torch.no_grad()
    def _branched(self, trees: Sequence[TokenTree]) -> Tensor | None:
        """Return the likelihoods of trees as padded rows; None where the model does not take them."""
        # Recurrent states cannot branch, nor can positions that are counted along the mask (ALiBi).
        takes = all(self.backbone.accepts(argument) for argument in ("attention_mask", "position_ids"))
        if not takes or getattr(self.backbone.model.config, "alibi", False) or set(self.backbone.windows) - KINDS:
            return None
        branched, whole = (
            PaddedEngine(self.backbone, self.stack, way).likelihoods((), [trees], None)[0] for way in (False, True)
        )
        return branched if self._agree(branched, whole) else None

    @torch.no_grad()
    def _why_padded(self, trees: Sequence[TokenTree], branched: Tensor) -> str | None:
        """Return why the model cannot be packed, or None; `branched` are the trees' likelihoods as padded rows."""
        model = self.backbone.model
        keywords = inspect.signature(model.forward).parameters.values()
        if not getattr(model, "_supports_attention_backend", False):
            return "its attention is its own, not one that the library lets us give"
        if not self.backbone.accepts("logits_to_keep") or all(k.kind != k.VAR_KEYWORD for k in keywords):
            return "it takes no further keywords"
        if _rope_types(self.backbone.text_config) & ROPE_OF_PASS:
            return "its positions depend on the longest text of a pass"
        try:
            if not self._packs(self.backbone, self.stack, trees, branched):
                return "packed scores are not those of padded rows"
            small, of_small = small_copy(self.backbone), _probing_trees(SMALL_VOCABULARY)
            if not self._packs(small, None, of_small, PaddedEngine(small, None).likelihoods((), [of_small], None)[0]):
                return "packed scores with short windows are not those of padded rows"
        except NotServedError as error:
            return f"its attention asks for {error}"
        except Exception as error:  # of whatever a family's own code or a GPU's kernel raises: it then runs padded
            return f"packed scores cannot be computed ({type(error).__name__}: {short(error)})"
        return None

    def _packs(self, backbone: Backbone, stack: AdapterStack | None, trees: Sequence[TokenTree], truth: Tensor) -> bool:
        """Whether packed scores are the padded ones, in one pass and in one pass a question."""
        engine = PackedEngine(backbone, stack)
        together = engine.likelihoods((), [trees], None)[0]
        scanned = torch.empty_like(truth)
        ends = torch.tensor([len(tree.branches) for tree in trees]).cumsum(0).tolist()
        for [n], (found, _, _) in engine.scan((), trees, budget=1):
            scanned[ends[n] - len(trees[n].branches) : ends[n]] = found
        return self._agree(together, truth) and self._agree(scanned, truth)

    def _agree(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether two orders of the same sums agree to thousands of roundings: far below what a wrong mask moves.

        In half precision, 0.1 nats a token, as logits of some 20 units have 8 bits; probing branches have 4 at most.
        """
        full = self.backbone.model.dtype == torch.float32
        allowed = 1e-4 * (1 + float(theirs.abs().max())) if full else 0.1 * 4
        return bool((ours - theirs).abs().max() <= allowed)

    def forget(self) -> None:
        """Drop the keys and values that are kept from call to call."""
        if self.packed:
            self.packed.cache.clear()

    def forget_unused(self) -> None:
        """Drop the keys and values that no pass has used since the last time: who asks for hours keeps no more."""
        if self.packed:
            self.packed.cache.drop_unused()

    def parts(self, rows: Sequence[Sequence[Row]]) -> list[list[list[Row]]]:
        """Cut P members' lists of N rows each into parts for one pass of training, within the token budget.

        A part has as many rows of each member; the order of the rows is the engine's.
        """
        return (self.packed or self.padded).parts(rows, self.batch_tokens)

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
        return arranged((self.packed or self.padded).likelihoods(members, trees, dropout_seeds), trees)

    @torch.inference_mode()
    def scan(
        self,
        members: Sequence[int],
        trees: Sequence[TokenTree],
        batch_tokens: int | None = None,
        dropout_seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[list[int], Scores]]:
        """Score the same questions with P members, pass by pass; yield which of them a pass read, and their scores.

        One member alone on a float32 base runs with its update merged into copies of the targeted weights.

        Args:
            members: P positions in the stack (one may stand there several times), or () for the base alone.
            trees: N of them.
            batch_tokens: most tokens in a pass; the engine's own for None.
            dropout_seeds: P seeds of dropout masks; None for none.

        Raises:
            EnvironmentFault: a pass does not fit into memory.
        """
        budget = batch_tokens or self.batch_tokens
        P = max(len(members), 1)
        one = self.stack is not None and len(members) == 1 and dropout_seeds is None
        merged = self.stack.merged(members[0]) if self.stack and one else nullcontext()
        with merged, memory.enough(P, budget):
            if self.packed:
                for index, found in self.packed.scan(members, trees, budget, dropout_seeds):
                    yield index, arranged(found, [[trees[n] for n in index]] * P)
                return
            order = sorted(range(len(trees)), key=lambda n: trees[n].length, reverse=True)
            rows = [[trees[n] for n in order]] * P
            for part in cut(rows, budget, self.whole_sequences):
                some = [of_member[part] for of_member in rows]
                yield order[part], arranged(self.padded.likelihoods(members, some, dropout_seeds), some)

    def text_likelihoods(
        self,
        members: Sequence[int],
        rows: Sequence[Sequence[TokenSequence]],
        dropout_seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Return float32 [P, n]: of each member's rows, the summed log-probability of every token but the first."""
        return (self.packed or self.padded).text_likelihoods(members, rows, dropout_seeds)


def arranged(found: tuple[Tensor, Tensor, Tensor], trees: Sequence[Sequence[TokenTree]]) -> Scores:
    """Give what a pass found the shape [P, n, ...]."""
    likelihoods, logits, normaliser = found
    flat = [tree for of_member in trees for tree in of_member]
    K, device = max(len(tree.branches) for tree in flat), likelihoods.device
    row = torch.tensor([r for r, tree in enumerate(flat) for _ in tree.branches], device=device)
    choice = torch.tensor([k for tree in flat for k in range(len(tree.branches))], device=device)
    choices = likelihoods.new_full((len(flat), K), -torch.inf).index_put((row, choice), likelihoods)
    shape = (len(trees), len(trees[0]))
    return Scores(choices.view(*shape, K), logits.view(*shape, -1), normaliser.view(shape))


def _rope_types(settings: Any) -> set[str]:
    """Return the kinds of rotary embedding in a config: its layers may have one each."""
    given = getattr(settings, "rope_parameters", None) or {}
    parts = [given, *(part for part in given.values() if isinstance(part, dict))]
    return {str(part["rope_type"]) for part in parts if "rope_type" in part}


def small_copy(backbone: Backbone) -> Backbone:
    """Return a random model of the same family and widths, of as few layers as hold each kind, with short windows.

    Its weights are several times as large as is usual: attention that is not flat shows what a wrong mask changes. They
    get smaller with the width, so that scores do not grow beyond what half precision tells apart.
    """
    settings = copy.deepcopy(backbone.model.config)
    text = settings.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        different = list(dict.fromkeys(kinds))
        text.layer_types = different if len(different) > 1 else different * 2
    text.num_hidden_layers = 2
    if getattr(text, "sliding_window", None) is not None:
        text.sliding_window = PROBED_WINDOW
    spread = 2 / math.sqrt(text.hidden_size)
    for name, small in (
        ("vocab_size", SMALL_VOCABULARY),
        ("initializer_range", spread),
        *((width, 64) for width in MLP_WIDTHS),
    ):
        if hasattr(text, name):
            setattr(text, name, small)
    for part in (getattr(settings, name) for name in settings.sub_configs):
        if part is not text and hasattr(part, "num_hidden_layers"):
            part.num_hidden_layers = 1  # of what reads images, which no text goes through
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = type(backbone.model)(settings)
    model.requires_grad_(False).eval().to(device=backbone.device, dtype=backbone.model.dtype)
    return Backbone(model, backbone.tokenizer, {}, None)


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
    """Return short trees of different lengths, two of which begin alike, of tokens spread over the vocabulary.

    They are read before any work on any base, so there are few of them; a wrong mask or position moves every one.
    """
    tokens = [(7 + 7919 * n) % vocabulary for n in range(40)]
    branches = tuple(tuple(tokens[n : n + 2 + n]) for n in range(3))
    questions = (tokens[:16], tokens[:5], [*tokens[:10], *tokens[26:30]], tokens[20:25])
    return [TokenTree(n, tuple(question), branches, (1, 1, 1), 0) for n, question in enumerate(questions)]
