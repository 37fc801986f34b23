"""Laplace approximation over a trained adapter (Yang et al. 2024, arXiv:2308.13111).

The posterior of all A and B is N(trained weights, P^-1) with precision P = tau I + F. F is the generalised Gauss-Newton
matrix of the training loss, sum_n J_n^T Lambda_n J_n, with J the gradients of a question's contrasts s_k - s_0 and
Lambda their loss's second derivative (model/jacobian.py), one block a weight matrix W [o, i], in one of two shapes:

    kronecker   F = (1/T) (sum_t g_t Lambda g_t^T) (x) (sum_t x_t x_t^T), g [o, K - 1] the contrasts' gradients and x
                the inputs at each of all questions' T tokens. Exact where there is one token; else it takes tokens, and
                inputs and gradients, for independent (Martens and Grosse 2015, arXiv:1503.05671). Factors wider than
                `WIDE` keep their `factor_rank` largest directions.
    diagonal    the diagonal of F, exactly

tau is the precision of the prior N(W_0, I / tau) around where training started. By marginal likelihood it maximises
ln Z = -tau |W - W_0|^2 / 2 - 1/2 sum ln(1 + lambda / tau) over the eigenvalues lambda of F: the root of
sum lambda / (lambda + tau) = tau |W - W_0|^2 (MacKay 1992, doi:10.1162/neco.1992.4.3.448), the left side falling in
tau, the right one rising. A prior around 0 would take the random start of A, far longer than what training adds to it,
for evidence that weights are large.

Linearised, a question's contrasts are normal with covariance C = J P^-1 J^T in closed form; a draw is one of them, for
each question on its own. Sampled, a draw is an adapter, asked as any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ripieno import measures
from ripieno.config import Config, PositiveInt
from ripieno.errors import UserError
from ripieno.methods import FREE, Fitted, Method
from ripieno.methods.trained import Trained, pooled_nll
from ripieno.model.jacobian import Gradients, WeightGradients, gradients
from ripieno.model.prediction import Asked
from ripieno.predictions import Predictions
from ripieno.seeds import derive, generator

WIDE = 100  # the widest Kronecker factor that is kept whole, and not by its largest directions
WAITING = 512  # rows of a wide factor that are held before they are reduced to its directions
TAUS = tuple(10.0**power for power in range(-2, 6))  # precisions that validation chooses from
SIDES = ("A", "B")


class Laplace(Method):
    """A Gaussian around the first member."""

    factors: Literal["kronecker", "diagonal"] = "kronecker"
    predictive: Literal["linearised", "sampled"] = "linearised"
    prior_precision: Literal["marginal_likelihood", "validation"] | Annotated[float, Field(gt=0)] = (
        "marginal_likelihood"
    )
    factor_rank: PositiveInt = 10
    """Directions of a Kronecker factor of more than 100 rows that are kept."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """It is the posterior of a likelihood of choices."""
        if config.training.loss != "choices":
            return f"it was trained with training.loss {config.training.loss}; train another run with choices"
        if self.prior_precision == "validation" and self.predictive == "sampled":
            return "prior_precision validation judges linearised answers; choose predictive linearised with it"
        if self.prior_precision == "validation" and not config.data.validation:
            return "it has no data.validation to choose the prior's precision by; name a set and train again"
        return None

    @property
    def free(self) -> bool:
        """Linearised, they are draws of scores."""
        return self.predictive == "linearised"

    def fit(self, trained: Trained) -> Fitted:
        """Compute the curvature over the training questions, and choose the prior's precision."""
        trained.load(trained.member)
        # First of all: of adapters that were trained elsewhere it is not known.
        moved = _moved(trained) if self.prior_precision == "marginal_likelihood" else 0.0
        found = self._kind.fit(self._gradients(trained), self.factor_rank).tensors()
        posterior = self._posterior(found, trained)
        if self.prior_precision == "marginal_likelihood":
            tau = best_precision(posterior.eigenvalues(), moved)
        elif self.prior_precision == "validation":
            tau = self._by_validation(trained, posterior)
        else:
            tau = self.prior_precision
        return {**found, "tau": torch.tensor(tau, dtype=torch.float64)}

    def said(self, fitted: Fitted) -> str:
        """The prior's precision."""
        return f"prior precision {float(fitted['tau']):.3g}"

    def draws(self, trained: Trained, fitted: Fitted, count: int) -> Iterator[None]:
        """Put samples of the weights in place."""
        trained.load(trained.member)
        means, posterior, tau = trained.weights(), self._posterior(fitted, trained), float(fitted["tau"])
        for draw in range(count):
            seed = derive(trained.config.training.seed, "laplace draw", trained.member, draw)
            noise = torch.Generator().manual_seed(seed)
            weights = {}
            for name, (A, B) in means.items():
                own = (A != 0).any(dim=1)  # a member's own rows; others, of a lower rank or a foreign layer, stay 0
                moved = [
                    posterior.sample(f"{name}.{side}", torch.randn(W.shape, generator=noise).to(W.device), tau)
                    for side, W in zip(SIDES, (A, B), strict=True)
                ]
                weights[name] = A + moved[0] * own[:, None], B + moved[1] * own
            trained.put(weights)
            yield None

    def answer(self, trained: Trained, fitted: Fitted, asked: Asked, count: int) -> Predictions:
        """Return draws of the linearised scores, or what sampled adapters answer."""
        if self.predictive == "sampled":
            return super().answer(trained, fitted, asked, count)
        trained.load(trained.member)
        p = trained.ask(asked)
        [C] = covariances(self._gradients(trained, asked), self._posterior(fitted, trained), [float(fitted["tau"])], p)
        return draw_scores(p, C, count, derive(trained.config.training.seed, "laplace", trained.member))

    def _gradients(self, trained: Trained, asked: Asked | None = None) -> Iterator[Gradients]:
        trees = trained.training_trees() if asked is None else asked.trees
        for batch in gradients(trained.ensemble.engine, 0, trees, trained.config.prompt.normalisation):
            # The base is frozen, so a backward pass costs as much as a forward one; there is one a contrast.
            trained.read += batch.tokens * batch.log_probs.shape[1]
            yield batch

    @property
    def _kind(self) -> type[Kronecker | Diagonal]:
        return Kronecker if self.factors == "kronecker" else Diagonal

    def _posterior(self, fitted: Fitted, trained: Trained) -> Kronecker | Diagonal:
        device = trained.ensemble.engine.backbone.device
        return self._kind.of({name: tensor.to(device) for name, tensor in fitted.items()})

    def _by_validation(self, trained: Trained, posterior: Kronecker | Diagonal) -> float:
        asked, seed = trained.validation, derive(trained.config.training.seed, "laplace validation", trained.member)
        p = trained.ask(asked)
        losses = []
        for C in covariances(self._gradients(trained, asked), posterior, TAUS, p):
            drawn = draw_scores(p, C, FREE, seed)
            losses.append(pooled_nll(drawn))
        return TAUS[losses.index(min(losses))]


def _moved(trained: Trained) -> float:
    """Return |W - W_0|^2 of all A and B in place."""
    start = trained.start()
    return sum(
        float(((W.cpu().double() - W_0.double()) ** 2).sum())
        for name, pair in trained.weights().items()
        for W, W_0 in zip(pair, start[name], strict=True)
    )


# ---- the posterior ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factor:
    """A symmetric matrix sum_i values_i v_i v_i^T by its largest eigenpairs; what is left out counts as 0.

    Args:
        vectors: [q, d], orthonormal rows.
        values: [q], not negative.
    """

    vectors: Tensor
    values: Tensor


@dataclass(frozen=True)
class Kronecker:
    """Blocks (1/T) G (x) X in the eigenbases of both; outside of what they keep, F counts as 0.

    Args:
        of_weights: "LAYER.A" -> the factors of its gradients G [o, o] and inputs X [i, i].
        tokens: T.
    """

    of_weights: Mapping[str, tuple[Factor, Factor]]
    tokens: int

    @classmethod
    def fit(cls, batches: Iterator[Gradients], rank: int) -> Kronecker:
        """Sum both factors over all tokens."""
        sums: dict[str, tuple[_Sum, _Sum]] = {}
        tokens = 0
        for batch in batches:
            tokens += batch.tokens
            root = batch.root()
            for key, of in _by_weight(batch):
                if key not in sums:
                    sums[key] = _Sum(of.gradients.shape[-1], rank), _Sum(of.inputs.shape[-1], rank)
                weighted = torch.einsum("ncd,cnto->dnto", root, of.gradients)
                for total, rows in zip(sums[key], (weighted, of.inputs), strict=True):
                    total.add(rows.flatten(0, -2))
        return cls({key: (g.factor(), x.factor()) for key, (g, x) in sums.items()}, tokens)

    @classmethod
    def of(cls, fitted: Fitted) -> Kronecker:
        """Read what `tensors` gave."""
        keys = [name.removesuffix(".inputs.values") for name in fitted if name.endswith(".inputs.values")]

        def factor(key: str) -> Factor:
            return Factor(fitted[f"{key}.vectors"], fitted[f"{key}.values"])

        of_weights = {key: (factor(f"{key}.gradients"), factor(f"{key}.inputs")) for key in keys}
        return cls(of_weights, int(fitted["tokens"]))

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name."""
        found = {"tokens": torch.tensor(self.tokens)}
        for key, (g, x) in self.of_weights.items():
            for name, factor in (("gradients", g), ("inputs", x)):
                found[f"{key}.{name}.vectors"] = factor.vectors.contiguous()
                found[f"{key}.{name}.values"] = factor.values.contiguous()
        return found

    def eigenvalues(self) -> Tensor:
        """Return float64 [...], those of F that are kept."""
        return torch.cat([self._values(key).flatten() for key in self.of_weights]).double()

    def sample(self, key: str, noise: Tensor, tau: float) -> Tensor:
        """Return P^-1/2 noise of one weight, from standard normal numbers [o, i]."""
        g, x = self.of_weights[key]
        inside = g.vectors @ noise @ x.vectors.T
        change = (self._values(key) + tau).rsqrt() - tau**-0.5
        return noise * tau**-0.5 + g.vectors.T @ (change * inside) @ x.vectors

    def inner(self, key: str, jacobian: Tensor, taus: Sequence[float]) -> Tensor:
        """Return J P^-1 J^T [taus, n, C, C] of one weight's gradients [n, C, o, i]."""
        g, x = self.of_weights[key]
        inside = torch.einsum("ao,ncoi,bi->ncab", g.vectors, jacobian, x.vectors).flatten(2)
        whole, values = jacobian.flatten(2), self._values(key).flatten()
        gram = whole @ whole.mT
        return torch.stack([gram / tau + (inside * (1 / (values + tau) - 1 / tau)) @ inside.mT for tau in taus])

    def _values(self, key: str) -> Tensor:
        g, x = self.of_weights[key]
        return g.values[:, None] * x.values / self.tokens


@dataclass(frozen=True)
class Diagonal:
    """The diagonal of F.

    Args:
        of_weights: "LAYER.A" -> [o, i].
    """

    of_weights: Mapping[str, Tensor]

    @classmethod
    def fit(cls, batches: Iterator[Gradients], rank: int) -> Diagonal:
        """Sum the squares of every question's gradients; the rank of a factor means nothing here."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            root = batch.root()
            for key, of in _by_weight(batch):
                squares = (torch.einsum("ncd,ncoi->ndoi", root, of.jacobian()) ** 2).sum(dim=(0, 1))
                sums[key] = sums[key] + squares if key in sums else squares
        return cls(sums)

    @classmethod
    def of(cls, fitted: Fitted) -> Diagonal:
        """Read what `tensors` gave."""
        return cls({name.removesuffix(".diagonal"): fitted[name] for name in fitted if name.endswith(".diagonal")})

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it by name."""
        return {f"{key}.diagonal": values for key, values in self.of_weights.items()}

    def eigenvalues(self) -> Tensor:
        """Return float64 [...], those of F."""
        return torch.cat([values.flatten() for values in self.of_weights.values()]).double()

    def sample(self, key: str, noise: Tensor, tau: float) -> Tensor:
        """Return P^-1/2 noise of one weight, from standard normal numbers [o, i]."""
        return noise * (self.of_weights[key] + tau).rsqrt()

    def inner(self, key: str, jacobian: Tensor, taus: Sequence[float]) -> Tensor:
        """Return J P^-1 J^T [taus, n, C, C] of one weight's gradients [n, C, o, i]."""
        whole, values = jacobian.flatten(2), self.of_weights[key].flatten()
        return torch.stack([(whole / (values + tau)) @ whole.mT for tau in taus])


class _Sum:
    """Sums outer products of rows [t, d] into a factor: whole, or where it is wide by its largest directions."""

    def __init__(self, width: int, rank: int):
        self.rank = width if width <= WIDE else min(rank, width)
        self.whole = torch.zeros(width, width) if width <= WIDE else None
        self.kept = torch.zeros(0, width)  # rows whose outer products sum to what is kept
        self.waiting: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add some rows."""
        rows = rows.cpu()
        if self.whole is not None:
            self.whole += rows.T @ rows
            return
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= WAITING:
            self._reduce()

    def _reduce(self) -> None:
        values, vectors = largest(torch.cat([self.kept, *self.waiting]), self.rank)
        self.kept, self.waiting = values[:, None] * vectors, []

    def factor(self) -> Factor:
        """Return the sum."""
        if self.whole is not None:
            values, vectors = torch.linalg.eigh(self.whole.double())
            return Factor(vectors.T.float(), values.clamp(min=0).float())
        self._reduce()
        norms = self.kept.norm(dim=1)
        return Factor(self.kept / norms.clamp(min=torch.finfo(torch.float32).tiny)[:, None], norms**2)


def largest(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest singular values [q] of rows [t, d], and their right vectors [q, d].

    Subspace iteration from seeded directions, some more than are wanted (Halko, Martinsson and Tropp 2011,
    arXiv:0909.4061, algorithm 4.4): exact where the rows have no more directions than that.
    """
    width = min(rank + 10, *rows.shape)
    start = torch.randn(rows.shape[1], width, generator=torch.Generator().manual_seed(0))
    span = torch.linalg.qr(rows @ start).Q
    for _ in range(4):
        span = torch.linalg.qr(rows @ torch.linalg.qr(rows.T @ span).Q).Q
    _, values, vectors = torch.linalg.svd(span.T @ rows, full_matrices=False)
    return values[:rank], vectors[:rank]


def _by_weight(batch: Gradients) -> Iterator[tuple[str, WeightGradients]]:
    for name, pair in batch.weights.items():
        for side, of in zip(SIDES, pair, strict=True):
            yield f"{name}.{side}", of


# ---- prior and predictive -----------------------------------------------------------------------------------------


def best_precision(eigenvalues: Tensor, squares: float) -> float:
    """Return the prior precision of the highest marginal likelihood.

    Args:
        eigenvalues: of F, not negative.
        squares: |W - W_0|^2, of all weights.

    Raises:
        UserError: F is 0: the training questions say nothing of the weights.
    """
    low, high = math.log(1e-12), math.log(1e12)
    if not float(eigenvalues.sum()) > 0:
        raise UserError("laplace: the loss is flat around this adapter, so its curvature says nothing; train it longer")
    while high - low > 1e-9:
        tau = math.exp((low + high) / 2)
        determined = float((eigenvalues / (eigenvalues + tau)).sum())
        low, high = ((low + high) / 2, high) if determined > tau * squares else (low, (low + high) / 2)
    return math.exp(low)


def covariances(
    batches: Iterator[Gradients], posterior: Kronecker | Diagonal, taus: Sequence[float], p: Predictions
) -> NDArray[np.float64]:
    """Return float64 [taus, N, C, C]: the contrasts' covariance, by each prior precision.

    Args:
        batches: the gradients of N questions.
        posterior: the curvature.
        taus: prior precisions.
        p: what the trained adapter answers to them, of at most C + 1 choices.
    """
    N, C = p.mask.shape[0], p.mask.shape[1] - 1
    found = np.zeros((len(taus), N, C, C))
    for batch in batches:
        total = sum(posterior.inner(key, of.jacobian(), taus) for key, of in _by_weight(batch))
        assert isinstance(total, Tensor)
        width = total.shape[-1]
        found[:, np.array(batch.index), :width, :width] = total.double().cpu().numpy()
    return found


def draw_scores(p: Predictions, covariance: NDArray[np.float64], count: int, seed: int) -> Predictions:
    """Return `count` rows of answers whose contrasts are drawn around one row's.

    Args:
        p: the trained adapter's answers, one row.
        covariance: [N, C, C], of the contrasts.
        count: draws.
        seed: each question has a stream of its own, so a question's draws do not depend on the others asked.
    """
    K = p.mask.shape[1]
    values, vectors = np.linalg.eigh(covariance)  # semidefinite: absent choices have no spread
    # The symmetric root: it keeps the zeros of absent choices where they are.
    roots = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ vectors.transpose(0, 2, 1)
    noise = np.zeros((len(p.question_ids), count, K - 1))
    for n, question in enumerate(p.question_ids):
        own = int(p.mask[n].sum()) - 1
        noise[n, :, :own] = generator(seed, "scores", question).standard_normal((count, own))
    moved = np.einsum("nij,ndj->dni", roots, noise)
    scores = p.log_probs + np.concatenate([np.zeros((*moved.shape[:2], 1)), moved], axis=-1)
    # Dividing by a temperature of 1 normalises over each question's own choices.
    log_probs = measures.apply_temperature(scores, p.mask, 1.0)
    # Nothing but the choices' probabilities is linearised.
    nothing = dict.fromkeys(
        ("scores", "unconditional", "outside_mass", "letter_log_probs", "top_tokens", "top_log_probs")
    )
    return replace(p, log_probs=log_probs, members=p.members * count, **nothing)  # type: ignore[arg-type]
