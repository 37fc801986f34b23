"""Fine-tune an ensemble of LoRA adapters of one language model, and act on its uncertainty.

`Ensemble` and `train` need torch, and load it when they are first used; `measures` never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ripieno import measures

if TYPE_CHECKING:
    from ripieno.ensemble import Ensemble
    from ripieno.experiment import train

__all__ = ["Ensemble", "measures", "train"]


def __getattr__(name: str) -> Any:
    if name == "Ensemble":
        from ripieno.ensemble import Ensemble

        return Ensemble
    if name == "train":
        from ripieno.experiment import train

        return train
    raise AttributeError(f"module 'ripieno' has no attribute {name!r}")
