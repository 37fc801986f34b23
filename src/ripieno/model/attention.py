"""Attention of a packed stream, as the library's models call it.

Models hand their queries, keys and values to a function that they find by name; ours is told by the keyword `packing`
who sees whom, so no mask of [tokens, tokens] is ever made, and nothing is padded. What it is not told how to compute it
refuses, and the model runs padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from ripieno.model.packing import Packing

NAME = "ripieno_packed"
# Said to every attention function, and without meaning for this one: the keys know their positions already.
_IGNORED = {"position_ids", "cache_position", "layer_idx"}


class NotServedError(Exception):
    """The model asks for attention that is not computed here."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return float [1, T, heads, size], each token's attention over those that it sees.

    Args:
        module: the attention layer; its `layer_idx` numbers its keys and values.
        query: [1, heads, T, size]; `key` and `value` may have fewer heads, each shared by as many queries' heads.
        attention_mask: none is made for this function.
        packing: who sees whom.
        scaling: of the products; 1 / sqrt(size) for None.
        dropout: none: the base is frozen, and in evaluation mode.
        sliding_window: how many tokens back is seen, the token itself among them.
        softcap: c of c * tanh(score / c) (Gemma 2, arXiv:2408.00118).
        s_aux: each head's sink, a score without a value (GPT-OSS, arXiv:2508.10925).
        is_causal: whether a token sees those after it.
        others: what this function does not know.

    Raises:
        NotServedError: something is asked for that is not computed here.
    """
    strange = [name for name, x in others.items() if name not in _IGNORED and x is not None and x is not False]
    strange += ["dropout"] * bool(dropout) + ["is_causal"] * (is_causal is False) + ["packing"] * (packing is None)
    strange += ["attention_mask"] * (attention_mask is not None)
    layer = getattr(module, "layer_idx", None)
    if strange or packing is None or layer is None or getattr(module, "is_causal", True) is False:
        raise NotServedError(", ".join(strange) or "layer_idx")
    if packing.kept is not None:
        packing.kept[layer] = (key, value)
    plain = softcap is None and s_aux is None
    if plain and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return by_runs(packing, layer, query, key, value, scaling, sliding_window)[None], None
    queries, keys, values = (tensor.split(packing.sizes, dim=2) for tensor in (query, key, value))
    outputs = []
    for number, block in enumerate(packing.blocks):
        q, k, v = (_rows(parts[number], block.rows) for parts in (queries, keys, values))
        if block.shared:
            if block.known is not None:
                front = packing.known[block.known][layer]
            else:
                assert block.source is not None
                front = (keys[block.source], values[block.source])
            k, v = (torch.cat([x.expand(block.rows, -1, -1, -1), y], dim=2) for x, y in zip(front, (k, v), strict=True))
        seen = packing.mask(number, sliding_window)
        if plain:
            causal, grouped = seen is None, q.shape[1] != k.shape[1]
            output = scaled_dot_product_attention(q, k, v, seen, is_causal=causal, scale=scaling, enable_gqa=grouped)
        else:
            output = _attention(q, k, v, seen, scaling, softcap, s_aux)
        outputs.append(output.transpose(1, 2).reshape(1, block.tokens, *output.shape[1::2]))
    return torch.cat(outputs, dim=1), None


def _rows(stream: Tensor, rows: int) -> Tensor:
    """Return a block's part [1, heads, rows * length, size] as [rows, heads, length, size]."""
    return stream if rows == 1 else stream[0].unflatten(1, (rows, -1)).transpose(0, 1)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return softmax(cap(q k^T * scaling)) v, written out for what the library's fused function does not know."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if seen is None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1).to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return weights[..., : k.shape[2]] @ v


def by_runs(
    packing: Packing,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Return [T, heads, size], by a GPU's kernel for runs of different lengths: one call for the whole stream."""
    runs = packing.runs()
    known = [of_layers[layer] for of_layers in packing.known]
    k, v = (
        torch.cat([*(pair[n] for pair in known), own], dim=2)[0].transpose(0, 1)[runs.keys]
        for n, own in enumerate((key, value))
    )
    sharing: dict[str, Any] = {}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            sharing["enable_gqa"] = True
        else:  # as in torch 2.11
            k, v = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (k, v))
    found = varlen_attn(
        query[0].transpose(0, 1),
        k,
        v,
        runs.query_ends,
        runs.key_ends,
        runs.longest_query,
        runs.longest_key,
        scale=scaling,
        # The kernel counts the tokens before a query alone.
        window_size=(-1 if window is None else window - 1, 0),
        **sharing,
    )
    assert isinstance(found, Tensor)
    return found


class PackedAttention:
    """Switches a model between its own attention and `attend`."""

    def __init__(self, model: nn.Module):
        AttentionInterface.register(NAME, attend)
        self.configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the model compute its attention by `attend` inside."""
        own = [config._attn_implementation for config in self.configs]
        try:
            for config in self.configs:
                config._attn_implementation = NAME
            yield
        finally:
            for config, name in zip(self.configs, own, strict=True):
                config._attn_implementation = name
