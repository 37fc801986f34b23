"""How well a score tells two kinds of questions apart: AUROC, average precision, false positives at 95% true ones."""

from __future__ import annotations

import numpy as np
import pytest

from oracles.samples import CHOICES, counts, population, rounding
from ripieno import measures
from ripieno.measures.ranking import aupr, auroc, fpr_at_tpr, ood_measures

SAVES_ALL = "ignore:Metric `FPR.*` will save all targets:UserWarning"
N0, N1 = 300, 200
TIED = pytest.mark.parametrize("tied", [False, True])


def uncertainties(choices, *, tied):
    """Mutual information of questions inside and of foreign ones [N0], [N1]; tied: of one decimal place.

    Outside, the members' shared opinion is halved, so that theirs differ more.
    """
    inside, _ = population(choices, questions=N0)
    outside, _ = population(choices, questions=N1, seed=1)
    shared = outside.mean(axis=0) / 2
    probs = np.exp(outside - shared)
    both = (
        measures.mutual_information(np.exp(inside)),
        measures.mutual_information(probs / probs.sum(axis=-1, keepdims=True)),
    )
    return tuple(np.round(part, 1) for part in both) if tied else both


def joined(choices, *, tied):
    inside, outside = uncertainties(choices, tied=tied)
    return np.concatenate([inside, outside]), np.repeat([False, True], [N0, N1])


@TIED
@pytest.mark.parametrize("choices", CHOICES)
def test_auroc_and_aupr_are_scikit_learns(choices, tied, sklearn_metrics):
    scores, positive = joined(choices, tied=tied)
    assert (len(np.unique(scores)) < N0) == tied
    within = rounding(N0 + N1, 1.0)
    assert auroc(scores, positive) == pytest.approx(sklearn_metrics.roc_auc_score(positive, scores), abs=within)
    assert aupr(scores, positive) == pytest.approx(
        sklearn_metrics.average_precision_score(positive, scores), abs=within
    )


@TIED
def test_weighted_auroc_and_aupr_are_scikit_learns(tied, sklearn_metrics):
    scores, positive = joined(4, tied=tied)
    weights = counts(len(scores))
    within = rounding(N0 + N1, 1.0)
    theirs = [sklearn_metrics.roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    assert auroc(scores, positive, weights) == pytest.approx(theirs, abs=within)
    theirs = [sklearn_metrics.average_precision_score(positive, scores, sample_weight=row) for row in weights]
    assert aupr(scores, positive, weights) == pytest.approx(theirs, abs=within)


@pytest.mark.filterwarnings(SAVES_ALL)
@TIED
@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize("tpr", [0.5, 0.8, 0.95, 1.0])
def test_fpr_is_torch_uncertaintys(choices, tied, tpr, torch, torch_uncertainty):
    # Both take the highest threshold that occurs as a score and lets enough positives pass, ties together.
    scores, positive = joined(choices, tied=tied)
    measure = torch_uncertainty.FPRx(recall_level=tpr, pos_label=1)
    measure.update(torch.tensor(scores), torch.tensor(positive.astype(int)))
    assert fpr_at_tpr(scores, positive, tpr=tpr) == pytest.approx(float(measure.compute()), abs=rounding(1, 1.0))


@pytest.mark.filterwarnings(SAVES_ALL)
@TIED
def test_weighted_fpr_is_torch_uncertaintys_of_questions_repeated(tied, torch, torch_uncertainty):
    scores, positive = joined(4, tied=tied)
    weights = counts(len(scores))
    theirs = []
    for row in weights.astype(int):
        measure = torch_uncertainty.FPR95(pos_label=1)
        measure.update(torch.tensor(np.repeat(scores, row)), torch.tensor(np.repeat(positive, row).astype(int)))
        theirs.append(float(measure.compute()))
    assert fpr_at_tpr(scores, positive, weights) == pytest.approx(theirs, abs=rounding(1, 1.0))


@pytest.mark.filterwarnings(SAVES_ALL)
@TIED
@pytest.mark.parametrize("choices", CHOICES)
def test_ood_measures_are_the_others(choices, tied, sklearn_metrics, torch, torch_uncertainty):
    # Outside is what the uncertainty should find (AUROC, AUPR-out); AUPR-in and FPR95 take the inside questions as the
    # positive ones and the uncertainty's negative as their score (Liang et al. 2018).
    inside, outside = uncertainties(choices, tied=tied)
    scores, is_outside = joined(choices, tied=tied)
    ours = ood_measures(inside, outside)
    measure = torch_uncertainty.FPR95(pos_label=0)
    measure.update(torch.tensor(-scores), torch.tensor(is_outside.astype(int)))
    theirs = {
        "ood_auroc": sklearn_metrics.roc_auc_score(is_outside, scores),
        "ood_aupr_in": sklearn_metrics.average_precision_score(~is_outside, -scores),
        "ood_aupr_out": sklearn_metrics.average_precision_score(is_outside, scores),
        "ood_fpr95": float(measure.compute()),
    }
    assert ours == pytest.approx(theirs, abs=rounding(N0 + N1, 1.0))


@pytest.mark.filterwarnings(SAVES_ALL)
@TIED
def test_weighted_ood_measures_are_the_others(tied, sklearn_metrics, torch, torch_uncertainty):
    inside, outside = uncertainties(4, tied=tied)
    scores, is_outside = joined(4, tied=tied)
    first, second = counts(N0), counts(N1, seed=1)
    ours = ood_measures(inside, outside, first, second)
    for i, row in enumerate(np.concatenate([first, second], axis=1)):
        measure = torch_uncertainty.FPR95(pos_label=0)
        drawn = row.astype(int)
        measure.update(torch.tensor(-np.repeat(scores, drawn)), torch.tensor(np.repeat(is_outside, drawn).astype(int)))
        theirs = {
            "ood_auroc": sklearn_metrics.roc_auc_score(is_outside, scores, sample_weight=row),
            "ood_aupr_in": sklearn_metrics.average_precision_score(~is_outside, -scores, sample_weight=row),
            "ood_aupr_out": sklearn_metrics.average_precision_score(is_outside, scores, sample_weight=row),
            "ood_fpr95": float(measure.compute()),
        }
        found = {name: float(values[i]) for name, values in ours.items()}
        assert found == pytest.approx(theirs, abs=rounding(N0 + N1, 1.0))
