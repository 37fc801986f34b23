from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import answers

from ripieno.errors import UserError
from ripieno.parquet import to_parquet
from ripieno.predictions import Predictions
from ripieno.report.inputs import gather


def written(path: Path, p: Predictions) -> Path:
    path.write_bytes(to_parquet(p))
    return path


def test_files_are_in_domain_and_those_of_ood_are_not(tmp_path):
    home = written(tmp_path / "a.parquet", answers("home/test", seed=0, n=20))
    away = written(tmp_path / "b.parquet", answers("away/test", seed=1, n=10))
    evidence = gather([home], [away])
    assert [p.name for p in evidence.predictions] == ["home/test", "away/test"]
    assert evidence.out_of_domain == ("away/test",)
    assert (list(evidence.calibration), list(evidence.matched), evidence.familiar) == ([], [], None)
    assert gather([home, away]).out_of_domain == ()


def test_questions_asked_again_with_fewer_choices_are_set_apart(tmp_path):
    p = answers("home/test", seed=0, n=20)
    again = replace(answers("home/test", seed=0, n=20, sizes=(4,)), metadata={"choices": 4})
    other = replace(answers("away/test", seed=1, n=20, sizes=(4,)), metadata={"choices": 4})
    files = [written(tmp_path / f"{n}.parquet", of) for n, of in enumerate((p, again, other))]
    evidence = gather(files[:2], files[2:])
    assert [of.choices_kept for of in evidence.predictions] == [None]
    assert [(of.name, of.choices_kept) for of in evidence.matched] == [("home/test", 4), ("away/test", 4)]


def test_npz_takes_its_axes(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), size=(2, 5))
    np.savez(tmp_path / "scores.npz", probs=probs, targets=np.zeros(5, dtype=int))
    [p] = gather([tmp_path / "scores.npz"], axes="mnk").predictions
    assert p.log_probs.shape == (2, 5, 3)
    np.savez(tmp_path / "other.npz", probs=probs.transpose(1, 0, 2), targets=np.zeros(5, dtype=int))
    [q] = gather([tmp_path / "other.npz"], axes="nmk").predictions
    assert np.array_equal(p.log_probs, q.log_probs)
    with pytest.raises(UserError, match="--axes mnk"):
        gather([tmp_path / "scores.npz"])
    with pytest.raises(UserError, match="--axes knm: give mnk or nmk"):
        gather([tmp_path / "scores.npz"], axes="knm")


def test_jsonl_is_read_too(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"id": "q", "probs": [[0.7, 0.3]], "target": 0}) + "\n")
    assert gather([file]).predictions[0].question_ids == ("q",)


def test_a_set_is_in_or_out_of_domain_and_given_once(tmp_path):
    p = answers("home/test", seed=0, n=20)
    file, copy = written(tmp_path / "a.parquet", p), written(tmp_path / "b.parquet", p)
    with pytest.raises(UserError, match="home/test is also among the sets in domain"):
        gather([file], [copy])
    with pytest.raises(UserError, match="home/test: method ensemble, epoch 2, replicate 0 is given twice"):
        gather([file, copy])
    away = written(tmp_path / "c.parquet", answers("away/test", seed=0, n=20))
    with pytest.raises(UserError, match=r"away/test: .* is given twice"):
        gather([file], [away, away])
    later = written(tmp_path / "d.parquet", replace(p, epoch=3))
    repeated = written(tmp_path / "e.parquet", replace(p, replicate=1))
    assert len(gather([file, later, repeated]).predictions) == 3


def test_labels_of_every_question(tmp_path):
    file = written(tmp_path / "a.parquet", answers("home/test", seed=0, n=20, sizes=(3,)))
    [p] = gather([file], labels="yes, no,maybe").predictions
    assert p.metadata["labels"] == ["yes", "no", "maybe"]
    with pytest.raises(UserError, match="--labels: 2 labels, but home/test has questions of other numbers"):
        gather([file], labels="yes,no")
    for labels in ("yes,no,", "yes,no,yes"):
        with pytest.raises(UserError, match=r"--labels .*: give each choice a label of its own"):
            gather([file], labels=labels)
    mixed = written(tmp_path / "b.parquet", answers("mixed/test", seed=0, n=20, sizes=(2, 3)))
    with pytest.raises(UserError, match="mixed/test has questions of other numbers"):
        gather([mixed], labels="yes,no,maybe")


def test_choices_are_scored_anew_in_all_that_was_given(tmp_path):
    p = answers("home/test", seed=0, n=20)
    scores = np.random.default_rng(0).normal(size=p.log_probs.shape)
    p = replace(p, scores=scores, tokens=np.full(p.mask.shape, 2), bytes=np.full(p.mask.shape, 4))
    again = replace(p, metadata={"choices": 4})
    files = [written(tmp_path / f"{n}.parquet", of) for n, of in enumerate((p, again))]
    evidence = gather(files, normalisation="token")
    halves = np.exp(scores.astype(np.float32) / 2)
    for found in (*evidence.predictions, *evidence.matched):
        assert found.metadata["scoring"]["normalisation"] == "token"
        assert found.probs == pytest.approx(halves / halves.sum(axis=-1, keepdims=True), rel=1e-6)
    with pytest.raises(UserError, match="--normalisation unconditional: home/test: no unconditional scores are stored"):
        gather(files, normalisation="unconditional")
    with pytest.raises(UserError, match="--normalisation bytes: give one of sum, token, byte, unconditional"):
        gather(files, normalisation="bytes")
    letters = written(tmp_path / "letters.parquet", replace(p, tokens=None, bytes=None))
    with pytest.raises(UserError, match="its choices are letters"):
        gather([letters], normalisation="sum")


def test_what_is_no_input_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.parquet: there is no such file or run folder"):
        gather([tmp_path / "nowhere.parquet"])
    with pytest.raises(UserError, match="a folder; --ood takes files"):
        gather([written(tmp_path / "a.parquet", answers("home/test", seed=0, n=5))], [tmp_path])
    with pytest.raises(UserError, match=str(tmp_path)):
        gather([tmp_path])
