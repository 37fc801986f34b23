"""Every shipped config runs as it is, with a tiny model in its base's place and a few questions a set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import works

from ripieno import comparison_config, methods
from ripieno.config import load as load_config
from ripieno.data import splits
from ripieno.data.question import Question
from ripieno.data.splits import DatasetName
from ripieno.parquet import read_parquet
from ripieno.runs import RunFolder

ROOT = Path(__file__).resolve().parents[2]
COMPARED = sorted((ROOT / "configs").glob("compare-*.yaml"))
BENCHMARK = sorted((ROOT / "configs").glob("benchmark-*.yaml"))
SHIPPED = sorted(set((ROOT / "configs").glob("*.yaml")) - {*COMPARED, *BENCHMARK})
# Of those that differ in their questions alone (tests/test_configs.py), one whose questions were all released as files.
RUN = [ROOT / "configs" / f"{name}-openbookqa.yaml" for name in ("compare", "benchmark")]
RUN += [path for path in COMPARED if path.stem not in ("compare-openbookqa", "compare-arc-easy")]
FEW = 5


def other_but_for_the_base(paths: list[Path]) -> list[Path]:
    """Return the first of those that are the same but for their name and their base, for which a tiny one stands in."""
    found: dict[str, Path] = {}
    for path in paths:
        config = load_config(path)
        base = config.base.model_copy(update={"model": "", "revision": None})
        found.setdefault(config.model_copy(update={"name": "", "base": base}).to_yaml(), path)
    return list(found.values())


@pytest.fixture(scope="module")
def few_questions() -> Iterator[None]:
    """Cut every set to its shortest questions: the tiny tokenizer makes three times as many tokens of a text."""
    load = splits.load

    @cache  # the configs name the same sets, and each command reads all of its config's
    def cut(*arguments: Any, **options: Any) -> splits.Loaded:
        loaded = load(*arguments, **options)
        return replace(loaded, questions=sorted(loaded.questions, key=length)[:FEW])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "load", cut)
        yield


def length(question: Question) -> tuple[int, str]:
    return len(question.question + "".join(question.choices)), question.id


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_comparison_runs(
    path: Path, base: Path, tmp_path: Path, few_questions: None, request: pytest.FixtureRequest
) -> None:
    packaged = path.stem == "compare-demo"
    data = [] if packaged else ["--data-dir", request.getfixturevalue("released")]
    seeds = 2 if packaged else 1
    settings = [f"base.model={base}", "base.revision=null", f"seeds={seeds}", "training.members=2", "training.epochs=2"]
    given = [part for setting in settings for part in ("--set", setting)]
    said = works("compare", path, "--run", tmp_path / "compared", *data, *given)
    config = comparison_config.load(path)
    for row in config.rows:
        assert row.name[:20] in said
    assert "not to be had" not in said


@pytest.mark.parametrize("path", BENCHMARK, ids=lambda path: path.stem)
def test_benchmark_refuses_no_row(path: Path) -> None:
    config = comparison_config.load(path)
    for row in config.rows:
        for training, settings in row.trials:
            experiment = config.experiment(training, config.training.members)
            count = row.draws or config.training.members
            assert methods.named(row.method, settings).refusal(experiment, config.training.epochs, count) is None


@pytest.mark.parametrize("path", other_but_for_the_base(SHIPPED), ids=lambda path: path.stem)
def test_config_runs(
    path: Path, base: Path, tmp_path: Path, few_questions: None, request: pytest.FixtureRequest
) -> None:
    data = ["--data-dir", request.getfixturevalue("released")] if path.stem.startswith("paper-") else []
    settings = [f"base.model={base}", "base.revision=null", "training.members=2", "training.epochs=1"]
    works("train", path, "--run", tmp_path, *data, *(part for setting in settings for part in ("--set", setting)))
    works("evaluate", tmp_path)  # whose questions the run holds itself
    said = works("analyze", tmp_path)
    run = RunFolder(tmp_path)
    config = run.config()
    assert config.name == path.stem
    for name in map(DatasetName.parse, (*config.data.test, *config.data.out_of_domain)):
        for method, epoch, members in (("base", 0, (0,)), ("ensemble", 1, (0, 1))):
            [p] = read_parquet(run.predictions(name.folder, name.file, method, epoch))
            assert p.members == members
            assert 1 <= len(p.question_ids) <= FEW
            np.testing.assert_allclose(p.probs.sum(-1), 1, atol=1e-6)
            assert (p.letter_log_probs is not None) == config.evaluation.fixed_letters
        assert f"{name.dataset}/{name.split}" in said
    if config.data.calibration:
        assert "ensemble: T = " in works("calibrate", tmp_path)
