"""The page of one reading: the text as written, every token coloured by how (un)sure the ensemble was of it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ripieno.report.templates import environment
from ripieno.report.words import counted
from ripieno.tokens import Summary, Tokens, summarise

# Where one shade ends and the next begins; fixed, so that two pages can be compared by eye.
PROBABILITY = (0.001, 0.01, 0.05, 0.2, 0.5)
ENTROPY = (0.5, 1.0, 2.0, 3.0, 4.5)
MUTUAL_INFORMATION = (0.003, 0.01, 0.03, 0.1, 0.3)
SHADES = 6

# Control characters have no shape of their own, and NUL is none of HTML's; line breaks and tabs stay what they are.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {127: 0x2421}


@dataclass(frozen=True)
class Cell:
    """What is coloured as one: a token, or the several tokens of one character.

    Args:
        text: its characters.
        shades: css classes: its shade by each measure, and whether it holds a line break.
        numbers: of the panel, separated by spaces: probability, entropy, expected entropy, mutual information, tokens,
            then each member's probability; "" where nothing was predicted.
    """

    text: str
    shades: str
    numbers: str


@dataclass(frozen=True)
class Passage:
    """One text of the page: its id, its mean numbers in words, its cells."""

    id: str
    words: str
    cells: tuple[Cell, ...]


def build(tokens: Tokens, *, run: str, file: str, facts: Mapping[str, str]) -> str:
    """Return the page as one HTML file.

    Args:
        tokens: of one or several texts.
        run: the run's name.
        file: the name of the file that was read.
        facts: label -> value, of what was read and how.

    Raises:
        ValueError: no token is predicted.
    """
    summary = summarise(tokens)
    template = environment().get_template("heatmap.html")
    return template.render(
        run=run,
        file=file,
        who=reader(tokens),
        words=words(summary),
        passages=_passages(tokens),
        members=[f"member {member}" for member in tokens.members] if tokens.epoch else ["the base"],
        legends=_legends(),
        facts=facts,
    )


def reader(tokens: Tokens) -> str:
    """Say who read."""
    M = len(tokens.members)
    if not tokens.epoch:
        return "the base, before any training"
    return (
        f"the ensemble's {M} members after epoch {tokens.epoch}" if M > 1 else f"one member after epoch {tokens.epoch}"
    )


def words(summary: Summary) -> list[str]:
    """Say what the numbers mean."""
    s = summary
    said = [
        f"{s.tokens:,} {'token was' if s.tokens == 1 else 'tokens were'} predicted, each from the text before it; the "
        f"likeliest token was the right one in {s.accuracy:.0%} of them.",
        f"Mean negative log-likelihood: {s.nll:.3f} nats a token, a perplexity of {_short(s.perplexity)}: as if each "
        f"token had been one of {_short(s.perplexity)} equally likely ones.",
    ]
    if s.members == 1:
        said.append(f"Entropy: {s.entropy:.3f} nats a token. There is one member alone, which cannot disagree.")
        return said
    share = s.mutual_information / s.entropy if s.entropy > 0 else 0.0
    said.append(
        f"Entropy: {s.entropy:.3f} nats a token; {_small(s.mutual_information)} nats of them ({share:.1%}) are the "
        f"{s.members} members disagreeing (mutual information), the rest is what each member finds open itself."
    )
    return said


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _small(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.1g}"


def _passages(tokens: Tokens) -> list[Passage]:
    passages = []
    for text_id, rows in tokens.texts().items():
        said = "nothing stands before its only token, so nothing was predicted"
        if tokens.predicted[rows].any():
            s = summarise(tokens, rows)
            said = f"{counted(s.tokens, 'token')}, NLL {s.nll:.3f}, entropy {s.entropy:.3f}"
            said += f", of it members disagreeing {_small(s.mutual_information)}" if s.members > 1 else ""
        passages.append(Passage(text_id, said, tuple(_cells(tokens, rows))))
    return passages


def _cells(tokens: Tokens, rows: slice) -> Iterator[Cell]:
    """Yield a text's cells; tokens without characters of their own stand with the token that completes them.

    By the chain rule the probability of several tokens is their product, and their entropies, along the text as it is
    written, add up.
    """
    begin = rows.start
    for row in range(rows.start, rows.stop):
        if not tokens.tokens[row] and row + 1 < rows.stop:
            continue
        yield _cell(tokens, slice(begin, row + 1))
        begin = row + 1


def _cell(tokens: Tokens, rows: slice) -> Cell:
    text = "".join(tokens.tokens[rows])
    # What a browser shows as a line break of its own: "\r\n" is one.
    breaks = " n" if "\n" in text or "\r" in text else ""
    shown = text.translate(_VISIBLE)
    if not tokens.predicted[rows].all():
        return Cell(shown, f"none{breaks}", "")
    p = float(np.exp(tokens.log_probs[rows].sum()))
    sums = [array[rows].sum() for array in (tokens.entropy, tokens.expected_entropy, tokens.mutual_information)]
    of_members = np.exp(tokens.member_log_probs[:, rows].sum(axis=1))
    shades = (
        f"p{SHADES - 1 - bisect_right(PROBABILITY, p)}",
        f"e{bisect_left(ENTROPY, sums[0])}",
        f"m{bisect_left(MUTUAL_INFORMATION, sums[2])}",
    )
    numbers = [f"{x:.4g}" for x in (p, *sums)] + [f"{rows.stop - rows.start}"] + [f"{x:.4g}" for x in of_members]
    return Cell(shown, " ".join(shades) + breaks, " ".join(numbers))


def _legends() -> list[dict[str, object]]:
    """Return the three measures: their letter, name, what they say, and the label of each shade."""
    falling = PROBABILITY[::-1]
    probability = [
        f"≥ {falling[0]:.0%}",
        *(f"{_percent(low)}–{_percent(high)}" for high, low in pairwise(falling)),
        f"< {_percent(falling[-1])}",
    ]
    return [
        {
            "letter": "p",
            "name": "probability",
            "says": "The ensemble's probability of the token as written: the mean of its members'. Strong: a surprise.",
            "labels": probability,
        },
        {
            "letter": "e",
            "name": "entropy",
            "says": "How open the next token was, in nats over the whole vocabulary. Strong: wide open.",
            "labels": _rising(ENTROPY),
        },
        {
            "letter": "m",
            "name": "disagreement",
            "says": "Mutual information, in nats: the part of the entropy that is the members predicting differently.",
            "labels": _rising(MUTUAL_INFORMATION),
        },
    ]


def _percent(value: float) -> str:
    return f"{100 * value:g}%"


def _rising(thresholds: tuple[float, ...]) -> list[str]:
    between = [f"{low:g}–{high:g}" for low, high in pairwise(thresholds)]
    return [f"≤ {thresholds[0]:g}", *between, f"> {thresholds[-1]:g}"]
