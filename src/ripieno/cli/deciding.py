"""Commands that calibrate, promise, and act on it: calibrate, certify, predict, serve, acquire."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Literal

import typer

from ripieno.cli import options
from ripieno.cli.options import AsJson, CostError, CostHandover, DataDir, MaxRisk, Quiet, Run
from ripieno.cli.output import Terminated, fail, print_json, print_line, print_lines, say
from ripieno.errors import UserError


def calibrate(run: Run, data_dir: DataDir = None, quiet: Quiet = False) -> None:
    """Fit the temperature, which corrects how sure answers are.

    It is fitted on the questions of data.calibration; the measures are shown before and after.
    """
    from ripieno import experiment
    from ripieno.measures import analyze as measure
    from ripieno.progress import Progress
    from ripieno.report import terminal
    from ripieno.report.run import load

    folder = options.asked(run)
    with Progress(quiet=quiet) as progress:
        temperatures = experiment.calibrate(folder, data_dir=data_dir, progress=progress)
    evidence = load(folder)
    for method, temperature in temperatures.items():
        print_line(f"{method}: T = {temperature:.3f}")
        epoch = max(p.epoch for p in evidence.calibration if p.method == method)
        shown = [p for p in evidence.predictions if (p.method, p.epoch) == (method, epoch)]
        rows = measure(shown, calibration=evidence.calibration, about=evidence.about)
        print_lines(terminal.before_and_after(rows, method, epoch))
    if not evidence.predictions:
        print_line(f"What it changes is shown once `ripieno evaluate {run}` has asked the test questions.")


def certify(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder; none with --plan.")] = None,
    risk: Annotated[float, typer.Option(help="The largest share of the answered that may be wrong.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="How sure the promise is to hold.")] = 0.95,
    cost_error: CostError = None,
    cost_handover: CostHandover = None,
    sets: Annotated[
        Literal["lac", "aps"],
        typer.Option(help="Prediction sets: lac, small on average; aps, larger where the model is less sure."),
    ] = "lac",
    sets_by: Annotated[
        Literal["subject", "label"] | None,
        typer.Option(help="Prediction sets with a rate for each subject, or each label of a text,label file."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say how many labelled questions a promise takes, by simulation.")
    ] = False,
    accuracy: Annotated[float, typer.Option(help="With --plan: the model's, if it answered everything.")] = 0.8,
    error_auroc: Annotated[
        float, typer.Option(help="With --plan: how often a wrong answer is less sure than a right one.")
    ] = 0.8,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Promise that few answers are wrong, or say why it cannot be.

    The promise is made on the certification questions, which can be used once.
    """
    from ripieno.decisions import check_share
    from ripieno.report import terminal

    for name, share in {"--risk": risk, "--confidence": confidence, "--accuracy": accuracy}.items():
        check_share(name, share)
    if plan:
        from ripieno.measures.certify import plans

        if run is not None or as_json:
            raise UserError(
                "--plan: simulates a model that is not there yet, and prints a table; leave RUN and --json out"
            )
        try:
            planned = plans(risk, confidence, accuracy, error_auroc)
        except ValueError as error:
            raise UserError(f"--error-auroc: {error}") from None
        print_lines(terminal.planned(planned, risk, confidence))
        return
    if run is None:
        raise UserError("certify: name a run folder, or give --plan")
    from ripieno import certification
    from ripieno.progress import Progress

    with Progress(quiet=quiet) as progress:
        made = certification.certify(
            options.asked(run),
            risk,
            confidence,
            costs=options.costs(cost_error, cost_handover),
            score=sets,
            by=sets_by,
            data_dir=data_dir,
            progress=progress,
        )
    if as_json:
        print_json(made.to_json())
    else:
        print_lines(terminal.certified(made))


def predict(
    run: Run,
    source: Annotated[Path, typer.Option("--input", metavar="FILE", help="Questions: jsonl, csv or parquet.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="Answers: jsonl, csv or parquet, by the ending.")],
    max_risk: MaxRisk = None,
    quiet: Quiet = False,
) -> None:
    """Answer a file of questions, and hand the unclear ones over.

    Without --max-risk each gets its probabilities, and nothing is decided. Where nothing was certified yet, that risk
    is certified first, at 95% confidence.
    """
    from ripieno import decisions
    from ripieno.data.question import read_questions
    from ripieno.data.rows import check_output
    from ripieno.ensemble import Ensemble
    from ripieno.progress import Progress

    check_output(output, source)
    labels = options.asked(run).config().data.labels
    questions = read_questions(source, labels)
    _certify_first(run, max_risk, quiet)
    ensemble = Ensemble.load(run)
    with Progress(quiet=quiet) as progress:
        decided = ensemble.decide(questions, max_risk, progress)
    decisions.write(output, decided)
    certificate = ensemble.certified.certificate if ensemble.certified else None
    for caution in decisions.cautions(source, questions, decided, certificate, max_risk):
        say(f"ripieno: {caution}")
    answered = sum(decision.answered == "yes" for decision in decided)
    said = "" if max_risk is None else f", {answered} answered and {len(decided) - answered} handed over"
    print_line(f"{output}: {len(decided)} questions{said}")


def serve(
    run: Run,
    max_risk: MaxRisk = None,
    host: Annotated[str, typer.Option(help="Where to listen; by default for this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0: any port that is free.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that callers give. Default: RIPIENO_TOKEN, if it is set.")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="How many questions may wait; callers of more get 503.")] = 256,
    max_questions: Annotated[int, typer.Option(min=1, help="Questions of one request, at most.")] = 64,
    max_bytes: Annotated[int, typer.Option(min=1, help="Bytes of one request, at most.")] = 2**20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request is given up.")] = 30.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar, and no line for each request.")
    ] = False,
) -> None:
    """Answer questions over HTTP, with a page to try them on.

    Programs send them to POST /v1/decide. Without --max-risk each gets its probabilities, and nothing is decided.
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
    folder, token = options.asked(run), server.read_token(token_file)
    limits = Limits(waiting=queue, questions=min(max_questions, queue), body=max_bytes, seconds=timeout)

    def started(address: str) -> None:
        say(f"ripieno: serving {run} at {address}; Ctrl-C stops it, once what was accepted is answered")

    try:
        with closing(server.listen(host, port, token)) as listening:  # before work that may take minutes
            _certify_first(run, max_risk, quiet)
            server.serve(folder, listening, max_risk, token=token, limits=limits, quiet=quiet, started=started)
    except KeyboardInterrupt:
        fail("stopped; what was accepted is answered", 130)
    except Terminated:
        fail("stopped; what was accepted is answered", 143)


def _certify_first(run: Path, max_risk: float | None, quiet: bool) -> None:
    """Certify a risk where nothing was certified yet, and print the promise."""
    from ripieno import certification
    from ripieno.progress import Progress
    from ripieno.report import terminal
    from ripieno.runs import RunFolder

    with Progress(quiet=quiet) as progress:
        made = certification.certify_first(RunFolder(run), max_risk, progress)
    if made is not None:
        print_lines(terminal.certified(made))


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw that breaks ties, and of random.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Choose which questions to label next.

    They are chosen by what the members make of them. Those that the run has already are left out; labels in the pool
    are not looked at.
    """
    from ripieno import acquisition
    from ripieno.data.question import SUFFIXES
    from ripieno.progress import Progress

    folder = options.asked(run)
    labels = folder.config().data.labels
    path = output or Path(f"{pool.stem}-next{pool.suffix if pool.suffix in SUFFIXES else SUFFIXES[0]}")
    acquisition.check_output(path, pool, labels)
    with Progress(quiet=quiet) as progress:
        acquired = acquisition.acquire(folder, pool, count, by, seed=seed, progress=progress)
    acquisition.write(path, acquired, labels)
    print_lines(acquisition.said(acquired, path))
