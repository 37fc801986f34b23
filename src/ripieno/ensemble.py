"""An ensemble ready to answer: a base, its members' adapters, and the prompt they were trained with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from ripieno import decisions
from ripieno.config import Adapter, Base, Compute, Config, Data, Evaluation, Prompt
from ripieno.data.kept import names_of
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName
from ripieno.data.splits import load as load_dataset
from ripieno.decisions import Certified, Decision
from ripieno.errors import UserError
from ripieno.measures.shift import FEWEST, Shift
from ripieno.model import backbone as backbones
from ripieno.model.adapters import AdapterStack, locate, read_base, read_peft_config
from ripieno.model.backbone import Backbone
from ripieno.model.features import read_prompts
from ripieno.model.prediction import Asked, predict
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder
from ripieno.predictions import Predictions
from ripieno.progress import Progress
from ripieno.runs import RunFolder, members_at

# Tokens of a pass from which on more of them make no token cheaper.
FULL_CPU_TOKENS, FULL_GPU_TOKENS = 128, 2048
NO_QUESTIONS = "there are no questions to answer (all of them are too long, or the file holds none); give others"


@dataclass
class Ensemble:
    """Answers questions with every member.

    Args:
        engine: scores with the base and the members' adapters.
        stack: the members' adapters.
        encoder: questions to token trees.
        prompt: template and scoring rule.
        evaluation: longest prompt, and what else to store.
        members_per_pass: members that share a forward pass.
        positions: of the members that answer, in the engine's stack; () asks the base alone.
        certified: what was promised of a run's last epoch, and on which questions.
    """

    engine: Engine
    stack: AdapterStack
    encoder: Encoder
    prompt: Prompt
    evaluation: Evaluation
    members_per_pass: int
    positions: Sequence[int]
    certified: Certified | None = None

    @classmethod
    def load(
        cls, source: str | Path | Sequence[str | Path], *, epoch: int | None = None, prompt: Prompt | None = None
    ) -> Self:
        """Load a run's ensemble, or one from PEFT folders.

        Args:
            source: a run folder, or M adapters of one base: PEFT folders, or their ids on the Hugging Face hub
                (ORGANISATION/NAME, ORGANISATION/NAME/FOLDER).
            epoch: of a run; the last one by default, 0 for the base alone.
            prompt: for PEFT folders, which do not say how their questions were put; the default prompt where None.

        Raises:
            UserError: there is no run or adapter, or the adapters do not fit together.
            EnvironmentFault: a file is missing or damaged.
        """
        if isinstance(source, str | Path):
            return cls._of_run(RunFolder(Path(source)), epoch)
        folders = [locate(folder) for folder in source]
        if not folders:
            raise UserError("Ensemble.load: give one adapter folder at least")
        bases = {read_base(folder) for folder in folders}
        if len(bases) > 1:
            said = sorted(f"{name}@{revision}" if revision else name for name, revision in bases)
            raise UserError(
                f"Ensemble.load: these adapters are of different bases: {', '.join(said)}; take those of one"
            )
        [(name, revision)] = bases
        backbone = backbones.load(Base(model=name, revision=revision), device_of(Compute()))
        prompt = prompt or Prompt()
        adapter, members = read_peft_config(folders[0]), range(len(folders))
        ensemble = cls.assemble(backbone, adapter, members, prompt, pool=few_shot_pool(prompt))
        for position, folder in enumerate(folders):
            ensemble.stack.load_peft(position, folder)
        return ensemble

    @classmethod
    def _of_run(cls, run: RunFolder, epoch: int | None) -> Self:
        config = run.config()
        epoch = config.training.epochs if epoch is None else epoch
        epochs = members_at(run, epoch)
        backbone = load_base(run, config.base, Compute())
        pool = few_shot_pool(config.prompt, config.data)
        ensemble = cls.assemble(backbone, config.adapter, list(epochs), config.prompt, config.evaluation, pool=pool)
        for position, (member, at) in enumerate(epochs.items()):
            ensemble.stack.load_peft(position, run.adapter(member, at))
        if epoch == config.training.epochs:
            ensemble.certified = decisions.load(run)
        return ensemble

    @classmethod
    def assemble(
        cls,
        backbone: Backbone,
        adapter: Adapter,
        members: Sequence[int],
        prompt: Prompt,
        evaluation: Evaluation | None = None,
        compute: Compute | None = None,
        pool: Sequence[Question] = (),
    ) -> Self:
        """Put empty adapters (their weights zero) on a base.

        Args:
            backbone: the base; its targeted layers are replaced.
            adapter: what kind.
            members: the ensemble's numbers of the members.
            prompt, evaluation, compute: as in a config.
            pool: the few-shot examples' split.
        """
        compute = decide(compute or Compute(), backbone.device, len(members))
        assert isinstance(compute.batch_tokens, int)
        assert isinstance(compute.members_per_pass, int)
        stack = AdapterStack(backbone.model, adapter, members)
        engine = Engine(backbone, stack, compute.batch_tokens)
        engine.probe()
        encoder = Encoder(backbone.tokenizer, prompt, pool, backbone.limit)
        return cls(
            engine, stack, encoder, prompt, evaluation or Evaluation(), compute.members_per_pass, range(len(members))
        )

    def predict(self, questions: Sequence[Question], progress: Progress | None = None) -> Predictions:
        """Answer questions with every member.

        Args:
            questions: N of them; those too long are left out where `evaluation.too_long` is `drop`.
            progress: advanced by one a member and question.

        Returns:
            Predictions: `.probs` float64 [M, N, K], 0 where a choice is absent, and `.mask` [N, K].

        Raises:
            UserError: there are no questions, one is too long, or a letter is not one token.
        """
        asked = self.encode(questions, bare=self.evaluation.unconditional)
        return self.answer(asked, self.positions, progress)

    def decide(
        self, questions: Sequence[Question], max_risk: float | None = None, progress: Progress | None = None
    ) -> list[Decision]:
        """Answer questions, or hand them over so that at most `max_risk` of the answered are wrong.

        Args:
            questions: N of them.
            max_risk: a risk that `ripieno certify` promised; None decides nothing.
            progress: advanced by one a member and question.

        Returns:
            N decisions; questions that are too long are handed over.

        Raises:
            UserError: the risk was not promised.
        """
        certificate = self.certified.certificate if self.certified else None
        decisions.promise_of(certificate, max_risk)  # before any work
        asked = self.encode_fitting(questions)  # what is too long goes to a person
        if progress:
            progress.expect(len(asked.questions) * len(self.positions))
        p = self.answer(asked, self.positions, progress) if asked.questions else None
        shift = self.shift(asked) if max_risk is not None else None
        return decisions.decide(p, questions, certificate, max_risk, shift)

    def shift(self, asked: Asked) -> Shift | None:
        """Return whether questions are like the certified ones; None where that cannot be told."""
        if self.certified is None or not self.certified.features or len(asked.questions) < FEWEST:
            return None
        prompts = read_prompts(self.engine, asked.trees)
        return self.certified.compare(prompts.hidden, prompts.tokens)

    def encode(self, questions: Sequence[Question], *, bare: bool = False) -> Asked:
        """Put questions into the prompt; those too long are left out where `evaluation.too_long` is `drop`.

        Args:
            questions: N of them.
            bare: also put their choices after the bare answer cue, for the unconditional scores.
        """
        trees, dropped = self.encoder.trees(questions, self.evaluation.max_tokens, self.evaluation.too_long)
        left_out = {question.id for question in dropped}
        kept = [question for question in questions if question.id not in left_out]
        return Asked(kept, trees, self.encoder.bare(kept) if bare else ())

    def encode_fitting(self, questions: Sequence[Question]) -> Asked:
        """As `encode`, but leave those out that are too long, whatever the config makes of them elsewhere."""
        dropping = self.evaluation.model_copy(update={"too_long": "drop"})
        return replace(self, evaluation=dropping).encode(questions)

    def answer(
        self,
        asked: Asked,
        positions: Sequence[int],
        progress: Progress | None = None,
        dropout_seeds: Sequence[int] | None = None,
    ) -> Predictions:
        """As `predict`, of encoded questions by some of the members; by the base alone, as member 0, for ().

        Args:
            asked: the questions.
            positions: of members; one may be asked several times, with other dropout masks.
            progress: advanced by one a position and question.
            dropout_seeds: of each position's dropout masks; None: nothing is dropped.
        """
        if not asked.questions:
            raise UserError(NO_QUESTIONS)
        full = FULL_CPU_TOKENS if self.engine.backbone.device.type == "cpu" else FULL_GPU_TOKENS
        # Questions enough fill the passes of one member, and its update can be merged; fewer are asked of several.
        per_pass = 1 if sum(tree.read for tree in asked.trees) >= full else self.members_per_pass
        return predict(self.engine, positions, asked, self.prompt, self.evaluation, per_pass, progress, dropout_seeds)


def assemble(config: Config, backbone: Backbone, members: Sequence[int], data_dir: Path | None = None) -> Ensemble:
    """Put empty adapters of a run's members on its base."""
    pool = few_shot_pool(config.prompt, config.data, data_dir)
    return Ensemble.assemble(backbone, config.adapter, members, config.prompt, config.evaluation, config.compute, pool)


def decide(compute: Compute, device: torch.device, members: int, step_tokens: int | None = None) -> Compute:
    """Decide every `auto`: as many members share a pass as it takes until its products fill the device.

    Args:
        compute: as configured.
        device: where the base is.
        members: the ensemble's size; 0 for the base alone.
        step_tokens: of one member's step; None where it is not known, as for questions yet to come: then a CPU takes
            members in turn, and a GPU together.
    """
    on_gpu = device.type != "cpu"
    full = FULL_GPU_TOKENS if on_gpu else FULL_CPU_TOKENS
    tokens = step_tokens or (1 if on_gpu else full)
    decided = {
        "device": str(device),
        "members_per_pass": min(max(members, 1), math.ceil(full / tokens)),  # the base alone is one too
        "batch_tokens": 8192 if on_gpu else 1024,
    }
    return compute.model_copy(
        update={key: value for key, value in decided.items() if key == "device" or getattr(compute, key) == "auto"}
    )


def load_base(run: RunFolder, base: Base, compute: Compute) -> Backbone:
    """Load the base of a run.

    Raises:
        UserError: its files are not those that the run was trained on.
    """
    backbone = backbones.load(base, device_of(compute))
    if backbone.identity["sha256"] != run.manifest()["base_sha256"]:
        raise UserError(
            f"base.model {base.model}: is not the base that {run.path} was trained on (its files differ); put the old "
            "files back, or train another run"
        )
    return backbone


def device_of(compute: Compute) -> str:
    """Return the device that is asked for; for `auto`, `cuda` where there is one, else `cpu`.

    Raises:
        UserError: it is not at hand.
    """
    if compute.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=compute.device)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch's ways to say no
        why = str(error).split("\n")[0]
        raise UserError(f"compute.device {compute.device!r}: not at hand here ({why}); use auto") from None
    return compute.device


def few_shot_pool(prompt: Prompt, data: Data | None = None, data_dir: Path | None = None) -> list[Question]:
    """Return the questions that a prompt takes its solved examples from, drawn and read as the config's others."""
    if prompt.few_shot is None:
        return []
    seed, labels = (data.seed, data.labels) if data else (0, None)
    return load_dataset(prompt.few_shot.dataset, data_dir=data_dir, seed=seed, labels=labels).questions


def evaluated_sets(run: RunFolder) -> list[DatasetName]:
    """Return the names of a run's test and out-of-domain sets, each once."""
    data = run.config().data
    return names_of(run, dict.fromkeys((*data.test, *data.out_of_domain)))
