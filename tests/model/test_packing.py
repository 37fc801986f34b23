"""Packed streams: what rows share is computed once, and every number is the plain model's all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from naive import SHORTEST, bound, engine_of, naive, new_world, trees, world
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from families import FAMILIES, byte_level_tokenizer, tiny_model
from ripieno.model import attention, packing
from ripieno.model.attention import NotServedError, attend, by_runs
from ripieno.model.backbone import Backbone
from ripieno.model.batching import Row
from ripieno.model.packed import KeyValueCache
from ripieno.model.packing import KeyValues, lay_out, parts, shared_fronts
from ripieno.model.padded import PaddedEngine
from ripieno.model.scoring import PROBED_WINDOW, Engine, _probing_trees, small_copy
from ripieno.model.trees import TokenSequence, TokenTree

PACKED = [family for family in FAMILIES if family not in ("bloom", "mamba", "falcon")]
every_packed_family = pytest.mark.parametrize("family", PACKED)
CPU = torch.device("cpu")


def few_shot() -> list[TokenTree]:
    """Two subjects whose questions begin with the same forty and thirty tokens, letters and texts, and one alone."""
    fronts = [tuple(3 + (7 * n * (s + 1) + s) % 300 for n in range(length)) for s, length in enumerate((40, 30))]
    asked = [
        TokenTree(n, fronts[n % 2] + tree.question[-5 - n :], tree.branches, tree.choice_bytes, 0)
        for n, tree in enumerate([*trees("text")[:4], *trees("letters")[:3]])
    ]
    return [*asked, SHORTEST]


# ---- what is shared ---------------------------------------------------------------------------------------------


def most_saved(rows: Sequence[tuple[int, ...]], least: int) -> int:
    """What the rule saves, by its words: the front that all rows share, or what each group beyond it saves alone."""
    if len(rows) < 2:
        return 0
    length = next(n for n in range(100) if len({row[n : n + 1] for row in rows}) > 1 or n == len(rows[0]))
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in rows:
        groups.setdefault(row[length : length + 1], []).append(row)
    apart = sum(most_saved(group, least) for key, group in groups.items() if key)
    return max((len(rows) - 1) * length if length >= least else 0, apart)


@given(st.lists(st.lists(st.integers(0, 1), max_size=6), min_size=1, max_size=8), st.integers(1, 3))
def test_shared_fronts_save_what_their_rule_says(questions: list[list[int]], least: int) -> None:
    rows = [TokenTree(0, (*tokens, 9), ((1,),), (1,), None) for tokens in questions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LEAST_SHARED", least)
        shared = shared_fronts(rows)
    fronts = [row.question[:n] for row, n in zip(rows, shared, strict=True)]
    assert all(n == 0 or n >= least for n in shared)
    assert all(n < len(row.question) for row, n in zip(rows, shared, strict=True))  # the answer's place is its own
    saved = sum(shared) - sum(len(front) for front in set(fronts))
    assert saved == most_saved([row.question[:-1] for row in rows], least)


def test_texts_share_nothing() -> None:
    assert shared_fronts([TokenSequence(0, tuple(range(40)))] * 3) == [0, 0, 0]


def test_a_stream_holds_what_is_shared_once_and_no_padding() -> None:
    rows = few_shot()
    shared = shared_fronts(rows)
    assert sorted(shared) == [0, 30, 30, 30, 40, 40, 40, 40]
    stream = lay_out([rows, rows], [shared, shared], CPU)
    own = sum(row.read for row in rows) - sum(shared)
    assert stream.counts == (own + 70, own + 70)
    assert stream.tokens.shape == stream.positions.shape == (1, 2 * (own + 70))
    alone = lay_out([rows, rows], [[0] * len(rows)] * 2, CPU)
    assert alone.tokens.numel() == 2 * sum(row.read for row in rows)


def test_rows_that_share_count_once_in_a_part() -> None:
    """Ten questions of 100 shared tokens and 10 own ones fit 200 tokens; without sharing each is a part."""
    rows: list[Row] = [TokenTree(n, (*range(3, 103), *range(n + 200, n + 210)), ((1,),), (1,), None) for n in range(10)]
    assert [len(part[0]) for part in parts([rows], 200, share=True)] == [10]
    assert [len(part[0]) for part in parts([rows], 200, share=False)] == [1] * 10
    assert [len(part[0]) for part in parts([rows, rows], 250, share=True)] == [2] * 5


# ---- the numbers ------------------------------------------------------------------------------------------------


@every_packed_family
def test_shared_fronts_in_a_stream_score_as_the_plain_model(family: str) -> None:
    """In one pass, each member with other questions."""
    rows = few_shot()
    of_members = [rows[:4], rows[4:]]
    engine = engine_of(world(family), "packed")
    with torch.inference_mode():
        scores = engine.score((2, 0), of_members)
    for p, member in enumerate((2, 0)):
        for n, tree in enumerate(of_members[p]):
            choices, answer = naive(family, member, tree)
            assert ((scores.choices[p, n, : len(choices)] - choices).abs() <= bound(choices)).all()
            assert ((scores.answer[p, n] - answer).abs() <= bound(answer)).all()


@every_packed_family
@pytest.mark.parametrize("members", [(), (1,), (2, 0)], ids=["base", "one", "two"])
def test_a_scan_scores_as_the_plain_model(family: str, members: tuple[int, ...]) -> None:
    """Fronts kept from pass to pass, in passes of a few questions, of one, and a front larger than the budget."""
    rows = few_shot()
    for budget in (1, 60, 100_000):
        engine = engine_of(world(family), "packed", budget)
        seen = []
        for index, scores in engine.scan(members, rows):
            seen += index
            for p, member in enumerate(members or (None,)):
                for column, n in enumerate(index):
                    choices, answer = naive(family, member, rows[n])
                    assert ((scores.choices[p, column, : len(choices)] - choices).abs() <= bound(choices)).all()
                    assert ((scores.answer[p, column] - answer).abs() <= bound(answer)).all()
        assert sorted(seen) == list(range(len(rows)))


@every_packed_family
def test_gradients_through_what_is_shared_are_those_of_padded_rows(family: str) -> None:
    w = world(family)
    rows = few_shot()
    found = []
    for way in ("packed", "padded"):
        scores = engine_of(w, way).score((1,), [rows])
        loss = -scores.choices[0, :, 0].sum()
        gradients = torch.autograd.grad(loss, w.stack.parameters(1))
        found.append(torch.cat([g.flatten() for g in gradients]))
    # Sums of some hundred tokens' gradients in two orders (see test_scoring.py).
    assert (found[0] - found[1]).norm() <= 1e-5 * found[1].norm()


# ---- what is kept -----------------------------------------------------------------------------------------------


def scanned(engine: Engine, member: int, rows: Sequence[TokenTree]) -> dict[int, Tensor]:
    return {n: s.choices[0, c] for index, s in engine.scan((member,), rows) for c, n in enumerate(index)}


def test_what_is_shared_is_read_once_a_member_and_never_again() -> None:
    rows = few_shot()
    engine = engine_of(world("llama"), "packed", 60)
    own = sum(row.read for row in rows) - sum(shared_fronts(rows))
    for member, read in ((0, own + 70), (0, own), (1, own + 70), (0, own)):
        before = engine.meter.tokens
        scanned(engine, member, rows)
        assert engine.meter.tokens - before == read


def test_a_cache_too_small_for_all_members_of_a_pass_still_serves_the_next_pass() -> None:
    rows = few_shot()
    engine = engine_of(world("llama"), "packed", 60)
    assert engine.packed
    engine.packed.cache.most = 0
    own = sum(row.read for row in rows) - sum(shared_fronts(rows))
    for _ in engine.scan((0, 1), rows):
        pass
    assert engine.meter.tokens == 2 * (own + 70)


def test_one_member_may_know_what_another_does_not() -> None:
    """Two fronts, of which the first member's are kept: the second's are computed, and every score is right."""
    rows = few_shot()
    engine = engine_of(world("llama"), "packed", 100_000)
    scanned(engine, 0, rows)
    for index, scores in engine.scan((0, 1), rows):
        for p, member in enumerate((0, 1)):
            for column, n in enumerate(index):
                choices, _ = naive("llama", member, rows[n])
                assert ((scores.choices[p, column, : len(choices)] - choices).abs() <= bound(choices)).all()


def test_a_training_pass_drops_what_was_kept() -> None:
    w = new_world("llama")
    engine = engine_of(w, "packed")
    scanned(engine, 0, few_shot())
    assert engine.packed
    assert engine.packed.cache.bytes > 0
    engine.score((0,), [few_shot()])
    assert engine.packed.cache.bytes == 0


def test_another_adapter_never_finds_what_the_old_one_kept() -> None:
    """Its content is the key: however the weights are changed, the numbers are the new ones."""
    w = new_world("llama")
    rows = few_shot()
    engine = engine_of(w, "packed", 60)
    old = scanned(engine, 0, rows)
    w.stack.parameters(0)[-1].data.add_(0.1)  # as an optimizer might, past every counter that torch keeps
    new = scanned(engine, 0, rows)
    fresh = scanned(engine_of(w, "packed", 60), 0, rows)
    assert all(torch.equal(new[n], fresh[n]) for n in fresh)
    assert any(((new[n] - old[n]).abs() > 100 * bound(old[n])).any() for n in old)


def test_the_cache_keeps_what_was_used_last_within_its_size() -> None:
    def computed() -> KeyValues:
        return {0: (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))}  # 192 bytes

    cache = KeyValueCache(400)
    cache.put("a", (1, 2), computed())
    cache.put("b", (1, 2), computed())
    assert cache.get("a", (1, 2)) is not None
    cache.put("a", (1, 2, 3), computed())
    assert cache.get("b", (1, 2)) is None  # used longest ago
    assert cache.get("a", (1, 2)) is not None
    assert cache.get("", (1, 2)) is None
    cache.put("a", (1, 2), computed())  # again: in place of the first
    assert cache.bytes == 384
    cache.drop_unused()  # all was used since the beginning
    assert cache.bytes == 384
    assert cache.get("a", (1, 2)) is not None
    cache.drop_unused()
    assert cache.get("a", (1, 2, 3)) is None
    assert (cache.get("a", (1, 2)) is not None, cache.bytes) == (True, 192)
    cache.put("c", (5,), {0: (torch.zeros(200), torch.zeros(200))})  # larger than all there is room for
    assert cache.bytes == 0


# ---- the attention function -------------------------------------------------------------------------------------


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What a GPU's varlen kernel is documented to do: runs aligned at their ends, `left` tokens back."""
    left, right = window_size
    assert right == 0
    assert (longest_query, longest_key) == (query_ends.diff().max(), key_ends.diff().max())
    outputs = []
    for (a, b), (c, d) in zip(pairs(query_ends), pairs(key_ends), strict=True):
        back = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
        seen = (back >= 0) & ((back <= left) | (left < 0))
        q, k, v = (x.transpose(0, 1)[None] for x in (query[a:b], key[c:d], value[c:d]))
        outputs.append(scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=enable_gqa)[0])
    return torch.cat(outputs, dim=1).transpose(0, 1)


def without_groups(*stream: Any, scale: float | None, window_size: tuple[int, int]) -> Tensor:
    """As the kernel of torch 2.11: as many heads of keys and values as of queries."""
    return one_by_one(*stream, scale=scale, window_size=window_size)


def pairs(ends: Tensor) -> Iterator[tuple[int, int]]:
    return zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("kept", "kernel"), [(False, one_by_one), (True, one_by_one), (True, without_groups)])
def test_runs_for_a_gpus_kernel_are_the_same_attention(
    window: int | None, kept: bool, kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself needs a GPU: here its documented meaning stands in for it."""
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    rows = few_shot()
    shared = shared_fronts(rows)
    generator = torch.Generator().manual_seed(0)
    fronts = list(dict.fromkeys(row.question[:n] for row, n in zip(rows, shared, strict=True) if n))
    known: list[KeyValues] = []
    for front in fronts:
        keys, values = torch.randn(2, 1, 2, len(front), 8, generator=generator)
        known.append({0: (keys, values)})
    stream = (
        lay_out([rows], [shared], CPU, lambda _, front: fronts.index(front), known)
        if kept
        else lay_out([rows, rows[:5]], [shared, shared[:5]], CPU)
    )
    T = stream.tokens.numel()
    query, key, value = (torch.randn(1, heads, T, 8, generator=generator) for heads in (4, 2, 2))
    layer: Any = SimpleNamespace(layer_idx=0)
    plainly, _ = attend(layer, query, key, value, None, packing=stream.packing, scaling=0.3, sliding_window=window)
    runs = by_runs(stream.packing, 0, query, key, value, 0.3, window)
    # Two orders of softmax-weighted means of numbers of size 1: a few float32 roundings.
    torch.testing.assert_close(runs[None], plainly, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "asked",
    [{"dropout": 0.1}, {"is_causal": False}, {"position_bias": torch.zeros(1)}, {"packing": None}, {"block": 3}],
)
def test_what_it_does_not_know_it_refuses(asked: dict[str, Any]) -> None:
    stream = lay_out([[SHORTEST]], [[0]], CPU)
    x = torch.zeros(1, 2, stream.tokens.numel(), 8)
    layer: Any = SimpleNamespace(layer_idx=0)
    harmless = {"position_ids": torch.zeros(1), "use_cache": False, "cu_seq_lens_q": None}
    attend(layer, x, x, x, None, packing=stream.packing, **harmless)
    with pytest.raises(NotServedError, match=next(iter(asked))):
        attend(layer, x, x, x, None, **{"packing": stream.packing, **asked})
    with pytest.raises(NotServedError, match="attention_mask"):
        attend(layer, x, x, x, torch.zeros(1), packing=stream.packing)
    with pytest.raises(NotServedError, match="layer_idx"):
        attend(SimpleNamespace(), x, x, x, None, packing=stream.packing)  # type: ignore[arg-type]


# ---- the probe --------------------------------------------------------------------------------------------------


def test_the_probe_sees_a_window_that_no_question_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 4,096 tokens cannot be seen on the model itself, but on a copy with windows of four."""
    model = tiny_model("mistral", sliding_window=4096)
    engine = Engine(Backbone(model, byte_level_tokenizer(), {}, None), None, 1000)
    engine.probe()
    assert engine.packed
    monkeypatch.setattr(packing.Packing, "mask", lambda made, number, _window: whole_mask(made, number, None))
    engine.probe()
    assert engine.packed is None
    assert engine.notice == "packed scores with short windows are not those of padded rows"
    scores = engine.score((), [list(trees())])  # and it goes on, padded
    assert torch.isfinite(scores.choices[0, 0, :4]).all()


whole_mask = packing.Packing.mask


@every_packed_family
def test_the_probes_copy_has_two_layers_and_short_windows_and_changes_nothing(family: str) -> None:
    backbone = world(family).backbone
    before = backbone.model.config.to_dict()
    state = torch.get_rng_state()
    made = small_copy(backbone)
    assert backbone.model.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert made.model.config.num_hidden_layers == 2
    assert set(made.windows) == set(backbone.windows)
    assert all(made.windows[kind] == (PROBED_WINDOW if window else None) for kind, window in backbone.windows.items())


def test_scores_of_the_probes_copy_do_not_grow_with_the_width() -> None:
    """Else half precision rounds a 7B base's by more than the probe allows, and it would run padded."""
    largest = []
    for width in (64, 1024):
        made = small_copy(Backbone(tiny_model("llama", hidden_size=width, head_dim=32), None, {}, None))
        found = PaddedEngine(made, None).likelihoods((), [_probing_trees(made.model.config.vocab_size)], None)[0]
        largest.append(float(found.detach().abs().max()))
    assert largest[1] < 1.5 * largest[0]  # sqrt(1024 / 64) = 4 times, if weights stayed as large


def test_positions_that_the_longest_text_decides_are_not_packed() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny_model("llama", rope_parameters=rope)
    engine = Engine(Backbone(model, byte_level_tokenizer(), {}, None), None, 1000)
    engine.probe()
    assert engine.packed is None
    assert engine.notice == "its positions depend on the longest text of a pass"


def test_a_model_whose_packed_pass_fails_runs_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda *_, **__: torch.empty(2) @ torch.empty(3))
    engine = Engine(Backbone(tiny_model("llama"), byte_level_tokenizer(), {}, None), None, 1000)
    engine.probe()
    assert engine.packed is None
    assert engine.notice
    assert engine.notice.startswith("packed scores cannot be computed (RuntimeError: ")


def test_the_notice_says_why_a_model_is_not_packed() -> None:
    assert world("falcon").engine.notice == "its attention is its own, not one that the library lets us give"
    assert world("bloom").engine.notice == world("mamba").engine.notice == "its attention takes no token trees"


# ---- merged updates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt"])
def test_a_merged_update_gives_the_same_scores_and_leaves_the_base_alone(family: str) -> None:
    """In copies of the weights, for that member alone; a pass of others in between goes its own way."""
    w = new_world(family)
    before = {name: p.clone() for name, p in w.backbone.model.named_parameters()}
    engine = engine_of(w, "packed")
    rows = [list(trees())]
    with torch.inference_mode(), w.stack.merged(1):
        assert all(layer.merged is not None for layer in w.stack.layers.values())
        merged, other, base = (engine.score(members, rows).choices[0] for members in ((1,), (0,), ()))
    assert all(layer.merged is None for layer in w.stack.layers.values())
    for found, member in ((merged, 1), (other, 0), (base, None)):
        for n, tree in enumerate(trees()):
            truth, _ = naive(family, member, tree)
            assert ((found[n, : len(truth)] - truth).abs() <= bound(truth)).all()
    assert all(torch.equal(p, before[name]) for name, p in w.backbone.model.named_parameters())


def test_only_what_is_exact_and_small_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    w = new_world("llama")
    monkeypatch.setattr("ripieno.model.adapters.MERGED_BYTES", 100)
    with w.stack.merged(0):
        assert all(layer.merged is None for layer in w.stack.layers.values())
    monkeypatch.undo()
    w.backbone.model.to(torch.bfloat16)
    with w.stack.merged(0):
        assert all(layer.merged is None for layer in w.stack.layers.values())
