"""Each member over several processes: torchrun starts them, and only gradients of adapters are exchanged.

    torchrun --nproc-per-node 2 -m -- ripieno.cli train CONFIG.yaml --run DIR     (without -- torchrun takes --run)

Every process holds the base and all members, and reads its share of the rows of each member's batch. A gradient is a
sum over rows, so the sum of theirs is that of the whole batch (data parallel training, arXiv:2006.15704): all take the
same step, on the same numbers, and come to the same decisions without a word. The first process leads: it alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as torch_distributed

from ripieno.errors import EnvironmentFault, UserError
from ripieno.runs import RunFolder
from ripieno.userfiles import short

PATIENCE = timedelta(minutes=30)  # that a process waits for the others: the first one may copy a fork meanwhile
Row = TypeVar("Row")


@dataclass(frozen=True)
class Ranks:
    """The processes of one training, as one of them sees them; by default it is alone.

    Args:
        rank: its number.
        world: how many there are.
        device: where it computes.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def share(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return this process's share of some rows, which may be none of them: each row is one process's."""
        return rows if self.world == 1 else rows[self.rank :: self.world]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each of some tensors of one type, in one exchange.

        Raises:
            EnvironmentFault: another process ended, or is out of reach.
        """
        if self.world == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors]).to(self.device)
        try:
            torch_distributed.all_reduce(flat)
        except RuntimeError as error:
            raise _apart(error) from error
        for tensor, of_all in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(of_all.view_as(tensor))

    def sum_gradients(self, parameters: Sequence[Tensor], also: Tensor) -> None:
        """Put the sum over all processes into the gradients of parameters and into another tensor, in one exchange.

        A parameter that no process has a gradient of, as no row came to its layer, is left without.
        """
        if self.world == 1:
            return
        found = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([*(parameter.grad for parameter in parameters if parameter.grad is not None), also, found])
        for parameter, count in zip(parameters, found.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def alike(self, numbers: Sequence[int]) -> bool:
        """Whether all processes hold the same numbers, as many in each."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        total = mine.clone()
        self.sum([total])
        return not self.any(not torch.equal(total, mine * self.world))

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process; all have to ask."""
        if self.world == 1:
            return flag
        count = torch.tensor([float(flag)])
        self.sum([count])
        return bool(count.item())

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.any(False)

    def folder(self, path: Path) -> RunFolder:
        """Return a run's folder, which this process may write to only if it leads."""
        return RunFolder(path) if self.leads else ReadOnly(path)


ALONE = Ranks()


class ReadOnly(RunFolder):
    """A run's folder in a process that does not lead: what it would write, the leading one does."""

    def write(self, path: Path, content: bytes | str, **also: Any) -> None:
        """Leave the file to the leading process."""

    def remove(self, path: Path) -> None:
        """Leave the file to the leading process."""

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Leave the line to the leading process."""

    def seal(self, name: str) -> None:
        """Leave the record to the leading process."""

    def arrange(self, name: str, arranged: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """Leave the lines to the leading process."""

    @contextmanager
    def lock(self, members: Sequence[int] | None = None, *, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Leave the locks to the leading process."""
        yield


def leads() -> bool:
    """Whether this process is alone, or the first of those that torchrun started."""
    return _started()[0] == 0


def ranked() -> bool:
    """Whether torchrun started this process as one of several."""
    return _started()[1] > 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started, and part from them at the end; without torchrun be alone.

    Where the caller has met them already (`torch.distributed.init_process_group`), parting is left to it too.

    Args:
        device: that is asked for; each process takes a GPU of its own, that of its number on its machine.

    Raises:
        UserError: the device is not one that each process can have.
        EnvironmentFault: the others are out of reach.
    """
    rank, world, local = _started()
    if world == 1:
        yield Ranks(device=device)
        return
    gpu = _own_gpu(device, local)
    ranks = Ranks(rank, world, str(gpu or device))
    if torch_distributed.is_initialized():
        yield ranks
        return
    if gpu:
        torch.cuda.set_device(gpu)
    try:
        torch_distributed.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE, device_id=gpu)
    except (RuntimeError, ValueError) as error:
        raise _apart(error) from error
    try:
        yield ranks
    finally:
        torch_distributed.destroy_process_group()


def _started() -> tuple[int, int, int]:
    """Return this process's number, how many there are, and its number on its machine, as torchrun says."""
    if not torch_distributed.is_torchelastic_launched():
        return 0, 1, 0
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return rank, world, local


def _own_gpu(device: str, local: int) -> torch.device | None:
    """Return the GPU of this process; None on CPUs."""
    given = torch.device(device)
    if given.type == "cpu":
        return None
    if given.type != "cuda" or ":" in device:
        raise UserError(f"compute.device {device}: under torchrun each process takes a GPU of its own; set it to auto")
    if local >= torch.cuda.device_count():
        raise UserError(
            f"torchrun: --nproc-per-node is over the {torch.cuda.device_count()} GPUs of this machine, of which each "
            "process takes one; lower it"
        )
    return torch.device("cuda", local)


def _apart(error: Exception) -> EnvironmentFault:
    return EnvironmentFault(
        "another process of this training ended, or is out of reach; the same command goes on from what is saved "
        f"({short(error)})"
    )
