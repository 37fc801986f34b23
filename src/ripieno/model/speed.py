"""How fast the passes are: real tokens, and their products against what the device's matrix products reach."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ripieno.model.backbone import Backbone

MEASURED_SECONDS = 0.2
MEASURED_TOKENS = 512  # of each product: enough to fill a device


@dataclass
class Meter:
    """Counts what forward and backward passes have read.

    Args:
        backbone: the base.
    """

    backbone: Backbone
    tokens: int = field(default=0, init=False)
    """Real tokens read so far: no padding, and shared ones as often as they were computed."""
    operations: float = field(default=0.0, init=False)
    """Floating-point operations of the base's matrix products at them, two a multiply-add; attention is left out."""

    def note(self, tokens: int, scored: int) -> None:
        """Count a pass; where gradients are recorded, its backward pass too, as large as the forward one.

        Args:
            tokens: that it read.
            scored: places whose logits it made.
        """
        self.tokens += tokens
        # The base is frozen: the backward pass has the inputs' gradients to compute, none of weights.
        self.operations += self.count(tokens, scored) * (2 if torch.is_grad_enabled() else 1)

    def count(self, tokens: int, scored: int) -> float:
        """Return the operations of a forward pass that reads so many tokens, and makes the logits of some."""
        body, head = self._weights
        return 2.0 * (tokens * body + scored * head)

    @cached_property
    def _linear(self) -> tuple[list[Any], Any]:
        """The language model's linear layers, and its output layer apart: None where its class names none."""
        model = self.backbone.model
        head = getattr(model, "get_output_embeddings", lambda: None)()
        return [m for m in model.get_decoder().modules() if isinstance(m, nn.Linear | Conv1D) and m is not head], head

    @cached_property
    def _weights(self) -> tuple[int, int]:
        """Weights of those layers, and of the output layer."""
        body, head = self._linear
        return sum(m.weight.numel() for m in body), 0 if head is None else head.weight.numel()

    @cached_property
    def matrix_rate(self) -> float:
        """Operations a second of plain products of the base's largest layer, measured for a fifth of a second."""
        layers, _ = self._linear
        weight = max((m.weight.mT if isinstance(m, Conv1D) else m.weight for m in layers), key=torch.Tensor.numel)
        x = torch.ones(MEASURED_TOKENS, weight.shape[1], device=weight.device, dtype=weight.dtype)
        with torch.inference_mode():
            nn.functional.linear(x, weight)
            _finish(weight.device)
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < MEASURED_SECONDS:
                nn.functional.linear(x, weight)
                count += 1
            _finish(weight.device)
            seconds = time.perf_counter() - start
        return 2 * MEASURED_TOKENS * weight.numel() * count / seconds


@dataclass
class Timer:
    """The speed since it was made.

    Args:
        meter: of the engine that works.
    """

    meter: Meter
    _start: float = field(default_factory=time.perf_counter, init=False)

    def __post_init__(self) -> None:
        self._tokens, self._operations = self.meter.tokens, self.meter.operations

    def line(self, questions: int) -> dict[str, float]:
        """Return what timing.jsonl says of so many questions (times members) done since."""
        seconds = time.perf_counter() - self._start
        operations = self.meter.operations - self._operations
        return {
            "questions": questions,
            "seconds": seconds,
            "tokens": self.meter.tokens - self._tokens,
            "of_matrix_rate": operations / seconds / self.meter.matrix_rate,
        }

    def said(self, questions: int) -> str:
        """Return the speed in words, for a progress bar."""
        line = self.line(questions)
        per_second = [line[what] / line["seconds"] for what in ("questions", "tokens")]
        return (
            f"{per_second[0]:.1f} questions/s, {per_second[1]:.0f} tokens/s, "
            f"{line['of_matrix_rate']:.0%} of the matrix rate"
        )


def _finish(device: torch.device) -> None:
    """Wait for a GPU, whose work goes on after a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
