"""`ripieno compare`: what is shared is trained once, every row answers what it claims, and the table needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import files_of, ripieno, rows, works, write_rows

from ripieno.comparison import read, read_index
from ripieno.features import read_features
from ripieno.parquet import read_parquet
from ripieno.predictions import Predictions

SEEDS, MEMBERS = 2, 2
ROWS = [
    {"name": "single", "method": "single"},
    {"name": "map", "method": "map", "training": ["prior"]},
    {"name": "no prior", "method": "map"},
    {"name": "best", "method": "best"},
    {"name": "ensemble", "method": "ensemble"},
    {"name": "each tuned", "method": "ensemble", "tuned": "member"},
    {"name": "at the end", "method": "ensemble", "epoch": "last"},
    {"name": "repelled", "method": "ensemble", "training": ["repelled"]},
    {"name": "checkpoints", "method": "checkpoints", "settings": {"all_members": True}},
    {"name": "dropout", "method": "dropout", "training": ["dropout"]},
    {"name": "laplace", "method": "laplace"},
    {"name": "variational", "method": "variational", "training": ["variational"]},
    {"name": "tfb", "method": "tfb", "settings": {"search_steps": 2}},
]
TRAININGS = {
    "plain": {},
    "prior": {"training.lora_l2": 0.01},
    "dropout": {"adapter.dropout": 0.2},
    "repelled": {"training.repulsion": {"questions": ["REPELLED"], "weight": 5.0}},
    "variational": {"training.variational": {"initial_std": 0.05, "divergence_rate": 0.001}},
}


def write(folder: Path, base: Path, **changes: Any) -> Path:
    counts = {"train": 10, "validation": 8, "calibration": 8, "test": 9, "out_of_domain": 7}
    data = {role: [write_rows(folder / f"{role}.jsonl", rows(n, i))] for i, (role, n) in enumerate(counts.items())}
    more = write_rows(folder / "repelled.jsonl", rows(6, 9))
    content = {
        "name": "compared",
        "seeds": SEEDS,
        "base": {"model": str(base)},
        "adapter": {"rank": 2, "alpha": 4},
        "data": data,
        "training": {"members": MEMBERS, "epochs": 2, "learning_rate": 0.01, "batch_size": 4},
        "trainings": json.loads(json.dumps(TRAININGS).replace("REPELLED", more)),
        "rows": ROWS,
        **changes,
    }
    path = folder / "compared.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("comparing"), base)


@pytest.fixture(scope="module")
def folder(config: Path) -> Path:
    works("compare", config, "--run", config.parent / "run")
    return config.parent / "run"


read_once = cache(read)  # a second of parquet; one test alone asks for it, many times


def answers(folder: Path, slug: str, replicate: int) -> Predictions:
    compared = read_once(folder)
    return compared.answers[slug].sets[compared.index.test[0]][replicate]


@cache
def of_members(folder: Path, training: str, epoch: int) -> Predictions:
    """What every member of a training answers, by the command that asks all of them."""
    run = folder / "trainings" / training
    works("evaluate", run, "--epoch", str(epoch))
    [file] = (run / "predictions").glob(f"test-*/*/ensemble-epoch-{epoch:03d}.parquet")
    [p] = read_parquet(file)
    return p


def test_every_row_is_there_and_one_that_cannot_be_had_says_why(folder: Path) -> None:
    index = read_index(folder)
    assert [row.name for row in index.rows] == [row["name"] for row in ROWS]
    refused = {row.name: row.refused for row in index.rows if row.refused}
    assert list(refused) == ["no prior"]
    assert "it was trained without a prior" in str(refused["no prior"])
    assert {row.slug: row.answers for row in index.answered} == {
        "single": 1, "map": 1, "best": 1, "checkpoints": 4, "laplace": 100,
        **dict.fromkeys(("ensemble", "each-tuned", "at-the-end", "repelled", "dropout", "variational", "tfb"), MEMBERS),
    }  # fmt: skip


def validation(folder: Path, training: str, member: int) -> dict[int, float]:
    """Return a member's validation NLL after each epoch, as training wrote it."""
    lines = map(json.loads, (folder / "trainings" / training / "metrics.jsonl").read_text().splitlines())
    return {x["epoch"]: x["validation_nll"] for x in lines if x["kind"] == "epoch" and x["member"] == member}


def test_repetitions_are_groups_of_members_at_the_epoch_that_validation_chose(folder: Path) -> None:
    chosen = {row.slug: [text.split(", ") for text in row.chosen] for row in read_index(folder).answered}
    for r in range(SEEDS):
        of = range(r * MEMBERS, (r + 1) * MEMBERS)
        best = {member: min(nll, key=nll.__getitem__) for member in of for nll in [validation(folder, "plain", member)]}
        # The same passes in a stack of another size, rounded to float32.
        epoch = int(chosen["ensemble"][r][0].split()[1])
        ours = answers(folder, "ensemble", r)
        np.testing.assert_allclose(ours.log_probs, of_members(folder, "plain", epoch).log_probs[list(of)], atol=2**-16)
        assert ours.members == tuple(of)
        assert chosen["at-the-end"][r] == ["epoch 2"]
        end = answers(folder, "at-the-end", r).log_probs
        np.testing.assert_allclose(end, of_members(folder, "plain", 2).log_probs[list(of)], atol=2**-16)
        assert chosen["single"][r] == [f"epoch {best[of[0]]}"]
        single = of_members(folder, "plain", best[of[0]]).log_probs[of[0]]
        np.testing.assert_allclose(answers(folder, "single", r).log_probs[0], single, atol=2**-16)
        # Each at its own epoch.
        assert chosen["each-tuned"][r] == f"epochs {', '.join(str(best[member]) for member in of)}".split(", ")
        for row, member in enumerate(of):
            own = of_members(folder, "plain", best[member]).log_probs[member]
            np.testing.assert_allclose(answers(folder, "each-tuned", r).log_probs[row], own, atol=2**-16)
    # Methods of one member take the first of each repetition, so that seeds are paired; only those are trained.
    for training, members in {"plain": range(SEEDS * MEMBERS), "prior": (0, MEMBERS), "dropout": (0, MEMBERS)}.items():
        folders = sorted((folder / "trainings" / training / "members").iterdir())
        assert [int(path.name) for path in folders] == list(members)
    # Members that are driven apart are so within their own repetition.
    repelled = sorted((folder / "trainings").glob("repelled-replicate-*"))
    assert [len(list((run / "members").iterdir())) for run in repelled] == [MEMBERS] * SEEDS
    assert answers(folder, "repelled", 0).members == answers(folder, "repelled", 1).members == tuple(range(MEMBERS))
    assert np.abs(answers(folder, "repelled", 0).probs - answers(folder, "repelled", 1).probs).max() > 1e-3


def test_costs_are_relative_to_one_member(folder: Path) -> None:
    cost = {row.slug: row for row in read_index(folder).answered}
    single = cost["single"]
    for slug, times in {"ensemble": MEMBERS, "map": 1, "dropout": 1}.items():
        # Members read the same questions; what their questions have in common depends on the batch.
        assert cost[slug].training_tokens == pytest.approx(times * single.training_tokens, rel=0.2)
    assert cost["at-the-end"].training_tokens < cost["ensemble"].training_tokens  # nothing is chosen
    assert cost["checkpoints"].training_tokens == cost["at-the-end"].training_tokens  # nor here: it takes both epochs
    assert cost["best"].training_tokens >= cost["ensemble"].training_tokens
    assert cost["laplace"].training_tokens > single.training_tokens
    assert cost["tfb"].training_tokens > single.training_tokens
    for slug, times in {"ensemble": 2, "best": 1, "checkpoints": 4, "dropout": 2, "tfb": 2}.items():
        assert cost[slug].evaluation_tokens == pytest.approx(times * single.evaluation_tokens, rel=0.2)
        assert cost[slug].stored_bytes == pytest.approx(
            times * single.stored_bytes if slug in ("ensemble", "checkpoints") else single.stored_bytes, rel=0.01
        )
    assert cost["laplace"].stored_bytes > single.stored_bytes
    assert cost["variational"].stored_bytes > 1.2 * single.stored_bytes


def test_what_the_base_makes_of_the_prompts_is_kept_beside_the_answers(config: Path, folder: Path) -> None:
    """As `ripieno evaluate` keeps it for one of the runs: the base is the same, whatever was trained over it."""
    index = read_index(folder)
    found = read(folder).features
    assert set(found) == {*index.test, *index.out_of_domain, *index.train}
    run = folder / "trainings" / "plain"
    works("evaluate", run)
    files = {of.name: of for of in map(read_features, (run / "features").rglob("*.parquet"))}
    assert set(files) == set(found)
    for name, of in files.items():
        assert of.question_ids == found[name].question_ids
        np.testing.assert_array_equal(of.prompt_tokens, found[name].prompt_tokens)
        np.testing.assert_allclose(of.hidden, found[name].hidden, atol=2**-16)  # float32, in passes of other sizes
    said = works("compare", folder)
    assert re.search(r"Told apart without any answer: prompt length \d.\d\d, .*, base's hidden state \d.\d\d", said)


def test_started_again_it_computes_nothing_and_what_is_lost_is_asked_again(config: Path, folder: Path) -> None:
    before, made = files_of(folder / "predictions"), files_of(folder / "features")
    works("compare", config, "--run", folder)
    assert (files_of(folder / "predictions"), files_of(folder / "features")) == (before, made)
    lost = folder / "predictions" / "laplace"
    for file in lost.iterdir():
        file.unlink()
    works("compare", config, "--run", folder)
    after = files_of(folder / "predictions")
    assert {name: content for name, (_, content) in after.items()} == {n: c for n, (_, c) in before.items()}
    assert [name for name in after if after[name][0] != before[name][0]] == [n for n in before if "laplace/" in n]


def test_the_table_is_made_again_from_the_folder_without_torch(folder: Path) -> None:
    table = folder / "report" / "table.csv"
    before, page = table.read_text(), (folder / "report" / "index.html").read_bytes()
    table.unlink()
    code = "import sys; sys.modules['torch'] = None; from ripieno.cli import main; sys.argv[0] = 'ripieno'; main()"
    done = subprocess.run([sys.executable, "-c", code, "compare", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert table.read_text() == before
    assert (folder / "report" / "index.html").read_bytes() == page
    assert "ensemble" in done.stdout


def test_validation_chooses_among_trials(base: Path, tmp_path: Path) -> None:
    trainings = {"slow": {"training.learning_rate": 1e-6}, "fast": {"training.learning_rate": 0.02}}
    two = [
        {"name": "single", "method": "single", "training": ["slow", "fast"]},
        {
            "name": "laplace",
            "method": "laplace",
            "draws": 1,
            "training": ["fast"],
            "tune": {"prior_precision": [1e-6, 1e8]},
        },
    ]
    config = write(tmp_path, base, seeds=1, trainings=trainings, rows=two)
    works("compare", config, "--run", tmp_path / "run")
    single, laplace = read_index(tmp_path / "run").rows
    nll = {name: validation(tmp_path / "run", name, 0) for name in trainings}
    [best] = [name for name in trainings if min(nll[name].values()) == min(min(of.values()) for of in nll.values())]
    assert single.chosen == (f"epoch {min(nll[best], key=nll[best].__getitem__)}, {best}",)
    # With so strong a prior nothing moves; with so weak a one every answer is as good as a guess.
    assert "prior_precision 100000000.0" in laplace.chosen[0]
    # Both ways of training count: what was tried has to be paid for.
    lines = [json.loads(line) for name in trainings for line in
             (tmp_path / "run" / "trainings" / name / "timing.jsonl").read_text().splitlines()]  # fmt: skip
    assert single.training_tokens > sum(line["tokens"] for line in lines if line["what"] == "train")


def test_another_comparison_is_not_mixed_in(config: Path, folder: Path, tmp_path: Path) -> None:
    done = ripieno("compare", config, "--run", folder, "--set", "seeds=3")
    assert (done.code, "holds another comparison; what differs: seeds" in done.err) == (2, True)
    done = ripieno("compare", folder, "--run", tmp_path)
    assert (done.code, "is a folder, whose table is made again as it is" in done.err) == (2, True)


def test_rows_come_and_go_and_a_failed_training_costs_its_own_rows_alone(base: Path, tmp_path: Path) -> None:
    repelling = write_rows(tmp_path / "more.jsonl", rows(6, 9))
    trainings = {
        "plain": {},
        "bursting": {"training.learning_rate": 1e30, "training.clip": None},
        "repelled": {"training.repulsion": {"questions": [repelling], "weight": 5}},
    }
    first = {"name": "driven apart, one", "method": "single", "training": ["repelled"]}
    one = {"rows": [first, ROWS[0]], "trainings": trainings}
    works("compare", write(tmp_path, base, **one), "--run", tmp_path / "run")
    before = files_of(tmp_path / "run" / "predictions")
    more = [ROWS[4], {"name": "burst", "method": "single", "training": ["bursting"]}]
    said = works(
        "compare", write(tmp_path, base, rows=[ROWS[0], *more], trainings=trainings), "--run", tmp_path / "run"
    )
    after = files_of(tmp_path / "run" / "predictions")
    assert {name: content for name, content in after.items() if name in before} == before
    index = read_index(tmp_path / "run")
    assert [row.name for row in index.answered] == ["single", "ensemble"]
    assert "burst: not to be had" in said
    assert len(list((tmp_path / "run" / "trainings" / "plain" / "members").iterdir())) == SEEDS * MEMBERS
