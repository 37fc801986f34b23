"""Uncertainty a token at a time: of a user's own text, and of the solved questions of data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ripieno import measures, provenance, tokens
from ripieno.config import Config
from ripieno.data.kept import keep_questions, names_of, questions_of
from ripieno.data.question import Text, read_texts
from ripieno.ensemble import Ensemble, evaluated_sets, few_shot_pool, load_base
from ripieno.errors import UserError
from ripieno.model import reading
from ripieno.model.trees import SpelledText
from ripieno.progress import Progress
from ripieno.report import heatmap
from ripieno.runs import BASE, METHOD, RunFolder, members_at, sha256_of, write_atomically, writing
from ripieno.tokens import Summary, Tokens
from ripieno.userfiles import read_text, require_file


@dataclass(frozen=True)
class Reading:
    """What was made of a user's text: the table of its tokens, and the page that shows it."""

    tokens: Tokens
    table: Path
    page: Path


@dataclass(frozen=True)
class Measured:
    """A few numbers about some tokens of a data set, and the calibration error of the next token's confidence."""

    what: str
    summary: Summary
    ece: float


# ---- a user's own text ----------------------------------------------------------------------------------------------


def read(
    run: RunFolder,
    file: Path,
    *,
    epoch: int | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Reading:
    """Let the ensemble read a text: how probable it finds each token, how unsure it is, how far its members agree.

    This is the "next token" evaluation of arXiv:2402.12264, on the user's own text.

    Args:
        run: a trained run.
        file: UTF-8 text, read as it stands; or .jsonl of `{"text": ...}` rows.
        epoch: 0 (the base) to E; the last one by default.
        output: the folder for tokens.parquet and index.html; by default one below RUN/read, named by text and epoch.
        progress: advanced by one a member and window of text.

    Raises:
        UserError: the file is not text, or holds nothing to predict; or the epoch does not exist or is not trained.
        EnvironmentFault: the run is locked, or a file is damaged or cannot be written.
    """
    config, progress = run.config(), progress or Progress(quiet=True)
    epoch = config.training.epochs if epoch is None else epoch
    members = members_at(run, epoch)
    texts = texts_of(file)
    folder = output or run.reading(file.stem, sha256_of(file), epoch)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder}: is a file; name a folder")
    # A folder of the user's own needs no lock, so that a text can be read while the run goes on training.
    with nullcontext() if output else run.lock():
        progress.describe("loading the base")
        ensemble = _ensemble(run, config)
        progress.describe(f"reading {file.name}")
        spelled = [ensemble.encoder.spell(text) for text in texts]
        found = _read(run, config, ensemble, spelled, members, progress)
        if not found.predicted.any():
            raise UserError(f"{file}: holds one token alone, with nothing before it to predict it from; give more text")
        text = {"file": file.name, "sha256": sha256_of(file), "texts": len(texts)}
        about = {**provenance.metadata(run, config), "text": text, "window": _limit(ensemble, config)}
        found = replace(found, epoch=epoch, method=METHOD if epoch else BASE, metadata=about)
        page = heatmap.build(found, run=config.name, file=file.name, facts=_facts(run, config, ensemble, found, file))
        paths = (folder / "tokens.parquet", folder / "index.html")
        for path, content in zip(paths, (tokens.to_parquet(found), page.encode()), strict=True):
            _write(run, path, content, in_run=output is None)
    return Reading(found, *paths)


def texts_of(file: Path) -> list[Text]:
    """Read a file of text as it stands, or the `{"text": ...}` rows of a .jsonl file.

    Raises:
        UserError: there is no such file, it is empty or no text, or a row is broken.
    """
    if file.suffix == ".jsonl":
        return read_texts(file)
    require_file(file)
    try:
        text = read_text(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    if "\0" in text:
        raise UserError(f"{file}: holds binary data (a zero byte), not text; give a text file")
    if not text:
        raise UserError(f"{file}: is empty; write some text into it")
    return [Text(file.name, text)]


def _write(run: RunFolder, path: Path, content: bytes, in_run: bool) -> None:
    if in_run:
        run.write(path, content)
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def _facts(run: RunFolder, config: Config, ensemble: Ensemble, found: Tokens, file: Path) -> dict[str, str]:
    """Return the page's table: what was read, by whom, and how."""
    limit = _limit(ensemble, config)
    window = "The whole text at once."
    if limit is not None:
        window = (
            f"At most {limit:,} tokens at once. A longer text is read in windows of so many, each beginning with half "
            "a window of tokens that were predicted already: every token is predicted once, those beyond the first "
            "window from half a window of context at least."
        )
    return {
        "Text": f"{file.name} (sha256 {found.metadata['text']['sha256']})",
        "Run": str(run.path),
        "Base": f"{config.base.model} (sha256 {found.metadata['base']['sha256']})",
        "Members": ", ".join(map(str, found.members)) + f", epoch {found.epoch}" if found.epoch else "none: the base",
        "Context": window,
        "Numbers": "tokens.parquet, beside this page: one row a token",
    }


# ---- solved questions -----------------------------------------------------------------------------------------------


def evaluate(
    run: RunFolder,
    datasets: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
    *,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[Tokens]:
    """Read data sets' questions with their right answers, token by token; what is there already is not read again.

    Args:
        run: a trained run.
        datasets: names; by default the config's test and out-of-domain sets. Questions without an answer are left out.
        epochs: 0 (the base) to E; by default the base and the last.
        data_dir: a folder with originally released data files, for sets that the run does not hold yet.
        progress: advanced by one a member and question.

    Returns:
        The tables of RUN/tokens, a set's epochs together.

    Raises:
        UserError: an epoch or a set does not exist, the epoch is not trained, or a set has no answers.
        EnvironmentFault: the run is locked, or a file is damaged or cannot be written.
    """
    config, progress = run.config(), progress or Progress(quiet=True)
    epochs = (0, config.training.epochs) if epochs is None else epochs
    names = names_of(run, dict.fromkeys(datasets)) or evaluated_sets(run)
    if not names:
        raise UserError(f"{run.path}: its config names no data.test; name a set with --dataset")
    found, ensemble = [], None
    with run.lock():
        answering = {epoch: members_at(run, epoch) for epoch in epochs}
        for name in names:
            every = questions_of(run, config, name, data_dir)
            questions = [question for question in every if question.answer is not None]
            if not questions:
                raise UserError(f"{name.written}: no question of it has an answer to read; name another with --dataset")
            for epoch, members in answering.items():
                method = METHOD if epoch else BASE
                file = run.tokens(name.folder, name.file, method, epoch)
                inputs = provenance.inputs_of_prompts(run, config, questions, members)
                if run.whole(file) and provenance.header(file)["inputs"] == inputs:
                    keep_questions(run, name, every)
                    found.append(tokens.read_parquet(file))
                    continue
                ensemble = ensemble or _ensemble(run, config, few_shot=True, data_dir=data_dir)
                progress.describe(f"reading {name.written}, " + (f"epoch {epoch}" if epoch else "the base"))
                limits = config.evaluation.max_tokens, config.evaluation.too_long
                solved, dropped = ensemble.encoder.solved(questions, *limits)
                if not solved:
                    raise UserError(
                        f"{name.written}: every question is over evaluation.max_tokens; name another with --dataset"
                    )
                made = _read(run, config, ensemble, solved, members, progress)
                about = {"inputs": inputs, "too_long": [question.id for question in dropped]}
                about = {**provenance.metadata(run, config), **about}
                made = replace(made, dataset=name.dataset, split=name.split, epoch=epoch, method=method, metadata=about)
                keep_questions(run, name, every)
                run.write(file, tokens.to_parquet(made))
                found.append(tokens.read_parquet(file))
    return found


def measure(found: Tokens) -> list[Measured]:
    """Return loss and calibration over all tokens of solved questions, and over their answers' tokens alone.

    Calibration is that of the next token: its confidence is the probability of the likeliest one.
    """
    assert found.answer is not None
    measured = []
    for what, rows in (("all tokens", found.predicted), ("answers alone", found.predicted & found.answer)):
        ece = measures.ece(found.confidence[rows], found.correct[rows].astype(np.float64))
        measured.append(Measured(what, tokens.summarise(found, rows), ece))
    return measured


def said(tables: Sequence[Tokens]) -> Iterator[str]:
    """Yield what `evaluate` found as lines of text."""
    for found in tables:
        yield f"{found.dataset}/{found.split}, {found.method}, epoch {found.epoch}"
        yield f"  {'':<16}{'tokens':>9}{'NLL':>8}{'perplexity':>12}{'accuracy':>10}{'ECE':>8}"
        for measured in measure(found):
            s = measured.summary
            numbers = f"{s.tokens:>9,}{s.nll:>8.3f}{s.perplexity:>12,.1f}{s.accuracy:>10.3f}{measured.ece:>8.3f}"
            yield f"  {measured.what:<16}{numbers}"


# ---- both -----------------------------------------------------------------------------------------------------------


def _ensemble(run: RunFolder, config: Config, few_shot: bool = False, data_dir: Path | None = None) -> Ensemble:
    backbone = load_base(run, config.base, config.compute)
    pool = few_shot_pool(config.prompt, config.data, data_dir) if few_shot else []
    members = range(config.training.members)
    return Ensemble.assemble(backbone, config.adapter, members, config.prompt, config.evaluation, config.compute, pool)


def _read(
    run: RunFolder,
    config: Config,
    ensemble: Ensemble,
    texts: Sequence[SpelledText],
    members: dict[int, int],
    progress: Progress,
) -> Tokens:
    for member, at in members.items():
        ensemble.stack.load_peft(member, run.adapter(member, at))
    limit = _limit(ensemble, config)
    return reading.read(ensemble.engine, list(members), texts, limit, ensemble.members_per_pass, progress)


def _limit(ensemble: Ensemble, config: Config) -> int | None:
    """Return how many tokens are read at once: as many as the base takes, or fewer by evaluation.max_tokens."""
    limits = (ensemble.engine.backbone.limit, config.evaluation.max_tokens)
    return min((limit for limit in limits if limit is not None), default=None)
