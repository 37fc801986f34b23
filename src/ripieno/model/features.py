"""What the base alone computes on the questions' prompts: their likelihood, and the state from which it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripieno.model.batching import cut
from ripieno.model.scoring import Engine
from ripieno.model.trees import TokenSequence, TokenTree
from ripieno.progress import Progress

LOGITS = 1 << 26  # numbers in the logits of a pass, 256 MiB: unlike the choices', they are of every token of a prompt


@dataclass(frozen=True)
class Prompts:
    """Of N prompts.

    Args:
        tokens: int64 [N], their lengths.
        nll: float64 [N], mean negative log-likelihood of all tokens but the first, in nats; 0 for a single token.
        hidden: float32 [N, D], what the output layer reads at the last token.
    """

    tokens: NDArray[np.int64]
    nll: NDArray[np.float64]
    hidden: NDArray[np.float32]


def read_prompts(engine: Engine, trees: Sequence[TokenTree], progress: Progress | None = None) -> Prompts:
    """Run the base alone over what the choices of each question share, within the engine's token budget.

    The hidden state is taken where the output layer reads it, not from the list of hidden states that a model may
    return: so it is the one after the final norm in every family, and no model has to return any.

    Args:
        engine: the base, of a class that names its output layer; the members' adapters are not used.
        trees: N questions, one at least.
        progress: advanced by one a question.
    """
    model = engine.backbone.model
    budget = min(engine.batch_tokens, LOGITS // engine.backbone.text_config.vocab_size)
    prompts = [TokenSequence(tree.key, tree.question) for tree in trees]
    by_length = sorted(range(len(prompts)), key=lambda n: prompts[n].length, reverse=True)
    tokens = np.array([prompt.length for prompt in prompts], dtype=np.int64)
    nll = np.zeros(len(prompts))
    hidden: dict[int, NDArray[np.float32]] = {}
    read: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        with torch.inference_mode():
            for part in cut([[prompts[n] for n in by_length]], budget):
                index = by_length[part]
                likelihoods = engine.padded.text_likelihoods((), [[prompts[n] for n in index]], None)
                states = read.pop()
                last = torch.as_tensor(tokens[index] - 1, device=states.device)
                answering = states[torch.arange(len(index), device=states.device), last].float().cpu().numpy()
                hidden.update(zip(index, answering, strict=True))
                nll[index] = -likelihoods[0].cpu().numpy() / np.maximum(tokens[index] - 1, 1)
                if progress:
                    progress.advance(len(index))
    finally:
        hook.remove()
    return Prompts(tokens, nll, np.stack([hidden[n] for n in range(len(prompts))]))
