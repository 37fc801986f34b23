"""A member's checkpoints: its adapter after each epoch as a PEFT folder, and the state from which it goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ripieno.errors import EnvironmentFault
from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.runs import RunFolder
from ripieno.training.variational import STD_FILE, Posterior


@dataclass(frozen=True)
class State:
    """What a member is made of while it trains.

    Args:
        stack, position: where its adapter is.
        optimizer: with its moments.
        posterior: of its A, under training.variational.
    """

    stack: AdapterStack
    position: int
    optimizer: torch.optim.AdamW
    posterior: Posterior | None

    @property
    def member(self) -> int:
        """Its number in the ensemble."""
        return self.stack.members[self.position]

    @property
    def parameters(self) -> list[torch.Tensor]:
        """All that its optimizer moves, in a fixed order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def save(run: RunFolder, state: State, step: int, work: Mapping[str, float]) -> None:
    """Write what a member needs to go on after a step: all that its optimizer moves, and its moments.

    Args:
        run: where to.
        state: the member's.
        step: how many it has taken.
        work: what the epoch took so far, which timing.jsonl is to know.
    """
    tensors = {}
    for n, parameter in enumerate(state.parameters):
        tensors[f"parameter.{n}"] = parameter.detach().cpu()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{n}"] = state.optimizer.state[parameter][moment].cpu()
    # One entry: the format's library writes several in any order, and the same state is to be the same bytes.
    run.write(run.resume(state.member, step), safetensors.torch.save(tensors, {"work": json.dumps(dict(work))}))


def save_adapter(run: RunFolder, backbone: Backbone, state: State, epoch: int) -> None:
    """Write a member's adapter after an epoch."""
    config, tensors = state.stack.to_peft(state.position, backbone.identity["model"], backbone.identity["revision"])
    config_file, tensors_file = run.adapter_files(state.member, epoch)
    if state.posterior:
        run.write(run.adapter(state.member, epoch) / STD_FILE, state.posterior.std(state.position))
    run.write(tensors_file, tensors)
    run.write(config_file, config)


def forget(run: RunFolder, member: int, step: int) -> None:
    """Remove the states that a member had before a step: it goes on from there at the earliest."""
    for file in sorted(run.resume(member, step).parent.glob(f"{member:03d}-step-*.safetensors")):
        if file.name < run.resume(member, step).name:  # also one that a kill has left there, off record
            run.remove(file)


def discard(run: RunFolder, member: int, epoch: int, step: int) -> None:
    """Remove what a member is about to make again: its adapters after an epoch, and its states after a step.

    Also states that are damaged. Else a later start could go on from one of them, past what is made again until then.
    """
    for name in list(run.recorded()):
        of_epoch = re.match(rf"members/{member:03d}/epoch-(\d+)/", name)
        if of_epoch and int(of_epoch[1]) > epoch:
            run.remove(run.path / name)
    for of in _states(run, member):
        if of > step or not run.whole(run.resume(member, of)):
            run.remove(run.resume(member, of))


def adapters(run: RunFolder, member: int, epochs: int) -> int:
    """Return of how many epochs, from the first one on, a member's adapters are whole, at most of so many."""
    for epoch in range(1, epochs + 1):
        if not run.whole(*run.all_adapter_files(member, epoch)):
            return epoch - 1
    return epochs


def steps(run: RunFolder, member: int, epochs: int, per_epoch: int) -> list[int]:
    """Return after which steps a member can go on, the last one first; the last is 0, to the same bytes.

    From a state that is whole, as are the adapters of all epochs before its last step; at an epoch's last step that
    epoch may have to be validated and saved yet. With all adapters it needs no state.
    """
    whole = adapters(run, member, epochs)
    reached = min(whole + 1, epochs) * per_epoch
    found = {step for step in _states(run, member) if step <= reached and run.whole(run.resume(member, step))}
    return sorted(found | {0} | ({epochs * per_epoch} if whole == epochs else set()), reverse=True)


def files_until(run: RunFolder, member: int, epochs: int) -> list[Path]:
    """Return the files of a member from which it can go on: its adapters of at most so many epochs, and its states.

    Raises:
        EnvironmentFault: one was written, and is missing or damaged.
    """
    of_epochs = [sorted(run.all_adapter_files(member, epoch)) for epoch in range(1, epochs + 1)]
    found = [file for files in of_epochs for file in files if run.holds(file)]
    states = [file for step in _states(run, member) if run.whole(file := run.resume(member, step))]
    if found and not states:
        raise EnvironmentFault(
            f"{run.path / 'resume'}: holds no whole state of member {member}, from which it could go on; "
            "take it from a copy of the run"
        )
    return found + states


def restore(run: RunFolder, state: State, step: int) -> dict[str, float]:
    """Read a member's state after a step (`steps`), and return what the epoch had taken until then."""
    with safetensors.safe_open(run.resume(state.member, step), framework="pt") as file:
        for n, parameter in enumerate(state.parameters):
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"parameter.{n}"))
            state.optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": file.get_tensor(f"exp_avg.{n}").to(parameter.device),
                "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{n}").to(parameter.device),
            }
        work: dict[str, float] = json.loads(file.metadata()["work"])
    return work


def _states(run: RunFolder, member: int) -> list[int]:
    """Return after which steps a member's state was written, and not removed."""
    matches = (re.fullmatch(rf"resume/{member:03d}-step-(\d+)\.safetensors", name) for name in run.recorded())
    return [int(match[1]) for match in matches if match]
