"""One member, by the mode of a posterior: a Gaussian prior on its weights, or on its update, while it trains.

Weight decay is the prior N(0, 1/(N w)) on A and B, decoupled from Adam's scaling (arXiv:1711.05101); `lora_l2` the
one of the paper on B A (arXiv:2402.12264).
"""

from __future__ import annotations

from ripieno.config import Config
from ripieno.methods.single import Single


class Map(Single):
    """The first member of a run that was trained with a prior."""

    def refusal(self, config: Config, epoch: int, count: int) -> str | None:
        """There is a prior where training had one."""
        if config.training.weight_decay or config.training.lora_l2:
            return None
        return "it was trained without a prior; set training.weight_decay or training.lora_l2, and train another run"
