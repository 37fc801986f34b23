"""A bounded queue of questions in front of one ensemble, and the one thread that asks it.

Whatever waits is answered together, whoever asked: a pass over few tokens costs nearly as much as a full one.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from ripieno import decisions, memory
from ripieno.config import Evaluation
from ripieno.data.question import Question
from ripieno.decisions import Decision
from ripieno.ensemble import Ensemble
from ripieno.model.prediction import Asked
from ripieno.model.trees import TokenTree
from ripieno.serving.recent import Recent


class Full(Exception):
    """No more questions can wait; `seconds` is when it is worth asking again."""

    def __init__(self, seconds: int):
        super().__init__(f"too many questions are waiting; ask again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, and what it was made of: [M, K], each member's probabilities at the certificate's temperature."""

    decision: Decision
    members: tuple[tuple[float, ...], ...] | None


@dataclass(eq=False)
class _Request:
    """A caller's questions; `answers` has a place for each."""

    questions: Sequence[Question]
    answers: list[Answer | None]
    future: Future[list[Answer]] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A question of a request, by its place there."""

    request: _Request
    place: int

    @property
    def question(self) -> Question:
        return self.request.questions[self.place]


class Batcher:
    """Answers questions of many callers in the order in which they came, as many at once as fill a pass.

    Args:
        ensemble: asked in this object's own thread alone.
        max_risk: as in `Ensemble.decide`.
        waiting: how many questions may be accepted and not yet answered.
        seconds: for which a caller waits: what would take longer is not accepted.

    Raises:
        UserError: that risk was not promised.
    """

    def __init__(self, ensemble: Ensemble, max_risk: float | None, waiting: int, seconds: float = math.inf):
        self.certificate = ensemble.certified.certificate if ensemble.certified else None
        self.promise = decisions.promise_of(self.certificate, max_risk)
        self.max_risk = max_risk
        self.waiting, self.seconds = waiting, seconds
        # What is too long goes to a person; what else a run may store of its answers, nobody reads here.
        evaluation = Evaluation(max_tokens=ensemble.evaluation.max_tokens, too_long="drop")
        self.ensemble = replace(ensemble, evaluation=evaluation)
        self.recent = Recent(ensemble) if self.promise else None
        self._queue: deque[_Waiting] = deque()
        self._accepted = 0  # questions that wait, and those that are being answered
        self._pace = 0.0  # seconds a question, lately
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="ensemble")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs that answers."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether a question would be accepted now."""
        return self._has_room(1)

    def _has_room(self, count: int) -> bool:
        in_time = self._accepted * self._pace <= self.seconds  # always so where nothing waits
        return self.alive and not self._closing and in_time and self._accepted + count <= self.waiting

    def submit(self, questions: Sequence[Question]) -> Future[list[Answer]]:
        """Accept questions, or refuse all of them.

        Args:
            questions: of one caller, one at least.

        Returns:
            Their answers, in their order, to come. Cancelled, what is not yet asked of it is never asked.

        Raises:
            Full: they are more than can wait, or would wait for too long.
        """
        request = _Request(questions, [None] * len(questions))
        with self._changed:
            if not self._has_room(len(questions)):
                raise Full(max(1, math.ceil(self._accepted * self._pace)))
            self._accepted += len(questions)
            self._queue.extend(_Waiting(request, place) for place in range(len(questions)))
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Accept nothing more, answer what was accepted, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        try:
            self._loop()
        finally:  # also where the loop fails: nobody waits for a thread that has ended
            with self._changed:
                self._closing = True
            for waiting in self._queue:
                _fail(waiting.request, RuntimeError("the service can answer no more; start it again"))

    def _loop(self) -> None:
        while self._await():
            began = time.monotonic()
            batch, trees = self._take()
            if not batch:
                continue
            try:
                self._answer(batch, trees)
            except Exception as error:  # is the callers' to see; the next questions may fare better
                for waiting in batch:
                    _fail(waiting.request, error)
            with self._changed:
                self._accepted -= len(batch)
                pace = (time.monotonic() - began) / len(batch)
                self._pace = pace if not self._pace else 0.9 * self._pace + 0.1 * pace
            self.ensemble.engine.forget_unused()  # what one batch shares at the front, another may never ask for
            if self.recent is not None:
                self.recent.read([tree for tree in trees if tree is not None])
            memory.give_back()

    def _await(self) -> bool:
        """Return once a question waits; False once none will."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return bool(self._queue)

    def _take(self) -> tuple[list[_Waiting], list[TokenTree | None]]:
        """Take questions off the queue until they fill a pass, with their trees; None for one that is too long."""
        batch: list[_Waiting] = []
        trees: list[TokenTree | None] = []
        tokens = 0
        while self._queue and tokens < self.ensemble.engine.batch_tokens:
            waiting = self._queue.popleft()
            tree = None
            if not waiting.request.future.done():
                try:
                    tree = next(iter(self.ensemble.encode([waiting.question]).trees), None)
                except Exception as error:  # of this question alone, such as a letter that is not one token
                    _fail(waiting.request, error)
            if waiting.request.future.done():
                with self._changed:
                    self._accepted -= 1
                continue
            batch.append(waiting)
            trees.append(tree)
            tokens += 0 if tree is None else tree.read
        return batch, trees

    def _answer(self, batch: Sequence[_Waiting], trees: Sequence[TokenTree | None]) -> None:
        """Answer a batch, and give the requests that are complete their answers."""
        # Callers choose ids, and two may choose the same.
        questions = [replace(waiting.question, id=str(n)) for n, waiting in enumerate(batch)]
        asked = [(question, tree) for question, tree in zip(questions, trees, strict=True) if tree is not None]
        p, members = None, {}
        if asked:
            p = self.ensemble.answer(Asked(*zip(*asked, strict=True)), self.ensemble.positions)
            rule = decisions.UNCALIBRATED if self.certificate is None else self.certificate.rule
            probs = rule.probs(p)
            members = {id_: tuple(map(tuple, probs[:, n, p.mask[n]].tolist())) for n, id_ in enumerate(p.question_ids)}
        shift = self.recent.shift if self.recent else None
        decided = decisions.decide(p, questions, self.certificate, self.max_risk, shift)
        for waiting, decision in zip(batch, decided, strict=True):
            named = replace(decision, id=waiting.question.id)
            waiting.request.answers[waiting.place] = Answer(named, members.get(decision.id))
        for request in {waiting.request: None for waiting in batch}:
            answers = [answer for answer in request.answers if answer is not None]
            if len(answers) == len(request.answers) and request.future.set_running_or_notify_cancel():
                request.future.set_result(answers)


def _fail(request: _Request, error: Exception) -> None:
    if not request.future.done() and request.future.set_running_or_notify_cancel():
        request.future.set_exception(error)
