"""Telling a foreign data set from the familiar one, by the ensemble's uncertainty and by trivial baselines beside it.

The number of choices alone moves entropy, so each table comes twice: as it is, and with as many choices in both sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ripieno.data.prompts import TEMPLATES
from ripieno.measures.about import About, about_of
from ripieno.measures.bootstrap import DRAWN_AT_ONCE, RESAMPLES, Counts, draw, percentiles, resampled, units
from ripieno.measures.estimates import NO_QUESTION
from ripieno.measures.matching import match_choices
from ripieno.measures.ranking import ood_measures
from ripieno.measures.table import BASELINES, OOD, UNCERTAINTIES, Estimate, Row
from ripieno.measures.uncertainty import Floats, confidence, entropy, mutual_information, pool
from ripieno.predictions import Predictions

# Why a value is null.
ONE_MEMBER = "one member cannot disagree with itself"
NO_FEATURES = "what the base makes of the questions was not stored; `ripieno evaluate` stores it for a run"
NO_REFERENCE = "there are no training questions whose hidden states say what is familiar"
NOT_ASKED_AGAIN = (
    "the choices stand in the prompt; `ripieno evaluate RUN --choices {} --epoch {}` asks again with fewer"
)
NOTHING_LEFT = "no question can be cut to {} choices: its right answer is not known, or it has fewer"


@dataclass(frozen=True)
class Detector:
    """How familiar a hidden state is: its Mahalanobis distance from those of the training questions.

        d(h)^2 = (h - mu)^T S^-1 (h - mu)

    Lee et al. 2018 (arXiv:1807.03888), with one class, since choices are no classes. The covariance is shrunk towards
    a multiple of the identity as Ledoit and Wolf 2004 do ("A well-conditioned estimator for large-dimensional
    covariance matrices"), or with fewer questions than dimensions it would have no inverse.

    Args:
        mean: [D].
        root: [D, D]; `root @ root.T` is the inverse of the covariance.
    """

    mean: Floats
    root: Floats

    @classmethod
    def fit(cls, hidden: Floats) -> Detector:
        """Fit to the hidden states [N, D] of N >= 2 familiar questions."""
        N, D = hidden.shape
        mean = hidden.mean(axis=0, dtype=np.float64)
        centred = hidden - mean
        covariance = centred.T @ centred / N
        scale = float(np.trace(covariance)) / D
        # In the norm ||A||^2 = tr(A A^T) / D: how far the sample's covariance lies from scale * I, and how noisy it is.
        distance = float((covariance**2).sum()) / D - scale**2
        noise = (float(((centred**2).sum(axis=1) ** 2).sum()) / N - float((covariance**2).sum())) / (D * N)
        share = min(1.0, noise / distance) if distance > 0.0 else 1.0
        values, vectors = np.linalg.eigh((1.0 - share) * covariance + share * scale * np.eye(D))
        # Directions in which no training question varies but by rounding say nothing, rather than everything.
        eps = float(np.finfo(np.float64).eps)
        kept = values > max(float(values.max()) * D * eps, (N * eps * float(np.abs(hidden).max())) ** 2)
        return cls(mean, vectors[:, kept] / np.sqrt(values[kept]))

    def distance(self, hidden: Floats) -> Floats:
        """Return the distance of each hidden state [N, D]: [N]."""
        distances = np.empty(len(hidden))
        step = max(1, DRAWN_AT_ONCE // len(self.mean))
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            distances[part] = np.linalg.norm((hidden[part] - self.mean) @ self.root, axis=1)
        return distances


def with_distances(about: Mapping[str, About], familiar: Floats | None) -> Mapping[str, About]:
    """Return what is known of the questions, with the distances of their hidden states in the place of these.

    Args:
        about: by data set.
        familiar: [N, D], the hidden states of training questions; None or fewer than two say nothing.
    """
    if familiar is None or len(familiar) < 2:
        return about
    detector = Detector.fit(familiar)
    return {
        name: of if of.hidden is None else replace(of, hidden=None, distance=detector.distance(of.hidden))
        for name, of in about.items()
    }


def tell_apart(
    inside: Predictions,
    outside: Predictions,
    *,
    about: Mapping[str, About] | None = None,
    matched: Sequence[Predictions] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Row]:
    """Return how well each score tells the questions of a foreign set from those of the familiar one.

    Scores: entropy of the pooled prediction, mutual information, (one less) confidence; and what they have to beat: the
    number of choices, the prompt's tokens, the base's perplexity of the prompt, and the Mahalanobis distance of its
    hidden state. All are expected to be higher outside. `ranking.ood_measures` says what is measured. The prompt is
    the one with all choices: where it lists them, "k_matched" moves the uncertainties, not these three.

    Args:
        inside, outside: the same members' answers to both sets.
        about: by `Predictions.name`, what else is known of the questions.
        matched: the same questions asked again with fewer choices (`Predictions.choices_kept`), needed where the
            prompt lists the choices; elsewhere wrong choices are dropped here and the rest is normalised again.
        resamples: of the bootstrap; both sets are resampled. 0: no intervals.
        seed: of the bootstrap, and of the choices that are dropped.

    Returns:
        Rows of `outside` against `inside`, first as it is (variant None), then "k_matched", where wrong choices were
        dropped at random until each question of both sets has as many as the one with the fewest (2 at least).

    Raises:
        ValueError: the two were answered by different members; mutual information compares at equal M only.
    """
    if inside.members != outside.members:
        raise ValueError(f"{inside.name} and {outside.name} were answered by different members")

    def rows(variant: str | None, pair: tuple[Predictions, Predictions] | str) -> list[Row]:
        """Rows of `outside`, whatever the pair holds of it; a pair that cannot be had is the reason why."""
        if isinstance(pair, str):
            found = {(m, s): Estimate(None, 0, reason=pair) for s in (*UNCERTAINTIES, *BASELINES) for m in OOD}
        else:
            found = _estimates(pair, about, resamples, seed)
        return [
            Row(
                *(outside.dataset, outside.split, outside.method, outside.epoch, "ensemble", f"{measure}_{score}"),
                **asdict(estimate),
                variant=variant,
                against=inside.name,
            )
            for (measure, score), estimate in found.items()
        ]

    as_it_is = rows(None, (inside, outside) if inside.question_ids and outside.question_ids else NO_QUESTION)
    pair = k_matched(inside, outside, matched, seed)
    # Every question may have the same number of choices already.
    if not isinstance(pair, str) and pair[0] is inside and pair[1] is outside:
        return as_it_is + [replace(row, variant="k_matched") for row in as_it_is]
    return as_it_is + rows("k_matched", pair)


def _estimates(
    pair: tuple[Predictions, Predictions],
    about: Mapping[str, About] | None,
    resamples: int,
    seed: int,
) -> dict[tuple[str, str], Estimate]:
    """Measure each score on the questions of both sets, [measure, score]."""
    own = [about_of(about, p) for p in pair]
    n = sum(len(p.question_ids) for p in pair)
    counts = None
    if resamples and all(units(len(p.question_ids), a.clusters) > 1 for p, a in zip(pair, own, strict=True)):
        counts = [
            draw(len(p.question_ids), clusters=a.clusters, resamples=resamples, seed=seed, purpose=where)
            for p, a, where in zip(pair, own, ("inside", "outside"), strict=True)
        ]
    estimates: dict[tuple[str, str], Estimate] = {}
    for score in (*UNCERTAINTIES, *BASELINES):
        first, second = (_score(score, p, a) for p, a in zip(pair, own, strict=True))
        if isinstance(first, str) or isinstance(second, str):
            reason = first if isinstance(first, str) else str(second)
            estimates |= {(measure, score): Estimate(None, n, reason=reason) for measure in OOD}
            continue
        found = ood_measures(first, second)
        low, high = _intervals(first, second, counts) if counts else np.full((2, len(OOD)), np.nan)
        for i, measure in enumerate(OOD):
            ends = (None, None) if np.isnan(low[i]) else (float(low[i]), float(high[i]))
            estimates[measure, score] = Estimate(float(found[measure]), n, *ends)
    return estimates


def k_matched(
    inside: Predictions, outside: Predictions, matched: Sequence[Predictions], seed: int
) -> tuple[Predictions, Predictions] | str:
    """Return both sets with as many choices a question as the one with the fewest, or why that cannot be."""
    sizes = [p.mask.sum(axis=1) for p in (inside, outside)]
    if not all(len(of) for of in sizes):
        return NO_QUESTION
    K = max(2, int(min(of.min() for of in sizes)))  # a question of one choice has no wrong one to compare by
    found = []
    for p, of in zip((inside, outside), sizes, strict=True):
        if (of == K).all():
            found.append(p)
        elif _listed(p):
            asked = [a for a in matched if a.choices_kept == K and _same_answerer(a, p)]
            if not asked:
                return NOT_ASKED_AGAIN.format(K, p.epoch)
            found.append(asked[0])
        else:
            found.append(match_choices(p, K, seed))
        if not found[-1].question_ids:
            return NOTHING_LEFT.format(K)
    return found[0], found[1]


def _listed(p: Predictions) -> bool:
    """Whether the prompt lists the choices, so that leaving one out changes the others; unknown counts as not."""
    template = TEMPLATES.get(p.metadata.get("template", {}).get("name", ""))
    return template is not None and template.listed


def _same_answerer(a: Predictions, b: Predictions) -> bool:
    first, second = ((p.name, p.method, p.epoch, p.replicate, p.members) for p in (a, b))
    return first == second


def _score(name: str, p: Predictions, about: About) -> Floats | str:
    """Return a score of each question, higher where it should be foreign, or why there is none."""
    if name == "entropy":
        return entropy(pool(p.probs))
    if name == "mi":
        return mutual_information(p.probs) if len(p.members) > 1 else ONE_MEMBER
    if name == "confidence":
        return -confidence(pool(p.probs))
    if name == "choices":
        return p.mask.sum(axis=1).astype(np.float64)
    return of_prompt(name, about)


def of_prompt(name: str, about: About) -> Floats | str:
    """Return what a trivial baseline makes of each prompt [N], higher where it should be foreign, or why it cannot.

    Args:
        name: one of `table.BASELINES` but the number of choices.
        about: what is known of the questions, with distances (`with_distances`).
    """
    if name == "prompt_length":
        return NO_FEATURES if about.prompt_tokens is None else about.prompt_tokens.astype(np.float64)
    if name == "perplexity":
        return NO_FEATURES if about.prompt_nll is None else about.prompt_nll  # exp of it ranks the same
    if about.distance is None:
        return NO_FEATURES if about.hidden is None else NO_REFERENCE
    return about.distance


def _intervals(inside: Floats, outside: Floats, counts: Sequence[Counts]) -> tuple[Floats, Floats]:
    N = len(inside)

    def statistic(weights: Floats) -> Floats:
        found = ood_measures(inside, outside, weights[:, :N], weights[:, N:])
        return np.stack([found[measure] for measure in OOD], axis=1)

    return percentiles(resampled(statistic, np.concatenate(counts, axis=1)))
