"""Fine-tune an ensemble of LoRA adapters of one language model, and see when to believe its answers.

`Ensemble` and `train` need torch; `measures` never does. Each is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ripieno import measures
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
    if name == "measures":
        return importlib.import_module("ripieno.measures")
    raise AttributeError(f"module 'ripieno' has no attribute {name!r}")
