"""Members' adapters: PEFT reads ours and we read PEFT's, and nothing of one member or batch reaches another."""

from __future__ import annotations

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from naive import SHORTEST, World, bound, engine_of, naive_scores, new_world, trees, world
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from families import FAMILIES, tiny_model
from ripieno.config import Adapter
from ripieno.errors import EnvironmentFault, UserError
from ripieno.model.adapters import AdapterStack, keep_mask, read_base, read_peft_config, target_modules

# PEFT 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FUSED = {
    "phi3": "qkv_proj",
    "gpt_neox": "query_key_value",
    "bloom": "query_key_value",
    "falcon": "query_key_value",
    "gpt2": "c_attn",
    "mamba": "in_proj",
}
# The last parts of every linear layer but the head.
ALL_LINEAR = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}


def write(stack: AdapterStack, position: int, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    config, weights = stack.to_peft(position, "base", None)
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def assert_same_probabilities(w: World, position: int, plain: nn.Module) -> None:
    some = [*trees()[:3], SHORTEST]
    with torch.inference_mode():
        ours = w.engine.score((position,), [some]).choices[0]
    for n, tree in enumerate(some):
        truth = naive_scores(plain, tree)[0].softmax(-1)
        assert (ours[n, : len(truth)].double().softmax(-1) - truth).abs().max() < 1e-4


def last_parts(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


# PEFT


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_a_written_member_and_answers_the_same(family: str, tmp_path: Path) -> None:
    """With the family's default targets, Conv1D and fused projections among them."""
    w = world(family)
    assert last_parts(list(w.stack.layers)) == ({FUSED[family]} if family in FUSED else {"q_proj", "v_proj"})
    folder = write(w.stack, 1, tmp_path / "member")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(last_parts(list(w.stack.layers)))
    model = peft.PeftModel.from_pretrained(tiny_model(family), folder)
    assert_same_probabilities(w, 1, model)


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("llama", Adapter(rank=4, alpha=8, rslora=True)),
        ("llama", Adapter(rank=4, targets=("model.layers.1.self_attn.q_proj", "down_proj"))),
        *[(family, Adapter(rank=4, targets="all-linear")) for family in ALL_LINEAR],
    ],
)
def test_peft_loads_other_scales_and_targets(family: str, adapter: Adapter, tmp_path: Path) -> None:
    w = new_world(family, adapter)
    model = peft.PeftModel.from_pretrained(tiny_model(family), write(w.stack, 0, tmp_path / "member"))
    adapted = {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == set(w.stack.layers)
    assert_same_probabilities(w, 0, model)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_an_adapter_that_peft_trained_is_read(family: str, tmp_path: Path) -> None:
    targets = sorted(ALL_LINEAR[family])
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(tiny_model(family), config)
    tokens = torch.tensor([trees()[0].question])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "member", save_embedding_layers=False)
    w = new_world(family, Adapter(rank=3, alpha=6, targets=tuple(targets)))
    w.stack.load_peft(2, tmp_path / "member")
    assert_same_probabilities(w, 2, model.eval())


def test_reading_what_was_written_gives_the_same_files(tmp_path: Path) -> None:
    stack = world("qwen2").stack
    other = new_world("qwen2").stack
    other.load_peft(2, write(stack, 0, tmp_path / "member"))
    assert other.to_peft(2, "base", None) == stack.to_peft(0, "base", None)
    assert other.to_peft(1, "base", None) == stack.to_peft(1, "base", None)


def test_adapters_of_another_rank_base_or_kind_are_refused(tmp_path: Path) -> None:
    folder = write(world("llama").stack, 0, tmp_path / "member")
    with pytest.raises(UserError, match="rank 2, scale 2; the other members have rank 3, scale 2"):
        new_world("llama", Adapter(rank=3, alpha=6)).stack.load_peft(0, folder)
    with pytest.raises(UserError, match="rank 2, scale 2; the other members have rank 2, scale 4"):
        new_world("llama", Adapter(rank=2, alpha=8)).stack.load_peft(0, folder)
    with pytest.raises(UserError, match="trained on another base"):
        new_world("llama", hidden_size=16).stack.load_peft(0, folder)
    with pytest.raises(UserError, match="its layers are not those"):
        new_world("gpt2").stack.load_peft(0, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    for change in (
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": ".*q_proj"},
        {"init_lora_weights": "pissa_niter_4"},
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            world("llama").stack.load_peft(0, folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_damaged_adapters_are_the_environments_fault(tmp_path: Path, name: str, damage: str) -> None:
    stack = new_world("llama").stack
    path = write(stack, 0, tmp_path / "member") / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut" else b"[1]")
    with pytest.raises(EnvironmentFault, match=name):
        stack.load_peft(0, path.parent)


def test_a_config_without_its_keys_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2}')
    with pytest.raises(EnvironmentFault, match="lora_alpha"):
        world("llama").stack.load_peft(0, tmp_path)


@pytest.mark.parametrize(
    "change", [{"r": "x"}, {"r": 10**400}, {"r": [2]}, {"lora_alpha": {}}, {"target_modules": 3}, []]
)
def test_a_config_with_other_values_is_damaged(tmp_path: Path, change: dict[str, object] | list[object]) -> None:
    plain = {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2, "lora_alpha": 4}
    content = json.dumps({**plain, **dict(change)})
    (tmp_path / "adapter_config.json").write_text(content if change else "[" * 100_000)
    with pytest.raises((EnvironmentFault, UserError), match=r"adapter_config\.json|rank"):
        world("llama").stack.load_peft(0, tmp_path)


def test_a_start_that_changes_the_base_is_refused_and_others_read(tmp_path: Path) -> None:
    """PEFT is asked: which of its starts change the weights of the base?"""
    for start in (True, False, "gaussian", "orthogonal", "mica", "pissa", "olora"):
        base = tiny_model("llama")
        before = base.model.layers[0].self_attn.q_proj.weight.clone()
        config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=start)
        model = peft.get_peft_model(base, config)
        after = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
        model.peft_config["default"].save_pretrained(tmp_path)
        if torch.equal(before, after):
            assert read_peft_config(tmp_path).rank == 2
        else:
            with pytest.raises(UserError, match=f"only plain LoRA adapters are read.* init_lora_weights '{start}'"):
                read_peft_config(tmp_path)


def test_an_adapter_that_names_no_base_says_so(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(UserError, match=r"adapter_config\.json: names no base"):
        read_base(tmp_path)


# Targets


@pytest.mark.parametrize("family", ALL_LINEAR)
def test_all_linear_is_every_linear_layer_but_the_head(family: str) -> None:
    assert last_parts(target_modules(tiny_model(family), "all-linear")) == ALL_LINEAR[family]


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_all_linear_leaves_out_routers_and_experts(family: str) -> None:
    sizes = {**FAMILIES["llama"], "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    config = AutoConfig.for_model(family, **sizes, num_experts=4, num_local_experts=4, num_experts_per_tok=2)
    names = target_modules(AutoModelForCausalLM.from_config(config), "all-linear")
    dense = {"gate_proj", "up_proj", "down_proj"} if family == "qwen2_moe" else set()  # the expert that all tokens see
    assert last_parts(names) == {"q_proj", "k_proj", "v_proj", "o_proj"} | dense
    assert not any(part in ("gate", "experts", "shared_expert_gate") for name in names for part in name.split("."))


def test_routers_and_experts_that_are_linear_layers_are_left_out_too() -> None:
    """As models with code of their own have them."""
    block = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "gate": nn.Linear(2, 2), "router": nn.Linear(2, 2)})
    block["experts"] = nn.ModuleList([nn.ModuleDict({"w1": nn.Linear(2, 2)})])
    assert target_modules(block, "all-linear") == ["q_proj"]
    assert target_modules(block, ("gate",)) == ["gate"]  # by name, whatever a user wants
    # A pass holds the members' tokens in their order, an expert some of all of them.
    with pytest.raises(UserError, match=r"experts\.0\.w1 is an expert's.*modules that every token passes"):
        target_modules(block, ("q_proj", "w1"))


def test_an_unknown_target_lists_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"'q_prj'; there are c_attn, c_fc, c_proj$"):
        target_modules(tiny_model("gpt2"), ("c_attn", "q_prj"))
    with pytest.raises(UserError, match="no attention projection is known here; name some of odd"):
        target_modules(nn.ModuleDict({"odd": nn.Linear(2, 2)}), "auto")


# Members


def test_lora_l2_equals_the_dense_product() -> None:
    for family in ("llama", "gpt2"):
        stack = world(family).stack
        for m in range(3):
            dense = sum((layer.B[m].double() @ layer.A[m].double()).square().sum() for layer in stack.layers.values())
            # r x r entries, each a float32 sum of 32 to 96 terms: relative 96 * 6e-8 at the very most.
            torch.testing.assert_close(stack.squared_norm(m).double(), dense, rtol=6e-6, atol=0)


def test_initialisation_is_pefts_distribution_and_a_function_of_seed_and_layer_alone() -> None:
    config = Adapter(rank=16, targets="all-linear")
    stack = AdapterStack(tiny_model("llama"), config, (0, 1))
    stack.initialise(0, 5)
    for layer in stack.layers.values():
        A, B = layer.A[0].detach(), layer.B[0].detach()
        limit = 1 / math.sqrt(A.shape[1])
        assert A.abs().max() <= limit
        # Uniform on +-limit: its mean and mean square lie within 5 standard errors of 0 and limit^2 / 3.
        assert A.mean().abs() < 5 * limit / math.sqrt(3 * A.numel())
        assert (A.square().mean() - limit**2 / 3).abs() < 5 * limit**2 * math.sqrt(4 / 45 / A.numel())
        assert not B.any()
    alone = AdapterStack(tiny_model("llama"), Adapter(rank=16, targets=("v_proj",)), (3,))
    alone.initialise(0, 5)
    stack.initialise(1, 6)
    for name, layer in alone.layers.items():
        assert torch.equal(layer.A[0], stack.layers[name].A[0])  # whatever else is targeted
        assert not torch.isin(layer.A[0], stack.layers[name].A[1]).any()  # another member
    first, second = alone.layers.values()
    assert not torch.isin(first.A[0], second.A[0]).any()  # another layer


def test_members_start_with_what_is_their_own() -> None:
    """A member's draws are those of a stack that holds nothing else, times its spread; the entries go by its number."""
    own = Adapter(rank=8, targets=("q_proj", "v_proj"), member_ranks=(8, 3), member_targets=(("v_proj",), ("q_proj",)))
    stack = AdapterStack(tiny_model("llama"), own, (3, 6))
    for position, (rank, target) in enumerate(((3, "q_proj"), (8, "v_proj"))):
        stack.initialise(position, 5, spread=2.0)
        alone = AdapterStack(tiny_model("llama"), Adapter(rank=rank, targets=(target,)), (0,))
        alone.initialise(0, 5)
        for name, layer in stack.layers.items():
            A = layer.A[position]
            if name in alone.layers:
                assert torch.equal(A[:rank], 2 * alone.layers[name].A[0])  # a power of two: exact
                assert A[:rank].any(dim=1).all()
                assert not A[rank:].any()
            else:
                assert not A.any()


def test_a_members_own_target_that_is_not_adapted_is_named() -> None:
    own = Adapter(targets=("q_proj", "v_proj"), member_targets=(("q_proj",), ("v_proj", "o_proj")))
    with pytest.raises(
        UserError, match=r"^adapter.member_targets: 'o_proj' is not among adapter.targets.* q_proj, v_p"
    ):
        AdapterStack(tiny_model("llama"), own, (0,))


def test_base_parameters_take_no_gradient_and_a_members_own_do() -> None:
    w = world("phi")
    w.engine.score((1,), [list(trees()[:2])]).choices[..., 0].sum().backward()
    with_gradient = {id(p) for p in w.backbone.model.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in w.stack.parameters(1)}
    w.backbone.model.zero_grad()


# Dropout


def test_keep_mask_drops_at_its_rate_and_rows_are_independent() -> None:
    rows, width = 400, 256
    keys = torch.arange(rows)[:, None] * 0x632BE59BD9B4E019 + 12345
    for rate in (0.05, 0.3, 0.5):
        kept = keep_mask(keys, width, rate)
        assert kept.shape == (rows, width)
        assert torch.equal(kept, keep_mask(keys, width, rate))
        assert torch.equal(kept[7:9], keep_mask(keys[7:9], width, rate))
        n = rows * width
        # Within 5 standard deviations of a binomial count; the same for two rows' agreement, and two columns'.
        assert abs(kept.double().mean() - (1 - rate)) < 5 * math.sqrt(rate * (1 - rate) / n)
        agree = rate**2 + (1 - rate) ** 2
        for one, other in (
            (kept[1:], kept[:-1]),
            (kept[:, 1:], kept[:, :-1]),
            (kept, keep_mask(keys ^ 99, width, rate)),
        ):
            assert abs((one == other).double().mean() - agree) < 5 * math.sqrt(agree * (1 - agree) / n)


def test_dropout_acts_on_what_enters_the_update_alone() -> None:
    """W x + scale * B A (x * mask / (1 - p)), the mask drawn by the token's key and the layer's."""
    w = new_world("llama", Adapter(rank=2, alpha=4, dropout=0.4))
    layer = next(iter(w.stack.layers.values()))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(6).view(2, 3) * 7919
    with w.stack.running_pass((2, 0), keys):
        y = layer(x)
    for row, m in enumerate((2, 0)):
        dropped = x[row] * keep_mask((keys[row] ^ layer.key)[:, None], 32, 0.4) / 0.6
        torch.testing.assert_close(y[row], layer.base(x[row]) + 2 * dropped @ layer.A[m].mT @ layer.B[m].mT)
    with w.stack.running_pass((2, 0)):  # no keys: evaluation
        torch.testing.assert_close(layer(x)[1], layer.base(x[1]) + 2 * x[1] @ layer.A[0].mT @ layer.B[0].mT)
    assert torch.equal(layer(x), layer.base(x))  # no pass runs: the base itself


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "bloom", "opt"])
def test_dropout_is_the_same_in_any_grouping_batch_and_engine(family: str) -> None:
    w = new_world(family, Adapter(rank=2, alpha=4, dropout=0.4))
    rows = [list(trees()[:3]), [SHORTEST, *trees()[3:5]], list(trees()[3:])]
    seeds = (11, 12, 13)
    whole, padded = (engine_of(w, way) for way in ("whole", "padded"))
    with torch.inference_mode():
        together = w.engine.score((0, 1, 2), rows, seeds).choices
        plain = w.engine.score((0, 1, 2), rows).choices
        others = w.engine.score((0, 1, 2), rows, (21, 22, 23)).choices
        for p in range(3):
            for n, tree in enumerate(rows[p]):
                ours = together[p, n, : len(tree.branches)]
                allowed = 2 * bound(ours)  # two orders of the same sums, each within its bound of the truth
                for engine in (w.engine, whole, *([padded] if w.engine.packed else [])):
                    alone = engine.score((p,), [[tree]], (seeds[p],)).choices[0, 0]
                    assert ((ours - alone).abs() <= allowed).all()
                assert ((ours - plain[p, n, : len(ours)]).abs() > 100 * allowed).any()
                assert ((ours - others[p, n, : len(ours)]).abs() > 100 * allowed).any()
        in_whole = whole.score((0, 1, 2), rows, seeds).choices
    present = torch.isfinite(together)
    assert ((together - in_whole)[present].abs() <= 2 * bound(together[present])).all()
    # Asked rather than trained on, one member several times with masks of its own, pass by pass: the same again.
    for engine in (w.engine, whole, *([padded] if w.engine.packed else [])):
        scanned = torch.full((2, len(trees()), together.shape[-1]), -torch.inf)
        for index, found in engine.scan((1, 1), trees(), batch_tokens=60, dropout_seeds=(12, 22)):
            scanned[:, index, : found.choices.shape[-1]] = found.choices
        for row, seed in enumerate((12, 22)):
            with torch.inference_mode():
                scored = whole.score((1,), [trees()], (seed,)).choices[0]
            there = torch.isfinite(scored)
            assert ((scanned[row] - scored)[there].abs() <= 2 * bound(scored[there])).all()


def test_conv1d_updates_have_the_orientation_of_other_layers() -> None:
    layer = next(iter(world("gpt2").stack.layers.values()))
    assert isinstance(layer.base, Conv1D)
    assert (layer.A[0].shape, layer.B[0].shape) == ((2, 32), (96, 2))
