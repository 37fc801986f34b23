"""`ripieno serve` under twice the load that it can answer: what it answers, refuses, loses; how long that takes.

    python benchmarks/serve.py RUN QUESTIONS [--max-risk 0.05] [--seconds 60] [--each 4] [--callers 128]

QUESTIONS is a file as for `ripieno predict`, whose answers (by this process, before) are what each answer of the
service is compared with: the decision, word for word, and every probability to `BOUND`. Then a real `ripieno serve` is
started, and asked by callers, over a connection a request:

capacity  For a fifth of the time every caller asks again as soon as it was answered, as many at once as may wait.
overload  Requests at twice that rate, whether earlier ones are answered or not. A request is answered, refused (503
          with Retry-After), or lost: any other end.
killed    The same load; the service is killed (SIGKILL) in the middle, and started again at the same port. Requests
          that it held end with their connection; from the restart on every one is answered or refused again.
stopped   The same load; SIGTERM. What was accepted is answered; later requests find nobody.

Printed: counts, latency of the answered (from when a request was due), the service's memory over time (resident,
least and most of each half). Ends with an error where an answer was wrong or lost, or where the memory of the overload
is not flat: its least, which is what stays between passes, is higher in the second half by more than `FLAT`. Linux
alone: /proc is read.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import queue
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ripieno import Ensemble
from ripieno.data.question import Question, read_questions
from ripieno.decisions import UNLIKE
from ripieno.runs import RunFolder

# Members' scores are float32 sums in another order for another batch: about 2.6e-6 of a logit's size (see train.py), so
# 5e-5 for logits of 20; a probability moves by a quarter of that at most, and both of a pair may.
BOUND = 1e-4
# What stays between passes wanders, as passes of other lengths leave other pieces of pages: from 1,058 to 1,113 MiB
# over 29 passes of the tutorial's run. A pass takes 140 to 220 MiB more; a tenth of that, kept at each of the five
# passes in half the overload of 60 s, would be seen.
FLAT = 0.05
WAITING = 64  # questions that the service lets wait: what a caller at the end of the queue waits for


@dataclass
class Found:
    """What a load did.

    Args:
        ends: answered, refused, refused without Retry-After, wrong, lost, nobody (no connection, or it was cut).
        latencies: seconds, of the answered.
        memory: the service's, MiB, in each half of the time.
        wrong: what was wrong, in words.
        seconds: from the first request to the last answer.
    """

    ends: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    memory: list[list[float]] = field(default_factory=lambda: [[] for _ in range(2)])
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Service:
    """A real `ripieno serve`.

    Args:
        run: its run.
        max_risk: as there.
        port: 0 at first, then the one that it was given.
    """

    def __init__(self, run: Path, max_risk: float | None):
        self.run, self.max_risk, self.port = run, max_risk, 0

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        risk = [] if self.max_risk is None else ["--max-risk", str(self.max_risk)]
        command = [sys.executable, "-m", "ripieno.cli", "serve", str(self.run), "--port", str(self.port), "--quiet"]
        self.process = subprocess.Popen(
            [*command, "--queue", str(WAITING), *risk], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"at http://127\.0\.0\.1:(\d+);", line):
                self.port = int(found[1])
                break
        else:
            sys.exit(f"FAILED: {' '.join(command)} ended with {self.process.wait()}")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()  # so that it can go on to write
        while self.ask("GET", "/readyz", None)[0] != 200:
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: str | None) -> tuple[int, dict[str, str], bytes]:
        """Ask once, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()
        finally:
            connection.close()

    @property
    def memory(self) -> float:
        """MiB; 0 when it has ended."""
        if self.process.poll() is not None:
            return 0.0
        resident = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE") / 2**20


def row(question: Question) -> dict[str, Any]:
    """Return a question as a request has it."""
    given = {"id": question.id, "question": question.question, "choices": list(question.choices)}
    return given | {key: value for key in ("context", "subject") if (value := getattr(question, key)) is not None}


def apart(answer: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Return how an answer differs from the one that was made offline; None where it does not."""
    for key, value in expected.items():
        got = answer[key]
        if key == "reason":  # a shift is said of a whole file, and of what a service was asked lately
            value, got = (text.removeprefix(f"{UNLIKE}; else: ") for text in (value, got))
        numbers = key in ("probs", "total", "aleatoric", "epistemic") and value is not None
        if numbers and got is not None:
            mine, other = ([value], [got]) if isinstance(value, float) else (value, got)
            if len(mine) == len(other) and max(abs(a - b) for a, b in zip(mine, other, strict=True)) <= BOUND:
                continue
        elif (list(value) if isinstance(value, tuple) else value) == got:
            continue
        return f"question {expected['id']!r}: {key} is {got!r}, and offline {value!r}"
    return None


class Callers:
    """Threads that ask requests when they are due.

    Args:
        service: whom they ask.
        questions: to choose from.
        expected: question id -> its decision.
        each: questions of a request.
        count: how many callers.
    """

    def __init__(
        self, service: Service, questions: Sequence[Question], expected: dict[str, Any], each: int, count: int
    ):
        self.service, self.questions, self.expected, self.each, self.count = service, questions, expected, each, count

    def load(self, seconds: float, rate: float | None) -> Iterator[float]:
        """Ask for some seconds, `rate` requests a second, or as fast as answers come; yield as time passes.

        What was found is in `found` after the last.
        """
        self.found, begin = Found(), time.monotonic()
        due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        lock, ended = threading.Lock(), threading.Event()

        def next_due() -> float | None:
            if rate is not None:
                return due.get()
            return None if ended.is_set() else time.monotonic()

        def call(number: int) -> None:
            draw = random.Random(number)
            while (at := next_due()) is not None:
                batch = draw.sample(self.questions, self.each)
                body = json.dumps({"questions": [row(question) for question in batch]})
                try:
                    end, wrong = self._end(*self.service.ask("POST", "/v1/decide", body), batch)
                except (OSError, http.client.HTTPException):
                    end, wrong = "nobody", None
                    time.sleep(0.02)
                with lock:
                    self.found.ends[end] += 1
                    if end == "answered":
                        self.found.latencies.append(time.monotonic() - at)
                    if wrong:
                        self.found.wrong.append(wrong)
                if rate is None and end == "refused":
                    time.sleep(0.05)

        def clock(rate: float) -> None:
            for number in range(int(seconds * rate)):
                time.sleep(max(0.0, begin + number / rate - time.monotonic()))
                due.put(begin + number / rate)
            for _ in threads:
                due.put(None)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(self.count)]
        for thread in threads:
            thread.start()
        if rate is not None:
            threads.append(threading.Thread(target=clock, args=(rate,)))
            threads[-1].start()
        while (passed := time.monotonic() - begin) < seconds:
            if memory := self.service.memory:
                self.found.memory[int(2 * passed / seconds)].append(memory)
            yield passed  # the caller may take its time
            time.sleep(0.02)
        ended.set()
        for thread in threads:
            thread.join()
        self.found.seconds = time.monotonic() - begin

    def _end(
        self, status: int, headers: dict[str, str], said: bytes, batch: Sequence[Question]
    ) -> tuple[str, str | None]:
        if status == 503:
            return ("refused" if int(headers.get("retry-after", 0)) >= 1 else "refused without Retry-After"), None
        if status != 200:
            return "lost", f"status {status}: {said[:200]!r}"
        answers = json.loads(said)["decisions"]
        if len(answers) != len(batch):
            return "wrong", f"{len(answers)} answers to {len(batch)} questions"
        found = [apart(answer, self.expected[q.id]) for answer, q in zip(answers, batch, strict=True)]
        return next((("wrong", wrong) for wrong in found if wrong), ("answered", None))


def report(name: str, found: Found, each: int) -> None:
    """Print what a load did; end with an error where something was wrong or lost."""
    counts = ", ".join(f"{count:,} {end}" for end, count in found.ends.most_common())
    print(f"{name}: {sum(found.ends.values()):,} requests of {each} questions in {found.seconds:.0f} s: {counts}")
    if found.latencies:
        points = statistics.quantiles(found.latencies, n=100) if len(found.latencies) > 1 else found.latencies * 99
        print(f"{name}: latency p50 {points[49]:.3f} s, p99 {points[98]:.3f} s")
    if all(found.memory):
        halves = ", then ".join(f"{min(sizes):,.0f} to {max(sizes):,.0f}" for sizes in found.memory)
        print(f"{name}: memory {halves} MiB")
    bad = {end: n for end, n in found.ends.items() if end not in ("answered", "refused", "nobody")}
    if bad or found.wrong:
        sys.exit(f"FAILED: {name}: {bad}: {found.wrong[:3]}")


def measure(
    service: Service, questions: Sequence[Question], expected: dict[str, Any], args: argparse.Namespace
) -> None:
    """Start, load, kill, restart and stop a service."""
    service.start()
    callers = Callers(service, questions, expected, args.each, max(1, WAITING // args.each))
    for _ in callers.load(args.seconds / 5, None):
        pass
    report("capacity", callers.found, args.each)
    capacity = callers.found.ends["answered"] / callers.found.seconds
    print(f"capacity: {capacity * args.each:.1f} questions/s")
    callers.count = args.callers
    for _ in callers.load(args.seconds, 2 * capacity):
        pass
    report("overload", callers.found, args.each)
    if callers.found.ends["nobody"]:
        sys.exit(f"FAILED: overload: {callers.found.ends['nobody']} requests found nobody")
    early, late = map(min, callers.found.memory)
    if late > (1 + FLAT) * early:
        sys.exit(f"FAILED: overload: memory of {early:,.0f} MiB in the first half, of {late:,.0f} MiB in the second")
    restarted = None
    for passed in callers.load(args.seconds / 2, 2 * capacity):
        if restarted is None and passed > args.seconds / 8:
            service.process.kill()
            service.process.wait()
            begin = time.monotonic()
            service.start()
            restarted = time.monotonic() - begin
    report("killed", callers.found, args.each)
    print(f"killed: ready again after {restarted:.1f} s")
    for passed in callers.load(args.seconds / 5, 2 * capacity):
        if service.process.poll() is None and passed > args.seconds / 10:
            service.process.send_signal(signal.SIGTERM)
    code = service.process.wait()
    report("stopped", callers.found, args.each)
    print(f"stopped: exit code {code}")


def main() -> None:
    """Read what is asked, answer it offline, and measure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("questions", type=Path)
    arguments.add_argument("--max-risk", type=float)
    arguments.add_argument("--seconds", type=float, default=60.0)
    arguments.add_argument("--each", type=int, default=4)
    arguments.add_argument("--callers", type=int, default=128)
    args = arguments.parse_args()
    questions = read_questions(args.questions, RunFolder(args.run).config().data.labels)
    decided = Ensemble.load(args.run).decide(questions, args.max_risk)
    expected = {decision.id: asdict(decision) for decision in decided}
    service = Service(args.run, args.max_risk)
    try:
        measure(service, questions, expected, args)
    finally:
        service.process.kill()


if __name__ == "__main__":
    main()
