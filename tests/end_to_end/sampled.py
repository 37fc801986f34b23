"""Draws of a run's members: what was stored of them, what a method works with, and the folder that one is saved as."""

from __future__ import annotations

from pathlib import Path

from ripieno import Ensemble
from ripieno.methods.trained import Trained
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions
from ripieno.progress import Progress
from ripieno.runs import RunFolder


def stored(run: Path, name: str, kind: str = "test") -> Predictions:
    [file] = (run / "predictions").glob(f"{kind}-*/*/{name}.parquet")
    [p] = read_parquet(file)
    return p


def trained(run: Path, ensemble: Ensemble, member: int, epoch: int) -> Trained:
    """Return what a method works with: a member of a run, in an ensemble's first place."""
    folder = RunFolder(run)
    return Trained(folder, folder.config(), ensemble, [member], epoch, Progress(quiet=True))


def saved(run: Path, ensemble: Ensemble, folder: Path) -> Ensemble:
    """Write what stands in an ensemble's first place as a PEFT folder, and return the ensemble of it alone."""
    config, tensors = ensemble.stack.to_peft(0, str(RunFolder(run).config().base.model), None)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    return Ensemble.load([folder], prompt=RunFolder(run).config().prompt)
