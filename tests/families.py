"""Tiny random models of each supported family, and tokenizers trained on a few sentences."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "Question: Where would you put a plant? Answer: near a window of the house",
    "The following are multiple choice questions (with answers) about New York City and New York.",
    "Q: Which animal has feathers?\nAnswer Choices:\n(a) a cat\n(b) a bird\n(c) a fish\nA: (b).",
    "Choices:\n- yes\n- no\nAnswer: it depends on the weather, the season and the time of the day",
    "A. one\nB. two\nC. three\nD. four\nE. five",
    *[f"Answer: {letter}" for letter in "ABCDE"],  # so that each of these letters becomes one token, and no other
]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 400}
DECODER = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 512}

# Windows of 8 tokens, so that the questions of the tests do not fit into one.
FAMILIES: dict[str, dict] = {
    "llama": DECODER,
    "mistral": {**DECODER, "sliding_window": 8},
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 8},
    "gemma": {**DECODER, "head_dim": 8},
    "gemma2": {**DECODER, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **DECODER,
        "head_dim": 8,
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": DECODER,
    "phi3": {**DECODER, "pad_token_id": 0},
    "gpt_neox": {**SMALL, "intermediate_size": 48, "max_position_embeddings": 512},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "n_positions": 512},
    "olmo2": DECODER,
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 512, "init_std": 0.2},
    # Attention sinks and experts; scaled logits and attention; a parallel block with windows; its own attention.
    "gpt_oss": {
        **DECODER,
        "head_dim": 8,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granite": {**DECODER, "logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "cohere2": {
        **DECODER,
        "sliding_window": 8,
        "logit_scale": 0.5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "falcon": {**SMALL, "alibi": False, "new_decoder_architecture": False, "multi_query": True},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 400, "state_size": 4},
}


def tiny_model(family: str, seed: int = 0, **changes: object) -> torch.nn.Module:
    """Return a random float32 model, in evaluation mode.

    Its weights are ten times as large as is usual, so that attention is not flat and every mistake in a mask or a
    position moves the answers by far more than the rounding that the tests allow.
    """
    torch.manual_seed(seed)
    settings = {**FAMILIES[family], "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2, **changes}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32).eval()


@cache
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, as GPT-2, Llama 3 and Qwen have: no token before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@cache
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Return a SentencePiece-like BPE, as Llama 2 and Mistral have: a beginning-of-text token, marks for spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False
    )
    # Line by line, as SentencePiece trains: a line break is then a byte of its own and joins nothing.
    tokenizer.train_from_iterator([line for text in CORPUS * 3 for line in text.split("\n")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_tiny(folder: Path, family: str = "llama", seed: int = 0) -> Path:
    """Write a tiny model with a byte-level tokenizer, as a user's local folder."""
    tiny_model(family, seed).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder
