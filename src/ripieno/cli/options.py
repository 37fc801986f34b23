"""Arguments that several commands take, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ripieno.cli.output import print_line, say
from ripieno.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ripieno.config import Config
    from ripieno.launching import Command, Launcher
    from ripieno.measures import Costs
    from ripieno.runs import RunFolder

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")]
NewRun = Annotated[Path | None, typer.Option("--run", help="The run folder; runs/NAME by default.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as training.epochs=2.")
]
DataDir = Annotated[Path | None, typer.Option(help="A folder with originally released data files, looked in first.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]
MaxRisk = Annotated[
    float | None, typer.Option(help="Hand over what would make more than this share of the answers wrong.")
]
CostError = Annotated[float | None, typer.Option(help="What a wrong answer costs you, in any unit.")]
CostHandover = Annotated[float | None, typer.Option(help="What handing a question to a person costs, in that unit.")]
Bins = Annotated[int, typer.Option(min=1, help="Bins of confidence in the calibration errors.")]
On = Annotated[
    Literal["local", "ray", "slurm"] | None,
    typer.Option(
        help="Share the work out: on this machine, a Ray cluster, or Slurm. Default: launch.on of the config."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="How many processes share it. Default: launch.workers of the config.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With Slurm: only print the batch script.")]


def asked(path: Path) -> RunFolder:
    """Return a run whose members are asked; say which of them no longer answer."""
    from ripieno.runs import RunFolder, failed_members

    run = RunFolder(path)
    for member, epoch in failed_members(run).items():
        say(f"member {member} is left out from epoch {epoch} on: its training failed; `ripieno status {path}` says why")
    return run


def members(text: str, count: int) -> list[int]:
    """Read which of an ensemble's members are meant, such as 0-4 or 0,2."""
    try:
        parts = [part.partition("-") for part in text.split(",")]
        ends = [(int(first), int(last if to else first)) for first, to, last in parts]
    except ValueError:
        raise UserError(f"--members {text}: give numbers and ranges, such as 0-4 or 0,2") from None
    if not all(0 <= first <= last < count for first, last in ends):
        raise UserError(f"--members {text}: the ensemble has members 0 to {count - 1}")
    return sorted({member for first, last in ends for member in range(first, last + 1)})


def shard(text: str) -> tuple[int, int]:
    """Read K/N."""
    number, slash, of = text.partition("/")
    if not slash or not number.isdecimal() or not of.isdecimal():
        raise UserError(f"--shard {text}: give one of so many, such as 2/8")
    return int(number), int(of)


def epochs(text: str, last: int) -> list[int] | None:
    """Read one epoch, or all of them: None."""
    if text == "all":
        return None
    if text == "last":
        return [last]
    if not text.isdecimal():
        raise UserError(f"--epoch {text}: give a number, last or all")
    return [int(text)]


def one_epoch(text: str, last: int, why: str) -> int:
    """Read one epoch; `why` says that it cannot be all of them."""
    found = epochs(text, last)
    if found is None:
        raise UserError(f"--epoch all: {why}; give a number or last")
    return found[0]


def costs(error: float | None, handover: float | None) -> Costs | None:
    """Return the costs of a decision; None where none are given."""
    from ripieno.measures import Costs

    if error is None and handover is None:
        return None
    if error is None or handover is None or not (1e-9 <= error <= 1e9 and 1e-9 <= handover <= 1e9):
        raise UserError("--cost-error and --cost-handover: give both, above 0 (1e-9 to 1e9), in one unit")
    return Costs(error, handover)


def pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Read FIRST,SECOND of each."""
    found = []
    for text in texts:
        first, comma, second = text.partition(",")
        if not comma or not first or not second or "," in second:
            raise UserError(f"--pair {text}: give two rows and a comma between them, such as ensemble@1,base")
        found.append((first.strip(), second.strip()))
    return found


def launcher(config: Config, run: Path, on: str | None, workers: int | None, dry_run: bool) -> Launcher | None:
    """Return what shares the work out; None where this process does it alone."""
    from ripieno import launching
    from ripieno.cli import do

    changed = {key: value for key, value in {"on": on, "workers": workers}.items() if value is not None}
    launch = config.launch.model_copy(update=changed)
    if dry_run and launch.on != "slurm":
        raise UserError("--dry-run: prints the batch scripts of --on slurm; give that too, or leave it out")
    return launching.launcher(launch, run, config.compute.device, do)


def launch(launcher: Launcher, name: str, steps: Sequence[Sequence[Command]], dry_run: bool, done: str) -> None:
    """Start commands, or print the scripts that would."""
    from ripieno.launching.slurm import Slurm

    if dry_run and isinstance(launcher, Slurm):
        for text in launcher.scripts(name, steps):
            typer.echo(text)
        return
    queued = launcher.run(name, steps)
    print_line(f"Queued: {queued}. `ripieno status` says how far it is." if queued else done)
