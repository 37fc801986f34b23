"""Members x questions to the table of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ripieno.config import Evaluation, Prompt
from ripieno.data.question import Question
from ripieno.measures import Decomposition, decompose
from ripieno.model.packing import shared_fronts
from ripieno.model.scoring import Engine, Scores, choice_log_probs
from ripieno.model.trees import TokenTree
from ripieno.predictions import Predictions
from ripieno.progress import Progress


@dataclass(frozen=True)
class Asked:
    """Questions with their token trees, in the same order; `bare`: also their choices after the answer cue alone."""

    questions: Sequence[Question]
    trees: Sequence[TokenTree]
    bare: Sequence[TokenTree] = ()


def predict(
    engine: Engine,
    positions: Sequence[int],
    asked: Asked,
    prompt: Prompt,
    evaluation: Evaluation,
    members_per_pass: int,
    progress: Progress | None = None,
    dropout_seeds: Sequence[int] | None = None,
) -> Predictions:
    """Return what each member answers to each question; all members see the same prompts.

    Args:
        engine: the base with the members' adapters.
        positions: M of them, of the members in the engine's stack; () asks the base alone, as member 0.
        asked: N questions, encoded.
        prompt: the scoring rule.
        evaluation: what else to store.
        members_per_pass: members that share a forward pass.
        progress: advanced by one a member and question.
        dropout_seeds: M seeds of dropout masks; None for none.
    """
    trees = asked.trees
    N, K = len(trees), max(len(tree.branches) for tree in trees)
    M = max(len(positions), 1)
    mask = np.arange(K) < np.array([len(tree.branches) for tree in trees])[:, None]
    log_probs, scores = (np.full((M, N, K), -np.inf) for _ in range(2))
    extra = _Extra(M, trees, evaluation)
    groups = [positions[start : start + members_per_pass] for start in range(0, len(positions), members_per_pass)]
    for number, group in enumerate(groups or [()]):
        P = max(len(group), 1)
        rows = slice(number * members_per_pass, number * members_per_pass + P)
        for index, result in engine.scan(group, trees, dropout_seeds=dropout_seeds[rows] if dropout_seeds else None):
            width = result.choices.shape[-1]
            of_choices = choice_log_probs(result.choices, [[trees[n] for n in index]] * P, prompt.normalisation)
            log_probs[rows, index, :width] = of_choices.cpu().numpy()
            scores[rows, index, :width] = result.choices.cpu().numpy()
            extra.store(rows, index, result)
            if progress:
                progress.advance(P * len(index))
    text = not trees[0].letters
    return Predictions(
        log_probs=log_probs,
        mask=mask,
        question_ids=tuple(question.id for question in asked.questions),
        targets=np.array([-1 if q.answer is None else q.answer for q in asked.questions], dtype=np.int64),
        members=tuple(engine.stack.members[p] for p in positions) if engine.stack and positions else (0,),
        subjects=tuple(question.subject for question in asked.questions),
        scores=scores,
        tokens=_lengths([[len(b) for b in tree.branches] for tree in trees], K) if text else None,
        bytes=_lengths([tree.choice_bytes for tree in trees], K) if text else None,
        unconditional=_unconditional(engine, groups or [()], asked.bare, K) if asked.bare else None,
        outside_mass=extra.outside_mass,
        letter_log_probs=extra.letter_log_probs,
        top_tokens=extra.top_tokens,
        top_log_probs=extra.top_log_probs,
    )


class _Extra:
    """What letters templates store beside the choices: arrays [M, N, ...], None where not asked for."""

    def __init__(self, members: int, trees: Sequence[TokenTree], evaluation: Evaluation):
        M, N, self.trees, self.top = members, len(trees), trees, evaluation.store_top
        letters = trees[0].letters
        self.outside_mass = np.zeros((M, N)) if letters else None
        self.letter_log_probs = np.zeros((M, N, len(letters))) if letters and evaluation.fixed_letters else None
        self.top_tokens: NDArray[np.int64] | None = None
        self.top_log_probs: NDArray[np.float64] | None = None
        self.shape = (M, N)

    def store(self, rows: slice, index: Sequence[int], scores: Scores) -> None:
        """Note what P members say of the vocabulary at the answers of n questions."""
        if self.outside_mass is None:
            return
        answer = scores.answer
        for column, n in enumerate(index):
            letters = torch.tensor([branch[0] for branch in self.trees[n].branches], device=answer.device)
            inside = answer[:, column, letters].double().logsumexp(-1)
            self.outside_mass[rows, n] = (-torch.expm1(inside)).clamp(min=0).cpu().numpy()
            if self.letter_log_probs is not None:
                fixed = torch.tensor(self.trees[n].letters, device=answer.device)
                self.letter_log_probs[rows, n] = answer[:, column, fixed].cpu().numpy()
        if self.top is not None:
            best = answer.topk(answer.shape[-1] if self.top == "all" else min(self.top, answer.shape[-1]))
            if self.top_tokens is None or self.top_log_probs is None:
                self.top_tokens = np.zeros((*self.shape, best.indices.shape[-1]), dtype=np.int64)
                self.top_log_probs = np.zeros(self.top_tokens.shape)
            self.top_tokens[rows, index] = best.indices.cpu().numpy()
            self.top_log_probs[rows, index] = best.values.cpu().numpy()


def noise_floor(engine: Engine, member: int, trees: Sequence[TokenTree], prompt: Prompt, times: int) -> Decomposition:
    """Return the uncertainty of an ensemble of one member, scored several times in passes of different sizes.

    Its mutual information would be 0 but for rounding: what members' disagreement has to be compared with.

    Args:
        engine: the base with the members' adapters.
        member: its position in the engine's stack.
        trees: n questions.
        prompt: the scoring rule.
        times: how often to score them.
    """
    probs = np.zeros((times, len(trees), max(len(tree.branches) for tree in trees)))
    longest = max(tree.read - shared for tree, shared in zip(trees, shared_fronts(trees), strict=True))
    for time in range(times):
        engine.forget()
        for index, result in engine.scan([member], trees, batch_tokens=1 + time * longest):
            of_choices = choice_log_probs(result.choices, [[trees[n] for n in index]], prompt.normalisation)[0]
            probs[time, index, : of_choices.shape[-1]] = of_choices.double().softmax(-1).cpu().numpy()
    return decompose(probs)


def _unconditional(
    engine: Engine, groups: Sequence[Sequence[int]], bare: Sequence[TokenTree], width: int
) -> NDArray[np.float64]:
    """Return float64 [M, N, K]: each choice's score after the bare answer cue, 0 where absent.

    Questions with the same choices (yes and no, fixed labels) are scored once.
    """
    same: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for n, tree in enumerate(bare):
        same.setdefault((tree.question, *tree.branches), []).append(n)
    different = list(same.values())
    trees = [bare[rows[0]] for rows in different]
    found = [np.zeros((max(len(group), 1), len(bare), width)) for group in groups]
    for group, scores in zip(groups, found, strict=True):
        for index, result in engine.scan(group, trees):
            for column, n in enumerate(index):
                K = len(trees[n].branches)
                scores[:, different[n], :K] = result.choices[:, column, None, :K].cpu().numpy()
    return np.concatenate(found)


def _lengths(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], dtype=np.int64)
