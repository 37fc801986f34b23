"""How long the whole analysis takes, and how much memory: 10,000 questions x 10 members x 5 choices.

In and out of domain, with its base and a calibration set: every row, comparison, course over members and flow, with all
intervals. The limits are 60 s and 1 GiB on one core.

    OMP_NUM_THREADS=1 python benchmarks/analysis.py [--quick] [--questions N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from ripieno.measures import About, Evidence
from ripieno.predictions import Predictions

LIMIT_SECONDS, LIMIT_MIB = 60.0, 1024.0


def answers(dataset: str, seed: int, questions: int, members: int, **fields: object) -> Predictions:
    """Return over-confident members that share an opinion and add their own."""
    rng = np.random.default_rng([seed, questions])
    scores = 2 * rng.normal(size=(questions, 5)) + rng.normal(size=(members, questions, 5))
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return Predictions(
        log_probs=log_probs,
        mask=np.ones((questions, 5), dtype=bool),
        question_ids=tuple(f"{dataset} {n}" for n in range(questions)),
        targets=np.argmax(scores.mean(axis=0) + 2 * rng.normal(size=(questions, 5)), axis=-1),
        members=tuple(range(members)),
        dataset=dataset,
        split="test",
        **fields,  # type: ignore[arg-type]
    )


def evidence(questions: int, members: int, dimensions: int = 64) -> Evidence:
    """Return the evidence of a run whose sets have so many questions each."""
    rng = np.random.default_rng(0)
    sets = {name: answers(name, seed, questions, members, epoch=1) for seed, name in enumerate(("home", "away"))}
    bases = [answers(name, seed, questions, 1, method="base") for seed, name in enumerate(sets)]
    about = {
        p.name: About(
            p.question_ids,
            prompt_tokens=rng.integers(10, 200, size=questions),
            prompt_nll=rng.gamma(4.0, size=questions),
            hidden=rng.normal(size=(questions, dimensions)),
        )
        for p in sets.values()
    }
    return Evidence(
        predictions=[*bases, *sets.values()],
        out_of_domain=["away/test"],
        calibration=[answers("calibration", 2, 500, members, epoch=1)],
        about=about,
        familiar=rng.normal(size=(500, dimensions)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,000 questions and 5 members")
    parser.add_argument("--questions", type=int, default=10_000)
    args = parser.parse_args()
    questions, members = (1000, 5) if args.quick else (args.questions, 10)
    subject = evidence(questions, members)
    start = time.process_time()
    analysis = subject.analyze()
    seconds = time.process_time() - start
    # As the kernel counts it: getrusage's peak includes what the process that started this one held.
    lines = Path("/proc/self/status").read_text().splitlines()
    mebibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    result = {
        "questions": questions,
        "members": members,
        "rows": len(analysis.rows),
        "seconds": round(seconds, 1),
        "mebibytes": round(mebibytes),
    }
    print(json.dumps(result))
    within = seconds < LIMIT_SECONDS and mebibytes < LIMIT_MIB
    print(f"limits: {LIMIT_SECONDS:.0f} s and {LIMIT_MIB:.0f} MiB: {'kept' if within else 'BROKEN'}", file=sys.stderr)
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
