"""What is kept of the base alone, for the trivial baselines of out-of-domain detection: RUN/features."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ripieno import features, provenance
from ripieno.config import Config, TooLong
from ripieno.data.kept import kept_questions, names_of
from ripieno.data.question import Question, content_key
from ripieno.data.splits import DatasetName
from ripieno.ensemble import Ensemble, evaluated_sets
from ripieno.features import Features
from ripieno.model.features import read_prompts
from ripieno.progress import Progress
from ripieno.runs import RunFolder

TRAINING_FEATURES = 2000  # questions of a training set whose features are kept: enough to fit a covariance to


@dataclass(frozen=True)
class PromptSet:
    """A data set whose prompts the base reads: the questions taken of those available, and how long they may be."""

    name: DatasetName
    questions: Sequence[Question]
    available: int
    max_tokens: int | None
    too_long: TooLong


def make_features(
    run: RunFolder,
    config: Config,
    prompt_sets: Iterable[PromptSet],
    ensemble: Callable[[], Ensemble],
    progress: Progress,
    kept: RunFolder | None = None,
) -> None:
    """Write what the base alone computes on the prompts of some sets.

    Args:
        run, config: a trained run.
        prompt_sets: see `of_analysis` and `as_evaluated`.
        ensemble: loads the base, where something is to be made.
        progress: advanced by one a question.
        kept: the folder that keeps them; the run's own by default.
    """
    for prompt_set in prompt_sets:
        if not _make(run, config, prompt_set, ensemble, progress, kept or run):
            return


def _make(
    run: RunFolder,
    config: Config,
    prompt_set: PromptSet,
    ensemble: Callable[[], Ensemble],
    progress: Progress,
    kept: RunFolder,
) -> bool:
    """Write the features of a set, where they are not there; return False where this base has none."""
    name, questions = prompt_set.name, prompt_set.questions
    file, inputs = kept.features(name.folder, name.file), _inputs(run, config, prompt_set)
    if kept.whole(file) and provenance.header(file)["inputs"] == inputs:
        progress.advance(len(questions))
        return True
    progress.describe(f"reading the prompts of {name.written}")
    engine, encoder = ensemble().engine, ensemble().encoder
    if engine.backbone.model.get_output_embeddings() is None:
        progress.say(f"{config.base.model}: its class names no output layer, so no features of prompts are kept")
        return False
    start = time.perf_counter()
    trees, dropped = encoder.trees(questions, prompt_set.max_tokens, prompt_set.too_long)
    if not trees:
        return True
    prompts = read_prompts(engine, trees, progress)
    seconds = time.perf_counter() - start
    left_out = {question.id for question in dropped}
    ids = tuple(question.id for question in questions if question.id not in left_out)
    counts = {"available": prompt_set.available, "taken": len(questions), "too_long": sorted(left_out)}
    metadata = {**provenance.metadata(run, config), "inputs": inputs, "questions": counts}
    made = Features(name.dataset, name.split, ids, prompts.tokens, prompts.nll, prompts.hidden, metadata)
    kept.write(file, features.to_parquet(made))
    line = {"what": "features", "dataset": name.written, "questions": len(ids), "seconds": seconds}
    kept.append("timing.jsonl", line)
    kept.seal("timing.jsonl")
    return True


def as_evaluated(config: Config, name: DatasetName, questions: Sequence[Question]) -> PromptSet:
    """Return a set as it is evaluated: all its questions, with the limits of `evaluation`."""
    return PromptSet(name, questions, len(questions), config.evaluation.max_tokens, config.evaluation.too_long)


def of_analysis(run: RunFolder, config: Config, sets: Mapping[DatasetName, Sequence[Question]]) -> Iterator[PromptSet]:
    """Yield the test, out-of-domain and training sets; `sets` has the questions of the first two."""
    training = config.training
    for name in evaluated_sets(run):
        yield as_evaluated(config, name, sets[name])
    # Under next_token the right answer alone had to fit, here the longest choice has to: what does not is left out.
    shortened = training.too_long == "shorten_context" and training.loss != "next_token"
    too_long: TooLong = "shorten_context" if shortened else "drop"
    for name in names_of(run, dict.fromkeys(config.data.train)):
        questions = kept_questions(run, name)
        if questions:
            yield PromptSet(name, first_by_content(questions), len(questions), training.max_tokens, too_long)


def _inputs(run: RunFolder, config: Config, prompt_set: PromptSet) -> str:
    """Return a sha256 of all that decides a file of features."""
    limits = [prompt_set.max_tokens, prompt_set.too_long]
    how = [config.base.dtype, config.prompt.model_dump(mode="json"), *limits]
    return provenance.inputs(run, how, prompt_set.questions)


def first_by_content(questions: Sequence[Question]) -> list[Question]:
    """Return at most the first `TRAINING_FEATURES` questions by the hash of their content, whatever their order."""

    def place(question: Question) -> tuple[bytes, str]:
        return hashlib.sha256(content_key(question).encode()).digest(), question.id

    return sorted(questions, key=place)[:TRAINING_FEATURES]
