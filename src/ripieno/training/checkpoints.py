"""A member's state after an epoch: its adapter as a PEFT folder, and the optimizer's moments beside it."""

from __future__ import annotations

import json

import safetensors
import safetensors.torch
import torch

from ripieno.errors import EnvironmentFault
from ripieno.model.adapters import AdapterStack
from ripieno.model.backbone import Backbone
from ripieno.runs import RunFolder


def save(
    run: RunFolder,
    backbone: Backbone,
    stack: AdapterStack,
    position: int,
    optimizer: torch.optim.AdamW,
    epoch: int,
    step: int,
) -> None:
    """Write what a member needs to go on: its adapter and its optimizer's state."""
    member = stack.members[position]
    moments = {}
    for n, parameter in enumerate(stack.parameters(position)):
        state = optimizer.state[parameter]
        moments[f"exp_avg.{n}"] = state["exp_avg"].cpu()
        moments[f"exp_avg_sq.{n}"] = state["exp_avg_sq"].cpu()
    header = {"state": json.dumps({"epoch": epoch, "step": step})}
    run.write(run.resume(member, epoch), safetensors.torch.save(moments, header))
    config, tensors = stack.to_peft(position, backbone.identity["model"], backbone.identity["revision"])
    config_file, tensors_file = run.adapter_files(member, epoch)
    run.write(tensors_file, tensors)
    run.write(config_file, config)


def forget(run: RunFolder, member: int, epoch: int) -> None:
    """Remove the optimizer states that a member had before an epoch: it goes on from that epoch at the earliest."""
    for older in range(1, epoch):
        run.resume(member, older).unlink(missing_ok=True)


def saved(run: RunFolder, member: int, epoch: int) -> bool:
    """Whether a member's adapter after an epoch is there, whole."""
    return run.whole(*run.adapter_files(member, epoch))


def restore(run: RunFolder, stack: AdapterStack, position: int, optimizer: torch.optim.AdamW, epoch: int) -> int:
    """Read a member's adapter and optimizer state after an epoch.

    Returns:
        The number of steps that it had taken.

    Raises:
        EnvironmentFault: a file is missing or damaged.
    """
    member = stack.members[position]
    path = run.resume(member, epoch)
    if not run.whole(path):
        raise EnvironmentFault(
            f"{path}: missing or damaged, so member {member} cannot go on from epoch {epoch}; "
            f"remove {run.adapter(member, 1).parent} to train it from the start"
        )
    stack.load_peft(position, run.adapter(member, epoch))
    with safetensors.safe_open(path, framework="pt") as file:
        step = int(json.loads(file.metadata()["state"])["step"])
        for n, parameter in enumerate(stack.parameters(position)):
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                "exp_avg": file.get_tensor(f"exp_avg.{n}").to(parameter.device),
                "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{n}").to(parameter.device),
            }
    return step
