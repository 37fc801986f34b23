"""Running text to what the members, and the ensemble of them, say of its every token.

The pooled prediction at a token is the mean of the members' distributions over the whole vocabulary, so all members'
logits are needed at once, but only for a few positions at a time: nothing of [member, token, vocabulary] is ever held.

Long texts. A text longer than the base's limit of L tokens is read in windows of L tokens. The first window begins the
text; each later one begins with what the tokenizer puts before every text, then (L less that) // 2 tokens that were
predicted already, then the tokens to predict; the last is moved back so that it ends with the text. So nothing is left
out, every token is predicted once, and every one beyond the first L with half a window of context at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ripieno.errors import UserError
from ripieno.model.batching import Rows, cut, lay_out_sequences
from ripieno.model.scoring import Engine
from ripieno.model.trees import SpelledText, TokenSequence
from ripieno.progress import Progress
from ripieno.tokens import Tokens

# Logits of a vocabulary held at once, for all members of a pass: 32 MiB of float32, and a few arrays of that size.
LOGITS_AT_ONCE = 2**23


@dataclass(frozen=True)
class Window:
    """A part of a text that one row of a batch holds.

    Args:
        sequence: its tokens.
        first: the first of them that is predicted here; all that follow it are too.
        row: where that token stands in the table.
    """

    sequence: TokenSequence
    first: int
    row: int

    @property
    def length(self) -> int:
        """Tokens."""
        return self.sequence.length


def windows(text: SpelledText, limit: int | None, row: int = 0) -> list[Window]:
    """Cut a text into windows of at most `limit` tokens (the rule stands at the top of this file).

    Args:
        text: T tokens, what the tokenizer puts before every text among them.
        limit: L, or None.
        row: of the text's own first token in the table.

    Raises:
        UserError: a window is too short to hold a token and its context.
    """
    tokens, before, T = text.tokens, text.before, text.length
    row -= before  # of tokens[0]
    whole = limit is None or limit >= T
    found = [Window(TokenSequence(0, tokens if whole else tokens[:limit]), 1, row + 1)]
    if limit is None or whole:
        return found
    room = limit - before
    if room < 2:
        raise UserError(f"windows of {limit} tokens hold no token with a context; raise evaluation.max_tokens")
    done = limit
    while done < T:
        start = min(done - room // 2, T - room)
        part = (*tokens[:before], *tokens[start : start + room])
        found.append(Window(TokenSequence(0, part), before + done - start, row + done))
        done = start + room
    return found


def read(
    engine: Engine,
    positions: Sequence[int],
    texts: Sequence[SpelledText],
    limit: int | None,
    members_per_pass: int,
    progress: Progress | None = None,
) -> Tokens:
    """Return what each member and their ensemble say of every token.

    Args:
        engine: the base with the members' adapters.
        positions: of the members in the engine's stack; () asks the base alone, as member 0.
        texts: of at least one token each.
        limit: the base's longest input in tokens, or None.
        members_per_pass: members that share a forward pass.
        progress: told to expect, and advanced by, one a member and window.
    """
    M = max(len(positions), 1)
    firsts = np.cumsum([0, *(len(text.spans) for text in texts)])
    every = [w for text, row in zip(texts, firsts, strict=False) for w in windows(text, limit, int(row))]
    # Texts of one token with nothing before it have nothing to predict.
    every = sorted((w for w in every if w.length > w.first), key=lambda w: w.length, reverse=True)
    groups = [positions[n : n + members_per_pass] for n in range(0, len(positions), members_per_pass)] or [()]
    table = _Table(M, int(firsts[-1]))
    if progress:
        progress.expect(M * len(every))
    with torch.inference_mode():
        for part in cut([[w.sequence for w in every]] * max(len(groups[0]), 1), engine.batch_tokens) if every else ():
            _read(engine, groups, every[part], table)
            if progress:
                progress.advance(M * len(every[part]))
    spans = np.array([span for text in texts for span in text.spans], dtype=np.int64).reshape(-1, 2)
    answers = [n in text.answer for text in texts if text.answer is not None for n in range(len(text.spans))]
    return Tokens(
        text_ids=tuple(text.id for text in texts for _ in text.spans),
        positions=np.array([n for text in texts for n in range(len(text.spans))], dtype=np.int64),
        token_ids=np.array([token for text in texts for token in text.tokens[text.before :]], dtype=np.int64),
        tokens=tuple(text.text[start:end] for text in texts for start, end in text.spans),
        starts=spans[:, 0],
        ends=spans[:, 1],
        predicted=table.predicted,
        log_probs=np.where(table.predicted, np.logaddexp.reduce(table.member_log_probs, axis=0) - np.log(M), 0.0),
        entropy=table.entropy,
        expected_entropy=table.expected_entropy,
        confidence=table.confidence,
        correct=table.correct,
        member_log_probs=table.member_log_probs,
        members=tuple(engine.stack.members[p] for p in positions) if engine.stack and positions else (0,),
        answer=np.array(answers, dtype=bool) if answers else None,
    )


class _Table:
    """What is known of each token so far: arrays [T] and [M, T], 0 where nothing is."""

    def __init__(self, members: int, rows: int):
        self.predicted = np.zeros(rows, dtype=bool)
        self.entropy, self.expected_entropy, self.confidence = np.zeros((3, rows))
        self.correct = np.zeros(rows, dtype=bool)
        self.member_log_probs = np.zeros((members, rows))

    def store(self, place: Tensor, member_log_probs: Tensor, **found: Tensor) -> None:
        """Note some tokens.

        Args:
            place: int64 [n, c], the token's row; -1 where there is none.
            member_log_probs: float32 [M, n, c].
            found: [n, c] each.
        """
        rows = place.cpu().numpy()
        known = rows >= 0
        self.predicted[rows[known]] = True
        self.member_log_probs[:, rows[known]] = member_log_probs.cpu().numpy()[:, known]
        for name, values in found.items():
            array: NDArray[Any] = getattr(self, name)
            array[rows[known]] = values.cpu().numpy()[known]


def _read(engine: Engine, groups: Sequence[Sequence[int]], some: Sequence[Window], table: _Table) -> None:
    """Read a batch of windows with every member, a few columns at a time."""
    batch = lay_out_sequences([(w.sequence, None) for w in some], engine.backbone.device)
    place = torch.full(batch.tokens.shape, -1)  # of each token in the table, where it is predicted in this window
    for r, w in enumerate(some):
        place[r, w.first : w.length] = torch.arange(w.row, w.row + w.length - w.first)
    passes = [_Pass(engine, members, batch) for members in groups]
    columns = torch.arange(min(w.first for w in some) - 1, batch.tokens.shape[1] - 1, device=batch.tokens.device)
    vocabulary = engine.backbone.text_config.vocab_size
    held = len(some) * max(len(groups[0]), 1) * vocabulary
    for chunk in columns.split(max(1, LOGITS_AT_ONCE // held)):
        targets = batch.tokens[:, chunk + 1]
        pooled: Tensor | None = None
        expected = torch.zeros(targets.shape, device=targets.device)
        log_probs = []
        for of_members in passes:
            for logits in of_members.logits(chunk):
                log_p = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
                log_probs.append(log_p.gather(-1, targets[..., None])[..., 0])
                p = log_p.exp_()
                expected += torch.special.entr(p).sum(-1)
                pooled = p if pooled is None else pooled.add_(p)
        assert pooled is not None
        M = len(log_probs)
        pooled /= M
        confidence, likeliest = pooled.max(-1)
        # Sums of thousands of float32 probabilities may pass 1, and so the entropy 0, by their rounding.
        table.store(
            place[:, chunk.cpu() + 1],
            torch.stack(log_probs),
            entropy=torch.special.entr(pooled).sum(-1).clamp(min=0),
            expected_entropy=(expected / M).clamp(min=0),
            confidence=confidence.clamp(max=1),
            correct=likeliest == targets,
        )


class _Pass:
    """Some members' forward pass over a batch, run once, whose logits can be asked for a few columns at a time.

    The library's own forward makes the logits, so the soft caps and scales of Gemma 2, Granite or Cohere apply; the
    first time its body (all but the head) computes hidden states, after that it answers with those.
    """

    def __init__(self, engine: Engine, members: Sequence[int], batch: Rows):
        self.engine = engine
        self.members = members
        P = max(len(members), 1)
        self.tokens, self.mask = batch.tokens.repeat(P, 1), batch.mask.long().repeat(P, 1)
        self.body: nn.Module = engine.backbone.model.get_decoder()
        self.hidden: list[Any] = []

    def logits(self, columns: Tensor) -> Tensor:
        """Return float32 [P, n, c, V]."""
        how = _answering(self.body, self.hidden[0]) if self.hidden else _kept(self.body, self.hidden)
        with how:
            logits = self._forward(columns)
        return logits.float().view(max(len(self.members), 1), -1, *logits.shape[1:])

    def _forward(self, columns: Tensor) -> Tensor:
        model, stack = self.engine.backbone.model, self.engine.stack
        inputs = {"input_ids": self.tokens, "attention_mask": self.mask, "use_cache": False}
        with stack.running_pass(self.members) if stack else nullcontext():
            some = self.engine.backbone.accepts("logits_to_keep")
            logits: Tensor = model(**inputs, **({"logits_to_keep": columns} if some else {})).logits
        return logits if some else logits[:, columns]


@contextmanager
def _kept(module: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Append to a list what the module returns inside."""
    hook = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return what it once returned, without computing it again."""
    own = vars(module).get("forward")  # where another library has put one on this very module
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own
