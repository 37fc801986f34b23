"""The whole experiment, from top to bottom: train, evaluate, calibrate, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ripieno import config as configs
from ripieno import forking, measures, tracking
from ripieno.config import Config
from ripieno.data import splits
from ripieno.data.kept import keep_questions, names_of
from ripieno.data.matching import match_questions
from ripieno.data.question import Question, Text
from ripieno.data.splits import DatasetName, Roles
from ripieno.ensemble import Ensemble, assemble, decide, device_of
from ripieno.errors import UserError
from ripieno.evaluation import evaluate, matched_choices
from ripieno.model import backbone as backbones
from ripieno.model.adapters import default_targets
from ripieno.model.backbone import Backbone
from ripieno.model.prediction import Asked
from ripieno.model.trees import TokenTree
from ripieno.parquet import read_parquet
from ripieno.predictions import concatenate
from ripieno.progress import Progress
from ripieno.prompt_features import TRAINING_FEATURES
from ripieno.report.run import report
from ripieno.runs import BASE, IMPORTED, METHOD, TRAINED, RunFolder, adapter_epochs
from ripieno.training import distributed, diversity
from ripieno.training.distributed import Ranks
from ripieno.training.loop import Examples, Trainer

# ---- train ----------------------------------------------------------------------------------------------------------


def train(
    config: Config | Path | str,
    path: Path | str | None = None,
    *,
    members: Sequence[int] | None = None,
    fork: Path | str | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Train the members, or go on where an earlier start of the same run ended.

    Args:
        config: an experiment, or the YAML file of one.
        path: the run folder; runs/NAME by default.
        members: which of the ensemble's to train now; all by default.
        fork: a folder in which a new run goes on from what the members have done so far in `path`; see `forking.fork`.
        data_dir: a folder with originally released data files.
        progress: advanced by `training.diversity.units` a member and step.

    Raises:
        UserError: the config does not fit the data or the base, the folder holds another run, or no member is left.
        EnvironmentFault: the run is locked, or a file is damaged.
    """
    config = config if isinstance(config, Config) else configs.load(config)
    chosen = list(range(config.training.members)) if members is None else sorted(set(members))
    if not chosen or chosen[0] < 0 or chosen[-1] >= config.training.members:
        raise UserError(f"--members: the ensemble has members 0 to {config.training.members - 1}")
    if config.training.repulsion and len(chosen) < config.training.members:
        raise UserError("--members: with training.repulsion members depend on one another; train all of them together")
    source = Path(path or f"runs/{config.name}")
    with distributed.joined(device_of(config.compute)) as ranks:
        run = ranks.folder(Path(fork) if fork else source)
        progress = (progress if ranks.leads else None) or Progress(quiet=True, mute=not ranks.leads)
        progress.describe("loading the data and the base")
        tracker = config.track if ranks.leads else "none"
        with run.lock(chosen), tracking.opened(tracker, run, chosen, progress) as track:
            _train(config, run, chosen, RunFolder(source) if fork else None, data_dir, progress, ranks, track)
    return run


def _train(
    config: Config,
    run: RunFolder,
    chosen: Sequence[int],
    source: RunFolder | None,
    data_dir: Path | None,
    progress: Progress,
    ranks: Ranks,
    track: Callable[[int], None],
) -> None:
    """Train some members in a run whose locks are held; `source`: of which it is a fork."""
    roles = assign_roles(config, data_dir)
    backbone = backbones.load(config.base, ranks.device)
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    given, config = config.compute, resolve(config, backbone)
    ensemble = assemble(config, backbone, chosen, data_dir)
    if ensemble.engine.notice:
        progress.say(f"{config.base.model}: runs padded, which is slower: {ensemble.engine.notice}")
    rows, validation, too_long = training_rows(ensemble, config, roles)
    unlabelled: list[TokenTree] = []
    if config.training.repulsion:
        unlabelled, too_long["repulsion"] = unlabelled_questions(ensemble, config, roles)
    examples = Examples(rows, ensemble.encoder, config)
    step_tokens = max(1, examples.step_tokens() // ranks.world)
    config = resolve(config.model_copy(update={"compute": given}), backbone, step_tokens)
    assert isinstance(config.compute.members_per_pass, int)
    ensemble = replace(ensemble, members_per_pass=config.compute.members_per_pass)
    read = {"trained_on_sha256": _sha256(rows), "validated_on_sha256": _sha256(validation.questions)}
    if ranks.leads:
        if not source and forking.was_cut_short(run):
            raise UserError(f"{run.path}: a fork that was cut short; start it again with --fork")
        identity = {"base_sha256": backbone.identity["sha256"], **read}
        with forking.fork(source, run, config, identity) if source else nullcontext():
            start_run(run, config, backbone, roles, ensemble.encoder.pool, too_long, read)
    ranks.wait()  # now it is a run

    def validate(positions: Sequence[int]) -> list[tuple[float, float]]:
        """Each process asks its share of the questions; all return the same."""
        own = Asked(ranks.share(validation.questions), ranks.share(validation.trees))
        sums = torch.zeros(2, len(positions), dtype=torch.float64)
        if own.questions:
            p = ensemble.answer(own, positions, progress)
            sums[0] = torch.from_numpy(measures.nll(p.log_probs, p.targets).sum(axis=1))
            sums[1] = torch.from_numpy(measures.correct(p.probs, p.targets).sum(axis=1))
        ranks.sum([sums])
        progress.advance(len(positions) * (len(validation.questions) - len(own.questions)))
        nlls, accuracies = (sums / len(validation.questions)).tolist()
        return list(zip(nlls, accuracies, strict=True))

    checked = validate if validation.questions else None
    driver = diversity.Driver(ensemble.engine, unlabelled, config, ranks) if unlabelled else None
    Trainer(ensemble.engine, ensemble.stack, examples, checked, config, run, progress, driver, ranks, track).train()
    if not adapter_epochs(run, chosen, config.training.epochs):
        raise UserError(
            f"{run.path}: the training of every member failed, so there is no ensemble; "
            "lower training.learning_rate and choose another folder with --run"
        )


def resolve(config: Config, backbone: Backbone, step_tokens: int | None = None) -> Config:
    """Decide every `auto` of a config, for a base, the machine at hand, and the tokens of one member's step."""
    targets = default_targets(backbone.model) if config.adapter.targets == "auto" else config.adapter.targets
    compute = decide(config.compute, backbone.device, config.training.members, step_tokens)
    return config.model_copy(
        update={"adapter": config.adapter.model_copy(update={"targets": targets}), "compute": compute}
    )


def assign_roles(config: Config, data_dir: Path | None = None) -> Roles:
    """Return the questions of each role."""
    data = config.data
    names = {
        "train": data.train,
        "repulsion": config.training.driven_on,
        "validation": data.validation,
        "calibration": data.calibration,
        "certification": data.certification,
        "test": data.test,
        "ood": data.out_of_domain,
    }
    return splits.assign(names, data_dir=data_dir, seed=data.seed, labels=data.labels)


def start_run(
    run: RunFolder,
    config: Config,
    backbone: Backbone,
    roles: Roles,
    pool: Sequence[Question],
    too_long: Mapping[str, Sequence[str]],
    read: Mapping[str, str] | None,
) -> None:
    """Write a new run's config, manifest and questions, or check that a present one is the same.

    Args:
        run, config, backbone, roles: of the run.
        pool: the few-shot examples' split.
        too_long: ids of the questions that are, by role.
        read: sha256 of what the members train and are validated on; None where they were trained elsewhere.

    Raises:
        UserError: the folder holds another run.
    """
    facts = {
        "base": backbone.identity,
        "sources": [asdict(source) for source in roles.sources],
        "counts": {role: {name: len(s.rows) for name, s in sets.items()} for role, sets in roles.sets.items()},
        "equal_choices": {n: s.equal_choices for sets in roles.sets.values() for n, s in sets.items()},
        "dropped": {"overlap": [asdict(drop) for drop in roles.drops], "too_long": too_long},
        "shared_calibration": roles.shared_calibration,
        **(read or {}),
    }
    identity = {
        "base_sha256": backbone.identity["sha256"],
        "questions_sha256": _sha256(
            [[r, s.name.dataset, s.name.split, *s.rows] for r, sets in roles.sets.items() for s in sets.values()]
            + [*pool]
        ),
        "members": IMPORTED if read is None else TRAINED,
    }
    run.start(config, identity, facts)
    for sets in roles.sets.values():
        for loaded in sets.values():
            if loaded.questions:
                keep_questions(run, loaded.name, loaded.questions)


def training_rows(
    ensemble: Ensemble, config: Config, roles: Roles
) -> tuple[list[Question | Text], Asked, dict[str, list[str]]]:
    """Return what is trained on, the encoded validation questions, and the ids of those too long, by role."""
    training, rows = config.training, roles.train
    if not rows:
        raise UserError("data.train: names no questions; name a set or a file")
    if training.loss != "next_token":
        texts = [row.id for row in rows if isinstance(row, Text)]
        if texts:
            raise UserError(
                f"data.train: holds running text ({texts[0]!r}), which trains under training.loss next_token"
            )
    sets = roles.sets["train"].items()
    unknown = [(row.id, name) for name, loaded in sets for row in loaded.questions if row.answer is None]
    if unknown:
        raise UserError(
            f"data.train: {len(unknown)} questions have no answer, the first is {unknown[0][0]!r} of {unknown[0][1]}; "
            "give them one, or take them out"
        )
    questions = [row for row in rows if isinstance(row, Question)]
    left_out: set[str] = set()
    # What is too long in one member's template is left out for all: a member's rows do not depend on who else trains.
    for encoder in diversity.encoders(ensemble.encoder, config):
        dropped: Sequence[Question | Text]
        if training.loss == "next_token":
            dropped = encoder.sequences(rows, training.max_tokens, training.too_long)[1]
        else:
            dropped = encoder.trees(questions, training.max_tokens, training.too_long)[1]
        left_out |= {row.id for row in dropped}
    kept = [row for row in rows if row.id not in left_out]
    if not kept:
        raise UserError(f"data.train: all {len(rows)} questions are over training.max_tokens {training.max_tokens}")
    known = [question for question in roles.questions("validation") if question.answer is not None]
    validation = ensemble.encode(known)
    if training.patience and not validation.questions:
        raise UserError(
            "training.patience: no question of data.validation has an answer and fits evaluation.max_tokens"
        )
    answered = {question.id for question in validation.questions}
    too_long = {
        "train": [row.id for row in rows if row.id in left_out],
        "validation": [question.id for question in known if question.id not in answered],
    }
    return kept, validation, too_long


def unlabelled_questions(ensemble: Ensemble, config: Config, roles: Roles) -> tuple[list[TokenTree], list[str]]:
    """Return the encoded questions that members are driven apart on, and the ids of those too long."""
    training, questions = config.training, roles.questions("repulsion")
    trees, dropped = ensemble.encoder.trees(questions, training.max_tokens, training.too_long)
    if not trees:
        raise UserError(
            f"training.repulsion.questions: all {len(questions)} are over training.max_tokens {training.max_tokens}"
        )
    return trees, [question.id for question in dropped]


def _sha256(rows: Iterable[Any]) -> str:
    """Return the sha256 of rows, of all that they hold: what must be the same for a run to go on."""
    content = json.dumps(list(rows), default=asdict)
    return hashlib.sha256(content.encode()).hexdigest()


# ---- calibrate ------------------------------------------------------------------------------------------------------


def calibrate(run: RunFolder, *, data_dir: Path | None = None, progress: Progress | None = None) -> dict[str, float]:
    """Fit the temperature of the base and of the last epoch's ensemble on the calibration role.

    Returns:
        Method -> the temperature that divides every member's scores before pooling.

    Raises:
        UserError: the config names no calibration sets.
    """
    config = run.config()
    if not config.data.calibration:
        raise UserError(f"{run.path}: its config names no data.calibration; add one and train again")
    evaluate(run, config.data.calibration, [0, config.training.epochs], data_dir=data_dir, progress=progress)
    temperatures: dict[str, float] = {}
    for method, epoch in ((BASE, 0), (METHOD, config.training.epochs)):
        names = names_of(run, config.data.calibration)
        files = [run.predictions(name.folder, name.file, method, epoch) for name in names]
        p = concatenate([part for file in files for part in read_parquet(file)])
        if not p.labelled.any():
            raise UserError(f"{run.path}: no question of data.calibration has an answer to fit a temperature to")
        temperatures[method] = measures.fit_temperature(p.log_probs, p.mask, p.targets)
    return temperatures


# ---- demo -----------------------------------------------------------------------------------------------------------


def demo(path: Path, progress: Progress) -> Path:
    """Run the whole job on the embedded default, and return the report's page."""
    config = demo_config()
    run = train(config, path, progress=progress)
    evaluate(run, progress=progress)
    return report(run)


def demo_config() -> Config:
    """Return the embedded default, as shipped (configs/demo.yaml)."""
    with resources.as_file(resources.files("ripieno") / "demo.yaml") as file:
        return configs.load(file)


def work(
    config: Config,
    members: Sequence[int] | None = None,
    training: bool = True,
    evaluating: bool = True,
    data_dir: Path | None = None,
    choices: int | None = None,
) -> int:
    """Return the units of progress of a job: questions x members, for the bar (`choices`: of asking again alone)."""
    roles = assign_roles(config, data_dir)
    epochs, M = config.training.epochs, len(members) if members else config.training.members
    units = 0
    if training:
        units += (diversity.units(config, len(roles.train)) + len(roles.questions("validation"))) * M * epochs
    if evaluating and choices is not None:
        every = [question for questions in evaluated(roles).values() for question in questions]
        units += len(match_questions(every, choices, config.data.seed).questions) * (1 + M * epochs)
    elif evaluating:
        units += sum(len(questions) * (1 + M * of_epochs) for questions, of_epochs in asked(config, roles))
        trained_on = [loaded.questions for loaded in roles.sets.get("train", {}).values()]
        read = [*map(len, evaluated(roles).values()), *(min(len(q), TRAINING_FEATURES) for q in trained_on)]
        units += sum(read)
    return units


def evaluated(roles: Roles) -> dict[DatasetName, list[Question]]:
    """Return the questions of the test and out-of-domain sets."""
    return {loaded.name: loaded.questions for role in ("test", "ood") for loaded in roles.sets.get(role, {}).values()}


def asked(config: Config, roles: Roles) -> list[tuple[list[Question], int]]:
    """Return what `evaluate` asks the base and the members: questions, and after how many epochs the members answer.

    The test and out-of-domain sets come first, in the order of `evaluated`.
    """
    sets = evaluated(roles)
    found = [(questions, config.training.epochs) for questions in sets.values()]
    found += [(loaded.questions, 1) for loaded in roles.sets.get("calibration", {}).values()]
    for name, fewest in matched_choices(config, sets):
        found.append((match_questions(sets[name], fewest, config.data.seed).questions, 1))
    return found
