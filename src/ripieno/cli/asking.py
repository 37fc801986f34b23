"""Commands that ask the members, and measure: evaluate, compare, read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ripieno.cli import options
from ripieno.cli.options import DataDir, DryRun, On, Quiet, Run, Workers
from ripieno.cli.output import print_line, print_lines
from ripieno.errors import UserError


def evaluate(
    run: Run,
    dataset: Annotated[
        list[str] | None, typer.Option(help="A set to ask; may be given again. Default: the config's.")
    ] = None,
    epoch: Annotated[
        str | None,
        typer.Option(help="A number (0 is the base), last, or all. Default: all; of all tokens, 0 and last."),
    ] = None,
    tokens: Annotated[
        Literal["answer", "all"],
        typer.Option(help="`all`: loss and calibration over every token of the questions with their right answers."),
    ] = "answer",
    store_top: Annotated[
        str | None,
        typer.Option(help="Letter templates: also store the likeliest tokens at the answer: how many, or all."),
    ] = None,
    fixed_letters: Annotated[
        bool,
        typer.Option(
            "--fixed-letters",
            help="Letter templates: also store the probabilities of a to e, however many choices there are.",
        ),
    ] = False,
    unconditional: Annotated[
        bool,
        typer.Option("--unconditional", help="Text templates: also store each choice's score without its question."),
    ] = False,
    choices: Annotated[
        int | None, typer.Option(min=2, help="Ask again with wrong choices dropped at random, down to this many.")
    ] = None,
    rotations: Annotated[
        bool,
        typer.Option(
            "--rotations",
            help="Templates that list the choices: ask with every rotation of the list, and say how much that moves.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="Ask draws of one member, at the last epoch: `checkpoints` (its last epochs), `dropout` (masks), "
            "`laplace`, `tfb` or `variational` (samples of its weights)."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="With --method: change a setting of it, such as factors=diagonal."),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            help="With --method: how many draws; as many as members by default, more where they are free (laplace)."
        ),
    ] = None,
    member: Annotated[int | None, typer.Option(help="With --method: which member; 0 by default.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N", help="Only answer the K-th of N shards; a last start without it puts them together."
        ),
    ] = None,
    on: On = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Ask the base and the members, in and out of domain. What is there already is not computed again."""
    from ripieno import config as configs
    from ripieno import evaluation, launching, reading
    from ripieno.progress import Progress
    from ripieno.report import terminal
    from ripieno.rotations import ask_rotations

    folder = options.asked(run)
    config = folder.config()
    names, last = dataset or [], config.training.epochs
    of_shard = None if shard is None else options.shard(shard)
    alone = method or rotations or tokens == "all" or shard
    if alone and (on or workers or dry_run):
        raise UserError(
            "--on, --workers, --dry-run: share out the answers of the ensemble; leave --shard, --method, --rotations "
            "and --tokens out"
        )
    extras = {
        "fixed_letters": fixed_letters or None,
        "unconditional": unconditional or None,
        "store_top": int(store_top) if store_top and store_top.isdecimal() else store_top,
    }
    others = any(given is not None for given in (choices, method, draws, member, setting, shard, *extras.values()))
    if rotations:
        if others or tokens == "all":
            raise UserError(
                "--rotations asks with every rotation of the choices; only --dataset and --epoch go with it"
            )
        at = options.one_epoch(epoch or "last", last, "rotations are asked at one epoch")
        with Progress(quiet=quiet) as progress:
            found = ask_rotations(folder, names, at, progress, data_dir)
        print_lines(terminal.rotated(found, at))
        return
    if tokens == "all":
        if others:
            raise UserError(
                "--tokens all reads questions with their right answers; only --dataset and --epoch go with it"
            )
        epochs = [0, last] if epoch is None else options.epochs(epoch, last) or list(range(last + 1))
        with Progress(quiet=quiet) as progress:
            tables = reading.evaluate(folder, names, epochs, data_dir=data_dir, progress=progress)
        print_lines(reading.said(tables))
        print_line(f"{len(tables)} tables of tokens in {folder.path / 'tokens'}.")
        return
    if method is None and (draws is not None or member is not None or setting):
        raise UserError("--draws, --member and --setting: say of which --method")
    chosen = options.epochs(epoch or ("last" if method else "all"), last)
    said = f"Predictions: {run / 'predictions'}. Next: ripieno report {run}"
    if launcher := None if alone else options.launcher(config, run, on, workers, dry_run):
        common = {
            "--dataset": dataset,
            "--data-dir": data_dir,
            "--fixed-letters": fixed_letters,
            "--unconditional": unconditional,
            "--epoch": epoch,
            "--store-top": store_top,
            "--choices": choices,
        }
        steps = launching.evaluate_steps(launching.words("evaluate", run, common), launcher.workers)
        options.launch(launcher, "evaluate", steps, dry_run, said)
        return
    sampling = None
    if method is not None:
        settings = configs.settings(setting or [], "--setting")
        sampling = evaluation.sampling_of(config, method, settings, draws, member or 0)
        chosen = chosen or list(range(1, last + 1))
    with Progress(quiet=quiet) as progress:
        files = evaluation.evaluate(
            folder,
            names,
            chosen,
            choices=choices,
            extras={key: value for key, value in extras.items() if value is not None},
            sampling=sampling,
            shard=of_shard,
            data_dir=data_dir,
            progress=progress,
        )
    if shard is not None:
        print_line(f"Shard {shard} is answered; once all are, `ripieno evaluate {run}` puts them together.")
    else:
        print_line(f"{len(files)} files of predictions in {run / 'predictions'}. Next: ripieno report {run}")


def compare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG.yaml|FOLDER",
            help="What is compared; or a folder that was made so, whose table is then made again from its predictions.",
        ),
    ],
    run: Annotated[Path | None, typer.Option(help="The folder; runs/NAME by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as seeds=3.")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Set every way to be uncertain side by side, in one table.

    It trains once what they share, and asks each the same questions.
    """
    from ripieno.report import methods

    folder = source
    if not source.is_dir():
        from ripieno import comparing, comparison_config
        from ripieno.progress import Progress

        config = comparison_config.load(source, settings or [])
        folder = run or Path("runs") / config.name
        with Progress(quiet=quiet) as progress:
            comparing.compare(config, folder, data_dir=data_dir, progress=progress)
    elif run is not None or settings:
        raise UserError(f"{source}: is a folder, whose table is made again as it is; leave --run and --set out")
    print_lines(methods.lines(methods.tabulate(folder)))
    print_line(f"Table: {folder / 'report' / 'table.csv'}")
    print_line(f"Page: {folder / 'report' / 'index.html'}")


def read(
    run: Run,
    text: Annotated[Path, typer.Option(metavar="FILE", help='UTF-8 text, or .jsonl of {"text": ...} rows.')],
    epoch: Annotated[str, typer.Option(help="A number (0 is the base), or last.")] = "last",
    output: Annotated[Path | None, typer.Option(help="The folder to write into; in RUN/read by default.")] = None,
    quiet: Quiet = False,
) -> None:
    """Show what the members make of a text, token by token.

    How probable each token is, how unsure they are, how far they agree: a table and a heat map.
    """
    from ripieno import reading
    from ripieno.progress import Progress
    from ripieno.report.heatmap import reader, words
    from ripieno.tokens import summarise

    folder = options.asked(run)
    at = options.one_epoch(epoch, folder.config().training.epochs, "a text is read at one epoch")
    with Progress(quiet=quiet) as progress:
        found = reading.read(folder, text, epoch=at, output=output, progress=progress)
    print_line(f"{text}, read by {reader(found.tokens)}:")
    print_lines(f"- {sentence}" for sentence in words(summarise(found.tokens)))
    print_line(f"Table: {found.table}")
    print_line(f"Page: {found.page}")
