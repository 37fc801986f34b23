"""M members from questions to adapters: every member over one base, each from its own seed."""

from __future__ import annotations

import math
import signal
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ripieno import live, memory, signals, tracking
from ripieno.config import Config, in_turn
from ripieno.data.question import Question, Text
from ripieno.errors import EnvironmentFault
from ripieno.model.adapters import AdapterStack
from ripieno.model.batching import Row
from ripieno.model.scoring import Engine
from ripieno.model.speed import Timer
from ripieno.model.trees import Encoder, TokenSequence, TokenTree
from ripieno.progress import Progress
from ripieno.runs import RunFolder, stopped_members
from ripieno.seeds import derive, generator
from ripieno.training import checkpoints, diversity, losses
from ripieno.training.distributed import ALONE, Ranks
from ripieno.training.variational import Posterior

SPENT = ("questions", "seconds", "tokens")  # of a line of timing.jsonl, what adds up over starts
# A member's validation: positions in the stack -> (NLL, accuracy) each.
Validate = Callable[[Sequence[int]], list[tuple[float, float]]]


def member_seed(seed: int, member: int) -> int:
    """Return a member's own seed: initialisation, data order and dropout all follow from it."""
    return derive(seed, "member", member)


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Return the learning rate of a step (0 is the first) of a training of `steps` steps.

    It rises linearly over the warm-up, then stays, or falls to 0 along a line or half a cosine (arXiv:1608.03983).
    """
    training = config.training
    warmup = round(training.warmup * steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule == "constant":
        return training.learning_rate
    done = (step - warmup) / max(steps - warmup, 1)
    if training.schedule == "linear":
        return training.learning_rate * (1 - done)
    return training.learning_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass
class Examples:
    """The training questions, as each member sees them in each epoch.

    Args:
        rows: questions (texts too, under `next_token`) that fit the training length.
        encoder: to token trees, with the template that evaluation uses.
        config: loss, bagging, shuffled choices, templates, seeds.
    """

    rows: Sequence[Question | Text]
    encoder: Encoder
    config: Config
    _encoded: dict[str, list[Row]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._encoders = diversity.encoders(self.encoder, self.config)

    def step_tokens(self) -> int:
        """Return how many tokens one member's step reads: the median row's, for each row of a batch."""
        rows = [row for encoder in self._encoders for row in self._all(encoder)]
        return int(statistics.median(row.read for row in rows)) * self.config.training.batch_size

    def epoch(self, member: int, epoch: int) -> list[Row]:
        """Return a member's rows of one epoch, in the order it trains on them."""
        training = self.config.training
        seed = member_seed(training.seed, member)
        count = len(self.rows)
        chosen = generator(seed, "bag").integers(count, size=count) if training.bagging else range(count)
        order = [chosen[int(i)] for i in generator(seed, "order", epoch).permutation(count)]
        encoder = in_turn(self._encoders, member, self.encoder)
        if not training.shuffle_choices:
            encoded = self._all(encoder)
            return [encoded[i] for i in order]
        return self._encode(encoder, [_shuffled(self.rows[i], seed, epoch) for i in order])

    def _all(self, encoder: Encoder) -> list[Row]:
        template = encoder.prompt.template
        if template not in self._encoded:
            self._encoded[template] = self._encode(encoder, self.rows)
        return self._encoded[template]

    def _encode(self, encoder: Encoder, rows: Sequence[Question | Text]) -> list[Row]:
        training = self.config.training
        # What is too long was dropped before; a new order of the choices changes a length by a token or two at most.
        limit, too_long = (None, "error") if training.too_long == "drop" else (training.max_tokens, training.too_long)
        if training.loss == "next_token":
            return list(encoder.sequences(rows, limit, too_long)[0])
        return list(encoder.trees([row for row in rows if isinstance(row, Question)], limit, too_long)[0])


def _shuffled(row: Question | Text, seed: int, epoch: int) -> Question | Text:
    if isinstance(row, Text) or row.answer is None:
        return row
    order = generator(seed, "choices", epoch, row.id).permutation(len(row.choices)).tolist()
    return replace(row, choices=tuple(row.choices[k] for k in order), answer=order.index(row.answer))


def _groups(positions: Sequence[int], size: int) -> list[Sequence[int]]:
    return [positions[first : first + size] for first in range(0, len(positions), size)]


@dataclass
class Trainer:
    """Trains the members of a stack, epoch by epoch, with a checkpoint of each after each.

    Args:
        engine: scores with the stack's members.
        stack: the members' adapters.
        examples: the training questions.
        validate: metrics of members on the validation role; None without one.
        config: the resolved config.
        run: where checkpoints and metrics go.
        progress: the job's bar.
        repulsion: what drives the members apart; None where each is trained as if it were alone.
        ranks: the processes that share every batch; all of them have to train at once.
        track: sends a tracker what metrics.jsonl says of the epochs up to a number, all of them finished.
    """

    engine: Engine
    stack: AdapterStack
    examples: Examples
    validate: Validate | None
    config: Config
    run: RunFolder
    progress: Progress
    repulsion: diversity.Driver | None = None
    ranks: Ranks = ALONE
    track: Callable[[int], None] = tracking.untracked

    def train(self) -> None:
        """Train every member to the last epoch, from wherever it can go on.

        A member whose loss is not finite stops there, and is left out of later epochs; the others go on. A signal waits
        until the step that it came in is taken, and the members' states are saved.
        """
        training = self.config.training
        positions = range(len(self.stack.members))
        self.posterior = Posterior(self.stack, training.variational) if training.variational else None
        lines = self.run.lines("metrics.jsonl")
        self.steps, self.finished, self.stopped = self._begin(lines)
        going = [p for p in positions if p not in self.stopped]
        self.optimizers = {p: self._optimizer(p) for p in positions}
        self.work = {p: self._start(p) if p in going else {} for p in positions}
        # Once all have read the folder it changes, and nobody reads it again.
        if not self.ranks.alike([of.get(p, -1) for of in (self.steps, self.finished, self.stopped) for p in positions]):
            raise EnvironmentFault(
                f"{self.run.path}: not all processes find the same files in it; let every machine see the same folder"
            )
        if self.ranks.leads:
            for p in going:
                checkpoints.discard(self.run, self.stack.members[p], self.finished[p], self.steps[p])
        self.run.arrange("metrics.jsonl", lambda lines: self._before(lines, going))
        self.nlls: dict[int, dict[int, float]] = {p: {} for p in positions}
        for line in self._before(lines, going):
            if line["kind"] == "epoch" and line["member"] in self.stack.members:
                self.nlls[self.stack.members.index(line["member"])][line["epoch"]] = line["validation_nll"]
        self.track(min((self.finished[p] for p in going), default=training.epochs))
        for p in going:
            epoch = self.finished[p]
            if epoch and self.steps[p] == epoch * self.per_epoch:
                self._stop_if_patient(p, epoch)  # a crash may have come between a checkpoint and this
        names = [live.of_member(member) for member in self.stack.members] if self.ranks.leads else []
        with live.noting(self.run, names) as self.pace, signals.held() as self.signal:
            for epoch in range(1, training.epochs + 1):
                running = [p for p in positions if self.finished[p] < epoch and p not in self.stopped]
                skipped = len(positions) - len(running)
                self.progress.advance(skipped * diversity.units(self.config, len(self.examples.rows)))
                if running and not self._interrupted():
                    self._epoch(epoch, running)
            self.run.arrange("metrics.jsonl", in_order)
            self.ranks.wait()  # for the one that writes

    def _interrupted(self) -> bool:
        """Whether a signal came, to any process: then all take it, after the same step."""
        found = self.ranks.any(self.signal.arrived is not None)
        if found and self.signal.arrived is None:
            self.signal.arrived = signal.SIGTERM
        return found

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(len(self.examples.rows) / self.config.training.batch_size)

    def _begin(self, lines: Sequence[Mapping[str, Any]]) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
        """Return after how many steps and epochs each goes on, and in which step members that stopped for good did.

        After an epoch's last step the epoch itself may be unfinished: its state comes before validation and adapter.

        Members go on together where they can, from the last step at which there is a state of all who still train: then
        the same members share a pass as without the interruption, and nothing is rounded otherwise. Under repulsion
        they must; what any of them did after that step is done again, a stop too: until then the others were driven by
        the one that stopped.
        """
        positions, epochs = range(len(self.stack.members)), self.config.training.epochs
        whole = {p: checkpoints.adapters(self.run, self.stack.members[p], epochs) for p in positions}
        can = {p: checkpoints.steps(self.run, self.stack.members[p], epochs, self.per_epoch) for p in positions}
        steps = {line["member"]: line["step"] for line in lines if line["kind"] == "stopped"}
        stopped = {p: steps[m] for p, m in enumerate(self.stack.members) if m in steps and self._as_it_stopped(p)}
        if self.repulsion:
            for at in sorted({step for of in can.values() for step in of}, reverse=True):
                going = [p for p in positions if stopped.get(p, math.inf) > at]
                if all(at in can[p] for p in going):
                    break
            begin = {p: at if p in going else can[p][0] for p in positions}
            stopped = {p: step for p, step in stopped.items() if p not in going}
        else:
            begin = {p: of[0] for p, of in can.items()}
            behind = [p for p in positions if p not in stopped and whole[p] < epochs]
            at = max(set.intersection(*(set(can[p]) for p in behind)), default=0) if behind else 0
            # Without any such step all begin, unless some have finished an epoch: then the others are new, or damaged.
            if at or not any(whole[p] for p in behind):
                begin |= dict.fromkeys(behind, at)
        written = self.run.recorded()
        for p in positions:
            member = self.stack.members[p]
            begun = any(name.startswith(f"members/{member:03d}/") for name in written)
            if can[p] == [0] and p not in stopped and begun:
                what = "a file that it needs to go on is missing or damaged; it trains again from the start"
                self.progress.say(f"member {member}: {what}")
        finished = {p: min(step // self.per_epoch, whole[p]) for p, step in begin.items()}
        # Those that are validated together after a step are so again, unless one has no state any more, nor needs it.
        states = {p: self.run.resume(self.stack.members[p], step) for p, step in begin.items() if p not in stopped}
        for step in set(begin.values()):
            together = [p for p, file in states.items() if begin[p] == step and self.run.whole(file)]
            finished |= dict.fromkeys(together, min((finished[p] for p in together), default=0))
        return begin, finished, stopped

    def _epoch(self, epoch: int, running: list[int]) -> None:
        training = self.config.training
        timer, questions = Timer(self.engine.meter), 0
        before = dict(self.steps)
        done = {p: max(0, self.steps[p] - (epoch - 1) * self.per_epoch) for p in running}
        per_pass = self.config.compute.members_per_pass
        assert isinstance(per_pass, int)
        rows = {p: self.examples.epoch(self.stack.members[p], epoch) for p in running}
        alive = list(running)
        for number in range(self.per_epoch):
            first = number * training.batch_size
            batch = {
                p: rows[p][first : first + training.batch_size]
                for p in alive
                if done[p] <= number  # else an earlier start took this step
            }
            values: dict[int, float] = {}
            groups = _groups(list(batch), per_pass)
            with memory.enough(min(per_pass, len(batch)), self.engine.batch_tokens):
                drive = self.repulsion.drive(groups, self.steps[alive[0]]) if self.repulsion and groups else None
                # A step right after its gradients: members that wait for their turn hold none.
                for group in groups:
                    values |= self._gradients({p: batch[p] for p in group}, drive)
                    for p in group:
                        if not self._step(p, epoch, values[p], drive):
                            alive.remove(p)
            size = len(next(iter(batch.values()))) if batch else 0
            questions += size * len(batch)
            shown = sum(values.values()) / max(len(values), 1)
            speed = timer.said(questions)
            self.progress.describe(f"training, epoch {epoch}/{training.epochs}, loss {shown:.2f}, {speed}")
            self.progress.advance(len(running) * diversity.units(self.config, size))
            if batch and self.ranks.leads and self.pace.due(1):
                self._note(epoch, [p for p in alive if p in batch])
            if not alive:
                break
            taken = number + 1
            due = training.save_every and taken % training.save_every == 0
            interrupted = taken < self.per_epoch and self._interrupted()
            if batch and taken < self.per_epoch and (due or interrupted):
                self._save([p for p in alive if p in batch], self._shares(self._line(timer, questions), len(batch)))
            if interrupted:
                return
        alive = [p for p in alive if self._is_sound(p, epoch, rows[p])]
        if alive:
            took = [p for p in running if self.steps[p] > before[p] or self.work[p]]
            if took:  # else an earlier start took all steps, and said so
                line = {"what": "train", "epoch": epoch, "members": [self.stack.members[p] for p in took]}
                self.run.append("timing.jsonl", line | self._spent(took, self._line(timer, questions)))
                self.run.seal("timing.jsonl")
            self._save(alive, {})  # before validation, which may take as long
            if self._interrupted():
                return
        self._finish(epoch, alive)

    def _is_sound(self, p: int, epoch: int, rows: Sequence[Row]) -> bool:
        """Whether a member's last step of an epoch, whose loss nobody sees, left its weights sound; else stop it."""
        shortest = min(rows, key=lambda row: (row.length < 2, row.read))  # a single token predicts none
        with torch.no_grad():
            loss = self._loss([p], [[shortest]]).item()
        if not math.isfinite(loss):
            self._stop(p, epoch, None, f"its loss ({loss:g}) is not finite after step {self.steps[p]}")
        return math.isfinite(loss)

    def _gradients(self, batch: dict[int, list[Row]], drive: diversity.Drive | None) -> dict[int, float]:
        """Give members of one pass their gradients, each over its own batch; return each one's loss.

        Both are sums over the processes, each of which reads its share of the rows.
        """
        training, positions = self.config.training, list(batch)
        counts = torch.tensor([self._weight(rows) for rows in batch.values()], device=self.engine.backbone.device)
        total = torch.zeros(len(positions), device=counts.device)
        if self.posterior:
            for p in positions:
                seed = derive(member_seed(training.seed, self.stack.members[p]), "draw", self.steps[p])
                self.posterior.draw(p, seed)
        own = [self.ranks.share(rows) for rows in batch.values()]
        for part in self.engine.parts(own) if own[0] else ():  # none, where there are fewer rows than processes
            loss = self._loss(positions, part) / counts
            loss.sum().backward()  # members share no parameter, so each gets its own gradient
            total += loss.detach()
        if self.posterior:
            for p in positions:
                self.posterior.gradients(p)
        penalties = {p: training.lora_l2 * self.stack.squared_norm(p) for p in positions if training.lora_l2}
        if self.ranks.leads:  # a term without rows counts once
            for penalty in penalties.values():
                penalty.backward()
        terms = self.repulsion.gradients(drive, positions) if self.repulsion and drive else {}
        self.ranks.sum_gradients([parameter for p in positions for parameter in self._parameters(p)], total)
        values = dict(zip(positions, total.tolist(), strict=True))
        for p in positions:
            if p in penalties:
                values[p] += penalties[p].item()
            if p in terms:
                values[p] += terms[p]
        return values

    def _loss(self, group: Sequence[int], rows: Sequence[Sequence[Row]]) -> Tensor:
        """Return [P]: each member's loss, summed over its rows."""
        training, members = self.config.training, self.stack.members
        seeds = [derive(member_seed(training.seed, members[p]), "dropout", self.steps[p]) for p in group]
        if training.loss == "next_token":
            sequences = [[row for row in of_member if isinstance(row, TokenSequence)] for of_member in rows]
            return losses.next_token(self.engine, group, sequences, seeds)
        trees = [[row for row in of_member if isinstance(row, TokenTree)] for of_member in rows]
        scores = self.engine.score(group, trees, seeds)
        if training.loss == "answer_token":
            return losses.answer_token(scores, trees)
        return losses.choices(scores, trees, self.config.prompt.normalisation)

    def _weight(self, rows: Sequence[Row]) -> float:
        """Return what a batch's summed loss is divided by: its questions, or its predicted tokens."""
        return float(sum(row.length - 1 if isinstance(row, TokenSequence) else 1 for row in rows))

    def _step(self, p: int, epoch: int, loss: float, drive: diversity.Drive | None) -> bool:
        """Take a member's optimizer step; return False, with a notice, where its loss or gradient is not finite."""
        training, parameters, optimizer = self.config.training, self._parameters(p), self.optimizers[p]
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.clip or math.inf).item()
        member = self.stack.members[p]
        if not (math.isfinite(loss) and math.isfinite(norm)):
            optimizer.zero_grad()
            why = f"its loss ({loss:g}) or gradient ({norm:g}) is not finite at step {self.steps[p]}"
            self._stop(p, epoch, None, why, within=1)
            return False
        total_steps = training.epochs * self.per_epoch
        rate = learning_rate(self.config, self.steps[p], total_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        if self.posterior and training.variational and training.variational.divergence_rate:
            share = rate / training.learning_rate * training.epochs / total_steps  # total_steps: of all epochs
            self.posterior.diverge_less(p, training.variational.divergence_rate * share)
        self.steps[p] += 1
        line = {"kind": "step", "epoch": epoch, "step": self.steps[p], "member": member}
        line |= {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
        self.run.append("metrics.jsonl", line | ({"mutual_information": drive.information[p]} if drive else {}))
        return True

    def _finish(self, epoch: int, alive: list[int]) -> None:
        """Validate members after an epoch's steps, save their adapters, and stop those that no longer get better."""
        results = self.validate(alive) if self.validate and alive else []
        validated = alive if results else []
        # Metrics before checkpoints: on resume, lines without their checkpoint are cut, so none is ever missing.
        for p, (nll, accuracy) in zip(validated, results, strict=True):
            self.nlls[p][epoch] = nll
            line = {"kind": "epoch", "epoch": epoch, "member": self.stack.members[p]}
            self.run.append("metrics.jsonl", line | {"validation_nll": nll, "validation_accuracy": accuracy})
        for p in alive:
            checkpoints.save_adapter(self.run, self.engine.backbone, self._state(p), epoch)
            self.finished[p] = epoch
        self.run.seal("metrics.jsonl")
        if results:
            mean = sum(nll for nll, _ in results) / len(results)
            self.progress.say(f"epoch {epoch}: validation NLL {mean:.3f} (mean of {len(results)} members)")
        for p in alive:
            self._stop_if_patient(p, epoch)
        self.track(epoch)

    def _stop_if_patient(self, p: int, epoch: int) -> None:
        patience, nlls = self.config.training.patience, self.nlls[p]
        if patience is None or self.validate is None:
            return
        best = min(nlls, key=lambda e: (nlls[e], e), default=epoch)  # a fork may have begun to validate
        if epoch - best >= patience and epoch < self.config.training.epochs:
            self._stop(p, epoch, best, f"no lower validation NLL since epoch {best}")

    def _stop(self, p: int, epoch: int, use_epoch: int | None, reason: str, within: int = 0) -> None:
        member, self.stopped[p] = self.stack.members[p], self.steps[p] + within
        line = {"kind": "stopped", "epoch": epoch, "step": self.stopped[p], "member": member}
        line |= {"use_epoch": use_epoch, "reason": reason}
        self.run.append("metrics.jsonl", line)
        self.run.seal("metrics.jsonl")
        left = "left out from this epoch on" if use_epoch is None else f"its adapter of epoch {use_epoch} stays"
        self.progress.say(f"member {member} stopped in epoch {epoch}: {reason}; {left}, the other members go on")

    def _as_it_stopped(self, p: int) -> bool:
        """Whether a member that stopped has every adapter that it had then; else it trains, and stops, once more."""
        member = self.stack.members[p]
        epoch, use_epoch = stopped_members(self.run)[member]
        finished = epoch - 1 if use_epoch is None else epoch
        return checkpoints.adapters(self.run, member, finished) == finished

    def _save(self, alive: Sequence[int], work: Mapping[str, float]) -> None:
        """Save the states of members, with each one's share of what this start took of an unfinished epoch."""
        self.run.seal("metrics.jsonl")
        for p in alive:
            own = {key: share + self.work[p].get(key, 0.0) for key, share in work.items()}
            checkpoints.save(self.run, self._state(p), self.steps[p], own)
        for p in alive:  # not before all are saved: members go on from one step, together
            checkpoints.forget(self.run, self.stack.members[p], self.steps[p])

    def _note(self, epoch: int, positions: Sequence[int]) -> None:
        """Let `ripieno status` know where members are, and how fast all of them take a step."""
        steps = self.config.training.epochs * self.per_epoch
        for p in positions:
            live.note(
                self.run,
                live.of_member(self.stack.members[p]),
                epoch=epoch,
                step=self.steps[p],
                steps=steps,
                steps_per_second=self.pace.per_second,
            )

    def _line(self, timer: Timer, questions: int) -> dict[str, float]:
        """Return what timing.jsonl says of an epoch so far, with the tokens of all processes."""
        line = timer.line(questions)
        tokens = torch.tensor([line["tokens"]], dtype=torch.int64)
        self.ranks.sum([tokens])
        return line | {"tokens": int(tokens.item())}

    def _shares(self, line: Mapping[str, float], among: int) -> dict[str, float]:
        return {key: line[key] / among for key in SPENT}

    def _spent(self, running: Sequence[int], line: dict[str, float]) -> dict[str, float]:
        """Add to what an epoch took what it had taken before an interruption."""
        before = {key: sum(self.work[p].get(key, 0.0) for p in running) for key in SPENT}
        self.work |= {p: {} for p in running}
        return line | {key: line[key] + round(before[key], 6) for key in SPENT}

    def _state(self, p: int) -> checkpoints.State:
        return checkpoints.State(self.stack, p, self.optimizers[p], self.posterior)

    def _optimizer(self, p: int) -> torch.optim.AdamW:
        training = self.config.training
        # All of a member's tensors in one kernel: there are hundreds of them, and each is small.
        groups: list[dict[str, Any]] = [{"params": self.stack.parameters(p)}]
        if self.posterior:  # a decay is a prior of weights, and no prior of their spread
            groups.append({"params": self.posterior.parameters(p), "weight_decay": 0.0})
        return torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)

    def _parameters(self, p: int) -> list[Tensor]:
        """Return all that a member's optimizer moves."""
        return [*self.stack.parameters(p), *(self.posterior.parameters(p) if self.posterior else [])]

    def _start(self, p: int) -> dict[str, float]:
        """Bring a member to where it goes on; return what the epoch had taken until then."""
        training, step = self.config.training, self.steps[p]
        if self.finished[p] == training.epochs:
            return {}
        if step:
            return checkpoints.restore(self.run, self._state(p), step)
        self.stack.initialise(p, member_seed(training.seed, self.stack.members[p]), training.init_scale)
        return {}

    def _before(self, lines: list[dict[str, Any]], going: Sequence[int]) -> list[dict[str, Any]]:
        """Return metrics without those of steps that these members will take again, and of what came after them."""
        steps = {self.stack.members[p]: self.steps[p] for p in going}
        finished = {self.stack.members[p]: self.finished[p] for p in going}

        def kept(line: dict[str, Any]) -> bool:
            member = line["member"]
            return (line["kind"] == "step" and line["step"] <= steps[member]) or (
                line["kind"] == "epoch" and line["epoch"] <= finished[member]
            )

        return [line for line in lines if line["member"] not in steps or kept(line)]


def in_order(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lines of metrics in the order of a training that nothing interrupted: each epoch's steps, then its end."""
    kinds = ("step", "epoch", "stopped")
    return sorted(lines, key=lambda x: (x["epoch"], kinds.index(x["kind"]), x.get("step", 0), x["member"]))
