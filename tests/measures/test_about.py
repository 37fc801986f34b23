from __future__ import annotations

import numpy as np

from ripieno.measures import About


def about() -> About:
    return About(
        question_ids=("a", "b", "c", "d"),
        passages=("one", None, "one", ""),
        choice_bytes=np.array([[1, 2], [3, 4], [5, 6], [7, 8]]),
        prompt_tokens=np.array([10, 20, 30, 40]),
        prompt_nll=np.array([0.1, 0.2, 0.3, 0.4]),
        hidden=np.arange(8.0).reshape(4, 2),
        distance=np.array([4.0, 3.0, 2.0, 1.0]),
    )


def test_some_questions_in_another_order():
    some = about().of(("d", "a", "c"))
    assert tuple(some.question_ids) == ("d", "a", "c")
    assert list(some.passages) == ["", "one", "one"]
    assert some.choice_bytes.tolist() == [[7, 8], [1, 2], [5, 6]]
    assert some.prompt_tokens.tolist() == [40, 10, 30]
    assert some.prompt_nll.tolist() == [0.4, 0.1, 0.3]
    assert some.hidden.tolist() == [[6, 7], [0, 1], [4, 5]]
    assert some.distance.tolist() == [1.0, 4.0, 2.0]
    assert some.of(("d", "a", "c")) is some
    assert some.of(("c",)).prompt_tokens.tolist() == [30]


def test_nothing_is_known_where_a_question_is_missing():
    unknown = about().of(("a", "z"))
    assert unknown == About(("a", "z"))
    assert unknown.clusters is None
    assert About(()).of(("a",)) == About(("a",))


def test_questions_that_share_a_passage_are_one_cluster_and_others_stand_alone():
    labels = about().clusters
    assert labels[0] == labels[2]
    assert len(set(labels.tolist())) == 3
    labels = about().of(("d", "c", "b", "a")).clusters
    assert labels[1] == labels[3]
    assert len(set(labels.tolist())) == 3


def test_without_a_shared_passage_there_are_no_clusters():
    assert about().of(("a", "b", "d")).clusters is None  # "one" occurs once
    assert About(("a", "b"), passages=(None, None)).clusters is None
    assert About(("a", "b"), passages=("", "")).clusters is None
    assert About(("a", "b")).clusters is None
    assert about().of(()).clusters is None


def test_questions_that_the_base_did_not_read_leave_the_others_known():
    about = About(
        ("a", "b", "c"),
        prompt_tokens=np.array([3, 0, 5]),
        prompt_nll=np.array([1.0, 0.0, 2.0]),
        hidden=np.arange(6.0).reshape(3, 2),
        read=np.array([True, False, True]),
    )
    some = about.of(("c", "a"))
    assert some.prompt_tokens.tolist() == [5, 3]
    assert some.hidden.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    for ids in (("a", "b"), ("a", "b", "c")):
        unread = about.of(ids)
        assert unread.prompt_tokens is None
        assert unread.prompt_nll is None
        assert unread.hidden is None
