"""A member's state after an epoch: its adapter as a PEFT folder, and the optimizer's moments beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass

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


def save(run: RunFolder, backbone: Backbone, state: State, epoch: int, step: int) -> None:
    """Write what a member needs to go on: its adapter and its optimizer's state."""
    member, position, posterior = state.member, state.position, state.posterior
    moments = {}
    for n, parameter in enumerate(state.parameters):
        kept = state.optimizer.state[parameter]
        moments[f"exp_avg.{n}"] = kept["exp_avg"].cpu()
        moments[f"exp_avg_sq.{n}"] = kept["exp_avg_sq"].cpu()
    if posterior:
        moments |= {f"root.{n}": root.detach().cpu() for n, root in enumerate(posterior.parameters(position))}
    header = {"state": json.dumps({"epoch": epoch, "step": step})}
    run.write(run.resume(member, epoch), safetensors.torch.save(moments, header))
    config, tensors = state.stack.to_peft(position, backbone.identity["model"], backbone.identity["revision"])
    config_file, tensors_file = run.adapter_files(member, epoch)
    if posterior:
        run.write(run.adapter(member, epoch) / STD_FILE, posterior.std(position))
    run.write(tensors_file, tensors)
    run.write(config_file, config)


def forget(run: RunFolder, member: int, epoch: int) -> None:
    """Remove the optimizer states that a member had before an epoch: it goes on from that epoch at the earliest."""
    for older in range(1, epoch):
        run.resume(member, older).unlink(missing_ok=True)


def saved(run: RunFolder, member: int, epoch: int) -> bool:
    """Whether a member's adapter after an epoch is there, whole."""
    return run.whole(*run.adapter_files(member, epoch))


def restore(run: RunFolder, state: State, epoch: int) -> int:
    """Read a member's adapter and optimizer state after an epoch.

    Returns:
        The number of steps that it had taken.

    Raises:
        EnvironmentFault: a file is missing or damaged.
    """
    member, posterior = state.member, state.posterior
    path = run.resume(member, epoch)
    if not run.whole(path):
        raise EnvironmentFault(
            f"{path}: missing or damaged, so member {member} cannot go on from epoch {epoch}; "
            f"remove {run.adapter(member, 1).parent} to train it from the start"
        )
    state.stack.load_peft(state.position, run.adapter(member, epoch))
    with safetensors.safe_open(path, framework="pt") as file:
        step = int(json.loads(file.metadata()["state"])["step"])
        if posterior:
            count = len(posterior.parameters(state.position))
            posterior.restore(state.position, [file.get_tensor(f"root.{n}") for n in range(count)])
        for n, parameter in enumerate(state.parameters):
            state.optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": file.get_tensor(f"exp_avg.{n}").to(parameter.device),
                "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{n}").to(parameter.device),
            }
    return step
