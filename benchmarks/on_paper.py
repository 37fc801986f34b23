"""What a 7B and a 70B base need in training, on paper: one base and M adapters against M copies.

    python benchmarks/on_paper.py

Nothing is measured, and no weight is made: the shapes are those that Llama-2-7B and Llama-2-70B were published with,
as transformers models on torch's meta device, so that parameters are counted exactly. What a pass keeps for its
backward pass is counted the same way: the real engine lays out and runs a training pass on that device, and every
tensor that autograd saves is added up, once each. In place of the attention stands what a GPU's kernel keeps: queries,
keys, values and the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from ripieno.config import Adapter, Compute
from ripieno.ensemble import decide
from ripieno.model import attention
from ripieno.model.adapters import AdapterStack
from ripieno.model.attention import NAME
from ripieno.model.backbone import Backbone
from ripieno.model.packed import PackedEngine
from ripieno.model.packing import lay_out
from ripieno.model.trees import TokenTree

SHAPES = {
    "Llama-2-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "Llama-2-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
MEMBERS = (5, 50)
BATCH, TOKENS, CHOICES = 8, 100, 4  # questions a step, tokens of each, and letters to choose from
ADAPTER = Adapter(targets=("q_proj", "v_proj"), rank=8)


class Kernel(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps, but for one number a head and token."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Take the place of the attention."""
    out: Tensor = Kernel.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2), None


@dataclass(frozen=True)
class Needs:
    """Bytes.

    Args:
        parameters: of the base, a number; two bytes each in bfloat16.
        adapter: of one member's float32 weights; its gradient takes as much, its moments twice.
        token: what a pass keeps of each of its tokens.
    """

    parameters: int
    adapter: int
    token: float

    def of(self, members: int, in_pass: int) -> dict[str, float]:
        """Return what takes how much, for so many members over one base, of which some share a pass."""
        return {
            "base": 2.0 * self.parameters,
            "adapters": float(members * self.adapter),
            "moments": 2.0 * members * self.adapter,
            "gradients": float(in_pass * self.adapter),
            "pass": in_pass * BATCH * TOKENS * self.token,
        }


def needs(shape: dict[str, int]) -> Needs:
    """Count a base's needs."""
    with torch.device("meta"):
        settings = {"vocab_size": 32000, "tie_word_embeddings": False} | shape
        model = LlamaForCausalLM(LlamaConfig(**settings))
    model = model.to(torch.bfloat16).requires_grad_(False).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    stack = AdapterStack(model, ADAPTER, [0])
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}  # of base and adapter
    engine = PackedEngine(Backbone(model, None, {}, None), stack)
    adapter = sum(parameter.nbytes for parameter in stack.parameters(0))
    saved: dict[int, Tensor] = {}  # kept, so that no storage's number is given again

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    letters = tuple((k,) for k in range(CHOICES))
    trees = [[TokenTree(n, tuple(range(n, n + TOKENS)), letters, (1,) * CHOICES, 0) for n in range(BATCH)]]
    stream = lay_out(trees, [[0] * BATCH], torch.device("meta"))
    AttentionInterface.register(NAME, attend)
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            logits = engine._logits([0], stream, trees, [0])
            torch.log_softmax(logits, dim=-1)
    finally:
        AttentionInterface.register(NAME, attention.attend)
    kept = sum(tensor.untyped_storage().nbytes() for number, tensor in saved.items() if number not in own)
    return Needs(parameters, adapter, kept / (BATCH * TOKENS))


def gib(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:,.1f}" if count >= 2**30 else f"{count / 2**30:.2f}"


def lines() -> Iterator[str]:
    """Yield the table as Markdown, in GiB."""
    heads = ("base", "M", "members a pass", "base", "adapters", "moments", "gradients", "pass", "in all", "M copies")
    yield "| " + " | ".join([*heads, "ratio"]) + " |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    facts = []
    for name, shape in SHAPES.items():
        of_base = needs(shape)
        facts.append(
            f"{name}: {of_base.parameters:,} parameters; an adapter has {of_base.adapter // 4:,}; a pass keeps "
            f"{of_base.token / 2**20:.2f} MiB a token."
        )
        alone = sum(of_base.of(1, 1).values())
        for M in MEMBERS:
            P = decide(Compute(), torch.device("cuda"), M, BATCH * TOKENS).members_per_pass
            assert isinstance(P, int)
            parts = of_base.of(M, P)
            total = sum(parts.values())
            cells = [name, str(M), str(P), *map(gib, parts.values()), gib(total), gib(M * alone)]
            yield "| " + " | ".join([*cells, f"{M * alone / total:.1f}"]) + " |"
    yield ""
    yield from facts


if __name__ == "__main__":
    for line in lines():
        print(line)
