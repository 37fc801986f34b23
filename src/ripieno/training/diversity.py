"""What makes members differ beyond their seed: a template of their own in training, a term that drives them apart.

The term is weight * MI, with MI = H(mean_m p_m) - mean_m H(p_m) of the members' answers to questions without answers
(diversity off the training data: arXiv:1906.07380), taken off each member's loss. As MI = mean_m KL(p_m || mean), its
slope in a member's log-probabilities is that member's own summand,

    d MI / d log p_m(k) = p_m(k) (log p_m(k) - log mean(k)) / M,

so one pass of each member without gradients tells every member its direction, and then each goes it alone, whatever
shares a pass: the sum of their steps is a step up the gradient of MI in all members' parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ripieno.config import Config, Repulsion
from ripieno.model.scoring import Engine, choice_log_probs
from ripieno.model.trees import Encoder, TokenTree
from ripieno.progress import TRAINING_COST
from ripieno.seeds import generator
from ripieno.training.distributed import ALONE, Ranks


def encoders(encoder: Encoder, config: Config) -> list[Encoder]:
    """Return what members train with, in turn by their number: one a template, or the encoder itself."""
    return [encoder.with_template(name) for name in config.training.templates] or [encoder]


def units(config: Config, questions: int) -> int:
    """Return the units of progress of a member's training on some questions, a step's or an epoch's."""
    training, found = config.training, TRAINING_COST * questions
    if training.repulsion:
        steps = math.ceil(questions / training.batch_size)
        found += steps * training.repulsion.batch_size * (1 + TRAINING_COST)  # once without gradients, once with
    return found


def shares(log_probs: Tensor) -> Tensor:
    """Return [M, n, K]: p_m (log p_m - log mean) / M, which sum to MI and are its slopes in log p_m.

    Args:
        log_probs: [M, n, K], -inf where a choice is absent.
    """
    M = len(log_probs)
    mean = log_probs.logsumexp(dim=0) - math.log(M)
    return (log_probs.exp() * (log_probs - mean)).masked_fill(log_probs.isneginf(), 0) / M


@dataclass(frozen=True)
class Drive:
    """What drives the members apart in one step.

    Args:
        trees: the step's n questions.
        slopes: position -> float32 [n, K], the slope of the mean of MI over the questions in its log-probabilities.
        information: position -> that mean, in nats, the same for all; NaN for one whose answers are no numbers, which
            is left out of it.
    """

    trees: Sequence[TokenTree]
    slopes: Mapping[int, Tensor]
    information: Mapping[int, float]


@dataclass(frozen=True)
class Driver:
    """Drives the members of a stack apart.

    Nothing is dropped out here: masks that differ would pass for members that do.

    Args:
        engine: scores with the members.
        trees: all questions of the term, put as evaluation puts them.
        config: the term, the scoring rule, the seed.
        ranks: the processes that share a step's questions.
    """

    engine: Engine
    trees: Sequence[TokenTree]
    config: Config
    ranks: Ranks = ALONE

    @property
    def repulsion(self) -> Repulsion:
        """The term's settings."""
        assert self.config.training.repulsion
        return self.config.training.repulsion

    @torch.no_grad()
    def drive(self, groups: Sequence[Sequence[int]], step: int) -> Drive:
        """Ask all running members a step's questions, before any of them has taken that step.

        Args:
            groups: the members' positions, those together that share a pass.
            step: its number, from which with the seed the questions follow.
        """
        count = min(self.repulsion.batch_size, len(self.trees))
        drawn = generator(self.config.training.seed, "repulsion", step).choice(len(self.trees), count, replace=False)
        trees = [self.trees[int(n)] for n in drawn]
        K, device = max(len(tree.branches) for tree in trees), self.engine.backbone.device
        of_groups = []
        for group in groups:
            of_groups.append(torch.zeros(len(group), count, K, device=device))
            for index, found in self._answers(group, trees):
                of_groups[-1][:, index, : found.shape[-1]] = found
        log_probs = torch.cat(of_groups)
        self.ranks.sum([log_probs])  # every question is one process's, and 0 in the others
        for place, tree in enumerate(trees):
            log_probs[:, place, len(tree.branches) :] = -torch.inf
        sound = ~log_probs.isnan().flatten(1).any(dim=1)
        slopes = torch.full_like(log_probs, torch.nan)
        information = torch.full((len(log_probs),), torch.nan, device=device)
        if sound.any():
            slopes[sound] = shares(log_probs[sound]) / count
            information[sound] = slopes[sound].sum()
        positions = [p for group in groups for p in group]
        return Drive(
            trees, dict(zip(positions, slopes, strict=True)), dict(zip(positions, information.tolist(), strict=True))
        )

    def gradients(self, drive: Drive, group: Sequence[int]) -> dict[int, float]:
        """Add the term's gradients to those of members of one pass; return what it adds to each one's loss.

        The gradients are those of this process's share of the questions, what they add is that of all.
        """
        slopes = torch.stack([drive.slopes[p] for p in group])
        for index, found in self._answers(group, drive.trees):
            of_part = slopes[:, index, : found.shape[-1]]
            # An absent choice has the slope 0, and 0 * -inf is no number.
            rise = (of_part * found.masked_fill(found.isneginf(), 0)).sum()
            (-self.repulsion.weight * rise).backward()
        return {p: -self.repulsion.weight * drive.information[p] for p in group}

    def _answers(self, group: Sequence[int], trees: Sequence[TokenTree]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield, pass by pass, which questions of this process's it reads and what members say: log p [P, n, K]."""
        places, own = {tree: n for n, tree in enumerate(trees)}, self.ranks.share(trees)
        for part in self.engine.parts([own] * len(group)) if own else ():
            read = [[row for row in of_member if isinstance(row, TokenTree)] for of_member in part]
            scores = self.engine.score(group, read).choices
            yield [places[tree] for tree in read[0]], choice_log_probs(scores, read, self.config.prompt.normalisation)
