"""Laplace over an adapter: Kronecker factors, marginal likelihood and linearised covariance are bayesian-lora's.

That is the package of the paper's authors (Yang et al. 2024, arXiv:2308.13111). It gets the same adapter, as PEFT reads
it. What it does otherwise, and how that is met:

- It takes the last token of a row for all of them: here questions and choices have one token each.
- It draws one label a batch from the model's answer, where the definition has the mean, sum_k p_k g_k g_k^T. Here each
  question comes once with every label, which its `multinomial` returns, and sqrt(p_k) times the gradient.
- It takes the gradient of a batch's mean loss, so b questions a batch make each one's 1/b: here a batch is a question.
- It divides a factor that it keeps whole by the number of batches (here K N, of N questions), and does not divide one
  that it keeps by its largest directions. As every question's inputs come K times, a whole factor of inputs is X / N
  and one of gradients G / (K N); by directions they are K X and G.
- It predicts with one factor of each kind a weight. Their product is X G / N in both cases, which is ours, and nothing
  is corrected. (Of two whole factors, X G / (K N^2), it would not be.)
- Its covariance is of the choices' scores s_k, ours of the contrasts s_k - s_0.
- Its evidence has other terms beside the determinant than the marginal likelihood has. The last test shows in closed
  form that the definition is the integral and that theirs is not, so ours follows the definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from families import byte_level_tokenizer, tiny_model
from oracles.conftest import program
from ripieno.config import Adapter
from ripieno.methods.laplace import Factor, Kronecker, best_precision, covariances
from ripieno.model.adapters import PEFT_PREFIX, AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.model.jacobian import gradients
from ripieno.model.scoring import Engine
from ripieno.model.trees import TokenTree
from ripieno.predictions import Predictions

# Two float32 passes through two layers, and sums of some hundred products, in orders of their own.
CLOSE = 1e-5
QUESTIONS, CHOICES = (17, 23, 31, 77), (40, 50, 60)
N, K = len(QUESTIONS), len(CHOICES)
TREES = [TokenTree(n, (token,), tuple((c,) for c in CHOICES), (1,) * K, 0) for n, token in enumerate(QUESTIONS)]
RANK = 2
DIRECTIONS = 10  # kept of a wide factor; N inputs and N (K - 1) gradients have fewer
TARGETS = ("v_proj", "o_proj", "down_proj")  # queries and keys of a lone token move nothing
WIDE = {"hidden_size": 128, "intermediate_size": 80}  # so that of ours some factors are whole and some are not

pytestmark = [
    # Of the first layer, whose input needs no gradient; its hook gets what it should.
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's
]

Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Both:
    """One adapter in our stack and in a PEFT model, and the package."""

    engine: Engine
    model: Any
    package: ModuleType

    def ours(self) -> Kronecker:
        return Kronecker.fit(gradients(self.engine, 0, TREES, "sum"), DIRECTIONS)

    def theirs(self, kept: int | None = None) -> Factors:
        """Return their factors of inputs and gradients; with `kept`, so many directions of all wider than the rank."""
        label = 0

        def logits(model: Any, asked: tuple[int, int]) -> Tensor:
            nonlocal label
            token, label = asked
            found = model(input_ids=torch.tensor([[token]])).logits[:, -1, CHOICES]
            weight = found.detach().softmax(-1)[0, label].sqrt()
            found.register_hook(lambda gradient: gradient * weight)
            return found

        asked = [(token, k) for token in QUESTIONS for k in range(K)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "multinomial", lambda probs, count: torch.tensor([[label]]))
            return self.package.calculate_kronecker_factors(
                self.model, logits, asked, n_kfac=kept, lr_threshold=RANK + 1, target_module_keywords=["lora"]
            )

    def prepared(self) -> Factors:
        """Return their factors as they predict with them: the narrow ones' roots, by Cholesky."""
        return self.package.cholesky_decompose_small_factors(self.theirs(DIRECTIONS), RANK + 1, "cpu", torch.float64)

    def log_determinant(self, factors: Factors, s2: Tensor) -> Tensor:
        """Return ln det(I + s2 F): their evidence without its other terms, which are rounded as it rounds them."""
        evidence = self.package.model_evidence(self.model, torch.tensor(0.0), factors, RANK, DIRECTIONS, s2)
        norms = sum(W.norm() for W in self.weights())
        widest = max(side for factor in list(factors.values())[-1] for side in factor.shape)
        return (2 * (evidence - 1 / s2 * norms) + RANK * widest * s2.log()).detach()

    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.model.parameters() if parameter.requires_grad]


@pytest.fixture(scope="module", autouse=True)
def _single_precision() -> Iterator[None]:
    """The other oracles may have left float64 for the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def both(_single_precision: None, tmp_path_factory: pytest.TempPathFactory) -> Both:
    package, peft = program("bayesian_lora"), program("peft")
    model = tiny_model("llama", **WIDE).requires_grad_(False)
    stack = AdapterStack(model, Adapter(targets=TARGETS, rank=RANK, alpha=4), [0])
    stack.initialise(0, 1)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in stack.layers.values():
            layer.B[0].copy_(torch.randn(layer.B[0].shape, generator=draw) * 0.3)
    engine = Engine(Backbone(model, byte_level_tokenizer(), {"model": "tiny", "revision": None}, 512), stack, 100_000)
    folder: Path = tmp_path_factory.mktemp("adapter")
    config, tensors = stack.to_peft(0, "tiny", None)
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    # Eager: torch.func goes through its attention.
    base = tiny_model("llama", **WIDE, attn_implementation="eager")
    return Both(engine, peft.PeftModel.from_pretrained(base, folder, is_trainable=True), package)


def name_of(module: str) -> str:
    """Return what we call a module of theirs."""
    layer, side = module.removeprefix(PEFT_PREFIX).removesuffix(".default").split(".lora_")
    return f"{layer}.{side}"


def dense(factor: Factor) -> Tensor:
    return ((factor.vectors.T * factor.values) @ factor.vectors).double()


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


def answers(engine: Engine) -> Predictions:
    [batch] = gradients(engine, 0, TREES, "sum")
    log_probs = np.empty((1, N, K))
    log_probs[0, list(batch.index)] = batch.log_probs.numpy()
    return Predictions(log_probs, np.ones((N, K), dtype=bool), ("a", "b", "c", "d"), np.zeros(N, dtype=int), (0,))


def test_factors_kept_whole(both: Both) -> None:
    ours, theirs = both.ours(), both.theirs()
    assert {name_of(module) for module in theirs} == set(ours.of_weights)
    for module, (inputs, grads) in theirs.items():
        g, x = ours.of_weights[name_of(module)]
        assert distance(dense(x), N * inputs.double()) < CLOSE
        assert distance(dense(g), N * K * grads.double()) < CLOSE


def test_factors_kept_by_their_largest_directions(both: Both) -> None:
    ours, wide = both.ours(), 0
    for module, (inputs, grads) in both.theirs(DIRECTIONS).items():
        g, x = ours.of_weights[name_of(module)]
        factor, root = (x, inputs / math.sqrt(K)) if module.endswith("lora_A.default") else (g, grads)
        assert root.shape[1] == DIRECTIONS
        assert distance(dense(factor), root.double() @ root.double().T) < CLOSE
        wide += len(factor.values) < len(root)
    assert 0 < wide < len(ours.of_weights)  # of ours, both kinds


@pytest.mark.parametrize("tau", [0.01, 1.0, 100.0])
def test_the_linearised_covariance(tau: float, both: Both) -> None:
    inputs = {"input_ids": torch.tensor(QUESTIONS)[:, None]}
    jacobian, scores = both.package.main.jacobian_mean(
        both.model.eval(), inputs, output_callback=lambda outputs: outputs.logits[:, -1, CHOICES]
    )
    p = answers(both.engine)
    np.testing.assert_allclose(scores.detach().log_softmax(-1), p.log_probs[0], atol=CLOSE)
    double = {name: grads.detach().double() for name, grads in jacobian.items()}
    s2 = torch.tensor(1 / tau, dtype=torch.float64)
    theirs = both.package.variance(SimpleNamespace(**inputs), double, both.prepared(), s2, K, RANK, DIRECTIONS, "cpu")
    contrasts = torch.cat([-torch.ones(K - 1, 1), torch.eye(K - 1)], dim=1).double()
    [ours] = covariances(gradients(both.engine, 0, TREES, "sum"), both.ours(), [tau], p)
    found = contrasts @ theirs.double() @ contrasts.T
    # Both take from the prior's covariance J J^T / tau what the data determine, so they round numbers of its size.
    rows = contrasts @ torch.cat([grads.flatten(2) for grads in double.values()], dim=2)
    assert float((torch.tensor(ours) - found).norm()) < CLOSE * float((rows @ rows.mT / tau).norm())
    assert float(found.norm()) < 0.9 * float((rows @ rows.mT / tau).norm())  # and the data determine some


def test_the_marginal_likelihood_and_where_it_is_highest(both: Both) -> None:
    """ln Z = -tau |W|^2 / 2 - 1/2 ln det(I + F / tau) and a constant, of their determinant and of our eigenvalues."""
    eigenvalues, factors = both.ours().eigenvalues(), both.prepared()
    squares = sum(float((W.double() ** 2).sum()) for W in both.weights())
    for tau in (0.01, 1.0, 100.0):
        theirs = both.log_determinant(factors, torch.tensor(1 / tau, dtype=torch.float64))
        assert distance(torch.log1p(eigenvalues / tau).sum(), theirs) < CLOSE
    best = best_precision(eigenvalues, squares)

    def evidence(tau: float) -> float:
        return -tau * squares / 2 - float(both.log_determinant(factors, torch.tensor(1 / tau, dtype=torch.float64))) / 2

    assert all(evidence(best) > evidence(best * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_their_evidence_is_not_the_integral_and_ours_is() -> None:
    """One weight w of prior N(0, s2), likelihood exp(-h (w - c)^2 / 2): Laplace is exact, the integral Gaussian.

        Z = int N(w; 0, s2) exp(-h (w - c)^2 / 2) dw = (1 + h s2)^-1/2 exp(-c^2 / (2 (s2 + 1/h)))

    which is highest at s2 = c^2 - 1/h. With the mode w = c h s2 / (1 + h s2) the definition is the same number,
    ln Z = -h (w - c)^2 / 2 - w^2 / (2 s2) - 1/2 ln(1 + h s2). Theirs is LL + |w| / s2 + 1/2 (ln(1 + h s2) - ln s2):
    of other signs, without the square, and rising without end as s2 falls.
    """
    package = program("bayesian_lora")
    h, c = 2.0, 1.5
    model = torch.nn.Module()
    model.lora = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    root = torch.tensor([[math.sqrt(h)]], dtype=torch.float64)
    grid = np.geomspace(1e-3, 1e3, 601)
    exact, theirs = [], []
    for s2 in grid:
        exact.append(-math.log1p(h * s2) / 2 - c**2 / (2 * (s2 + 1 / h)))
        w = c * h * s2 / (1 + h * s2)
        fit = -h * (w - c) ** 2 / 2
        definition = fit - w**2 / (2 * s2) - math.log1p(h * s2) / 2
        assert definition == pytest.approx(exact[-1], abs=1e-12)
        with torch.no_grad():
            model.lora.fill_(w)
            s2 = torch.tensor(s2, dtype=torch.float64)
            of_one = {"one": (torch.ones_like(root), root)}
            theirs.append(float(package.model_evidence(model, torch.tensor(fit), of_one, 1, 1, s2)))
    assert grid[np.argmax(exact)] == pytest.approx(c**2 - 1 / h, rel=0.02)
    assert np.argmax(theirs) == 0
    # The precision that we would take is the one where tau w^2 = h / (h + tau), w being the mode at that tau.
    tau = 1 / (c**2 - 1 / h)
    assert best_precision(torch.tensor([h]), (c * h / (h + tau)) ** 2) == pytest.approx(tau, rel=1e-6)
