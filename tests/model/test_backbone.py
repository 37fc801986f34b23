"""The base: what can be loaded, and one line for what cannot."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from packaging.requirements import Requirement
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

import ripieno
from families import FAMILIES, byte_level_tokenizer, save_tiny, tiny_model
from ripieno.config import Adapter, Base
from ripieno.errors import EnvironmentFault, UserError
from ripieno.model import backbone
from ripieno.model.adapters import AdapterStack, default_targets
from ripieno.model.backbone import load, locate
from ripieno.model.scoring import Engine


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RIPIENO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(model: Path | str) -> str:
    """Return the message of a base that cannot be loaded: always one line."""
    with pytest.raises(UserError) as caught:
        load(Base(model=str(model)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_loaded_frozen_and_in_evaluation_mode(tiny: Path, dtype: Any) -> None:
    base = load(Base(model=str(tiny), dtype=dtype))
    weight = tiny_model("llama").lm_head.weight
    assert torch.equal(base.model.lm_head.weight, weight.to(getattr(torch, dtype)))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.tokenizer("a bird").input_ids == byte_level_tokenizer()("a bird").input_ids
    assert base.limit == 512
    assert base.device == torch.device("cpu")
    assert base.accepts("logits_to_keep")
    assert not base.accepts("surprise")
    sha256 = backbone.sha256_of_folder(tiny)
    own = {"model": str(tiny), "revision": None, "sha256": sha256, "dtype": dtype, "trust_remote_code": False}
    assert base.identity == own


def test_the_identity_is_what_the_files_hold_not_where_they_lie(tiny: Path, tmp_path: Path) -> None:
    first = backbone.sha256_of_folder(tiny)
    assert backbone.sha256_of_folder(save_tiny(tmp_path / "copy")) == first
    (tmp_path / "copy" / "README.md").write_text("says nothing of what is computed")
    assert backbone.sha256_of_folder(tmp_path / "copy") == first
    assert backbone.sha256_of_folder(save_tiny(tmp_path / "other", seed=1)) != first


def test_a_model_without_a_longest_input_has_no_limit(tmp_path: Path) -> None:
    assert load(Base(model=str(save_tiny(tmp_path / "bloom", "bloom")))).limit is None
    assert load(Base(model=str(save_tiny(tmp_path / "gpt2", "gpt2")))).limit == 512


def test_of_a_model_that_also_reads_images_the_language_model_is_used(tmp_path: Path) -> None:
    """Gemma 3 from 4B on: its settings are a part of the config, and its image tower has a q_proj and v_proj too."""
    text = {**FAMILIES["gemma3_text"], "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**tower, "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    base = load(Base(model=str(tmp_path)))
    assert base.limit == 512
    stack = AdapterStack(base.model, Adapter(targets=default_targets(base.model)), (0,))
    assert [name.partition("layers.")[0] for name in stack.layers] == ["model.language_model."] * 4
    engine = Engine(base, stack, 1024)
    engine.probe()  # compares with whole sequences
    assert engine.packed


def test_what_is_no_model_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    assert "no folder, no .gguf file" in refused(tmp_path / "absent")
    assert "no folder, no .gguf file" in refused("absent")
    (tmp_path / "empty").mkdir()
    assert "no safetensors weights" in refused(tmp_path / "empty")
    (tiny / "config.json").unlink()
    assert "cannot be loaded as a causal language model" in refused(tiny)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ("num_attention_heads", 0, "zero"),
        ("hidden_size", 64, "cannot be loaded as a causal language model"),
        (
            "auto_map",
            {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
            "base.trust_remote_code true would run",
        ),
    ],
)
def test_whatever_the_library_raises_is_one_line(tiny: Path, key: str, value: object, said: str) -> None:
    """A package that is not there, a config that trips it, weights of other shapes, code beside the model."""
    path = tiny / "config.json"
    own = {"model_type": "own"} if key == "auto_map" else {}
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value, **own}))
    assert said in refused(tiny)


def test_a_full_disk_is_not_the_files_fault(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    with pytest.raises(EnvironmentFault, match=r"models: the float32 copy of .* cannot be written \(.*No space left"):
        load(Base(model=str(tmp_path / "tiny.gguf")))
    assert not list((empty_cache / "models").glob("*tiny*/"))


def test_pickled_weights_are_never_read(tiny: Path) -> None:
    torch.save(tiny_model("llama").state_dict(), tiny / "pytorch_model.bin")
    (tiny / "model.safetensors").unlink()
    assert "pickled weights are never read" in refused(tiny)


def test_damaged_weights_are_refused_in_one_line(tiny: Path) -> None:
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EnvironmentFault, match=r"its weights are damaged \(.*\); take them again") as caught:
        load(Base(model=str(tiny)))
    assert "\n" not in str(caught.value)


# The hub, never asked


def test_a_hub_id_without_a_network_is_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "'nobody/nothing': no folder here, and not on the hub" in refused("nobody/nothing")
    assert "'no body/nothing': no folder here, and not on the hub" in refused("no body/nothing")
    assert "no folder, no .gguf file, and no hub id" in refused("a/b/c")


# GGUF


def write_gguf(path: Path) -> torch.nn.Module:
    """Write a tiny Llama as llama.cpp would, in float32, and return it."""
    model = tiny_model("llama")
    config, tokenizer = model.config, byte_level_tokenizer()
    tokens = [tokenizer.convert_ids_to_tokens(n) for n in range(config.vocab_size)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def add(name: str, weight: Tensor) -> None:
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(weight.detach().numpy()))

    add("token_embd", model.model.embed_tokens.weight)
    add("output_norm", model.model.norm.weight)
    add("output", model.lm_head.weight)
    for n, layer in enumerate(model.model.layers):
        for theirs, name in names.items():
            weight = layer.get_submodule(theirs).weight
            if name in heads:  # llama.cpp turns pairs of neighbours, the library halves
                weight = weight.unflatten(0, (heads[name], 2, -1)).transpose(1, 2).flatten(0, 2)
            add(f"blk.{n}.{name}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_gguf_file_is_the_model_it_was_made_from_and_converted_once(tmp_path: Path, empty_cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    model = write_gguf(path)
    base = load(Base(model=str(path)))
    tokens = torch.tensor([byte_level_tokenizer()("Where would you put a plant?").input_ids])
    assert base.tokenizer("Where would you put a plant?").input_ids == tokens[0].tolist()
    # The same float32 weights, and a rotary base of 10,000 in float32 either way.
    torch.testing.assert_close(base.model(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-5, rtol=0)
    assert base.limit == 512
    before = contents(empty_cache)
    assert load(Base(model=str(path))).identity == base.identity
    assert contents(empty_cache) == before
    assert not list((empty_cache / "models").glob(".*"))  # nothing half made is left
    # Another version of the library makes the same base of it.
    made = [file.read_text() for file in (empty_cache / "models").glob("*/*.json")]
    assert made
    assert not any(transformers.__version__ in text for text in made)


def test_the_declared_packages_are_enough(tmp_path: Path, empty_cache: Path) -> None:
    """As where the wheel was installed alone: without what the developers' extras bring."""
    for package in declared("ripieno"):
        for top in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            place = tmp_path / "installed" / top
            place.parent.mkdir(exist_ok=True)
            if not place.exists():
                place.symlink_to(Path(str(package.locate_file(top))))
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    code = (
        "import importlib, pkgutil, sys, ripieno\n"
        "modules = [m.name for m in pkgutil.walk_packages(ripieno.__path__, 'ripieno.')]\n"
        "found = {name: importlib.import_module(name) for name in modules if not name.startswith('ripieno.serving')}\n"
        "found['ripieno.model.backbone'].load(found['ripieno.config'].Base(model=sys.argv[1]))"
    )
    paths = f"{tmp_path / 'installed'}:{Path(ripieno.__file__).parents[1]}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, path], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def declared(name: str) -> list[Distribution]:
    """Return a package and those that it needs, whatever else is installed."""
    found: dict[str, Distribution] = {}
    left = [name]
    while left:
        package = distribution(left.pop())
        if package.name not in found:
            found[package.name] = package
            needs = map(Requirement, package.requires or ())
            left += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return list(found.values())


def test_gguf_files_that_are_missing_or_damaged_are_refused_in_one_line(tmp_path: Path, empty_cache: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.gguf")
    path = tmp_path / "damaged.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:20_000])
    assert "cannot be read as a causal language model" in refused(path)
    path.write_bytes(b"no GGUF at all")
    assert "cannot be read as a causal language model" in refused(path)
    assert not [entry for entry in (empty_cache / "models").iterdir() if entry.is_dir()]


# The embedded default


def test_the_embedded_model_is_converted_once_and_loads_from_the_cache() -> None:
    folder, revision = locate(Base())
    assert revision is None
    before = contents(folder)
    base = load(Base())
    assert contents(folder) == before
    assert base.identity["model"] == "embedded:SmolLM2-135M-Instruct"
    assert len(base.identity["sha256"]) == 64
    assert base.limit == 8192
    assert sum(parameter.numel() for parameter in base.model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}
    with torch.inference_mode():
        tokens = base.tokenizer("The capital of France is", return_tensors="pt").input_ids
        assert base.tokenizer.decode(base.model(input_ids=tokens).logits[0, -1].argmax()) == " Paris"


def test_an_unknown_embedded_name_lists_the_known_one() -> None:
    assert refused("embedded:GPT-5").endswith("the embedded model is embedded:SmolLM2-135M-Instruct")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux which files are mapped")
def test_weights_are_mapped_from_their_file_so_that_processes_share_them(tiny: Path) -> None:
    loaded = load(Base(model=str(tiny)))
    assert str(tiny / "model.safetensors") in Path("/proc/self/maps").read_text()
    assert loaded.model.dtype == torch.float32
