"""A distribution of A in place of one value: Bayes by backprop of the adapter (BLoB, arXiv:2406.11675).

    q(A) = N(M, Omega^2),   Omega = G^2,   prior N(0, s^2)

A step of the loss is taken under one draw A = M + G^2 eps, the same for its whole batch. It moves A by a constant,
so the gradient of A is that of M, and G's is 2 G eps times it. Then comes one plain gradient step of the divergence

    KL(q || prior) = sum  ln(s / Omega) + (Omega^2 + M^2) / (2 s^2) - 1/2
    dKL/dM = M / s^2,   dKL/dG = 2 G^3 / s^2 - 2 / G

an epoch's share of which is divided among its steps. B stays a point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ripieno.config import Variational
from ripieno.model.adapters import AdapterStack, damaged
from ripieno.seeds import derive

STD_FILE = "adapter_std.safetensors"  # beside the PEFT folder's two files, which hold the means


def noise(stack: AdapterStack, seed: int) -> dict[str, Tensor]:
    """Return standard normal numbers in the shape of every layer's A [r, in], each from a stream of its own."""
    found = {}
    for name, layer in stack.layers.items():
        generator = torch.Generator().manual_seed(derive(seed, layer.key) & (2**63 - 1))
        found[name] = torch.randn(layer.A[0].shape, generator=generator).to(layer.A[0].device)
    return found


class Posterior:
    """What some positions of a stack are trained with beside A (which holds M) and B: their G.

    Args:
        stack: whose A is a distribution.
        settings: prior and start.
    """

    def __init__(self, stack: AdapterStack, settings: Variational):
        self.stack = stack
        self.settings = settings
        start = math.sqrt(settings.initial_std)
        self.roots = [
            {name: torch.full_like(layer.A[p], start).requires_grad_() for name, layer in stack.layers.items()}
            for p in range(len(stack.members))
        ]
        self._drawn: dict[int, dict[str, Tensor]] = {}

    def _own(self, position: int, name: str) -> Tensor:
        """Return [r, 1], the rows of a layer's A that are the member's own: others are 0 and stay 0."""
        return (self.stack.layers[name].A[position] != 0).any(dim=1, keepdim=True)

    def parameters(self, position: int) -> list[Tensor]:
        """Return a member's G of every layer, in the stack's order."""
        return list(self.roots[position].values())

    @torch.no_grad()
    def draw(self, position: int, seed: int) -> None:
        """Let passes use a draw of a member's A, until `gradients`."""
        self._drawn[position] = noise(self.stack, seed)
        for name, layer in self.stack.layers.items():
            std = self.roots[position][name] ** 2 * self._own(position, name)
            layer.shift[position] = std * self._drawn[position][name]

    @torch.no_grad()
    def gradients(self, position: int) -> None:
        """Give G its gradient of the loss, from A's, and let passes use M again."""
        drawn = self._drawn.pop(position)
        for name, layer in self.stack.layers.items():
            del layer.shift[position]
            root, of_A = self.roots[position][name], layer.A[position].grad
            if of_A is not None:  # else no row came to the layer
                root.grad = 2 * root * drawn[name] * of_A

    @torch.no_grad()
    def diverge_less(self, position: int, rate: float) -> None:
        """Take a gradient step of the divergence from the prior.

        Args:
            position: whose.
            rate: its learning rate, of this step's share.
        """
        variance = self.settings.prior_std**2
        for name, layer in self.stack.layers.items():
            mean, root = layer.A[position], self.roots[position][name]
            root -= rate * (2 * root**3 / variance - 2 / root) * self._own(position, name)
            mean -= rate * mean / variance

    def std(self, position: int) -> bytes:
        """Return the file of a member's standard deviations, [r, in] by layer."""
        roots = self.roots[position].items()
        tensors = {name: (root.detach() ** 2 * self._own(position, name)).cpu() for name, root in roots}
        return safetensors.torch.save(tensors, {"format": "pt"})


def read_std(folder: Path) -> Mapping[str, Tensor]:
    """Read the standard deviations of a member's A, [r, in] by layer, from beside its adapter.

    Raises:
        EnvironmentFault: the file is missing or damaged.
    """
    try:
        return dict(safetensors.torch.load_file(folder / STD_FILE))
    except (OSError, safetensors.SafetensorError) as error:
        raise damaged(folder / STD_FILE, error) from error
