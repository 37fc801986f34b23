"""Speeds: what a pass is counted as is what another counter sees."""

from __future__ import annotations

import pytest
import torch
from naive import WAYS, engine_of, new_world, trees, world
from torch.utils.flop_counter import FlopCounterMode

from ripieno.model.speed import Timer


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_operations_are_those_that_torch_counts(family: str) -> None:
    """The base alone, packed: linear layers at every token, the output layer where answers are predicted."""
    engine = engine_of(world(family), "packed")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        engine.score((), [list(trees())])
    products = sum(
        flops for operation, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(operation)
    )
    assert engine.meter.operations == products


def test_a_training_pass_counts_twice_and_padding_never() -> None:
    w = new_world("llama")
    counted = {}
    for way in WAYS:
        engine = engine_of(w, way)
        with torch.no_grad():
            engine.score((0,), [[trees()[1], trees()[3]]])
        once = engine.meter.operations
        engine.score((0,), [[trees()[1], trees()[3]]])
        assert engine.meter.operations == 3 * once
        counted[way] = engine.meter.tokens / 2
    assert counted["packed"] == counted["padded"] == trees()[1].read + trees()[3].read
    choices = [len(tree.question) + len(branch) for tree in (trees()[1], trees()[3]) for branch in tree.branches]
    assert counted["whole"] == sum(choices)  # each choice is a row of its own


def test_a_timer_says_what_was_done_since() -> None:
    engine = engine_of(world("llama"), "packed")
    with torch.inference_mode():
        engine.score((), [list(trees())])
        timer = Timer(engine.meter)
        engine.score((), [[trees()[0]]])
    line = timer.line(5)
    assert set(line) == {"questions", "seconds", "tokens", "of_matrix_rate"}
    assert (line["questions"], line["tokens"]) == (5, trees()[0].read)
    assert line["of_matrix_rate"] == pytest.approx(
        (engine.meter.operations * trees()[0].read / engine.meter.tokens) / line["seconds"] / engine.meter.matrix_rate,
        rel=0.15,  # the output layer's share differs a little between the two passes
    )
    assert timer.said(5).endswith("of the matrix rate")
