"""An analysis as lines of text, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ripieno.measures.certificate import Certificate, refusal
from ripieno.measures.certify import Plan, at_least, at_most
from ripieno.measures.rotations import RotationSummary
from ripieno.measures.sets import SetGroup, SetRule, fewest_questions
from ripieno.measures.table import Analysis, Comparison, Estimate, Row
from ripieno.report.compare import winner
from ripieno.report.words import counted

FEW = ("accuracy", "nll", "ece")  # what a reader wants first
# What tells data sets apart without asking a member.
TRIVIAL = {
    "prompt_length": "prompt length",
    "perplexity": "base's perplexity",
    "mahalanobis": "base's hidden state",
}


def summary(analysis: Analysis, method: str) -> Iterator[str]:
    """Yield a few numbers a data set: the base, the mean member and the ensemble at its last epoch, and what holds.

    Other methods that answered too are not compared with here: `table` does.
    """
    others = {row.method for row in analysis.rows} - {method, "base"}
    rows = [row for row in analysis.rows if row.pooling == "prob" and row.variant is None and row.against is None]
    last = max((row.epoch for row in rows if row.method == method), default=0)
    # The base is one member, so its row as an ensemble is its own.
    answerers = (
        ("base", ("base", 0, "ensemble")),
        ("mean member", (method, last, "members_mean")),
        ("ensemble", (method, last, "ensemble")),
    )
    for dataset, split in dict.fromkeys((row.dataset, row.split) for row in rows):
        yield _name(dataset, split)
        yield f"  {'':<16}{'accuracy':>9}{'NLL':>8}{'ECE':>8}"
        for name, key in answerers:
            values = {
                row.measure: row.value
                for row in rows
                if (row.dataset, row.split, row.method, row.epoch, row.who) == (dataset, split, *key)
            }
            if not values:
                continue
            cells = ["-" if values.get(measure) is None else f"{values[measure]:.3f}" for measure in FEW]
            yield f"  {name:<16}{cells[0]:>9}{cells[1]:>8}{cells[2]:>8}"
        for c in analysis.comparisons:
            named = (c.dataset, c.split, c.measure, c.first) == (dataset, split, "nll", method)
            if named and c.second not in others:
                yield f"  ensemble's NLL less that of {c.second}: {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"
    yield from _apart(analysis.rows, method, last)


def table(analysis: Analysis) -> Iterator[str]:
    """Yield what a reader wants of an analysis: the ensembles and their mean members at their last epochs.

    Pooled by the mean of probabilities, every variant and what is told apart; then the paired differences. The last
    line says how many rows more there are in the JSON.
    """
    last: dict[tuple[str, str, str], int] = {}
    for row in analysis.rows:
        key = (row.dataset, row.split, row.method)
        last[key] = max(row.epoch, last.get(key, row.epoch))
    several = {row.method for row in analysis.rows if row.pooling == "logit"}
    shown = [
        row
        for row in analysis.rows
        if row.epoch == last[row.dataset, row.split, row.method]
        and row.pooling == "prob"
        and (row.who == "ensemble" or (row.who == "members_mean" and row.method in several))
    ]
    block: object = None
    for row in shown:
        head = (row.dataset, row.split, row.method, row.epoch, row.who, row.variant, row.against)
        if head != block:
            if block is not None:
                yield ""
            yield _heading(row)
            yield f"  {'':<32}{'value':>10}{'n':>8}  95% interval"
            block = head
        if row.value is None:
            yield f"  {row.measure:<32}{'-':>10}{row.n:>8,}  ({row.reason})"
        else:
            interval = "" if row.low is None or row.high is None else f"  [{row.low:.4f}, {row.high:.4f}]"
            yield f"  {row.measure:<32}{row.value:>10.4f}{row.n:>8,}{interval}"
    if analysis.comparisons:
        yield ""
        yield "Paired differences on the same questions (p: corrected for all of a data set, Holm)"
    for c in analysis.comparisons:
        yield (
            f"  {_name(c.dataset, c.split)}  {c.measure}: {c.first} less {c.second} "
            f"{c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}], p = {c.p_holm:.3g}"
        )
    more = len(analysis.rows) - len(shown)
    if more:
        yield ""
        yield f"{more:,} more rows (earlier epochs, single members, pooled by the mean of logits) with --json."


def before_and_after(rows: Sequence[Row], method: str, epoch: int) -> Iterator[str]:
    """Yield the measures that a temperature moves, before and after it, a line a data set and measure."""
    own = [row for row in rows if (row.method, row.epoch, row.who, row.pooling) == (method, epoch, "ensemble", "prob")]
    for dataset, split in dict.fromkeys((row.dataset, row.split) for row in own):
        of_set = [row for row in own if (row.dataset, row.split) == (dataset, split)]
        values = {(row.measure, row.variant): row.value for row in of_set}
        cells = []
        for measure in ("nll", "brier", "ece", "mean_confidence", "mutual_information"):
            before, after = values.get((measure, None)), values.get((measure, "temperature"))
            if before is not None and after is not None:
                cells.append(f"{measure.replace('_', ' ')} {before:.3f} -> {after:.3f}")
        if cells:
            yield f"  {_name(dataset, split)}: {', '.join(cells)}"


def compared(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield the paired differences of two runs, a line a data set and measure."""
    yield f"{comparisons[0].first} less {comparisons[0].second} (p: corrected for all of a data set)"
    for c in comparisons:
        said = f"{better} is better" if (better := winner(c)) else "not told apart"
        yield (
            f"  {_name(c.dataset, c.split)}  {c.measure}: {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], "
            f"p = {c.p_holm:.2g}: {said}"
        )


def _apart(rows: Sequence[Row], method: str, epoch: int) -> Iterator[str]:
    """Yield how well foreign sets are told from the familiar ones, with as many choices in both."""
    wanted = {"entropy": "entropy", "mi": "members' disagreement", "confidence": "confidence", **TRIVIAL}
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        own = (row.method, row.epoch, row.variant) == (method, epoch, "k_matched")
        if own and row.against and row.measure.startswith("ood_auroc_"):
            pair = (_name(row.dataset, row.split), row.against)
            found.setdefault(pair, {})[row.measure.removeprefix("ood_auroc_")] = row
    if found:
        yield "Told from the familiar questions, with as many choices in both (AUROC; 0.5: not at all)"
    for (name, against), of in found.items():
        cells = [f"{wanted[score]} {of[score].value:.2f}" for score in wanted if _known(of, score)]
        reason = next(iter(of.values())).reason  # the entropy's: without it there is nothing
        yield f"  {name} from {against}: {', '.join(cells) or f'not known: {reason}'}"


def _known(of: dict[str, Row], score: str) -> bool:
    return score in of and of[score].value is not None


def _heading(row: Row) -> str:
    who = "ensemble" if row.who == "ensemble" else "mean member"
    parts = [_name(row.dataset, row.split), f"{row.method} epoch {row.epoch}", who]
    if row.variant:
        parts.append(row.variant.replace("_", " "))
    if row.against:
        parts.append(f"against {row.against}")
    return " · ".join(parts)


def _name(dataset: str, split: str) -> str:
    return f"{dataset}/{split}" if split else dataset


def certified(certificate: Certificate) -> Iterator[str]:
    """Yield what was promised, or why it cannot be, and what else can."""
    asked, sure = at_most(certificate.asked_risk), at_least(certificate.confidence)
    when, promise = certificate.rule.when, certificate.promise
    if promise is None:
        yield f"Cannot be promised: at most {asked} wrong among the answered, at {sure} confidence."
        yield f"  Why: {refusal(certificate)}."
    else:
        yield f"Promised: at most {asked} wrong among the answered, at {sure} confidence, for questions like these."
        yield (
            f"  Answer {when(promise.threshold)}: {promise.answered:,} of the {promise.questions:,} "
            f"certification questions ({promise.coverage:.0%}), {promise.errors:,} of them wrong."
        )
    if certificate.listed:
        yield f"A statement of its own, also at {sure}: these risks hold all at once, for a risk not named beforehand:"
        for listed in certificate.listed:
            yield f"  at most {at_most(listed.risk)} wrong: answers {listed.coverage:.0%} ({when(listed.threshold)})"
    else:
        yield "No other risk can be promised from these questions either."
    yield from _sets(certificate.sets)
    if (saving := certificate.saving) is not None:
        yield (
            f"At {saving.error:g} an error and {saving.handover:g} a hand-over: answer {when(saving.threshold)} "
            f"({saving.answered:.0%}). That costs {saving.cost:.3g} a question, {saving.saving:.3g} "
            f"[{saving.low:.3g}, {saving.high:.3g}] less than the better of answering all and none."
        )


def _sets(rule: SetRule) -> Iterator[str]:
    level, fewest = at_least(rule.level), fewest_questions(rule.level)
    if rule.by is None:
        [group] = rule.groups
        if group.threshold == math.inf:
            yield f"Prediction sets: {level} takes {fewest} questions, so every choice is in every set."
            return
        yield (
            f"Prediction sets: {_members(rule, group)} hold the right one for {level} of such questions on average "
            f"({group.questions:,} questions); that is no single question's own rate."
        )
        return
    yield (
        f"Prediction sets: they hold the right choice for {level} of each {rule.by}'s questions on average (a "
        f"{rule.by} of fewer than {fewest} questions, or of none, has every choice in its sets):"
    )
    for group in sorted(rule.groups, key=lambda group: -group.questions):
        which = "every choice" if group.threshold == math.inf else _members(rule, group)
        yield f"  {group.name or '(no subject)'}: {group.questions:,} questions; {which}"


def _members(rule: SetRule, group: SetGroup) -> str:
    if rule.score == "lac":
        return f"choices of at least {1 - group.threshold:.3f}"
    return f"the likeliest choices up to {group.threshold:.3f} in all (the last one of them by lot)"


def planned(plans: Sequence[Plan], risk: float, confidence: float) -> Iterator[str]:
    """Yield what so many labelled questions are likely to give."""
    sure = at_least(confidence)
    yield f"At most {at_most(risk)} wrong among the answered, at {sure} confidence, in simulated draws:"
    yield f"{'certification questions':>24}{'can be promised':>18}{'then answers':>15}{'broken':>9}"
    for plan in plans:
        answers = f"{plan.answered:.0%}" if plan.promised else "-"
        yield f"{plan.labels:>24,}{plan.promised:>18.0%}{answers:>15}{plan.broken:>9.1%}"


def rotated(found: Mapping[str, RotationSummary], epoch: int) -> Iterator[str]:
    """Yield how much the order of the choices moves the answers to each set, beside the members, and a sentence."""
    for name, s in found.items():
        several = s.members > 1
        who = f"{counted(s.members, 'member')} at epoch {epoch}" if epoch else "the base"
        yield f"{name}: {counted(s.questions, 'question')}, each asked under every rotation of its choices, of {who}"
        yield f"  {'uncertainty':<30}{'nats':>8}  95% interval"
        yield _estimated("all of it", s.total)
        yield _estimated("of one member, one rotation", s.expected)
        if several:
            yield _estimated("members", s.of_members)
        yield _estimated("order of the choices", s.of_prompts)
        if s.accuracy.value is None:
            yield f"  accuracy: - ({s.accuracy.reason})"
        else:
            yield "  accuracy"
            yield _estimated("mean over rotations", s.accuracy)
            yield _estimated("one rotation, on average", s.single)
            for which, end in (("lowest", min), ("highest", max)):
                value = end(s.by_rotation)
                at = s.by_rotation.index(value)
                yield _estimated(f"{which}: rotation {at}", Estimate(value, s.accuracy.n))
        yield (
            f"  Reordering the choices accounts for {s.of_prompts.value:.3f} of the {s.total.value:.3f} nats of "
            f"uncertainty{f', the members for {s.of_members.value:.3f}' if several else ''}."
        )
        if several:
            yield f"  (Each grows with how many there are: up to {s.rotations} rotations, {s.members} members.)"


def _estimated(what: str, x: Estimate) -> str:
    interval = "" if x.low is None or x.high is None else f"  [{x.low:.3f}, {x.high:.3f}]"
    return f"    {what:<28}{x.value:>8.3f}{interval}"
