"""What a method works with: trained members after an epoch, one of them in place at a time, and their questions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ripieno import measures
from ripieno.config import Config
from ripieno.data.kept import kept_questions
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName
from ripieno.ensemble import Ensemble
from ripieno.errors import UserError
from ripieno.model.prediction import Asked
from ripieno.model.trees import TokenTree
from ripieno.predictions import Predictions
from ripieno.progress import Progress
from ripieno.runs import IMPORTED, RunFolder, adapter_epochs, require_adapter
from ripieno.training.loop import Examples, member_seed

# A member, its epoch, and what it was asked.
Known = tuple[int, int, tuple[TokenTree, ...]]


@dataclass
class Trained:
    """Members of a run after an epoch; what stands in the ensemble's only place answers.

    Args:
        run: the run folder.
        config: resolved.
        ensemble: of one place.
        members: the members of one ensemble; a method of one member takes the first.
        epoch: after which.
        progress: advanced by one a question that is answered.
        answered: what single members answered already, by member, epoch and questions, with the tokens that it took;
            may be shared.
        encoded: questions by their role, encoded already; may be shared.
        epochs: member -> the epoch that it answers with instead.
        read: tokens that answering took; what was answered before counts as it did then. For whoever counts costs.
        used: the files that were put in place; likewise.
    """

    run: RunFolder
    config: Config
    ensemble: Ensemble
    members: Sequence[int]
    epoch: int
    progress: Progress
    answered: MutableMapping[Known, tuple[Predictions, int]] = field(default_factory=dict)
    encoded: MutableMapping[str, Asked] = field(default_factory=dict)
    epochs: Mapping[int, int] = field(default_factory=dict)
    read: int = field(default=0, init=False)
    used: set[Path] = field(default_factory=set, init=False)
    _loaded: tuple[int, int] | None = field(default=None, init=False)
    _standing: int = field(default=0, init=False)

    @property
    def member(self) -> int:
        """The first member."""
        return self.members[0]

    def epoch_of(self, member: int, epoch: int | None = None) -> int:
        """Return the epoch of the adapter that a member answers with after an epoch, this one by default.

        Raises:
            UserError: its training failed before.
        """
        epoch = self.epochs.get(member, self.epoch) if epoch is None else epoch
        answering = adapter_epochs(self.run, [member], epoch)
        if not answering:
            raise UserError(
                f"{self.run.path}: the training of member {member} failed before epoch {epoch}, so it cannot be asked; "
                "lower training.learning_rate and train another run"
            )
        return answering[member]

    def adapter(self, member: int, epoch: int | None = None) -> Path:
        """Return the folder of the adapter that a member answers with after an epoch, this one by default.

        Raises:
            UserError: it is not trained so far, or its training failed before.
            EnvironmentFault: its files are missing or damaged.
        """
        at = self.epoch_of(member, epoch)
        require_adapter(self.run, member, at)
        return self.run.adapter(member, at)

    def load(self, member: int, epoch: int | None = None) -> None:
        """Put a member's adapter of an epoch (this one by default) in place."""
        folder = self.adapter(member, epoch)
        self.used.add(folder / "adapter_model.safetensors")
        # Always: others that work with the same ensemble may have put something else there.
        self.ensemble.stack.load_peft(0, folder)
        self._loaded, self._standing = (member, self.epoch_of(member, epoch)), member

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return copies of what is in place: the A [r, in] and B [out, r] of every layer."""
        layers = self.ensemble.stack.layers.items()
        return {name: (layer.A[0].detach().clone(), layer.B[0].detach().clone()) for name, layer in layers}

    def start(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return where the first member's training started: the A [r, in] and B [out, r] of every layer, on the CPU.

        Raises:
            UserError: it was trained elsewhere, so that is not known.
        """
        if self.run.manifest()["members"] == IMPORTED:
            raise UserError(
                f"{self.run.path}: its adapters were imported, so it is not known where their training started, around "
                "which the prior stands; choose --setting prior_precision=validation, or a number"
            )
        training = self.config.training
        seed = member_seed(training.seed, self.member)
        return self.ensemble.stack.start(self.member, seed, training.init_scale)

    def put(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Put other weights in place, such as a sample of them."""
        self.ensemble.stack.put(0, weights)
        self._loaded = None

    def ask(self, asked: Asked, dropout_seed: int | None = None) -> Predictions:
        """Return what the weights in place answer, one row; a member's own answers are computed once."""
        own = (*self._loaded, tuple(asked.trees)) if self._loaded and dropout_seed is None else None
        if own and own in self.answered:
            p, tokens = self.answered[own]
            self.progress.advance(len(asked.questions))
        else:
            meter = self.ensemble.engine.meter
            before = meter.tokens
            p = self.ensemble.answer(asked, [0], self.progress, None if dropout_seed is None else [dropout_seed])
            p = replace(p, members=(self._standing,))
            tokens = meter.tokens - before
        if own:
            self.answered[own] = p, tokens
        self.read += tokens
        return p

    def training_trees(self) -> list[TokenTree]:
        """Return what the first member trained on in the epoch it answers with, as it saw it: repeats are its bag's.

        Raises:
            UserError: it trained on more than questions and their choices.
        """
        if self.config.training.loss != "choices":
            raise UserError(
                f"{self.run.path}: was trained with training.loss {self.config.training.loss}; what is fitted to "
                "probabilities of choices takes training.loss choices"
            )
        # What training dropped as too long, in any member's template, is not in the bag that a member draws from.
        left_out = set(self.run.manifest()["dropped"]["too_long"]["train"])
        kept = [question for question in self._questions(self.config.data.train) if question.id not in left_out]
        seen = Examples(kept, self.ensemble.encoder, self.config).epoch(self.member, self.epoch_of(self.member))
        return [row for row in seen if isinstance(row, TokenTree)]

    @property
    def validation(self) -> Asked:
        """The questions of the validation role that have an answer.

        Raises:
            UserError: there are none.
        """
        if "validation" not in self.encoded:
            questions = [q for q in self._questions(self.config.data.validation) if q.answer is not None]
            if not questions:
                raise UserError(
                    f"{self.run.path}: its config names no data.validation with answers; add some and train again"
                )
            self.encoded["validation"] = self.ensemble.encode(questions)
        return self.encoded["validation"]

    def _questions(self, sets: Sequence[str]) -> list[Question]:
        return [question for name in map(DatasetName.parse, sets) for question in kept_questions(self.run, name)]


def pooled_nll(p: Predictions, pooling: Literal["prob", "logit"] = "prob") -> float:
    """Return the mean NLL of what all rows answer together, by the mean of their probabilities or of their logits."""
    pooled = (measures.pool_logits if pooling == "logit" else measures.pool_log)(p.log_probs)
    return float(measures.nll(pooled, p.targets).mean())
