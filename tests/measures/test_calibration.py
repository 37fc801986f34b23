import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import EPS, random_predictions, rounding

from ripieno import measures
from ripieno.measures.accuracy import brier
from ripieno.measures.brier_parts import BrierParts, brier_decomposition
from ripieno.measures.calibration import adaptive_ece, ece, ece_null, reliability, smooth_ece
from ripieno.measures.debiased import debiased_ce, debiased_ce_interval

BINNED = (ece, adaptive_ece, debiased_ce)
ERRORS = (*BINNED, smooth_ece)


def drawn(rng: np.random.Generator, confidence: np.ndarray) -> np.ndarray:
    """Return whether each answer is right, when it is with this probability."""
    return (rng.random(confidence.shape) < confidence).astype(np.float64)


@st.composite
def judged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Any confidences (0, 1 and ties among them) and whether each was right."""
    level = st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    confidence = draw(st.lists(level, min_size=1, max_size=40))
    N = len(confidence)
    right = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=N, max_size=N))
    return np.array(confidence), np.array(right)


def test_ece_by_hand():
    # Five bins (0, .2], (.2, .4] ...: an edge belongs to the bin below it, 0 to the first, 1 to the last.
    confidence = np.array([0.0, 0.2, 0.21, 0.6, 1.0, 1.0])
    right = np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    table = measures.reliability(confidence, right, bins=5)
    assert table.count.tolist() == [2, 1, 1, 0, 2]
    assert table.accuracy.tolist() == [0.5, 0.0, 1.0, 0.0, 0.5]
    assert table.confidence == pytest.approx([0.1, 0.21, 0.6, 0.0, 1.0], abs=EPS)
    assert table.edges == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=0.0)
    assert measures.ece(confidence, right, bins=5) == pytest.approx((0.8 + 0.21 + 0.4 + 1.0) / 6, abs=rounding(6, 1.0))


@pytest.mark.parametrize("bins", [1, 10, 15, 100])
def test_every_edge_belongs_to_the_bin_below(bins):
    edges = np.array([i / bins for i in range(1, bins + 1)])
    assert measures.reliability(edges, np.ones(bins), bins=bins).count.tolist() == [1] * bins
    above = np.nextafter(edges[:-1], 2.0)
    assert measures.reliability(above, np.ones(bins - 1), bins=bins).count.tolist() == [0] + [1] * (bins - 1)


def test_ece_of_the_certain():
    assert measures.ece(np.ones(4), np.ones(4)) == 0.0
    assert measures.ece(np.ones(4), np.zeros(4)) == 1.0
    assert measures.ece_null(np.ones(4)) == (0.0, 0.0)
    for of in (measures.ece_null, lambda c: measures.ece(c, c)):
        with pytest.raises(ValueError, match="no question"):
            of(np.array([]))


def test_ece_null_of_one_question_is_known():
    # Right with probability c: the error is 1 - c then, and c otherwise; mean 2 c (1 - c), spread known.
    c, draws = 0.8, 4000
    mean, q95 = measures.ece_null(np.array([c]), draws=draws)
    spread = (c - (1 - c)) * math.sqrt(c * (1 - c))
    assert mean == pytest.approx(2 * c * (1 - c), abs=4 * spread / math.sqrt(draws))
    assert q95 == pytest.approx(c, abs=EPS)


def test_ece_null_holds_what_a_calibrated_model_shows():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1.0, size=314)
    mean, q95 = measures.ece_null(confidence, draws=500)
    assert (mean, q95) == measures.ece_null(confidence, draws=500)
    trials = 400
    shown = [measures.ece(confidence, (rng.random(314) < confidence).astype(float)) for _ in range(trials)]
    assert mean == pytest.approx(np.mean(shown), abs=4 * np.std(shown) * math.sqrt(1 / trials + 1 / 500))
    spread = math.sqrt(0.05 * 0.95 * (1 / trials + 1 / 500))
    assert np.mean(np.array(shown) <= q95) == pytest.approx(0.95, abs=4 * spread)


def test_ece_null_of_two_questions():
    # Each in a bin of its own, off by .2 (with probability .8) or .8; .19 or .81.
    mean, q95 = ece_null(np.array([0.2, 0.81]), bins=2, draws=4000)
    spread = math.sqrt(2 * 0.6**2 * 0.8 * 0.2) / 2
    assert mean == pytest.approx((0.32 + 2 * 0.81 * 0.19) / 2, abs=4 * spread / math.sqrt(4000))
    assert 0.5 <= q95 <= 0.81
    # In one bin, one of each kind nearly cancels.
    assert ece_null(np.array([0.8, 0.81]), bins=2, draws=4000)[0] < mean


def test_adaptive_ece_by_hand():
    # Five questions in two bins: the first holds one more. Gaps: right 1 - (.1 + .2 + .3); 2 - (.8 + .9).
    confidence, right = np.array([0.9, 0.1, 0.3, 0.2, 0.8]), np.array([1.0, 0.0, 1.0, 0.0, 1.0])
    assert adaptive_ece(confidence, right, bins=2) == pytest.approx((0.4 + 0.3) / 5, abs=rounding(5, 1.0))
    # More bins than questions: each by itself.
    assert adaptive_ece(confidence, right) == pytest.approx((0.1 + 0.1 + 0.7 + 0.2 + 0.2) / 5, abs=rounding(5, 1.0))


def test_equal_confidences_share_a_bin():
    # Cuts after the 2nd and 4th of six: the first falls among the four .5, so that they share its bin (.5 is an edge).
    confidence, right = np.array([0.5, 0.5, 0.5, 0.5, 0.7, 0.9]), np.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    assert adaptive_ece(confidence, right, bins=3) == pytest.approx((0.0 + 0.6) / 6, abs=rounding(6, 1.0))


def test_without_ties_bins_are_equally_full():
    # Confidence 0, so a bin's accuracy is its gap. Right in just one part at a time: 23 questions, 5 parts.
    N, bins = 23, 5
    confidence = np.arange(N) * 1e-9
    for part in np.array_split(np.arange(N), bins):
        right = np.zeros(N)
        right[part] = 1.0
        # The bias-corrected square: 1 of the part's share, nothing to take off, if the part is one whole bin.
        assert debiased_ce(confidence, right, bins=bins) == pytest.approx(math.sqrt(len(part) / N), abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(judged(), st.randoms(use_true_random=False))
def test_errors_do_not_depend_on_the_order(population, random):
    confidence, right = population
    order = list(range(len(confidence)))
    random.shuffle(order)
    N = len(confidence)
    for of in (ece, adaptive_ece):
        assert of(confidence, right) == pytest.approx(of(confidence[order], right[order]), abs=rounding(N, 1.0))
    # The root of a sum that is only rounding is as large as the root of that.
    assert debiased_ce(confidence, right) == pytest.approx(
        debiased_ce(confidence[order], right[order]), abs=math.sqrt(rounding(N, 2.0))
    )
    # ... and the smooth one is searched to a width of 1e-9.
    assert smooth_ece(confidence, right) == pytest.approx(smooth_ece(confidence[order], right[order]), abs=2e-9)


@settings(max_examples=25, deadline=None)
@given(judged())
def test_errors_are_between_the_mean_gap_and_what_is_right(population):
    confidence, right = population
    N = len(confidence)
    bias, total = abs((right - confidence).mean()), np.abs(right - confidence).mean()
    for of in (ece, adaptive_ece):
        assert bias - rounding(N, 1.0) <= of(confidence, right) <= total + rounding(N, 1.0)
    # Splitting among bins takes gaps apart: one bin for all shows the mean gap alone.
    assert ece(confidence, right, bins=1) == pytest.approx(bias, abs=rounding(N, 1.0))
    assert adaptive_ece(confidence, right, bins=1) == pytest.approx(bias, abs=rounding(N, 1.0))
    assert 0.0 <= debiased_ce(confidence, right) <= 1.0
    # The kernel's curve integrates to the mean gap.
    assert bias - 2e-9 <= smooth_ece(confidence, right) <= total + 2e-9


@pytest.mark.parametrize("of", ERRORS)
def test_errors_of_the_certain_and_of_one_question(of):
    ones, zeros = np.ones(40), np.zeros(40)
    assert of(ones, ones) == 0.0
    assert of(zeros, zeros) == 0.0
    assert of(ones, zeros) == pytest.approx(1.0, abs=2e-9)
    assert of(zeros, ones) == pytest.approx(1.0, abs=2e-9)
    # One question: the gap itself, whatever the bandwidth; with no second question nothing can be debiased.
    expected = 0.0 if of is debiased_ce else 0.7
    assert of(np.array([0.3]), np.array([1.0])) == pytest.approx(expected, abs=2e-9)


@pytest.mark.parametrize("of", ERRORS)
def test_wrong_calls_of_errors(of):
    with pytest.raises(ValueError, match="no question"):
        of(np.array([]), np.array([]))
    with pytest.raises(ValueError, match="not the same questions"):
        of(np.array([0.5]), np.array([1.0, 0.0]))
    for logits in ([0.5, math.nan], [0.5, 2.5], [0.5, -0.5]):
        with pytest.raises(ValueError, match="confidence of question 1 is"):
            of(np.array(logits), np.array([1.0, 0.0]))


@pytest.mark.parametrize("of", [*BINNED, reliability, debiased_ce_interval])
def test_no_bin_is_a_wrong_call(of):
    with pytest.raises(ValueError, match="0 bins"):
        of(np.array([0.5]), np.array([1.0]), bins=0)


def exact_smooth_ece(confidence: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Return the definition summed up directly: every reflection within 9 s, on 4,001 points; and its own error."""
    t = np.linspace(0.0, 1.0, 4001)

    def smoothed(s: float) -> float:
        curve = np.zeros_like(t)
        images = range(-math.ceil(5 * s) - 1, math.ceil(5 * s) + 2)
        for c, gap in zip(confidence, right - confidence, strict=True):
            for image, side in itertools.product(images, (c, -c)):
                curve += gap * np.exp(-((t - side - 2 * image) ** 2) / (2 * s * s))
        curve = np.abs(curve) / (s * math.sqrt(2 * math.pi) * len(confidence))
        return float((curve.sum() - (curve[0] + curve[-1]) / 2) / 4000)

    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if smoothed(middle) > middle else (low, middle)
    # The trapezoid rule for the absolute value: (spacing / s)^2 phi(1), times the mean gap.
    return high, (1 / 4000 / high) ** 2 * 0.242 * np.abs(right - confidence).mean()


@pytest.mark.parametrize("questions", [2, 7, 40])
def test_smooth_ece_is_its_definition(questions):
    rng = np.random.default_rng(questions)
    confidence = np.concatenate([[0.0, 1.0], rng.uniform(0.2, 1.0, size=questions - 2)])
    right = np.concatenate([[1.0, 1.0], drawn(rng, confidence[2:])])
    expected, error = exact_smooth_ece(confidence, right)
    ours = (1 / 16384 / expected) ** 2 * 0.37 * np.abs(right - confidence).mean()
    # Both search to a width of 1e-9.
    assert smooth_ece(confidence, right) == pytest.approx(expected, abs=error + ours + 2e-9)


def test_smooth_ece_of_gaps_of_one_sign_is_their_mean():
    # Nothing cancels, at any bandwidth.
    confidence = np.array([0.6, 0.7, 0.9, 1.0])
    assert smooth_ece(confidence, np.zeros(4)) == pytest.approx(0.8, abs=2e-9)
    # ... and of equal confidences the one mean gap: a tie's order cannot matter.
    assert smooth_ece(np.full(4, 0.6), np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.35, abs=2e-9)


def test_smooth_ece_tells_calibrated_from_not():
    rng = np.random.default_rng(3)
    confidence = rng.uniform(0.3, 1.0, size=4000)
    # smECE^2 of a calibrated model is about the noise of a kernel average: sd c / sqrt(N s) <= s at s = N^(-1/3).
    assert smooth_ece(confidence, drawn(rng, confidence)) < 4000 ** (-1 / 3)
    # Right 20 points less often: the gaps' mean, whatever the bandwidth, and sampling's error.
    spread = math.sqrt(0.25 / 4000)
    assert smooth_ece(confidence, drawn(rng, confidence - 0.2)) == pytest.approx(0.2, abs=4 * spread)


def test_debiased_ce_by_hand():
    # Two bins of four: accuracy .5 at confidence .9, and 1 at 1. (.4)^2 - .25 / 3, half of all questions.
    confidence, right = np.repeat([0.9, 1.0], 4), np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    expected = math.sqrt((0.16 - 0.25 / 3) / 2)
    assert debiased_ce(confidence, right, bins=2) == pytest.approx(expected, abs=rounding(8, 1.0))
    # No more than chance: the square's estimate is negative (0 - .25 / 3), and 0 is returned.
    assert debiased_ce(np.full(4, 0.5), np.array([1.0, 0.0, 1.0, 0.0]), bins=2) == 0.0
    # A third bin of a single question adds nothing but counts among the nine.
    confidence, right = np.append(confidence, 0.95), np.append(right, 0.0)
    confidence[4:8] = 0.97, 0.98, 0.99, 1.0
    # .9 four times in one bin, the other five each alone.
    assert debiased_ce(confidence, right, bins=9) == pytest.approx(
        math.sqrt(4 / 9 * (0.16 - 0.25 / 3)), abs=rounding(9, 1.0)
    )


def test_the_square_of_the_debiased_error_is_unbiased():
    # Accuracy .7 at confidence .8 (five bins of 200, told apart by 1e-9): the square is .01.
    rng = np.random.default_rng(4)
    confidence = 0.8 + 1e-9 * np.arange(1000)
    trials = 400
    squares = [debiased_ce(confidence, drawn(rng, confidence - 0.1), bins=5) ** 2 for _ in range(trials)]
    assert min(squares) > 0.0  # nothing was cut off, so the mean must be right
    assert np.mean(squares) == pytest.approx(0.01, abs=4 * np.std(squares) / math.sqrt(trials))


def middling(rng: np.random.Generator, trials: int, questions: int) -> np.ndarray:
    return 0.2 + 0.8 * rng.beta(4, 2, size=(trials, questions))


@pytest.mark.parametrize("factor", [1.0, 0.4], ids=["calibrated", "strongly over-confident"])
def test_the_interval_covers(factor):
    # The truth in bins of equal mass of 300,000 draws; benchmarks/calibration_interval.py has the whole table.
    def right_at(c: np.ndarray) -> np.ndarray:
        return c**factor / (c**factor + (1.0 - c) ** factor)

    rng = np.random.default_rng(int(factor * 10))
    many = np.sort(middling(rng, 1, 300_000)[0])
    truth = math.sqrt(((right_at(many) - many).reshape(15, -1).mean(axis=1) ** 2).mean())
    trials = 250
    held = 0
    for confidence in middling(rng, trials, 300):
        ends = debiased_ce_interval(confidence, drawn(rng, right_at(confidence)))
        assert ends is not None
        held += ends[0] <= truth <= ends[1]
    assert held / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.9), st.floats(0.0, 1.0))
def test_the_interval_holds_its_estimate(seed, lowest, shift):
    rng = np.random.default_rng(seed)
    confidence = lowest + (1.0 - lowest) * rng.random(300)
    right = drawn(rng, np.clip(confidence + shift - 0.5, 0.0, 1.0))
    ends, narrower = (debiased_ce_interval(confidence, right, level=level) for level in (0.95, 0.5))
    assert ends is not None
    assert narrower is not None
    low, high = ends
    assert 0.0 <= low <= debiased_ce(confidence, right) <= high <= 1.0
    assert low <= narrower[0] <= narrower[1] <= high


def test_the_interval_of_all_right_all_wrong_and_ties():
    half = np.full(300, 0.5)
    for right in (np.ones(300), np.zeros(300)):
        ends = debiased_ce_interval(half, right)
        assert ends is not None
        # Accuracy 1 at confidence .5 is as far as it can be.
        assert 0.4 < ends[0] < 0.5 <= ends[1] < 0.51
    # Right just as often as said, all in one bin: nothing speaks against 0.
    ends = debiased_ce_interval(half, np.arange(300) % 2.0)
    assert ends is not None
    assert ends[0] == 0.0 < ends[1] < 0.5


def test_no_interval_where_its_coverage_was_not_shown():
    rng = np.random.default_rng(5)
    confidence = rng.uniform(0.3, 0.9, size=300)
    right = drawn(rng, confidence)
    assert debiased_ce_interval(confidence, right) is not None
    assert debiased_ce_interval(confidence[:299], right[:299]) is None
    assert debiased_ce_interval(confidence, right, bins=16) is None  # fewer than 20 a bin
    assert debiased_ce_interval(np.full(300, 0.99), right) is None  # 3 wrong answers expected
    assert debiased_ce_interval(np.ones(300), np.ones(300)) is None
    assert debiased_ce_interval(np.array([]), np.array([])) is None
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="level"):
            debiased_ce_interval(confidence, right, level=level)


def isotonic_by_force(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the best of all cuts into blocks whose means never fall: isotonic regression, by trying each."""
    best, n = (math.inf, values), len(values)
    for cuts in itertools.product([False, True], repeat=n - 1):
        blocks = np.cumsum([0, *cuts])
        means = np.bincount(blocks, weights=values * weights) / np.bincount(blocks, weights=weights)
        if (np.diff(means) >= 0).all():
            loss = float((weights * (values - means[blocks]) ** 2).sum())
            best = min(best, (loss, means[blocks]), key=lambda x: x[0])
    return best[1]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(2, 3))
def test_brier_parts_are_those_of_the_best_recalibration(seed, questions, choices):
    N, K = questions, choices
    rng = np.random.default_rng(seed)
    # Tenths, so that there are ties among the pairs.
    probs = rng.multinomial(10, np.full(K, 1 / K), size=N) / 10
    targets = rng.integers(K, size=N)
    parts = brier_decomposition(probs, targets, None)
    o = (np.arange(K) == targets[:, None]).ravel().astype(float)
    p = probs.ravel()
    _, point = np.unique(p, return_inverse=True)
    weights = np.bincount(point).astype(float)
    q = isotonic_by_force(np.bincount(point, weights=o) / weights, weights)[point]

    def score(x: np.ndarray | float) -> float:
        return float(((x - o) ** 2).sum() / N)

    bound = rounding(N * K, 2.0 * K)
    assert parts.reliability == pytest.approx(score(p) - score(q), abs=bound)
    assert parts.resolution == pytest.approx(score(1 / K) - score(q), abs=bound)
    assert parts.uncertainty == pytest.approx(score(1 / K), abs=bound)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_brier_parts_add_up_and_are_never_negative(questions, choices, seed, listed):
    p = random_predictions(2, questions, choices, seed=seed)
    pooled = measures.pool(p.probs)
    # The same questions as if all had every choice.
    mask = p.mask if listed else None
    parts = brier_decomposition(pooled, p.targets, mask)
    pairs = int(p.mask.sum()) if listed else questions * choices
    whole = brier(pooled, p.targets).mean()
    bound = rounding(questions * choices, 2.0)
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(whole, abs=bound)
    assert parts.uncertainty == pytest.approx(1 - questions / pairs, abs=EPS)
    assert parts.reliability >= 0.0
    # The best score is not below 0: what is resolved is no more than there is.
    assert 0.0 <= parts.resolution <= parts.uncertainty + bound


def test_brier_parts_by_hand():
    # Pairs (.7, right), (.3, wrong) twice and (.7, wrong), (.3, right) once: .7 comes true 2/3 of the time.
    probs, targets = np.array([[0.7, 0.3]] * 3), np.array([0, 0, 1])
    parts = brier_decomposition(probs, targets, None)
    bound = rounding(6, 2.0)
    assert parts.reliability == pytest.approx(2 * (0.7 - 2 / 3) ** 2, abs=bound)
    assert parts.resolution == pytest.approx(2 * (2 / 3 - 1 / 2) ** 2, abs=bound)
    assert parts.uncertainty == pytest.approx(0.5, abs=bound)
    # Never right about which is likelier: the best recalibration that does not fall gives both the same.
    parts = brier_decomposition(probs, np.array([1, 1, 1]), None)
    assert parts.resolution == pytest.approx(0.0, abs=bound)
    assert parts.reliability == pytest.approx(0.98 - 0.5, abs=bound)


def test_brier_parts_of_the_certain_and_the_indifferent():
    # K = 2 and K = 3 in one set: the absent choice is no pair.
    certain, mask = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([[True, True, False], [True, True, True]])
    right, wrong = np.array([0, 2]), np.array([1, 0])
    assert brier_decomposition(certain, right, mask) == BrierParts(0.0, pytest.approx(0.6), pytest.approx(0.6))
    # Certain of what is wrong: recalibrated, nothing is told apart.
    all_wrong = brier_decomposition(certain, wrong, mask)
    assert (all_wrong.reliability, all_wrong.resolution) == (pytest.approx(1.4), pytest.approx(0.0, abs=EPS))
    # All equal: no resolution; and 1/K is calibrated.
    assert brier_decomposition(np.full((2, 4), 0.25), right, None) == BrierParts(0.0, 0.0, 0.75)
    assert brier_decomposition(np.array([[0.5, 0.5]]), np.array([1]), None) == BrierParts(0.0, 0.0, 0.5)


def test_brier_parts_of_wrong_calls():
    probs = np.full((2, 2), 0.5)
    with pytest.raises(ValueError, match="no question"):
        brier_decomposition(probs[:0], np.array([], dtype=np.int64), None)
    with pytest.raises(ValueError, match="target -1 of question 1"):
        brier_decomposition(probs, np.array([0, -1]), None)
    with pytest.raises(ValueError, match="target 1 of question 0 is a choice that the question does not have"):
        brier_decomposition(probs, np.array([1, 0]), np.array([[True, False], [True, True]]))
    with pytest.raises(ValueError, match="not the same choices"):
        brier_decomposition(probs, np.array([1, 0]), np.ones((2, 3), dtype=bool))
