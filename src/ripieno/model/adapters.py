"""Stacked LoRA: M members' low-rank updates over one frozen model, and PEFT's folders in and out.

W x + scale * B_m A_m x  (LoRA, arXiv:2106.09685), for every member m in the running pass at once. Members share the
base's forward and nothing else: each has its own parameters, so its own gradients, optimizer and stop.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ripieno import seeds
from ripieno.config import Adapter, explain, in_turn
from ripieno.errors import EnvironmentFault, UserError
from ripieno.model.hub import snapshot
from ripieno.userfiles import quoted, short

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(/\w[\w.-]*)?")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
FUSED_ATTENTION = ("query_key_value", "qkv_proj", "c_attn", "Wqkv", "in_proj")
PEFT_PREFIX = "base_model.model."
NOT_PLAIN = ("use_dora", "alora_invocation_tokens", "rank_pattern", "alpha_pattern", "modules_to_save")
# Starts that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) take what they put into A and B out
# of its weights, so that such an adapter belongs to a base that nobody else has.
BESIDE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva", "mica")
# A router decides which experts run, an expert sees few tokens: neither is a place for an adapter by default.
_SPARSE_PARTS = {"gate", "router", "experts", "shared_expert_gate"}
MERGED_BYTES = 2**30  # largest copy of the targeted weights that evaluation makes to merge an update into


class _Pass:
    """What the wrapped layers must know of the running forward pass."""

    def __init__(self) -> None:
        self.members: tuple[int, ...] = ()
        self.token_keys: Tensor | None = None  # int64 [rows, tokens]; None where there is no dropout
        self.counts: tuple[int, ...] | None = None  # tokens of each member; None where all have as many
        self.taps: dict[StackedLinear, Tap] | None = None  # filled by a pass that records gradients a token
        self.merged: int | None = None  # the member whose update is merged into copies of the weights


class Tap(NamedTuple):
    """What a member's update of one layer computed at T tokens: x, A x and B A x."""

    x: Tensor  # [T, in], outside the graph
    z: Tensor  # [T, r]
    u: Tensor  # [T, out], before it is scaled


class StackedLinear(nn.Module):
    """A frozen linear layer with M low-rank updates: A_m [r, in] and B_m [out, r], float32.

    Tokens of the input are ordered by member: with P members in the pass, the first 1/P of them are the first member's,
    or as many as the pass says.
    """

    def __init__(
        self, base: nn.Module, members: int, rank: int, scale: float, dropout: float, name: str, running: _Pass
    ):
        super().__init__()
        inside, out = _features(base)
        device = next(base.parameters()).device
        self.base = base
        self.scale = scale
        self.dropout = dropout
        self.running = running
        self.key = seeds.key(name)
        self.merged: Tensor | None = None
        self.shift: dict[int, Tensor] = {}  # what a member's A is moved by, outside the graph (training.variational)
        self.A = nn.ParameterList(nn.Parameter(torch.zeros(rank, inside, device=device)) for _ in range(members))
        self.B = nn.ParameterList(nn.Parameter(torch.zeros(out, rank, device=device)) for _ in range(members))

    def forward(self, x: Tensor) -> Tensor:
        """Return the base's output and each running member's update: the input's shape but for its last dimension."""
        members = self.running.members
        if self.merged is not None and members == (self.running.merged,) and not torch.is_grad_enabled():
            return self._of_merged(x)
        y: Tensor = self.base(x)
        if not members:
            return y
        flat = x.reshape(-1, x.shape[-1]).float()
        if self.dropout and self.running.token_keys is not None:
            keys = self.running.token_keys.reshape(-1, 1)
            flat = flat * keep_mask(keys ^ self.key, x.shape[-1], self.dropout) / (1 - self.dropout)
        wide = y.reshape(-1, y.shape[-1]).float()
        if self.running.taps is not None:
            [m] = members
            z = flat @ self.A[m].mT
            u = z @ self.B[m].mT
            self.running.taps[self] = Tap(flat.detach(), z, u)
            return (wide + self.scale * u).to(y.dtype).view(y.shape)
        # One fused product and sum, y + scale * (x A^T) B^T: less traffic than a product, a scaling and a sum.
        counts = self.running.counts or (len(flat) // len(members),) * len(members)
        if len(set(counts)) > 1:
            parts = zip(members, wide.split(counts), flat.split(counts), strict=True)
            update = torch.cat(
                [torch.addmm(w, f @ self._inside(m).mT, self.B[m].mT, alpha=self.scale) for m, w, f in parts]
            )
        else:
            A, B = (_stacked([of(m) for m in members]) for of in (self._inside, self.B.__getitem__))
            of_members = [tensor.view(len(members), -1, tensor.shape[-1]) for tensor in (wide, flat)]
            update = torch.baddbmm(of_members[0], torch.bmm(of_members[1], A.mT), B.mT, alpha=self.scale)
        return update.to(y.dtype).view(y.shape)

    def _inside(self, m: int) -> Tensor:
        shift = self.shift.get(m)
        return self.A[m] if shift is None else self.A[m] + shift

    def merge(self, position: int) -> None:
        """Make a copy of the base's weight with a member's update in it; the base's own stays as it is."""
        A, B = self.A[position].detach(), self.B[position].detach()
        weight: Any = self.base.weight
        factors = (A.mT, B.mT) if isinstance(self.base, Conv1D) else (B, A)
        self.merged = torch.addmm(weight, *factors, alpha=self.scale)

    def _of_merged(self, x: Tensor) -> Tensor:
        assert self.merged is not None
        bias: Any = self.base.bias
        return nn.functional.linear(x, self.merged.mT if isinstance(self.base, Conv1D) else self.merged, bias)


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """Return the running members' weights, stacked: [P, ...]; one member's without a copy."""
    return weights[0][None] if len(weights) == 1 else torch.stack(list(weights))


def keep_mask(keys: Tensor, width: int, dropout: float) -> Tensor:
    """Return which inputs dropout keeps, a pure function of the keys.

    Each element's place is hashed to 53 bits (splitmix64's finaliser, doi:10.1145/2660193.2660195) and compared with
    the rate, so that the mask is the same in any batch, grouping, device or resumed run.

    Args:
        keys: int64 [..., 1], one a token.
        width: elements a token.
        dropout: share to drop.

    Returns:
        bool [..., width].
    """
    golden = -7046029254386353131  # 2^64 / golden ratio, as a signed integer
    z = keys + golden * torch.arange(1, width + 1, device=keys.device)
    z = (z ^ _shift(z, 30)) * -4658895280553007687
    z = (z ^ _shift(z, 27)) * -7723592293110705685
    z = z ^ _shift(z, 31)
    return _shift(z, 11) >= int(dropout * 2**53)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift right without the sign: int64 tensors shift arithmetically."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class AdapterStack:
    """The M members' adapters of one model, whose targeted layers it replaces by stacked ones.

    Args:
        model: the frozen base; changed in place.
        config: rank, alpha, targets, dropout, and what of them is a member's own.
        members: the ensemble's numbers of the members held; arrays and passes count them from 0.

    Raises:
        UserError: a target fits no layer, or a member's own fits none that is adapted.
    """

    def __init__(self, model: nn.Module, config: Adapter, members: Sequence[int]):
        self.config = config
        self.members = tuple(members)
        self.running = _Pass()
        self.layers: dict[str, StackedLinear] = {}
        for name in target_modules(model, config.targets):
            parent, _, last = name.rpartition(".")
            layer = StackedLinear(
                model.get_submodule(name), len(members), config.rank, config.scale, config.dropout, name, self.running
            )
            setattr(model.get_submodule(parent), last, layer)
            self.layers[name] = layer
        for target in (target for of_member in config.member_targets for target in of_member):
            if not any(_fits(name, (target,)) for name in self.layers):
                raise UserError(
                    f"adapter.member_targets: {target!r} is not among adapter.targets, which are "
                    f"{_last_parts(self.layers)}"
                )
        # PEFT matches by last part; whole names only where those would take in more layers than are adapted here.
        last_parts = sorted({name.rpartition(".")[2] for name in self.layers})
        fitting = [name for name, m in model.named_modules() if _fits(name, tuple(last_parts))]
        self.targets = last_parts if len(fitting) == len(self.layers) else sorted(self.layers)

    @contextmanager
    def running_pass(
        self, members: Sequence[int], token_keys: Tensor | None = None, counts: tuple[int, ...] | None = None
    ) -> Iterator[None]:
        """Let forward passes inside use these members (by position); none of them is the base itself.

        Args:
            members: P positions.
            token_keys: int64 [rows, tokens], what dropout masks are drawn by; None for none.
            counts: tokens of each member, in their order; None where all have as many.
        """
        running = self.running
        running.members, running.token_keys, running.counts = tuple(members), token_keys, counts
        try:
            yield
        finally:
            running.members, running.token_keys, running.counts = (), None, None

    @contextmanager
    def tapped(self) -> Iterator[dict[StackedLinear, Tap]]:
        """Let a pass inside, of one member and with gradients, record what each layer computed at each token."""
        self.running.taps = {}
        try:
            yield self.running.taps
        finally:
            self.running.taps = None

    @contextmanager
    def merged(self, position: int) -> Iterator[None]:
        """Let passes inside of this member alone run on copies of the targeted weights with its update merged in.

        Only where that is exact, on float32 weights: a bfloat16 sum would lose most of a small update. Where the copies
        would be larger than `MERGED_BYTES`, the low-rank path stays; in layers that wide it costs next to nothing.
        """
        weights: list[Any] = [layer.base.weight for layer in self.layers.values()]
        plain = all(type(layer.base) in (nn.Linear, Conv1D) for layer in self.layers.values())
        exact = plain and all(weight.dtype == torch.float32 for weight in weights)
        try:
            if exact and sum(weight.nbytes for weight in weights) <= MERGED_BYTES:
                with torch.no_grad():
                    for layer in self.layers.values():
                        layer.merge(position)
                self.running.merged = position
            yield
        finally:
            self.running.merged = None
            for layer in self.layers.values():
                layer.merged = None

    def digest(self, position: int) -> str:
        """Return the sha256 of a member's weights and of what scales them."""
        found = hashlib.sha256(repr((self.config.scale, self.targets)).encode())
        for parameter in self.parameters(position):
            found.update(parameter.detach().cpu().numpy().tobytes())
        return found.hexdigest()

    def parameters(self, position: int) -> list[nn.Parameter]:
        """Return a member's parameters, in a fixed order: each layer's A, then its B."""
        return [p for layer in self.layers.values() for p in (layer.A[position], layer.B[position])]

    def put(self, position: int, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take a member's weights: the A [r, in] and B [out, r] of every layer, by its name."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                for target, weight in zip((layer.A[position], layer.B[position]), weights[name], strict=True):
                    target.copy_(weight)

    def initialise(self, position: int, seed: int, spread: float = 1.0) -> None:
        """Put a member where its training starts (`start`)."""
        self.put(position, self.start(self.members[position], seed, spread))

    def start(self, member: int, seed: int, spread: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
        """Draw a member's A as PEFT does (Kaiming uniform with a = sqrt(5): +-1/sqrt(in)); its B is zero.

        Every layer draws from a stream of its own, so a layer's start does not depend on which others are targeted.

        Args:
            member: which has its own rank and layers, where those differ.
            seed: of its draws.
            spread: times the bound of the draws.

        Returns:
            The A [r, in] and B [out, r] of every layer, on the CPU.
        """
        rank = in_turn(self.config.member_ranks, member, self.config.rank)
        own = in_turn(self.config.member_targets, member, tuple(self.layers))
        found = {}
        for name, layer in self.layers.items():
            # The rows of A beyond a member's rank, and all of them in a layer that is not its own, start at zero and
            # stay there: with s = scale, dB = s g (A x)^T and dA = s B^T g x^T are zero where A's row and B's column
            # are, and so are the gradient of ||B A||^2, AdamW's moments and its decay of a weight of zero.
            A, B = torch.zeros(layer.A[0].shape), torch.zeros(layer.B[0].shape)
            if _fits(name, own):
                generator = torch.Generator().manual_seed((seed ^ layer.key) & (2**63 - 1))
                bound = spread / math.sqrt(A.shape[1])
                A[:rank] = torch.empty(rank, A.shape[1]).uniform_(-bound, bound, generator=generator)
            found[name] = A, B
        return found

    def squared_norm(self, position: int) -> Tensor:
        """Return sum over layers of ||B A||_F^2 (unscaled) of one member, the paper's regulariser.

        ||B A||_F^2 = tr(A^T B^T B A) = sum((B^T B) * (A A^T)): products of r x r, never out x in.
        """
        pairs = [(layer.A[position], layer.B[position]) for layer in self.layers.values()]
        return torch.stack([((B.mT @ B) * (A @ A.mT)).sum() for A, B in pairs]).sum()

    # PEFT's folders

    def to_peft(self, position: int, base: str, revision: str | None) -> tuple[str, bytes]:
        """Return a member as the two files of a PEFT folder: adapter_config.json and adapter_model.safetensors."""
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "use_rslora": self.config.rslora,
            "target_modules": self.targets,
            "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in self.layers.values()),
            "bias": "none",
            "inference_mode": True,
            "init_lora_weights": True,
        }
        tensors = {
            f"{PEFT_PREFIX}{name}.lora_{side}.weight": weight.detach().cpu().contiguous()
            for name, layer in self.layers.items()
            for side, weight in (("A", layer.A[position]), ("B", layer.B[position]))
        }
        return json.dumps(config, indent=2, sort_keys=True) + "\n", safetensors.torch.save(tensors, {"format": "pt"})

    def load_peft(self, position: int, folder: Path) -> None:
        """Read a member from a PEFT folder.

        Raises:
            UserError: its rank, scale or layers are not this stack's.
            EnvironmentFault: a file is missing or damaged.
        """
        config = read_peft_config(folder)
        if (config.rank, config.scale) != (self.config.rank, self.config.scale):
            raise UserError(
                f"{folder}: rank {config.rank}, scale {config.scale:g}; the other members have rank "
                f"{self.config.rank}, scale {self.config.scale:g}; take adapters of one rank and scale"
            )
        path = folder / "adapter_model.safetensors"
        try:
            tensors = safetensors.torch.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise damaged(path, error) from error
        self.load(position, tensors, str(folder))

    def load(self, position: int, tensors: Mapping[str, Tensor], source: str) -> None:
        """Take a member's weights, named as PEFT names them; `source` names them in errors.

        Raises:
            UserError: its layers, or their shapes, are not this stack's.
        """
        expected = {f"{PEFT_PREFIX}{name}.lora_{side}.weight" for name in self.layers for side in "AB"}
        if expected != set(tensors):
            odd = sorted(expected ^ set(tensors))[0]
            raise UserError(
                f"{source}: its layers are not those of the other members or of this base ({odd}); leave it out, or "
                "mend target_modules in its adapter_config.json"
            )
        with torch.no_grad():
            for name, layer in self.layers.items():
                for side, target in (("A", layer.A[position]), ("B", layer.B[position])):
                    weight = tensors[f"{PEFT_PREFIX}{name}.lora_{side}.weight"]
                    if weight.shape != target.shape:
                        raise UserError(
                            f"{source}: {name} is {tuple(weight.shape)} there, {tuple(target.shape)} here; "
                            "the adapter was trained on another base, or its adapter_config.json was changed"
                        )
                    target.copy_(weight)


def read_peft_config(folder: Path) -> Adapter:
    """Read a PEFT folder's adapter_config.json.

    Raises:
        UserError: not a plain LoRA adapter.
        EnvironmentFault: the file is missing or damaged.
    """
    path = folder / "adapter_config.json"
    content = _read_json(path)
    odd = [key for key in NOT_PLAIN if content.get(key)]
    if (start := content.get("init_lora_weights", True)) not in BESIDE_THE_BASE:
        odd.append(f"init_lora_weights {quoted(start)}")
    if content.get("peft_type") != "LORA" or content.get("bias", "none") != "none" or odd:
        kind = ", ".join(odd) or content.get("peft_type")
        raise UserError(f"{path}: only plain LoRA adapters are read, and this one has {kind}; leave it out")
    if missing := [key for key in ("target_modules", "r", "lora_alpha") if not content.get(key)]:
        raise EnvironmentFault(f"{path}: damaged, no {missing[0]} in it; take it again from where it came")
    targets = content["target_modules"]
    if isinstance(targets, str) and targets != "all-linear":
        raise UserError(f"{path}: target_modules is the pattern {targets!r}; list the modules by name")
    try:
        return Adapter(
            targets="all-linear" if targets == "all-linear" else targets,
            rank=content["r"],
            alpha=content["lora_alpha"],
            dropout=content.get("lora_dropout", 0.0),
            rslora=content.get("use_rslora", False),
        )
    except ValidationError as error:
        raise EnvironmentFault(
            f"{path}: damaged ({explain(error, Adapter)}); take it again from where it came"
        ) from None


def locate(source: str | Path) -> Path:
    """Return the PEFT folder of an adapter: a folder here, or one of the hub.

    Args:
        source: a folder; or as text ORGANISATION/NAME, or ORGANISATION/NAME/FOLDER for an adapter in a repository of
            several. What starts with a dot, a slash or `~` is always a path.

    Raises:
        UserError: it is neither, it holds no adapter, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and isinstance(source, str) and _HUB_ID.fullmatch(source):
        organisation, name, *inside = source.split("/")
        files = ["/".join((*inside, file)) for file in ADAPTER_FILES]
        folder = snapshot(source, f"{organisation}/{name}", files).joinpath(*inside)
    elif not folder.is_dir():
        raise UserError(f"{source}: no folder, and no hub id (ORGANISATION/NAME or ORGANISATION/NAME/FOLDER); mend it")
    if missing := [file for file in ADAPTER_FILES if not (folder / file).is_file()]:
        raise UserError(
            f"{source}: holds no {missing[0]}, so it is no PEFT folder; name the folder of one adapter (in a "
            "repository of several: ORGANISATION/NAME/FOLDER)"
        )
    return folder


def read_base(folder: Path) -> tuple[str, str | None]:
    """Return the base that a PEFT folder says it was trained on: its name, and its revision on the hub where given.

    Raises:
        UserError: it says none.
        EnvironmentFault: adapter_config.json is missing or damaged.
    """
    path = folder / "adapter_config.json"
    content = _read_json(path)
    if not (name := content.get("base_model_name_or_path")):
        raise UserError(f"{path}: names no base; write into base_model_name_or_path which one it was trained on")
    return str(name), str(content["revision"]) if content.get("revision") else None


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
    return content


def damaged(path: Path, error: Exception) -> EnvironmentFault:
    """Return the error of an adapter's file that cannot be read."""
    return EnvironmentFault(f"{path}: missing or damaged ({short(error)}); take it again from where it came")


def target_modules(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the full names of the linear layers that adapters go to, in the model's order.

    Args:
        model: the base.
        targets: `auto`, `all-linear`, or names of modules, whole or their last parts.

    Raises:
        UserError: a name fits no linear layer (those that exist are listed), or one of an expert.
    """
    linear = _linear_layers(model)
    if targets == "all-linear":
        return [name for name in linear if not _SPARSE_PARTS.intersection(name.split("."))]
    if targets == "auto":
        targets = default_targets(model)
    for target in targets:
        if not any(_fits(name, (target,)) for name in linear):
            raise UserError(f"adapter.targets: no linear layer is named {target!r}; there are {_last_parts(linear)}")
    found = [name for name in linear if _fits(name, tuple(targets))]
    for name in found:
        if "experts" in name.split("."):
            raise UserError(
                f"adapter.targets: {name} is an expert's, whose few tokens do not say which member they are of; name "
                "modules that every token passes, as all-linear does"
            )
    return found


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """Return q_proj and v_proj, or else the name of the family's fused attention projection.

    Raises:
        UserError: the model has neither.
    """
    linear = _linear_layers(model)
    last_parts = {name.rpartition(".")[2] for name in linear}
    if {"q_proj", "v_proj"} <= last_parts:
        return ("q_proj", "v_proj")
    fused = tuple(name for name in FUSED_ATTENTION if name in last_parts)
    if not fused:
        raise UserError(f"adapter.targets: no attention projection is known here; name some of {_last_parts(linear)}")
    return fused[:1]


def _linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the language model's linear layers: not its head, and none of what reads images."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    body = set(getattr(model, "get_decoder", lambda: model)().modules())
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m in body and m is not head]


def _last_parts(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _fits(name: str, targets: tuple[str, ...]) -> bool:
    return name in targets or name.endswith(tuple(f".{target}" for target in targets))


def _features(layer: nn.Module) -> tuple[int, int]:
    weight: Any = layer.weight
    return (weight.shape[0], weight.shape[1]) if isinstance(layer, Conv1D) else (weight.shape[1], weight.shape[0])
