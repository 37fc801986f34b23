"""Asking: the base and the members after each epoch, or several draws of one member; a file of predictions each."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors
import safetensors.torch

from ripieno import config as configs
from ripieno import live, methods, provenance
from ripieno.config import Config, Evaluation
from ripieno.data.kept import keep_questions, names_of, questions_of
from ripieno.data.matching import Matched, match_questions
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName
from ripieno.ensemble import NO_QUESTIONS, Ensemble, assemble, load_base
from ripieno.errors import UserError
from ripieno.methods import Fitted, Method
from ripieno.methods.trained import Trained
from ripieno.model.prediction import noise_floor
from ripieno.model.speed import Timer
from ripieno.parquet import join, read_parquet, to_parquet
from ripieno.predictions import Predictions, concatenate, unanswered
from ripieno.progress import Progress, unwatched
from ripieno.prompt_features import make_features, of_analysis
from ripieno.runs import BASE, METHOD, RunFolder, adapter_epochs, of_answers, require_adapter, sha256_of

# Of a config's `evaluation`: what else is stored, moving no prediction.
EXTRAS = {"fixed_letters", "store_top", "unconditional"}
NOISE_QUESTIONS = 8  # that the noise floor is measured on


@dataclass(frozen=True)
class Sampling:
    """Several answers of one member in place of the ensemble's.

    Args:
        method: one of `ripieno.methods`.
        draws: how many.
        member: whose.
        settings: of the method.
    """

    method: str
    draws: int
    member: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def way(self) -> Method:
        """The method with its settings."""
        return methods.named(self.method, self.settings)

    @property
    def label(self) -> str:
        """What its predictions are called: the method, and each setting that is not the default."""
        changed = self.way.model_dump(exclude_defaults=True)
        return "-".join([self.method, *(f"{key}={value}" for key, value in changed.items())])

    def about(self) -> dict[str, Any]:
        """Return it as predictions say it, with every setting."""
        return {**asdict(self), "settings": self.way.model_dump(mode="json")}


def sampling_of(config: Config, method: str, settings: Mapping[str, Any], draws: int | None, member: int) -> Sampling:
    """Return a sampling of a run's member; where nobody says how many draws, as many as the method gives then.

    Raises:
        UserError: there is no such method, or it has no such setting.
    """
    count = methods.named(method, settings).count(config.training.members) if draws is None else draws
    return Sampling(method, count, member, settings)


@dataclass(frozen=True)
class Job:
    """One file of predictions to make: a data set as the members (or the base) answer it after an epoch."""

    name: DatasetName
    epoch: int
    members: dict[int, int]  # member -> the epoch of the adapter it answers with; {} for the base
    file: Path
    choices: int | None = None  # to how many each question is reduced
    sampling: Sampling | None = None

    @property
    def method(self) -> str:
        """Whose predictions they are."""
        return _method(self.epoch, self.sampling)


@dataclass(frozen=True)
class Part:
    """Questions of a job that are answered at once, into the job's file or one of the files that it is made of.

    Args:
        job: whose.
        questions: N of them.
        file: of their predictions.
        evaluation: what else it stores.
        about: what the file says of itself; `inputs` names all that decides it.
    """

    job: Job
    questions: Sequence[Question]
    file: Path
    evaluation: Evaluation
    about: Mapping[str, Any]

    @property
    def answers(self) -> int:
        """How many it takes: one a member, or draw, and question."""
        draws = self.job.sampling.draws if self.job.sampling else max(len(self.job.members), 1)
        return draws * len(self.questions)

    def there(self, run: RunFolder) -> bool:
        """Whether the file is, made from the same."""
        if not run.whole(self.file):
            return False
        header = provenance.header(self.file)
        return all(header[key] == self.about[key] for key in ("inputs", "extras"))


def _method(epoch: int, sampling: Sampling | None) -> str:
    return sampling.label if sampling else METHOD if epoch else BASE


def evaluate(
    run: RunFolder,
    datasets: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
    *,
    choices: int | None = None,
    extras: Mapping[str, Any] | None = None,
    sampling: Sampling | None = None,
    shard: tuple[int, int] | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Ask the base (epoch 0) and the members after each epoch; what is there already is not computed again.

    A set of over `launch.questions` questions is answered in parts of so many, which then make one file: an
    interruption loses no part that was written, and nothing grows with the set but the list of its questions. Several
    processes may share the parts out; what they hold does not depend on how. A last start without `shard` puts them
    together.

    Where the config's own sets are asked, the features of their prompts and of the training sets' are made too; and
    where the template lists the choices, and a test set and an out-of-domain one differ in how many there are, the base
    and the last epoch answer them once more with as many as the fewest of the two.

    Args:
        run: a trained run.
        datasets: names; by default the config's test and out-of-domain sets, and its calibration sets too.
        epochs: 0 (the base) to E; by default all (of the calibration sets, the first and the last).
        choices: ask (the test and out-of-domain sets by default) with wrong choices dropped at random to so many.
        extras: keys of the config's `evaluation` to change, such as {"store_top": "all"}.
        sampling: ask draws of one member, by default at the last epoch, and neither base nor ensemble.
        shard: (k, n) answers the k-th of n shards alone, 1 to n, and puts nothing together.
        data_dir: a folder with originally released data files, for sets that the run does not hold yet.
        progress: advanced by one a member and question, and by one a question whose prompt is read.

    Returns:
        The files of predictions, those that were there among them; of a shard none.

    Raises:
        UserError: an epoch, a set or a method does not exist, the epoch is not trained, no question has so many
            choices, or the run was not trained in a way that the method can draw from.
    """
    if choices is not None and choices < 2:
        raise UserError(f"--choices {choices}: a question needs 2 at least")
    config, progress = run.config(), progress or Progress(quiet=True)
    if sampling is not None and (extras or {}).get("unconditional"):
        raise UserError(f"--unconditional: is not offered with --method {sampling.method}; leave one of them out")
    if extras:
        changed = {**config.model_dump(), "evaluation": {**config.evaluation.model_dump(), **extras}}
        config = configs.parse(changed, str(run.path))
    if sampling is not None:
        epochs = _check_sampling(run, config, sampling, epochs)
        # Dropout's masks go by question, and scores without the question are shared by many.
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"unconditional": False})})
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: give one of them, such as 1/{max(shard[1], 1)}")
    with run.lock(shard=shard):
        jobs = _jobs(run, config, datasets, epochs, choices, sampling)
        sets = {job.name: questions_of(run, config, job.name, data_dir) for job in jobs}
        if not datasets and choices is None:
            jobs += _matched_jobs(run, config, jobs, sets)
        asked = {(job.name, job.choices): _reduced(config, job, sets[job.name]) for job in jobs}

        @cache
        def ensemble() -> Ensemble:
            members = [sampling.member] if sampling else range(config.training.members)
            return assemble(config, load_base(run, config.base, config.compute), members, data_dir)

        fitted: dict[int, Fitted] = {}
        answered: tuple[Job, Sequence[Question]] | None = None
        parts = [part for job in jobs for part in _parts(run, config, job, asked[job.name, job.choices])]
        own = parts if shard is None else _of_shard(parts, *shard)
        every = not datasets and choices is None and shard is None
        prompts = list(of_analysis(run, config, sets)) if every else []
        answers = sum(part.answers for part in own)
        progress.expect(answers + sum(len(prompt_set.questions) for prompt_set in prompts))
        with _noted(run, of_answers(shard), progress, answers):
            for part in own:
                job = part.job
                if part.there(run):
                    progress.advance(part.answers)
                    continue
                of_job = replace(ensemble(), evaluation=part.evaluation)
                trained = None
                if sampling is not None:
                    trained = Trained(run, config, of_job, [sampling.member], job.epoch, progress)
                    if job.epoch not in fitted:
                        fitted[job.epoch] = fit(sampling, trained)
                p = _answer(run, of_job, part, progress, trained, fitted.get(job.epoch, {}))
                p = replace(p, metadata={**part.about, **p.metadata})
                if part.file == job.file:
                    keep_questions(run, job.name, sets[job.name])
                run.write(part.file, to_parquet(p))
                if job.members and not job.sampling and p.question_ids:
                    answered = job, part.questions
        if shard is not None:
            return []
        for job in jobs:
            keep_questions(run, job.name, sets[job.name])
            _put_together(run, job, [part for part in parts if part.job is job])
        if answered:
            _say_noise_floor(ensemble(), *answered, progress)
        make_features(run, config, prompts, ensemble, progress)
    return [job.file for job in jobs]


def read_answers(run: RunFolder, datasets: Sequence[str], method: str, epoch: int) -> Predictions:
    """Return what `evaluate` wrote of some data sets, together."""
    files = [run.predictions(name.folder, name.file, method, epoch) for name in names_of(run, dict.fromkeys(datasets))]
    return concatenate([p for file in files for p in read_parquet(file)])


@contextmanager
def _noted(run: RunFolder, name: str, progress: Progress, total: int) -> Iterator[None]:
    """Note now and then how far the answers are, of which there will be so many, as long as the block lasts."""
    done = 0
    with live.noting(run, [name]) as pace:

        def more(answers: int) -> None:
            nonlocal done
            done += answers
            if pace.due(answers):
                live.note(run, name, done=done, total=total, per_second=pace.per_second)

        progress.watch = more
        try:
            yield
        finally:
            progress.watch = unwatched


def _check_sampling(run: RunFolder, config: Config, sampling: Sampling, epochs: Sequence[int] | None) -> Sequence[int]:
    """Check that draws can be had, before any work; return after which epochs: the last one by default."""
    last = config.training.epochs
    if sampling.way.of_members:
        raise UserError(f"--method {sampling.method}: its answers are among the members' own; leave --method out")
    if len(sampling.way.stands_on(range(config.training.members))) > 1:
        raise UserError(f"--method {sampling.method}: asks several members; here it is one of --member")
    epochs = epochs or [last]
    if not 0 <= sampling.member < config.training.members:
        raise UserError(f"--member {sampling.member}: {run.path} has members 0 to {config.training.members - 1}")
    if sampling.draws < 1:
        raise UserError(f"--draws {sampling.draws}: give 1 at least")
    if 0 in epochs:
        raise UserError(f"--epoch 0: is the base, which was not trained; {sampling.method} takes 1 and later ones")
    for epoch in epochs:
        answering = adapter_epochs(run, [sampling.member], min(epoch, last))
        if not answering:
            raise UserError(f"{run.path}: member {sampling.member} failed before epoch {epoch}; give another --member")
        if why := sampling.way.refusal(config, answering[sampling.member], sampling.draws):
            raise UserError(f"{run.path}: --method {sampling.method}: {why}")
        for file in sorted((run.path / "predictions").rglob(f"{sampling.label}-epoch-{epoch:03d}*.parquet")):
            held = provenance.header(file).get("sampling") if run.whole(file) else None
            if held not in (None, sampling.about()):
                raise UserError(
                    f"{file}: holds {held['draws']} draws of member {held['member']}, and all sets must have the same; "
                    "remove such files first, or ask for as many"
                )
    return epochs


def _jobs(
    run: RunFolder,
    config: Config,
    datasets: Sequence[str],
    epochs: Sequence[int] | None,
    choices: int | None,
    sampling: Sampling | None = None,
) -> list[Job]:
    last, data = config.training.epochs, config.data
    if epochs is not None and not all(0 <= epoch <= last for epoch in epochs):
        raise UserError(f"--epoch {', '.join(map(str, epochs))}: {run.path} has epochs 0 (the base) to {last}")
    every = list(range(last + 1)) if epochs is None else list(epochs)
    ends = sorted({0, last}) if epochs is None else list(epochs)
    wanted = [(name, every) for name in datasets or (*data.test, *data.out_of_domain)]
    wanted += [] if datasets or choices else [(name, ends) for name in data.calibration]
    asked = [sampling.member] if sampling else range(config.training.members)
    answering = {epoch: adapter_epochs(run, asked, epoch) for epoch in {*every, *ends} if epoch}
    for member, at in {adapter for members in answering.values() for adapter in members.items()}:
        require_adapter(run, member, at)
    jobs = []
    for text, of_epochs in dict(wanted).items():
        [name] = names_of(run, [text])
        for epoch in of_epochs:
            members = answering.get(epoch, {})
            if epoch and not members:
                if epochs is None:
                    continue
                raise UserError(
                    f"{run.path}: no member is left at epoch {epoch}; `ripieno status` says why their training failed"
                )
            file = run.predictions(name.folder, name.file, _method(epoch, sampling), epoch, choices)
            jobs.append(Job(name, epoch, members, file, choices, sampling))
    return jobs


def _matched_jobs(
    run: RunFolder, config: Config, jobs: Sequence[Job], sets: Mapping[DatasetName, Sequence[Question]]
) -> list[Job]:
    """Return the jobs of asking again with fewer choices: of the base and of the last epoch."""
    at_ends = [job for job in jobs if job.epoch in (0, config.training.epochs)]
    found = []
    for name, choices in matched_choices(config, sets):
        for job in at_ends:
            if job.name == name:
                file = run.predictions(job.name.folder, job.name.file, job.method, job.epoch, choices)
                found.append(replace(job, file=file, choices=choices))
    return found


def matched_choices(config: Config, sets: Mapping[DatasetName, Sequence[Question]]) -> list[tuple[DatasetName, int]]:
    """Return which sets are asked again, and with how many choices, so that each foreign one compares with each own.

    None where choices are not listed in the prompt: dropping columns does the same there.
    """
    if not TEMPLATES[config.prompt.template].listed:
        return []
    found: dict[tuple[DatasetName, int], None] = {}
    for inside in map(DatasetName.parse, config.data.test):
        for outside in map(DatasetName.parse, config.data.out_of_domain):
            both = [*sets.get(inside, ()), *sets.get(outside, ())]
            fewest = max(2, min((len(question.choices) for question in both), default=2))
            for name in (inside, outside):
                larger = any(len(question.choices) > fewest for question in sets.get(name, ()))
                if larger and match_questions(sets[name], fewest, config.data.seed).questions:
                    found[name, fewest] = None
    return list(found)


def _reduced(config: Config, job: Job, questions: Sequence[Question]) -> Matched:
    """Return a job's questions, with wrong choices dropped where it says so."""
    if job.choices is None:
        return Matched(list(questions), 0, 0)
    matched = match_questions(questions, job.choices, config.data.seed)
    if not matched.questions:
        raise UserError(
            f"--choices {job.choices}: no question of {job.name.written} has so many choices and an answer to keep; "
            "give fewer, or name other sets with --dataset"
        )
    return matched


def _parts(run: RunFolder, config: Config, job: Job, matched: Matched) -> list[Part]:
    """Return what a job is answered in: parts of `launch.questions` questions; draws of one member in one."""
    inputs, evaluation = _inputs(run, config, job, matched.questions), config.evaluation
    stored = _stored(job.file, inputs) if run.whole(job.file) else None
    if stored is not None:  # what was stored once is not lost when something else is asked for
        evaluation = _with_stored(evaluation, stored)
    about: dict[str, Any] = {**provenance.metadata(run, config), "extras": evaluation.model_dump(include=EXTRAS)}
    about |= {} if job.sampling is None else {"sampling": job.sampling.about()}
    if job.choices is not None:
        left_out = {"fewer_choices": matched.fewer_choices, "no_answer": matched.no_answer}
        about |= {"choices": job.choices, "choices_left_out": left_out}
    whole = Part(job, matched.questions, job.file, evaluation, {**about, "inputs": inputs})
    size = config.launch.questions
    count = math.ceil(len(whole.questions) / size)
    if count <= 1 or job.sampling or stored == about["extras"]:
        return [whole]
    return [
        replace(
            whole,
            questions=whole.questions[k * size : (k + 1) * size],
            file=run.part(job.file, k, count),
            about={**whole.about, "inputs": f"{inputs}-{k}-of-{count}"},
        )
        for k in range(count)
    ]


def _of_shard(parts: Sequence[Part], shard: int, of: int) -> Sequence[Part]:
    """Return a shard of the parts, as much work as every other, about: the base's are spread evenly, and the rest."""
    return sorted(parts, key=lambda part: len(part.job.members))[shard - 1 :: of]


def _put_together(run: RunFolder, job: Job, parts: Sequence[Part]) -> None:
    """Make a job's file of those of its parts, a part at a time in memory, and remove them, others of before too."""
    files = [part.file for part in parts]
    if files != [job.file]:
        if not any(pq.read_metadata(file).num_rows for file in files):
            raise UserError(NO_QUESTIONS)
        run.make(job.file, lambda file: join(files, {"inputs": parts[0].about["inputs"].partition("-")[0]}, file))
    for file in run.parts(job.file):
        run.remove(file)


def fit(sampling: Sampling, trained: Trained) -> Fitted:
    """Return what a method fits once, from the run where it is there already; what is new is kept in it.

    `trained.read` then says what it took, the first time.
    """
    run = trained.run
    members = sampling.way.stands_on(trained.members)
    adapters = [sha256_of(trained.adapter(member) / "adapter_model.safetensors") for member in members]
    how = hashlib.sha256(json.dumps([sampling.way.model_dump(mode="json"), adapters]).encode()).hexdigest()
    file = run.fitted(sampling.label, sampling.member, trained.epoch)
    if run.whole(file):
        with safetensors.safe_open(file, framework="pt") as kept:
            facts = json.loads(kept.metadata()["fitted"])
            if facts["how"] == how:
                trained.read = facts["read"]
                return {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 (it is no dict)
    trained.read = 0
    found = sampling.way.fit(trained)
    if found:
        # One entry, as in `checkpoints.save`.
        header = {"fitted": json.dumps({"how": how, "read": trained.read})}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in found.items()}
        run.write(file, safetensors.torch.save(tensors, header))
    return found


def _answer(
    run: RunFolder,
    ensemble: Ensemble,
    part: Part,
    progress: Progress,
    trained: Trained | None,
    fitted: Fitted,
) -> Predictions:
    job, questions = part.job, part.questions
    progress.describe(f"asking {job.name.written}, " + (f"epoch {job.epoch}" if job.epoch else "the base"))
    timer = Timer(ensemble.engine.meter)
    asked = ensemble.encode(questions, bare=ensemble.evaluation.unconditional)
    if job.sampling:
        assert trained is not None
        p = job.sampling.way.answer(trained, fitted, asked, job.sampling.draws)
    elif not asked.questions and part.file != job.file:  # all of this part were too long; others may not be
        p = unanswered(list(job.members) or [0])
    else:
        for member, at in job.members.items():
            ensemble.stack.load_peft(member, run.adapter(member, at))
        p = ensemble.answer(asked, list(job.members), progress)
    answered = set(p.question_ids)
    dropped = [question.id for question in questions if question.id not in answered]
    line = {"what": "evaluate", "dataset": job.name.written, "epoch": job.epoch}
    line |= {} if job.choices is None else {"choices": job.choices}
    run.append("timing.jsonl", line | timer.line(len(answered) * len(p.members)))
    run.seal("timing.jsonl")
    labels = run.config().data.labels
    alike = labels is not None and all(question.choices == labels for question in questions)
    return replace(
        p,
        dataset=job.name.dataset,
        split=job.name.split,
        method=job.method,
        epoch=job.epoch,
        metadata={"too_long": dropped, **({"labels": labels} if alike else {})},
    )


def _say_noise_floor(ensemble: Ensemble, job: Job, questions: Sequence[Question], progress: Progress) -> None:
    """Say how much mutual information rounding alone makes: a member against itself, in passes of different sizes."""
    trees = ensemble.encode(questions[:NOISE_QUESTIONS]).trees
    if not trees:
        return
    times = max(len(ensemble.stack.members), 2)
    found = noise_floor(ensemble.engine, next(iter(job.members)), trees, ensemble.prompt, times).epistemic
    progress.say(
        f"noise floor: one member against itself, scored {times} times in passes of different sizes, has a mutual "
        f"information of {found.max():.0e} nats at most ({len(trees)} questions)"
    )


def _inputs(run: RunFolder, config: Config, job: Job, questions: Sequence[Question]) -> str:
    """Return a sha256 of all that decides a file of predictions."""
    parts = (config.adapter, config.prompt, config.evaluation)
    sampled = [] if job.sampling is None else [job.sampling.about()]
    how = [config.base.dtype, *sampled, *(part.model_dump(mode="json", exclude=EXTRAS) for part in parts)]
    return provenance.inputs(run, how, questions, job.members)


def _stored(file: Path, inputs: str) -> dict[str, Any] | None:
    """Return what a file of predictions stores beside the choices; None where it was made from other inputs."""
    header = provenance.header(file)
    extras: dict[str, Any] = header["extras"]
    return extras if header["inputs"] == inputs else None


def _with_stored(asked: Evaluation, stored: Mapping[str, Any]) -> Evaluation:
    """Return what is asked for and what is stored: the letters, the scores without the question, the more tokens."""
    tops = [top for top in (stored["store_top"], asked.store_top) if top is not None]
    both = {
        "fixed_letters": stored["fixed_letters"] or asked.fixed_letters,
        "unconditional": stored["unconditional"] or asked.unconditional,
        "store_top": "all" if "all" in tops else max(tops, default=None),
    }
    return asked.model_copy(update=both)
