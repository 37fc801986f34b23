"""What the report says of a promise, and of how it went on questions that it was not made from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.stats import binom
from synthetic import answers, summary

from ripieno.measures.analysis import analyze
from ripieno.measures.certificate import Certificate, make
from ripieno.measures.table import Analysis
from ripieno.report import promise
from ripieno.report.build import build
from ripieno.report.promise import CertifiedRun
from ripieno.report.results import EvaluatedSet

HOME = EvaluatedSet("home/test", False, 400, (5,), 1.609, 0.2, None, "home")
AWAY = EvaluatedSet("away/test", True, 400, (5,), 1.609, 0.2, None, "away")
FAMILIAR = answers("home/test", seed=3, n=400, signal=2.5)
# Right as rarely as a guess and as sure as before: what no certificate of other questions speaks of.
FOREIGN = answers("away/test", seed=4, n=400, signal=0.01, scale=300)


CHOICES = {s.name: {f"q{n}": ("a", "b", "c", "d", "e") for n in range(400)} for s in (HOME, AWAY)}


def run_of(certificate: Certificate) -> CertifiedRun:
    return CertifiedRun(certificate, CHOICES)


def certified(risk: float = 0.1, **changes: object) -> Certificate:
    parts = [answers(f"home/{seed}", seed=seed, n=400, signal=2.5) for seed in range(3)]
    return replace(make(*parts, risk=risk, confidence=0.95), **changes)  # type: ignore[arg-type]


def test_a_promise_and_what_came_of_it() -> None:
    certificate = certified()
    kept = certificate.promise
    assert kept is not None
    told = promise.tell(run_of(certificate), [HOME, AWAY], [FAMILIAR, FOREIGN])
    assert (
        told.verdict == "At most 10% wrong among the answered, at 95% confidence, on questions like the certified ones."
    )
    assert f"{kept.coverage:.0%} of the 400 certification questions, {kept.errors} of these wrong." in told.points[0]
    # Counted by hand: how often the threshold lets through, and how many of these are wrong.
    for p, point in ((FAMILIAR, told.points[2]), (FOREIGN, told.points[3])):
        through = certificate.rule.uncertainties(p) <= kept.threshold
        pooled = certificate.rule.probs(p).mean(axis=0)
        wrong = int((pooled.argmax(axis=1) != p.targets)[through].sum())
        assert f"{wrong} of {through.sum()} wrong (answers {through.mean():.0%}; " in point
    assert "by chance)" in told.points[2]
    assert told.points[3].endswith("; nothing was promised here).")


def test_what_cannot_be_promised_is_said() -> None:
    certificate = certified(risk=0.0005)
    assert certificate.promise is None
    told = promise.tell(run_of(certificate), [HOME], [FAMILIAR])
    assert told.verdict == "That at most 0.05% of the answered are wrong cannot be promised."
    assert told.points[0].startswith("Why: even without an error that takes")
    assert told.points[1].startswith("What holds at 95% confidence, all at once: at most ")
    alone = promise.tell(run_of(replace(certificate, listed=())), [HOME], [FAMILIAR])
    assert len(alone.points) == 1


def test_sets_hold_the_right_choice_as_often_as_they_say() -> None:
    section = promise.section(run_of(certified()), [HOME, AWAY], [FAMILIAR, FOREIGN])
    home, away = section.coverage
    held = int(home.split(" of ")[0].rsplit(" ", 1)[1])
    assert held >= int(home.split("in 95 of 100 draws ")[1].split(" ")[0])
    assert "promised: 95%;" in home
    assert "; nothing was promised here)." in away
    assert "draws" not in away


def test_more_errors_than_chance_explains_are_named() -> None:
    certificate = certified()
    assert certificate.promise is not None
    # In domain, at a threshold that lets everything through where 1% was promised.
    loose = replace(certificate.promise, risk=0.01, threshold=math.inf)
    told = promise.tell(run_of(replace(certificate, promise=loose)), [HOME], [FAMILIAR])
    assert told.points[2].endswith(f"; more than the {binom.ppf(0.95, 400, 0.01):.0f} by chance).")


def test_a_set_that_the_promise_was_made_from_shows_nothing() -> None:
    known = CertifiedRun(certified(), {"away/test": CHOICES["away/test"]})
    assert promise.section(known, [HOME, AWAY], [FAMILIAR, FOREIGN]).sets == (AWAY,)
    assert len(promise.tell(known, [HOME, AWAY], [FAMILIAR, FOREIGN]).points) == 3


def test_without_answers_nothing_is_judged() -> None:
    blind = answers("home/test", seed=3, n=50, labelled=False)
    section = promise.section(run_of(certified()), [HOME], [blind])
    assert section.coverage == ()
    assert {line.sets for line in section.lines} == {(None,)}


def test_nothing_answered_and_everything_answered() -> None:
    certificate = certified()
    assert certificate.promise is not None
    none = replace(certificate, promise=replace(certificate.promise, threshold=-1.0))
    line = promise.section(run_of(none), [HOME], [FAMILIAR]).lines[0]
    assert line.sets[0] is not None
    assert (line.sets[0].said, line.sets[0].note) == ("none answered", "")
    every = replace(certificate, promise=replace(certificate.promise, threshold=math.inf))
    line = promise.section(run_of(every), [HOME], [FAMILIAR]).lines[0]
    assert line.when == "always"
    assert line.sets[0] is not None
    assert line.sets[0].answered == 400


def test_the_page_has_it() -> None:
    certificate = certified()
    predictions = [FAMILIAR, FOREIGN]
    analysis = Analysis(analyze(predictions, resamples=20))
    html = build(summary(("home/test",), ("away/test",)), predictions, analysis, certified=run_of(certificate))
    assert "<h2>What is promised?</h2>" in html
    assert html.count('<th scope="row">at most ') == 1 + len(certificate.listed)
    assert "asked for</small>" in html
    without = build(summary(("home/test",), ("away/test",)), predictions, analysis)
    assert "promised" not in without.lower()
    assert np.isfinite([p.threshold for p in certificate.listed]).any()
