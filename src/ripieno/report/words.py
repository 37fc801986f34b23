"""Numbers as a page says them: with their intervals, and never more exact than these allow."""

from __future__ import annotations

from ripieno.report.results import Interval


def percent(value: float) -> str:
    """Return 0.452 as "45%"."""
    return f"{value:.0%}"


def spoken(x: Interval, form: str = ".0%") -> str:
    """Return "45% (39% to 51%)"; `form` is the numbers' format (".0%": 45%, ".1%": 45.2%, ".2f": 0.45)."""

    def text(value: float) -> str:
        written = f"{value:{form}}"
        return written.replace("-", "−" if any(digit in written for digit in "123456789") else "")

    return text(x.value) if x.low is None or x.high is None else f"{text(x.value)} ({text(x.low)} to {text(x.high)})"


def counted(n: int, noun: str) -> str:
    """Return "1 member", "2 members"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ordinal(n: int) -> str:
    """Return "1st", "2nd", "3rd", "4th", "11th", "21st"."""
    return f"{n}{'th' if n % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def points(x: Interval) -> str:
    """Return "7 points (2 to 12)": a difference of two percentages."""
    low, high = (0.0 if end is None else 100 * end for end in (x.low, x.high))
    places = 0 if min(abs(low), abs(high)) >= 1 else 1  # an interval that excludes 0 must not read "0 to 12"
    return f"{100 * x.value:.{places}f} points ({low:.{places}f} to {high:.{places}f})".replace("-", "−")


def turned(x: Interval) -> Interval:
    """Return the difference the other way round, so that "better by" has a positive number."""
    return Interval(-x.value, None if x.high is None else -x.high, None if x.low is None else -x.low)


def pairs(x: Interval) -> str:
    """Return an AUROC as "61% (55% to 67%)": of pairs, which are named once where it is first said."""
    places = ".0%" if x.low is None or x.high is None or min(abs(x.low - 0.5), abs(x.high - 0.5)) >= 0.005 else ".1%"
    return spoken(x, places)


def listed(items: list[str], last: str = "and") -> str:
    """Return "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def probability(p: float) -> str:
    """Return a p-value as "p = 0.03", or "p < 0.001" below that."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
