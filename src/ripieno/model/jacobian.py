"""Gradients of each question's scores with respect to a member's adapter, a token at a time.

A layer's update is B A x, computed as z = A x and u = B z. The gradients of a scalar f with respect to its weights are
sums over tokens of outer products,

    df/dA = sum_t (df/dz_t) x_t^T,   df/dB = sum_t (df/du_t) z_t^T

and a question's score depends on its own tokens alone. So one backward pass over a batch gives the gradients of every
question in it: what Kronecker factors and linearised predictions are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ripieno.model.batching import cut, lay_out_sequences, lay_out_trees
from ripieno.model.scoring import Engine, Normalisation, arranged, choice_log_probs
from ripieno.model.trees import TokenTree

# Most tokens of a pass: enough to fill a device, and few enough to hold every layer's gradients of every contrast.
TOKENS = 256


@dataclass(frozen=True)
class WeightGradients:
    """Of one weight matrix [o, i], at the T tokens of n questions, and C scalars.

    Args:
        inputs: float32 [n, T, i], what the matrix is multiplied with; 0 where there is no token.
        gradients: float32 [C, n, T, o], of the scalars with respect to what comes out.
    """

    inputs: Tensor
    gradients: Tensor

    def jacobian(self) -> Tensor:
        """Return float32 [n, C, o, i], the gradients of the scalars with respect to the matrix."""
        return torch.einsum("cnto,nti->ncoi", self.gradients, self.inputs)


@dataclass(frozen=True)
class Gradients:
    """Of n questions of at most K choices: the scalars are the C = K - 1 contrasts s_k - s_0 of their scores.

    The choices' probabilities are a softmax, which knows contrasts alone.

    Args:
        index: which questions, by their place among those that were given.
        log_probs: float32 [n, K], by the scoring rule; -inf where a choice is absent.
        tokens: how many tokens there are.
        weights: by layer, its A and its B.
    """

    index: Sequence[int]
    log_probs: Tensor
    tokens: int
    weights: dict[str, tuple[WeightGradients, WeightGradients]]

    def root(self) -> Tensor:
        """Return float32 [n, C, C], R of Lambda = R R^T = diag(p) - p p^T, the loss's second derivative.

        In eigenvectors: an absent choice leaves Lambda only semidefinite.
        """
        p = self.log_probs.double().exp()[:, 1:]
        values, vectors = torch.linalg.eigh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])
        return (vectors * values.clamp(min=0).sqrt()[:, None, :]).float()


def gradients(
    engine: Engine, position: int, trees: Sequence[TokenTree], normalisation: Normalisation
) -> Iterator[Gradients]:
    """Yield the gradients of all questions, a few at a time.

    Padded rows serve every family; a row's tokens are the question's own, so nothing is shared between questions. A
    model that takes no token trees runs one question a pass, each choice a row.

    Args:
        engine: with the member's adapter.
        position: the member's, in its stack.
        trees: N questions.
        normalisation: of scores.
    """
    assert engine.stack is not None
    order = sorted(range(len(trees)), key=lambda n: (trees[n].length, n), reverse=True)
    ordered = [trees[n] for n in order]
    whole = engine.padded.whole_sequences
    slices = [slice(n, n + 1) for n in range(len(order))] if whole else cut([ordered], min(engine.batch_tokens, TOKENS))
    for part in slices:
        some = ordered[part]
        with engine.stack.tapped() as taps:
            scores = arranged(engine.padded.likelihoods([position], [some], None), [some]).choices
        log_probs = choice_log_probs(scores, [some], normalisation)[0]
        K = log_probs.shape[1]
        present = torch.isfinite(log_probs.detach())
        mask = _mask(some, whole, scores.device).view(len(some), -1, 1)
        watched = [tensor for tap in taps.values() for tensor in (tap.z, tap.u)]
        of_contrasts: list[tuple[Tensor, ...]] = []
        for k in range(1, K):
            contrast = torch.where(present[:, k], log_probs[:, k] - log_probs[:, 0], 0.0).sum()
            of_contrasts.append(torch.autograd.grad(contrast, watched, retain_graph=k < K - 1))
        found = {}
        for number, (name, layer) in enumerate(engine.stack.layers.items()):
            tap = taps[layer]
            pair = []
            for inputs, of in ((tap.x, 2 * number), (tap.z.detach(), 2 * number + 1)):
                grads = torch.stack([each[of] for each in of_contrasts])
                shaped = grads.view(K - 1, *mask.shape[:2], -1)
                pair.append(WeightGradients(inputs.view(*mask.shape[:2], -1) * mask, shaped * mask))
            found[name] = (pair[0], pair[1])
        yield Gradients(order[part], log_probs.detach(), int(mask.sum()), found)


def _mask(trees: Sequence[TokenTree], whole: bool, device: torch.device) -> Tensor:
    if not whole:
        return lay_out_trees(trees, device).mask
    return lay_out_sequences([(tree, k) for tree in trees for k in range(len(tree.branches))], device).mask
