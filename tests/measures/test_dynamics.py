from __future__ import annotations

from dataclasses import replace

import numpy as np
from populations import from_probs, random_predictions

from ripieno import measures
from ripieno.predictions import Predictions

SURE, UNSURE = [[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.7, 0.3]]
TORN = [[1.0, 0.0], [0.2, 0.8]]  # the pooled answer is 0, with much disagreement


def epoch(number: int, *members_of_questions: list[list[float]]) -> Predictions:
    probs = np.array(members_of_questions).transpose(1, 0, 2)
    return from_probs(probs, [0, 0, 1, -1], epoch=number)


def test_flows_by_hand():
    other = [[0.1, 0.9], [0.1, 0.9]]  # answers 1, and all agree
    first = epoch(1, TORN, SURE, SURE, SURE)  # right high, right low, wrong low
    second = epoch(2, SURE, SURE, other, SURE)  # right low, right low, right low
    third = epoch(3, SURE, other, TORN, UNSURE)  # right low, wrong low, wrong high
    # Last epoch: mutual information 0, 0, much, little; the median lies between 0 and little.
    base = from_probs([[[0.4, 0.6], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]]], [0, 0, 1, -1], method="base")
    found = measures.flows([third, base, first, second])
    u = measures.mutual_information(third.probs)
    boundary = float((np.sort(u)[1] + np.sort(u)[2]) / 2)
    assert [(f.epoch_from, f.epoch_to, f.state_from, f.state_to, f.count, f.n, f.boundary) for f in found] == [
        (1, 2, "right, high", "right, low", 1, 3, boundary),
        (1, 2, "right, low", "right, low", 1, 3, boundary),
        (1, 2, "wrong, low", "right, low", 1, 3, boundary),
        (2, 3, "right, low", "right, low", 1, 3, boundary),
        (2, 3, "right, low", "wrong, high", 1, 3, boundary),
        (2, 3, "right, low", "wrong, low", 1, 3, boundary),
        (0, 3, "right", "wrong", 2, 3, None),  # forgotten
        (0, 3, "wrong", "right", 1, 3, None),  # learned
    ]


def test_nothing_is_lost_on_the_way():
    # Of 61 questions one is the median itself, which is not above it.
    epochs = [random_predictions(3, 61, 4, seed=e, epoch=e) for e in (1, 2, 3)]
    found = measures.flows(epochs)
    into, out = {}, {}
    for f in found:
        assert f.n == 61
        assert f.count > 0
        into[f.epoch_to, f.state_to] = into.get((f.epoch_to, f.state_to), 0) + f.count
        out[f.epoch_from, f.state_from] = out.get((f.epoch_from, f.state_from), 0) + f.count
    assert {key: count for key, count in into.items() if key[0] == 2} == {
        key: count for key, count in out.items() if key[0] == 2
    }
    for e in (1, 2):
        assert sum(count for (at, _), count in out.items() if at == e) == 61
    right = (measures.pool(epochs[1].probs).argmax(axis=1) == epochs[1].targets).sum()
    assert sum(count for (at, state), count in into.items() if at == 2 and state.startswith("right")) == right
    high = measures.mutual_information(epochs[2].probs)
    counted = sum(count for (at, state), count in into.items() if at == 3 and state.endswith("high"))
    assert counted == (high > np.median(high)).sum() == 30


def test_a_member_that_left_off_moves_no_boundary():
    """Mutual information is that of the members of every epoch, right or wrong that of all that answered."""
    whole = [random_predictions(4, 61, 4, seed=e, epoch=e) for e in (1, 2, 3)]
    whole[1:] = [replace(p, log_probs=p.log_probs[[0, 1, 3]], members=(0, 1, 3)) for p in whole[1:]]
    found = measures.flows(whole)
    kept = [p.probs if p.epoch > 1 else p.probs[[0, 1, 3]] for p in whole]
    boundary = float(np.median(measures.mutual_information(kept[2])))
    assert {f.boundary for f in found} == {boundary}
    for p, probs in zip(whole[:2], kept, strict=False):
        right = measures.pool(p.probs).argmax(axis=1) == p.targets
        high = measures.mutual_information(probs) > boundary
        counted = dict.fromkeys(("right, high", "right, low", "wrong, high", "wrong, low"), 0)
        for f in found:
            if f.epoch_from == p.epoch:
                counted[f.state_from] += f.count
        expected = [(right & high).sum(), (right & ~high).sum(), (~right & high).sum(), (~right & ~high).sum()]
        assert list(counted.values()) == expected
    # The members' order in a file says nothing.
    first = replace(whole[0], log_probs=whole[0].log_probs[::-1], members=whole[0].members[::-1])
    assert measures.flows([first, *whole[1:]]) == found


def test_fewer_than_two_members_throughout_are_right_or_wrong_alone():
    epochs = [random_predictions(2, 30, 3, seed=e, epoch=e, members=(e - 1, e)) for e in (1, 2)]
    assert {(f.state_from, f.boundary) for f in measures.flows(epochs)} == {("right", None), ("wrong", None)}
    alone = random_predictions(1, 30, 3, seed=3, epoch=2)
    assert {f.boundary for f in measures.flows([epochs[0], alone])} == {None}


def test_draws_from_one_member_are_told_apart():
    epochs = [random_predictions(3, 30, 3, seed=e, epoch=e) for e in (1, 2)]
    draws = [replace(p, members=(7, 7, 7)) for p in epochs]
    assert measures.flows(draws) == measures.flows(epochs)
    fewer = replace(draws[0], log_probs=draws[0].log_probs[:2], members=(7, 7))
    assert {f.boundary for f in measures.flows([fewer, draws[1]])} == {
        float(np.median(measures.mutual_information(epochs[1].probs[:2])))
    }


def test_questions_are_paired_by_their_ids():
    first = from_probs([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]], [0, 0, 0], epoch=1, question_ids=("a", "b", "c"))
    second = from_probs([[[1.0, 0.0], [1.0, 0.0]]], [0, 0], epoch=2, question_ids=("b", "a"))
    found = {(f.state_from, f.state_to): (f.count, f.n, f.boundary) for f in measures.flows([first, second])}
    # One member cannot disagree: right and wrong alone.
    assert found == {("right", "right"): (1, 2, None), ("wrong", "right"): (1, 2, None)}


def test_data_sets_methods_and_replicates_do_not_mix():
    parts = [random_predictions(2, 20, 3, seed=e, epoch=e, dataset=name) for name in "ab" for e in (1, 2)]
    later = [replace(random_predictions(2, 20, 3, seed=e + 5, epoch=e, dataset="a"), replicate=1) for e in (1, 2, 3)]
    assert measures.flows([*parts, *later]) == measures.flows(parts)
    assert list(dict.fromkeys(f.dataset for f in measures.flows(parts))) == ["a", "b"]
    assert measures.flows([replace(parts[0], method="dropout"), parts[1]]) == []


def test_what_has_no_way_has_no_flows():
    p = random_predictions(2, 10, 3, epoch=1)
    assert measures.flows([]) == measures.flows([p]) == []
    nothing = p.select(np.arange(0))
    assert measures.flows([nothing, replace(nothing, epoch=2)]) == []
    unknown = [random_predictions(2, 5, 3, targets=np.full(5, -1), epoch=e) for e in (1, 2)]
    assert measures.flows(unknown) == []
