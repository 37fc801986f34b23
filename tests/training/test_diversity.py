"""Members that differ: what is a member's own is its own alone, and what drives them apart is one joint objective."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from naive import naive_scores
from tiny import (
    BOUND,
    FEW,
    ONE_AT_A_TIME,
    QUESTIONS,
    UNLABELLED,
    Killed,
    config,
    distance,
    finished,
    kill_at_write,
    losses,
    train,
    trainer,
    updates,
)
from torch import Tensor

from families import byte_level_tokenizer, tiny_model
from ripieno import measures
from ripieno.config import Compute, FewShot, Prompt
from ripieno.model.scoring import choice_log_probs
from ripieno.model.trees import Encoder, TokenTree
from ripieno.runs import stopped_members
from ripieno.training.diversity import shares, units
from ripieno.training.loop import Trainer

WEIGHT = 10.0

# ---- templates --------------------------------------------------------------------------------------------------


def test_a_member_trains_as_a_run_of_its_template_would(tmp_path: Path) -> None:
    given: dict[str, Any] = {"epochs": 2, "compute": ONE_AT_A_TIME, "dropout": 0.1, "shuffle_choices": True}
    mixed = train(tmp_path / "mixed", config(**given, templates=("text", "text-listed")))
    for template, members in (("text", (0, 2)), ("text-listed", (1,))):
        pure = train(tmp_path / template, config(**given, template=template), members)
        for position, member in enumerate(members):
            assert torch.equal(updates(mixed.stack, member), updates(pure.stack, position))


def test_few_shot_examples_are_put_into_the_members_template() -> None:
    few_shot = FewShot(dataset="unread", count=2)
    given = byte_level_tokenizer(), QUESTIONS[4:], 512
    ours, theirs = (
        Encoder(given[0], Prompt(template=template, few_shot=few_shot), *given[1:])  # type: ignore[arg-type]
        for template in ("text", "text-listed")
    )
    asked = QUESTIONS[:2]
    assert ours.with_template("text-listed").trees(asked, None, "error") == theirs.trees(asked, None, "error")


# ---- ranks and modules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"lora_l2": 0.1, "weight_decay": 0.3}, {"dropout": 0.1, "clip": 0.3}])
def test_a_smaller_rank_in_a_wide_stack_trains_as_that_rank_alone(given: dict[str, Any], tmp_path: Path) -> None:
    """5 epochs, 20 steps, the scale 2 in both; what is beyond the rank never leaves zero, its moments neither."""
    wide = {"rank": 8, "alpha": 16, "member_ranks": (8, 4, 2)}
    made = train(tmp_path / "wide", config(epochs=5, own=wide, **given))
    for member, rank in enumerate((8, 4, 2)):
        own = {"rank": rank, "alpha": 2 * rank}
        alone = train(tmp_path / str(rank), config(epochs=5, own=own, **given), (member,))
        assert distance(updates(made.stack, member), updates(alone.stack, 0)) < BOUND
        for layer in made.stack.layers.values():
            A, B = layer.A[member], layer.B[member]
            state = made.optimizers[member].state
            for unused in (A[rank:], B[:, rank:], state[A]["exp_avg_sq"][rank:], state[B]["exp_avg_sq"][:, rank:]):
                assert not unused.any()
            assert A[:rank].all()


def test_a_member_of_fewer_modules_trains_as_those_alone(tmp_path: Path) -> None:
    both = {"member_targets": (("q_proj", "v_proj"), ("v_proj",), ("model.layers.1.self_attn.q_proj",))}
    given: dict[str, Any] = {"epochs": 5, "lora_l2": 0.1, "weight_decay": 0.3}
    made = train(tmp_path / "both", config(**given, own=both))
    for member, targets in enumerate(both["member_targets"]):
        alone = train(tmp_path / str(member), config(**given, own={"targets": targets}), (member,))
        pairs = {name: (layer.A[member], layer.B[member]) for name, layer in made.stack.layers.items()}
        own = torch.cat([(pairs[n][1].double() @ pairs[n][0].double()).flatten() for n in alone.stack.layers])
        assert distance(own, updates(alone.stack, 0)) < BOUND
        assert not any(weight.any() for n, pair in pairs.items() if n not in alone.stack.layers for weight in pair)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
def test_peft_loads_a_member_of_its_own_rank_and_modules(tmp_path: Path) -> None:
    own = {"rank": 4, "alpha": 8, "member_ranks": (4, 2), "member_targets": (("q_proj",), ("v_proj",))}
    made = train(tmp_path, config(epochs=2, own=own), (0, 1))
    some = made.examples.epoch(0, 1)[:3]
    for p in range(2):
        plain = peft.PeftModel.from_pretrained(tiny_model("llama"), made.run.adapter(p, 2))
        for tree in some:
            assert isinstance(tree, TokenTree)
            with torch.inference_mode():
                ours = made.engine.score((p,), [[tree]]).choices[0, 0].double().softmax(-1)
            assert (ours - naive_scores(plain, tree)[0].softmax(-1)).abs().max() < 1e-4


# ---- the term ---------------------------------------------------------------------------------------------------


def answers() -> Tensor:
    """Return float64 log-probabilities [4, 6, 5] with absent choices, some of them all but certain."""
    draws = torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    draws[0, 0, 0] += 1000  # the others underflow to 0
    draws[:, 1, 4] = draws[:, 2, 3:] = -torch.inf
    return draws.log_softmax(-1)


def plain_information(log_probs: Tensor) -> Tensor:
    """Return [n]: H(mean) - mean H, as the formula has it, an absent choice taken out."""
    found = []
    for n in range(log_probs.shape[1]):
        p = log_probs[:, n, log_probs[0, n] > -torch.inf].exp()
        mean = p.mean(0)
        found.append(torch.special.entr(mean).sum() - torch.special.entr(p).sum(1).mean())
    return torch.stack(found)


def test_shares_sum_to_the_mutual_information_and_are_its_slopes() -> None:
    log_probs = answers()
    found = shares(log_probs)
    truth = measures.decompose(log_probs.exp().numpy()).epistemic
    # float64: sums of 20 terms of a few nats, each within 1e-16 of its size.
    assert found.sum(dim=(0, 2)).numpy() == pytest.approx(truth, abs=1e-13)
    log_probs = log_probs[:, 1:].clone().requires_grad_()  # p = 0 has no slope that autograd can give of p log p
    [slopes] = torch.autograd.grad(plain_information(log_probs).sum(), log_probs)
    torch.testing.assert_close(found[:, 1:], slopes, rtol=0, atol=1e-13)
    assert found.isfinite().all()


def driven(**given: Any) -> Any:
    repulsion = {"questions": ("unread.jsonl",), "weight": WEIGHT, "batch_size": 4}
    return config(**{"repulsion": repulsion, "normalisation": "token", **given})


def spread_out(made: Trainer) -> None:
    """Give members weights that answer differently: with B = 0 all would be the base, and nothing drives them."""
    for p in range(len(made.stack.members)):
        made.stack.initialise(p, p)
        draw = torch.Generator().manual_seed(p)
        for B in made.stack.parameters(p)[1::2]:
            B.data.normal_(0, 0.1, generator=draw)


@pytest.mark.parametrize("groups", [[(0, 1, 2)], [(0, 1), (2,)], [(2,), (0,), (1,)]])
@pytest.mark.parametrize("batch_tokens", [100_000, 1])
def test_members_one_by_one_climb_the_gradient_of_the_joint_objective(
    groups: list[tuple[int, ...]], batch_tokens: int
) -> None:
    made = trainer(Path("unused"), driven(compute=Compute(members_per_pass=3, batch_tokens=batch_tokens)))
    spread_out(made)
    parameters = [parameter for p in range(3) for parameter in made.stack.parameters(p)]
    assert made.repulsion
    drive = made.repulsion.drive(groups, step=3)
    terms: dict[int, float] = {}
    for group in groups:
        terms |= made.repulsion.gradients(drive, group)
    ours = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    # The same by autograd through all members at once, scores to mutual information.
    scores = made.engine.score((0, 1, 2), [drive.trees] * 3).choices
    lengths = torch.ones_like(scores[0])
    for n, tree in enumerate(drive.trees):
        lengths[n, : len(tree.branches)] = torch.tensor([len(branch) for branch in tree.branches])
    objective = -WEIGHT * plain_information((scores / lengths).log_softmax(-1).double()).mean()
    truth = torch.cat([found.flatten() for found in torch.autograd.grad(objective, parameters)])
    assert truth.norm() > 0.01
    assert distance(ours, truth) < BOUND
    assert terms == pytest.approx(dict.fromkeys(range(3), objective.item()), rel=BOUND)


def test_a_steps_questions_are_drawn_by_seed_and_step_alone() -> None:
    made = trainer(Path("unused"), driven())
    spread_out(made)
    assert made.repulsion

    def drawn(groups: list[tuple[int, ...]], step: int) -> list[int]:
        assert made.repulsion
        return [tree.key for tree in made.repulsion.drive(groups, step).trees]

    assert drawn([(0, 1, 2)], 5) == drawn([(1,), (2,)], 5)
    steps = [drawn([(0, 1)], step) for step in range(20)]
    assert all(len(set(keys)) == 4 for keys in steps)
    assert len({key for keys in steps for key in keys}) == len(UNLABELLED)
    other = trainer(Path("unused"), driven(seed=1)).repulsion
    assert other
    assert [tree.key for tree in other.drive([(0, 1)], 5).trees] != drawn([(0, 1)], 5)
    few = driven(repulsion={"questions": ("unread.jsonl",), "weight": 1.0, "batch_size": 50})
    every = trainer(Path("unused"), few).repulsion
    assert every
    assert len(every.drive([(0, 1)], 0).trees) == len(UNLABELLED)


def test_members_driven_apart_are_the_same_in_any_grouping_and_disagree_more(tmp_path: Path) -> None:
    given: dict[str, Any] = {"epochs": 5, "dropout": 0.1, "bagging": True, "lora_l2": 0.01}
    truth = train(tmp_path / "together", driven(**given))
    ways = {
        "taken in turns": Compute(members_per_pass=1, batch_tokens=100_000),
        "two and one, some questions at a time": Compute(members_per_pass=2, batch_tokens=200),
    }
    for name, compute in ways.items():
        made = train(tmp_path / name, driven(**given, compute=compute))
        for p in range(3):
            assert distance(updates(made.stack, p), updates(truth.stack, p)) < BOUND, name
    apart = train(tmp_path / "without", driven(**given, repulsion=None))
    assert distance(updates(truth.stack, 0), updates(apart.stack, 0)) > 100 * BOUND
    asked, _ = truth.examples.encoder.trees(UNLABELLED, None, "error")
    found = []
    for made in (truth, apart):
        with torch.inference_mode():
            scores = made.engine.score((0, 1, 2), [asked] * 3).choices
        log_probs = choice_log_probs(scores, [asked] * 3, "token").double()
        found.append(plain_information(log_probs).mean().item())
    assert found[0] > 2 * found[1]
    lines = [line for line in truth.run.lines("metrics.jsonl") if line["kind"] == "step"]
    said = {line["step"]: line["mutual_information"] for line in lines}
    assert said[1] == pytest.approx(0, abs=1e-6)  # B = 0: all are the base
    assert said[20] > 0.1
    assert "mutual_information" not in apart.run.lines("metrics.jsonl")[0]
    # What the term takes off stands in the losses: without it the first step's are those of members left alone.
    assert losses(truth, 0)[0] == pytest.approx(losses(apart, 0)[0], abs=1e-5)


# ---- kills and stops --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder, driven(epochs=3, compute=ONE_AT_A_TIME), rows=FEW)
    return finished(folder)


# An epoch of three members is nine files: each member's optimizer state, its adapter, the adapter's config.
@pytest.mark.parametrize("counts", [(1,), (3,), (9,), (12,), (13, 2), (12, 8), (18,), (26,)])
@pytest.mark.fault("killed after any file of training, in one process")
def test_killed_after_any_file_and_started_again_is_as_without_the_kill(
    counts: tuple[int, ...], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Members with a checkpoint go back to where the others are, whom they drive."""
    settings = driven(epochs=3, compute=ONE_AT_A_TIME)
    for count in counts:  # one kill after another
        with pytest.MonkeyPatch.context() as patch:
            kill_at_write(patch, count)
            with pytest.raises(Killed):
                train(tmp_path, settings, rows=FEW)
    train(tmp_path, settings, rows=FEW)
    assert finished(tmp_path) == undisturbed


def breaking(monkeypatch: pytest.MonkeyPatch, member: int, after: int) -> None:
    """Let a member's weights overflow after one of its steps."""
    step = Trainer._step

    def broken(made: Trainer, p: int, *given: Any) -> bool:
        done = step(made, p, *given)
        if made.stack.members[p] == member and made.steps[p] == after:
            made.stack.parameters(p)[0].data[:] = 1e38
        return done

    monkeypatch.setattr(Trainer, "_step", broken)


def test_a_member_that_failed_drops_out_of_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step whose answers are no numbers: the others are then those of an ensemble of theirs alone."""
    settings = driven(epochs=2, compute=ONE_AT_A_TIME)
    epoch = Trainer._epoch

    def with_nan(made: Trainer, number: int, *given: Any) -> None:
        if number == 1 and 1 in made.stack.members:
            made.stack.parameters(1)[0].data[0, 0] = math.nan
        epoch(made, number, *given)

    truth = train(tmp_path / "without", settings, (0, 2), rows=FEW)
    monkeypatch.setattr(Trainer, "_epoch", with_nan)
    made = train(tmp_path / "with", settings, rows=FEW)
    assert stopped_members(made.run) == {1: (1, None)}
    for there, here in ((0, 0), (1, 2)):
        assert torch.equal(updates(made.stack, here), updates(truth.stack, there))


@pytest.mark.parametrize("count", [9, 9 + 3, 9 + 6])
@pytest.mark.fault("killed after any file of training, in one process")
def test_a_failure_is_gone_through_again_after_a_kill(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Member 1 breaks amid the second epoch, whose first step it shares with the others, before and after the kill."""
    settings = driven(epochs=3, compute=ONE_AT_A_TIME)
    breaking(monkeypatch, 1, after=3)
    whole = train(tmp_path / "whole", settings, rows=FEW)
    assert stopped_members(whole.run) == {1: (2, None)}
    with pytest.MonkeyPatch.context() as patch:
        kill_at_write(patch, count)
        with pytest.raises(Killed):
            train(tmp_path / "killed", settings, rows=FEW)
    train(tmp_path / "killed", settings, rows=FEW)
    assert finished(tmp_path / "killed") == finished(tmp_path / "whole")


def test_optimizer_states_of_the_last_epoch_alone_stay(tmp_path: Path) -> None:
    train(tmp_path, driven(epochs=3), rows=FEW)
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == [
        f"{member:03d}-step-{3 * 2:07d}.safetensors" for member in range(3)
    ]


# ---- progress ---------------------------------------------------------------------------------------------------


def test_the_steps_of_an_epoch_are_its_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 questions in 4 steps: 2 a question trained on, 3 for each of the 4 x 4 that drive (one without gradients)."""
    made = trainer(tmp_path, driven())
    advanced: list[int] = []
    monkeypatch.setattr(made.progress, "advance", advanced.append)
    made.train()
    assert sum(advanced) == 3 * units(made.config, 14) == 3 * (2 * 14 + 3 * 16)
    assert len(advanced) == 4 + 1
    assert units(config(), 14) == 28
    assert json.loads((tmp_path / "timing.jsonl").read_text())["questions"] == 3 * 14
