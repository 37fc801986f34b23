"""Question texts for made-up runs: what `synthetic` answers, written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from synthetic import answers

from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.predictions import Predictions

# What a data set may hold, and a page must show as it is.
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)> & &lt;b&gt; \"double\" 'single' `tick` ${7 * 7} {{ 7 * 7 }}",
    "two\nlines\tand a tab\r\nand \\n written out",
    "\u202eright to left\u202c and \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u65e5\u672c\u8a9e \U00020000 \u2028 end",
    "javascript:alert(3) <a href='javascript:alert(4)'>x</a> <!-- comment --> ]]>",
    "constructor __proto__ toString",
)


def asked(p: Predictions, subjects: Sequence[str] = ()) -> list[Question]:
    """Return a question for each prediction; texts name their number, so that a search can tell them apart."""
    return [
        Question(
            id=id_,
            question=HOSTILE[i] if i < len(HOSTILE) else f"What is asked in question number {i} of {p.name}?",
            choices=(*(f"choice {k} of {i}" for k in range(size - 1)), HOSTILE[i % len(HOSTILE)]),
            answer=None if p.targets[i] < 0 else int(p.targets[i]),
            context=f"<b>Passage</b> number {i // 3}.\n\nIts second paragraph." if i % 2 else None,
            subject=subjects[i % len(subjects)] if subjects else None,
        )
        for i, (id_, size) in enumerate(zip(p.question_ids, p.mask.sum(axis=1).tolist(), strict=True))
    ]


def released(folder: Path, name: str, n: int, members: int) -> tuple[Predictions, list[Question]]:
    """Return n questions of a released set, drawn at random, and made-up answers to them."""
    rows = splits.load(name, data_dir=folder).rows
    drawn = np.random.default_rng(0).choice(len(rows), n, replace=False)
    questions = [row for row in (rows[i] for i in drawn) if isinstance(row, Question)]
    sizes = {len(question.choices) for question in questions}
    assert len(sizes) == 1
    p = answers(name, seed=n, n=n, sizes=tuple(sizes), members=members, signal=0.7, scale=1.6)
    targets = np.array([question.answer for question in questions])
    # Choices change places, so that what the made-up answers hold for right is what is right.
    k = np.arange(p.mask.shape[1])
    places = np.where(k == targets[:, None], p.targets[:, None], np.where(k == p.targets[:, None], targets[:, None], k))
    log_probs = np.take_along_axis(p.log_probs, places[None], axis=2)
    ids, subjects = zip(*((question.id, question.subject) for question in questions), strict=True)
    return replace(p, log_probs=log_probs, question_ids=ids, subjects=subjects, targets=targets), questions
