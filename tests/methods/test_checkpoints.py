"""Checkpoints of a member: each is another one, from the epoch that it answers with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import config, train, updates

from ripieno.ensemble import Ensemble
from ripieno.errors import UserError
from ripieno.methods.checkpoints import Checkpoints
from ripieno.methods.trained import Trained
from ripieno.progress import Progress


def test_they_count_from_the_epoch_that_a_member_kept(tmp_path: Path) -> None:
    settings = config(epochs=4)
    made = train(tmp_path / "run", settings, [0])
    encoder = made.examples.encoder
    ensemble = Ensemble(made.engine, made.stack, encoder, settings.prompt, settings.evaluation, 1, range(1))
    after = {}
    for epoch in range(1, 5):
        made.stack.load_peft(0, made.run.adapter(0, epoch))
        after[epoch] = updates(made.stack, 0)

    def drawn(count: int) -> list[int]:
        """Return the epochs whose adapters the draws put in place."""
        trained = Trained(made.run, settings, ensemble, [0], 4, Progress(quiet=True))
        weights = [updates(made.stack, 0) for _ in Checkpoints().draws(trained, {}, count)]
        return [epoch for own in weights for epoch, update in after.items() if bool((own == update).all())]

    assert drawn(3) == [4, 3, 2]
    # Out of patience in epoch 3, it answers with the best, epoch 2: there are two checkpoints up to it, and none twice.
    line = {"kind": "stopped", "epoch": 3, "step": 6, "member": 0, "use_epoch": 2, "reason": "no lower NLL"}
    made.run.append("metrics.jsonl", line)
    assert drawn(2) == [2, 1]
    with pytest.raises(UserError, match="answers with epoch 2, which is less than 3 checkpoints"):
        drawn(3)
