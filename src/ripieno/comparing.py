"""Ways to be uncertain about one adapter, side by side: train what they share once, ask each the same questions.

A way of training is one run of all seeds' members at once: with M members an ensemble, members rM to rM + M - 1 are
the r-th repetition, of which a method of one member takes the first. So the r-th repetition starts from the same seeds
and sees the same order of questions in every way of training, and differences are paired. Where members are not alike
(they repel each other, or take templates, ranks or modules in turn), each repetition is a run of its own. What is
written is read by `comparison`, without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from ripieno import comparison, methods, provenance
from ripieno.comparison import Index, predictions_file
from ripieno.comparison_config import Comparison, MethodRow
from ripieno.config import Config
from ripieno.data.kept import keep_questions, questions_of
from ripieno.data.matching import match_questions
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName, Roles
from ripieno.ensemble import Ensemble, assemble, load_base
from ripieno.errors import UserError
from ripieno.evaluation import Sampling, fit, matched_choices
from ripieno.experiment import assign_roles, train, units_of_training
from ripieno.methods import Method
from ripieno.methods.trained import Known, Trained, pooled_nll
from ripieno.model.prediction import Asked
from ripieno.parquet import to_parquet
from ripieno.predictions import Predictions
from ripieno.progress import Progress
from ripieno.prompt_features import make_features, of_analysis
from ripieno.runs import RunFolder, sha256_of
from ripieno.seeds import derive


@dataclass(frozen=True)
class Trial:
    """One thing that validation chooses among, for one repetition of a row.

    Args:
        training: how its members were trained.
        settings: of the method.
        epoch: at which the members answer, pooled.
        epochs: by member, its own epoch in place of that; {} where all answer at the same.
        read: tokens that choosing its epoch took, and trying it where there is something to choose.
        nll: mean over the validation questions of what it answers pooled; 0 where there is nothing to choose.
    """

    training: str
    settings: Mapping[str, Any]
    epoch: int
    epochs: Mapping[int, int]
    read: int
    nll: float = 0.0


@dataclass
class World:
    """One way of training, ready to be asked: a base with one place for an adapter, and every set of questions.

    Args:
        runs: the members of all repetitions in one, or a run for each.
        size: members of each repetition.
        data_dir: a folder with originally released data files.
        progress: the job's.
    """

    runs: Sequence[RunFolder]
    size: int
    data_dir: Path | None
    progress: Progress
    answered: dict[RunFolder, dict[Known, tuple[Predictions, int]]] = field(default_factory=dict)
    encoded: dict[str, Asked] = field(default_factory=dict)

    @property
    def run(self) -> RunFolder:
        """The first run, which holds the same questions as any other."""
        return self.runs[0]

    @cached_property
    def config(self) -> Config:
        """The resolved config of the first run; others differ from it by their seed alone."""
        return self.run.config()

    @property
    def epochs(self) -> range:
        """All that it was trained for."""
        return range(1, self.config.training.epochs + 1)

    def of(self, repetition: int) -> tuple[RunFolder, range]:
        """Return which members of which run a repetition is."""
        first = repetition * self.size if len(self.runs) == 1 else 0
        return self.runs[repetition % len(self.runs)], range(first, first + self.size)

    def release(self) -> None:
        """Give the base's memory back, until it is needed again."""
        self.__dict__.pop("ensemble", None)

    @cached_property
    def ensemble(self) -> Ensemble:
        """The base with one place for an adapter."""
        return assemble(self.config, load_base(self.run, self.config.base, self.config.compute), [0], self.data_dir)

    @cached_property
    def questions(self) -> dict[DatasetName, list[Question]]:
        """The questions of the calibration, test and out-of-domain sets."""
        data = self.config.data
        texts = dict.fromkeys((*data.calibration, *data.test, *data.out_of_domain))
        names = map(DatasetName.parse, texts)
        found = {name: questions_of(self.run, self.config, name, self.data_dir) for name in names}
        for name, questions in found.items():
            keep_questions(self.run, name, questions)
        return found

    @cached_property
    def sets(self) -> dict[tuple[DatasetName, int | None], tuple[Asked, dict[str, Any]]]:
        """The encoded calibration, test and out-of-domain sets, and those that are asked again with fewer choices.

        With each, what its predictions say of it: which questions were left out.
        """
        found: dict[tuple[DatasetName, int | None], tuple[Asked, dict[str, Any]]] = {
            (name, None): self._encoded(of_set) for name, of_set in self.questions.items()
        }
        for name, fewest in matched_choices(self.config, self.questions):
            matched = match_questions(self.questions[name], fewest, self.config.data.seed)
            asked, about = self._encoded(matched.questions)
            left_out = {"fewer_choices": matched.fewer_choices, "no_answer": matched.no_answer}
            found[name, fewest] = asked, {**about, "choices": fewest, "choices_left_out": left_out}
        return found

    def _encoded(self, questions: Sequence[Question]) -> tuple[Asked, dict[str, Any]]:
        asked = self.ensemble.encode(questions)
        kept = {question.id for question in asked.questions}
        return asked, {"too_long": [question.id for question in questions if question.id not in kept]}

    def trained(self, repetition: int, epoch: int, epochs: Mapping[int, int] | None = None) -> Trained:
        """Return what a method works with."""
        run, members = self.of(repetition)
        answered, own = self.answered.setdefault(run, {}), dict(epochs or {})
        return Trained(run, run.config(), self.ensemble, members, epoch, self.progress, answered, self.encoded, own)


def compare(
    config: Comparison, folder: Path, *, data_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """Train and ask everything that is not there yet, and write rows.json.

    A row that cannot be had, because its way of training does not fit its method or failed, is kept with the reason.

    Args:
        config: what is compared.
        folder: where its runs and predictions go.
        data_dir: a folder with originally released data files.
        progress: told how much there is to do, and how far it is.

    Returns:
        The folder.

    Raises:
        UserError: the config does not fit the data or the base, or the folder holds another comparison.
        EnvironmentFault: a run is locked, or a file is damaged.
    """
    progress = progress or Progress(quiet=True)
    kept = RunFolder(folder)
    with kept.lock():
        refused = {row.name: why for row in config.rows if (why := _refusal(config, row))}
        possible = [row for row in config.rows if row.name not in refused]
        plans = {name: _plan(config, possible, name) for row in possible for name in row.training}
        roles = assign_roles(config.experiment(next(iter(config.trainings)), config.training.members), data_dir)
        if not any(question.answer is not None for question in roles.questions("validation")):
            raise UserError(
                "data.validation: none of its questions has an answer to choose by; "
                "give them answers, or name another set"
            )
        units = config.seeds * sum(_units(config, row, roles) for row in possible)
        for experiment, members in chain.from_iterable(plans.values()):
            units += units_of_training(experiment, assign_roles(experiment, data_dir), len(members))
        progress.expect(units)
        _start(config, kept)
        worlds = {}
        for name, plan in plans.items():
            try:
                runs = [
                    train(one, folder / "trainings" / one.name, members=members, data_dir=data_dir, progress=progress)
                    for one, members in plan
                ]
            except UserError as error:  # such as members that all failed: what is trained otherwise is there
                refused |= {row.name: str(error) for row in possible if name in row.training}
                continue
            worlds[name] = World(runs, config.training.members, data_dir, progress)
        if not worlds:
            raise UserError(f"nothing can be compared: {next(iter(refused.values()))}")
        found = []
        for row in config.rows:
            for name in set(worlds) - set(row.training):
                worlds[name].release()
            found.append(_row(config, row, worlds, kept, roles, refused.get(row.name)))
        _features(next(iter(worlds.values())), kept, progress)
        data = config.data
        index = Index(
            schema=1,
            replicates=config.seeds,
            members=config.training.members,
            reference=config.reference,
            calibration=_names(data.calibration),
            test=_names(data.test),
            out_of_domain=_names(data.out_of_domain),
            train=_names(data.train),
            shared_calibration=bool(set(data.calibration) & set(data.validation)),
            rows=tuple(found),
        )
        kept.write(folder / "rows.json", index.to_json())
    return folder


def _features(world: World, kept: RunFolder, progress: Progress) -> None:
    """Write what the base alone makes of the prompts, which no way of training changes."""
    if world.config.data.out_of_domain:
        prompts = of_analysis(world.run, world.config, world.questions)
        make_features(world.run, world.config, prompts, lambda: world.ensemble, progress, kept)


def _start(config: Comparison, kept: RunFolder) -> None:
    """Write the config of a new comparison, or check that a present one is the same."""
    path = kept.path / "compare.yaml"
    content = config.model_dump(mode="json")
    if kept.whole(path):
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        differing = [key for key in content if key != "compute" and content[key] != old.get(key)]
        # Rows may be added and left out: each keeps its own answers.
        if differing := [key for key in differing if key not in ("rows", "trainings", "reference")]:
            raise UserError(
                f"{kept.path} holds another comparison; what differs: {', '.join(differing)}. Choose another folder "
                "with --run, or go back to that config"
            )
    kept.write(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _plan(config: Comparison, rows: Sequence[MethodRow], training: str) -> list[tuple[Config, list[int]]]:
    """Return the runs of one way of training, and which members of each are trained.

    That is the first of each repetition; all where a row stands on all, or where they are driven apart.
    """
    M = config.training.members
    several = any(_stands_on(row, M) > 1 for row in rows if training in row.training)
    together = config.experiment(training, config.seeds * M)
    repelled = together.training.repulsion is not None
    own = (together.training.templates, together.adapter.member_ranks, together.adapter.member_targets)
    if not repelled and not any(own):
        return [(together, [m for m in range(config.seeds * M) if several or m % M == 0])]
    alone = config.experiment(training, M)
    return [
        (
            alone.model_copy(
                update={
                    "name": f"{training}-replicate-{r:03d}",
                    "training": alone.training.model_copy(update={"seed": derive(alone.training.seed, "replicate", r)}),
                }
            ),
            list(range(M)) if several or repelled else [0],
        )
        for r in range(config.seeds)
    ]


def _units(config: Comparison, row: MethodRow, roles: Roles) -> int:
    """Return the units of progress of one repetition of a row, as if it had one trial and fitted nothing."""
    method, stands_on = _method(row), _stands_on(row, config.training.members)
    answers = stands_on * (1 if method.of_members or method.free else _count(config, row))
    asked = sum(len(roles.questions(role)) for role in ("calibration", "test", "ood"))
    choosing = config.training.epochs if row.epoch == "validation" else 0
    return answers * asked + stands_on * choosing * len(roles.questions("validation"))


def _names(sets: Sequence[str]) -> tuple[str, ...]:
    """Return data sets as predictions name themselves."""
    return tuple(f"{name.dataset}/{name.split}" for name in map(DatasetName.parse, sets))


def _method(row: MethodRow, settings: Mapping[str, Any] | None = None) -> Method:
    try:
        return methods.named(row.method, row.trials[0][1] if settings is None else settings)
    except UserError as error:
        raise UserError(f"rows: {row.name!r}: {error}") from None


def _stands_on(row: MethodRow, members: int) -> int:
    """Return on how many members of a repetition a row stands."""
    return len(_method(row).stands_on(range(members)))


def _count(config: Comparison, row: MethodRow) -> int:
    return row.draws or _method(row).count(config.training.members)


def _refusal(config: Comparison, row: MethodRow) -> str | None:
    """Return why a row cannot be had, None if it can.

    Raises:
        UserError: it says what does not go together, whatever it is trained like.
    """
    members = range(config.training.members)
    tried = [_method(row, settings) for _, settings in row.trials]
    if row.draws is not None and tried[0].of_members:
        raise UserError(f"rows: {row.name!r}: {row.method} answers with its members as they are; leave draws out")
    if len({tuple(method.stands_on(members)) for method in tried}) > 1:
        raise UserError(f"rows: {row.name!r}: its trials stand on different members; make two rows of them")
    for (training, _), method in zip(row.trials, tried, strict=True):
        experiment = config.experiment(training, config.training.members)
        if why := method.refusal(experiment, experiment.training.epochs, _count(config, row)):
            return f"{training}: {why}"
    return None


def _row(
    config: Comparison,
    row: MethodRow,
    worlds: Mapping[str, World],
    kept: RunFolder,
    roles: Roles,
    refused: str | None,
) -> comparison.MethodRow:
    """Ask one row in every repetition, and return what it cost."""
    about: dict[str, Any] = {"name": row.name, "slug": row.slug, "method": row.method}
    about |= {"pooling": row.pooling, "tuned": row.tuned}
    found = []
    for r in range(config.seeds):
        if refused is None:
            try:
                found.append(_repetition(config, row, r, worlds, kept, _units(config, row, roles)))
            except UserError as error:  # such as a member whose training failed: the other rows are there all the same
                refused = str(error)
    if refused is not None:
        nothing = dict.fromkeys(("answers", "training_tokens", "evaluation_tokens", "stored_bytes"), 0)
        return comparison.MethodRow.model_validate({**about, **nothing, "refused": refused})

    def mean(key: str) -> int:
        return round(sum(one[key] for one in found) / len(found))

    about |= {key: mean(key) for key in ("training_tokens", "evaluation_tokens", "stored_bytes")}
    return comparison.MethodRow.model_validate(
        {**about, "answers": found[0]["answers"], "chosen": [one["chosen"] for one in found]}
    )


def _repetition(
    config: Comparison, row: MethodRow, r: int, worlds: Mapping[str, World], kept: RunFolder, units: int
) -> dict[str, Any]:
    """Choose among a row's trials, and ask the chosen one every set; return its costs and what was chosen.

    What is there from the same adapters is not computed again.
    """
    count, own = _count(config, row), [worlds[name] for name in row.training]
    what = kept.path / "chosen" / f"{row.slug}-replicate-{r:03d}.json"
    adapters = [sha256_of(file) for world in own for file in _adapters(world, r, _method(row))]
    inputs = json.dumps([row.model_dump(mode="json"), count, adapters], sort_keys=True)
    if kept.whole(what):
        stored: dict[str, Any] = json.loads(what.read_bytes())
        if stored["inputs"] == inputs and kept.whole(*(kept.path / file for file in stored["files"])):
            own[0].progress.advance(units)
            return stored
    doing = f"{row.name}, seed {r + 1} of {config.seeds}"
    own[0].progress.describe(doing)
    trials = [_trial(row, worlds[name], name, settings, r, count) for name, settings in row.trials]
    best = min(trials, key=lambda trial: trial.nll)
    world, method = worlds[best.training], _method(row, best.settings)
    trained = world.trained(r, best.epoch, best.epochs)
    fitted = fit(Sampling(row.method, count, trained.member, best.settings), trained)
    # Where trials were tried, what the chosen one was fitted by is among what they read.
    tuning = sum(trial.read for trial in trials) + (trained.read if len(trials) == 1 else 0)
    files, tokens, answers = [], 0, 0
    trained.used.clear()
    for (name, choices), (asked, about) in world.sets.items():
        world.progress.describe(f"{doing}: asking {name.written}")
        trained.read = 0
        p = method.answer(trained, fitted, asked, count)
        tokens, answers = tokens + trained.read, len(p.members)
        file = predictions_file(kept.path, row.slug, f"{name.dataset}/{name.split}", choices)
        file = file.with_name(f"{file.name.removesuffix('.parquet')}-replicate-{r:03d}.parquet")
        of_set: dict[str, Any] = {"dataset": name.dataset, "split": name.split, "epoch": best.epoch, "replicate": r}
        metadata = {**provenance.metadata(trained.run, trained.config), **about}
        kept.write(file, to_parquet(replace(p, **of_set, method=row.slug, metadata=metadata)))
        files.append(str(file.relative_to(kept.path)))
    stands_on = len(method.stands_on(trained.members))
    stored = {
        "inputs": inputs,
        "files": files,
        "answers": answers,
        # A token of training is read forwards and backwards, one of choosing forwards alone.
        "training_tokens": stands_on * sum(_tokens_of_a_member(world, r) for world in own) + tuning / 2,
        "evaluation_tokens": tokens,
        "stored_bytes": sum(file.stat().st_size for file in trained.used) + sum(t.nbytes for t in fitted.values()),
        "chosen": _said(row, best, method.said(fitted)),
    }
    kept.write(what, json.dumps(stored, indent=1) + "\n")
    return stored


def _adapters(world: World, r: int, method: Method) -> Iterator[Path]:
    run, members = world.of(r)
    for member in method.stands_on(members):
        for epoch in range(1, world.config.training.epochs + 1):
            file = run.adapter_files(member, epoch)[1]
            if file.exists():
                yield file


def _trial(row: MethodRow, world: World, training: str, settings: Mapping[str, Any], r: int, count: int) -> Trial:
    """Return a trial at its best epoch, that of the lowest validation NLL of the members it stands on, or at the last.

    The members' own answers choose the epoch, pooled or each its own, whatever the method makes of them: it costs a
    method that has to be fitted no fit an epoch. Trials are then compared by what the method itself answers.
    """
    method = _method(row, settings)
    usable = [epoch for epoch in world.epochs if method.refusal(world.config, epoch, count) is None]
    trial = Trial(training, settings, usable[-1], {}, 0)
    if row.epoch == "validation" and len(usable) > 1:
        at = {epoch: world.trained(r, epoch) for epoch in usable}
        stands_on = method.stands_on(at[usable[0]].members)
        losses = {epoch: _member_losses(trained, stands_on, row.pooling) for epoch, trained in at.items()}
        own: dict[int, int] = {}
        if row.tuned == "member":
            own = {member: min(usable, key=lambda e: losses[e][1][n]) for n, member in enumerate(stands_on)}
        best = min(usable, key=lambda e: losses[e][0])
        trial = replace(trial, epoch=best, epochs=own, read=sum(trained.read for trained in at.values()))
    if len(row.trials) == 1:
        return trial
    trained = world.trained(r, trial.epoch, trial.epochs)
    fitted = fit(Sampling(row.method, count, trained.member, settings), trained)
    p = method.answer(trained, fitted, trained.validation, count)
    return replace(trial, read=trial.read + trained.read, nll=pooled_nll(p, row.pooling))


def _member_losses(
    trained: Trained, members: Sequence[int], pooling: Literal["prob", "logit"]
) -> tuple[float, list[float]]:
    """Return the mean NLL of members pooled, and of each, on the validation questions."""
    parts = []
    for member in members:
        trained.load(member)
        parts.append(trained.ask(trained.validation))
    pooled = replace(parts[0], log_probs=np.concatenate([p.log_probs for p in parts]))
    return pooled_nll(pooled, pooling), [pooled_nll(p, pooling) for p in parts]


def _tokens_of_a_member(world: World, r: int) -> float:
    """Return how many tokens a member of a repetition read in training, all epochs; members of a pass share alike.

    A line that an interrupted epoch left is superseded by the one of the epoch that was gone through again.
    """
    run, members = world.of(r)
    read: dict[tuple[int, int], float] = {}
    for line in run.lines("timing.jsonl"):
        if line["what"] == "train":
            read |= {(line["epoch"], member): line["tokens"] / len(line["members"]) for member in line["members"]}
    return sum(tokens for (_, member), tokens in read.items() if member == members[0])


def _said(row: MethodRow, trial: Trial, fitted: str) -> str:
    parts = [f"epoch {trial.epoch}"] if not trial.epochs else [f"epochs {', '.join(map(str, trial.epochs.values()))}"]
    parts += [trial.training] if len(row.training) > 1 else []
    parts += [f"{key} {trial.settings[key]}" for key in row.tune]
    return ", ".join([*parts, *([fitted] if fitted else [])])
