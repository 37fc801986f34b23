"""Rows of a comparison: which differences hold over other seeds and other questions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from compared import CALIBRATION, LAPLACE, MEMBERS, OUTSIDE, TEST, features, folder, row
from ripieno import measures
from ripieno.comparison import predictions_file, read
from ripieno.errors import UserError
from ripieno.measures import methods
from ripieno.measures.bootstrap import draw, resampled_means
from ripieno.measures.estimates import NO_PAIR, TURNS_NEGATIVE
from ripieno.measures.methods import MethodsTable, standard_error
from ripieno.measures.ood import NO_REFERENCE, Detector
from ripieno.measures.replicates import t_p_value, t_quantile
from ripieno.parquet import read_parquet, to_parquet


def tabulated(path: Path, **options: Any) -> MethodsTable:
    return methods.tabulate(read(path), resamples=200, **options)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> MethodsTable:
    """A single adapter, the same once more, an ensemble of it, one that is clearly worse, and one that was refused."""
    rows = [
        row("single"),
        row("again"),
        row("ensemble of 3", answers=3, training_tokens=3000),
        row("three, logits", answers=3, pooling="logit"),
        row("worse", noise=3.0),
        row("swag", refused="too few checkpoints"),
    ]
    return tabulated(folder(tmp_path_factory.mktemp("compared"), rows))


@pytest.mark.parametrize(
    ("of_seeds", "of_questions", "of_both"), [(0.13, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.1, 0.3, 2.0)]
)
def test_intervals_cover_the_mean_over_seeds_and_questions(
    of_seeds: float, of_questions: float, of_both: float
) -> None:
    """5 replicates, 60 questions, with any of the components of variance the largest."""
    R, N, trials, rng, covered = 5, 60, 600, np.random.default_rng(0), 0
    for trial in range(trials):
        losses = (
            of_seeds * rng.normal(size=(R, 1)) + of_questions * rng.normal(size=N) + of_both * rng.normal(size=(R, N))
        )
        draws = resampled_means(losses, draw(N, resamples=200, seed=trial)).mean(axis=1)
        error, freedom = standard_error(losses.mean(axis=1), draws, N)
        covered += abs(losses.mean()) <= t_quantile(freedom) * error
    # 200 resamples know a variance to 10%: 0.1 (1.96 phi(1.96)) (1 + 1.96^2) / 8 x .1 less, below 0.1%; 4 errors.
    least = 0.95 - 0.001
    assert covered / trials >= least - 4 * math.sqrt(least * (1 - least) / trials)


def test_the_error_is_that_of_both_directions() -> None:
    values, draws = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([2.0, 4.0])  # s^2 / 5 = .5, variance 1 of two draws
    error, freedom = standard_error(values, draws, 11)
    assert error == pytest.approx(math.sqrt(0.5 + 1.1))
    assert freedom == math.floor(1.6**2 / (0.5**2 / 4 + 1.1**2 / 10))
    assert standard_error(values[:1], draws, 11) == (pytest.approx(math.sqrt(1.1)), 10)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 31, 1000])
def test_p_values_are_those_of_students_t(freedom: int) -> None:
    for t in (0.0, 0.3, -1.0, 2.776, 12.0):
        assert t_p_value(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-14)


def test_the_truly_best_row_keeps_its_mark() -> None:
    """Eight rows of one true value, five replicates: any one of them loses its mark in 1 of 20 tables at most."""
    R, N, rows, trials, rng, lost = 5, 40, 8, 400, np.random.default_rng(1), 0
    for trial in range(trials):
        hardness, counts = rng.normal(size=N), draw(N, resamples=100, seed=trial)
        column = {}
        for i in range(rows):
            losses = hardness + 0.2 * rng.normal(size=(R, 1)) + 0.3 * rng.normal(size=N) + rng.normal(size=(R, N))
            column[str(i)] = methods._Measured(N, losses.mean(axis=1), resampled_means(losses, counts).mean(axis=1))
        cells = methods._compared((TEST, "nll", None), column, "0")
        lost += not cells[0].not_worse
    assert lost / trials <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)


def test_values_are_means_over_replicates(table: MethodsTable, tmp_path: Path) -> None:
    path = folder(tmp_path, [row("single"), row("ensemble of 3", answers=3)])
    parts = read_parquet(predictions_file(path, "ensemble-of-3", TEST))
    assert [p.replicate for p in parts] == [0, 1, 2, 3, 4]
    values = [float(measures.nll(measures.pool_log(p.log_probs), p.targets).mean()) for p in parts]
    found = table.column("nll", None)["ensemble of 3"]
    # The other file holds the same numbers as float32; they are read into the same float64.
    assert found.value == pytest.approx(np.mean(values), rel=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_disagreement_is_measured_among_as_many_answers_as_an_ensemble_has(tmp_path: Path) -> None:
    """Of more answers in groups of so many, the last incomplete one left out; of fewer as they are."""
    rows = [row("single"), row("nine", answers=2 * MEMBERS + 1), row("two", answers=2)]
    path = folder(tmp_path, rows)
    found = tabulated(path).column("mutual_information", None)
    for slug, groups in {"nine": [slice(0, MEMBERS), slice(MEMBERS, 2 * MEMBERS)], "two": [slice(0, 2)]}.items():
        parts = read_parquet(predictions_file(path, slug, TEST))
        of_groups = [measures.decompose(p.probs[group]).epistemic.mean() for p in parts for group in groups]
        assert found[slug].value == pytest.approx(np.mean(of_groups), rel=1e-12)


def test_the_same_answers_never_differ(table: MethodsTable) -> None:
    compared = 0
    for cell in table.cells:
        if cell.row == "again" and cell.to_reference is not None:
            compared += 1
            d = cell.to_reference
            assert (d.value, d.low, d.high, d.p_holm) == (0.0, 0.0, 0.0, 1.0)
    # accuracy, nll, brier and errors by entropy, in and out of domain, told apart by entropy: each in two variants
    assert compared == 2 * (4 + 4 + 1)


def test_a_clearly_worse_row_loses_its_mark(table: MethodsTable) -> None:
    column = table.column("nll", None)
    best = [cell for cell in column.values() if cell.best]
    assert [cell.row for cell in best] == ["ensemble of 3"]
    worse = column["worse"]
    assert worse.to_best is not None
    assert worse.to_best.low > 0.0
    assert worse.to_best.p_holm < 0.05
    assert worse.not_worse is False
    assert best[0].not_worse is True
    assert best[0].to_best is None


def test_p_values_are_corrected_over_the_rows_of_a_column(table: MethodsTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holm of the four other rows' own p-values, got back by a correction that does nothing."""
    x = {name: np.random.default_rng(i).normal(0.2 * i, 0.1, size=5) for i, name in enumerate("abcde")}
    column = {name: methods._Measured(50, v, v.mean() + np.linspace(-0.05, 0.05, 20)) for name, v in x.items()}
    cells = methods._compared((TEST, "nll", None), column, "a")
    monkeypatch.setattr(methods, "holm", lambda p: p)
    alone = methods._compared((TEST, "nll", None), column, "a")
    raw = np.array([cell.to_reference.p_holm for cell in alone if cell.to_reference])
    assert [c.to_reference.p_holm for c in cells if c.to_reference] == pytest.approx(measures.holm(raw).tolist())
    assert len(raw) == 4
    assert raw.tolist() != measures.holm(raw).tolist()


def test_one_answer_has_no_disagreement(table: MethodsTable) -> None:
    for measure in ("mutual_information", "error_auroc_mi"):
        column = table.column(measure, None)
        assert (column["single"].value, column["single"].reason) == (None, NO_PAIR)
        assert column["three, logits"].reason == TURNS_NEGATIVE
        assert column["ensemble of 3"].value is not None
    assert table.column("ood_auroc_mi", None, OUTSIDE)["single"].reason == NO_PAIR


def test_what_has_no_honest_interval_has_none(table: MethodsTable) -> None:
    for measure in ("ece", "ece_null_mean"):
        for cell in table.column(measure, None).values():
            assert cell.value is not None
            assert (cell.low, cell.best, cell.not_worse, cell.to_reference) == (None, None, None, None)


def test_temperatures_are_the_rows_own(tmp_path: Path) -> None:
    rows = [
        row("single", scale=2.0),
        row("pooled", answers=3, scale=2.0),
        row("each", answers=3, scale=2.0, tuned="member"),
        row("logits", answers=3, scale=2.0, pooling="logit"),
    ]
    path = folder(tmp_path, rows)
    table = tabulated(path)
    fitted = {name: cell.value for name, cell in table.column("temperature", "temperature", "home/train").items()}
    for slug, name in (("pooled", "pooled"), ("each", "each"), ("logits", "logits")):
        parts = read_parquet(predictions_file(path, slug, "home/train"))
        expected = {
            "pooled": lambda p: measures.fit_temperature(p.log_probs, p.mask, p.targets),
            "each": lambda p: np.mean([measures.fit_temperature(x[None], p.mask, p.targets) for x in p.log_probs]),
            "logits": lambda p: measures.fit_temperature(measures.pool_logits(p.log_probs)[None], p.mask, p.targets),
        }[name]
        assert fitted[name] == pytest.approx(np.mean([expected(p) for p in parts]), rel=1e-12)
    # Answers twice too sure are mended, and temperatures change no single adapter's answer.
    assert table.column("nll", "temperature")["single"].value < table.column("nll", None)["single"].value
    scaled, plain = (table.column("accuracy", v)["single"].value for v in ("temperature", None))
    assert scaled == plain


def test_sets_of_other_numbers_of_choices_are_told_apart_by_as_many(tmp_path: Path) -> None:
    """Five choices at home and three abroad; an adapter that knows as little of both cannot tell them apart."""
    path = folder(tmp_path, [row("single", signal=0.0), row("two", answers=2, signal=0.0)], choices=(5, 3), n=400)
    cell = tabulated(path).column("ood_auroc_entropy", None, OUTSIDE)["single"]
    assert cell.n == 800
    assert cell.low is not None
    assert cell.high is not None
    assert cell.low < 0.5 < cell.high
    # A template that lists the choices cannot drop them afterwards.
    for file in path.glob("predictions/*/*.parquet"):
        parts = read_parquet(file)
        for p in parts:
            p.metadata["template"] = {"name": "letters"}
        file.write_bytes(to_parquet(*parts))
    cell = tabulated(path).column("ood_auroc_entropy", None, OUTSIDE)["single"]
    assert (cell.value, cell.reason) == (None, "the choices stand in the prompt")


def test_several_test_sets_are_pooled_and_shown_each(tmp_path: Path) -> None:
    path = folder(tmp_path, [row("single"), row("laplace", **LAPLACE)], test=(TEST, "other/test"))
    table = tabulated(path)
    pooled = table.column("accuracy", None)["single"]
    own = [table.column("accuracy", None, name)["single"] for name in (TEST, "other/test")]
    assert pooled.n == sum(cell.n for cell in own)
    assert pooled.value == pytest.approx(sum(cell.n * cell.value for cell in own) / pooled.n)


def test_costs_are_multiples_of_the_references(table: MethodsTable) -> None:
    assert table.ratios["ensemble of 3"] == methods.Ratios(3.0, 1.0, 1.0)
    assert not table.descriptive


def test_few_replicates_are_descriptive(tmp_path: Path) -> None:
    for R in (1, 4):
        table = tabulated(folder(tmp_path / str(R), [row("single"), row("worse", noise=3.0)], replicates=R))
        assert table.descriptive
        assert table.column("nll", None)["worse"].low is not None


def test_without_calibration_there_is_no_temperature(tmp_path: Path) -> None:
    table = tabulated(folder(tmp_path, [row("single")], calibration=()))
    assert table.column("nll", "temperature")["single"].reason == methods.NO_CALIBRATION


def test_foreign_questions_are_told_apart_without_any_answer(tmp_path: Path) -> None:
    """By counting pairs: a foreign question before a familiar one, ties by half; nothing of it was trained."""
    other = "other/test"
    path = folder(tmp_path, [row("single"), row("worse", noise=3.0)], test=(TEST, other), train=(CALIBRATION,))
    assert tabulated(path).trivial == {}
    known = {name: features(path, name, 120, shift) for name, shift in {TEST: 0.0, other: 0.0, OUTSIDE: 0.4}.items()}
    found = tabulated(path).trivial
    assert found[OUTSIDE, "mahalanobis"].reason == NO_REFERENCE
    detector = Detector.fit(features(path, CALIBRATION, 50, 0.0).hidden)
    found = tabulated(path).trivial
    scores = {
        "prompt_length": lambda of: of.prompt_tokens,
        "perplexity": lambda of: of.prompt_nll,
        "mahalanobis": lambda of: detector.distance(of.hidden),
    }
    assert list(found) == [(OUTSIDE, baseline) for baseline in scores]
    for baseline, score in scores.items():
        inside, outside = np.concatenate([score(known[TEST]), score(known[other])]), score(known[OUTSIDE])
        pairs = np.sign(outside[:, None] - inside[None, :])
        estimate = found[OUTSIDE, baseline]
        assert estimate.value == pytest.approx((pairs.mean() + 1) / 2)
        assert estimate.n == 360
        # Half the width is 1.96 roots of the Mann-Whitney variance (DeLong et al. 1988); 200 resamples know it to 5%.
        error = math.sqrt(pairs.mean(0).var(ddof=1) / 240 / 4 + pairs.mean(1).var(ddof=1) / 120 / 4)
        assert estimate.low is not None
        assert estimate.high is not None
        assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * error, rel=4 * 0.05)


def test_the_interval_of_what_nearly_always_tells_apart_ends_at_1(tmp_path: Path) -> None:
    path = folder(tmp_path, [row("single")], n=20, train=(CALIBRATION,))
    for name, shift in {CALIBRATION: 0.0, TEST: 0.0, OUTSIDE: 1.9}.items():
        features(path, name, 20, shift)
    found = tabulated(path).trivial[OUTSIDE, "mahalanobis"]
    assert found.value is not None
    assert found.low is not None
    assert found.value + (found.value - found.low) > 1.0 == found.high


def test_a_set_whose_prompts_the_base_did_not_read_says_so(tmp_path: Path) -> None:
    path = folder(tmp_path, [row("single")], train=(CALIBRATION,))
    for name, n in ((CALIBRATION, 50), (TEST, 120), (OUTSIDE, 119)):
        features(path, name, n, 0.0)
    [reason] = {estimate.reason for estimate in tabulated(path).trivial.values()}
    assert reason == "what the base makes of the questions was not stored"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "rows: Tuple should have at least 1 item"),
        ({"reference": "nobody"}, "which is no row's name"),
        ({"replicates": 6}, r"has the replicates \[0, 1, 2, 3, 4\], but rows.json says 0 to 5"),
        ({"test": ["home/other"]}, "no predictions of home/other; there are those of away/test, home/test, home/train"),
        ({"schema": 2}, r"written by a newer version of ripieno \(schema 2; this one reads 1\)"),
    ],
)
def test_a_folder_that_does_not_go_together_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = folder(tmp_path, [row("single")])
    content = json.loads((path / "rows.json").read_text())
    (path / "rows.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=message):
        read(path)


def test_rows_are_paired_by_question(tmp_path: Path) -> None:
    path = folder(tmp_path, [row("single"), row("again")])
    file = predictions_file(path, "again", TEST)
    turned = [p.select(np.arange(len(p.question_ids))[::-1]) for p in read_parquet(file)]
    file.write_bytes(to_parquet(*turned))
    cell = tabulated(path).column("brier", None)["again"]
    assert cell.to_reference is not None
    assert cell.to_reference.p_holm == 1.0
    file.write_bytes(to_parquet(*(p.select(np.arange(3)) for p in turned)))
    with pytest.raises(UserError, match="not the questions of home/test that the others answered"):
        read(path)
