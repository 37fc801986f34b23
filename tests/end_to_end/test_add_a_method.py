"""The method that docs/add-a-method.md adds does what that page says, by the commands that it shows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from commands import ripieno, rows, works, write_config, write_rows
from sampled import saved, stored, trained

import pages
from ripieno import Ensemble, methods
from ripieno.comparison import read, read_index
from ripieno.data.question import read_questions
from ripieno.runs import RunFolder

EPOCHS, DRAWS, MEMBER = 2, 4, 0
LABEL = f"swag-epoch-{EPOCHS:03d}"


def blocks(language: str) -> list[str]:
    return [block.code for block in pages.blocks("docs/add-a-method.md", language)]


@pytest.fixture(scope="module", autouse=True)
def _method(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The page's file, as if it stood in methods/."""
    folder, [code] = tmp_path_factory.mktemp("methods"), blocks("python")
    assert code.count("\n") <= 45
    (folder / "swag.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
        yield
    sys.modules.pop("ripieno.methods.swag", None)
    vars(methods).pop("swag", None)


@pytest.fixture(scope="module")
def home(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's run and its config of a comparison."""
    home, counts = tmp_path_factory.mktemp("home"), {"train": 12, "validation": 6, "calibration": 6, "test": 8}
    data = {role: [write_rows(home / f"{role}.jsonl", rows(n, i))] for i, (role, n) in enumerate(counts.items())}
    # Layers of these come in another order from a file, which sorts them.
    adapter = {"targets": ["q_proj", "k_proj"]}
    experiment = write_config(home, base, data, adapter=adapter, training={"epochs": EPOCHS})
    works("train", experiment, "--run", home / "runs/demo")
    shared = yaml.safe_load(experiment.read_text(encoding="utf-8"))
    comparison = {**shared, "name": "swag", "seeds": 1, **yaml.safe_load(blocks("yaml")[0])}
    (home / "swag.yaml").write_text(yaml.safe_dump(comparison), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """The run, after the commands of the page."""
    [asking, comparing] = blocks("console")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        first, refused, analyze, compare = [line.split() for line in (asking + comparing).splitlines()]
        works(*first[1:])
        done = ripieno(*refused[1:])
        assert (done.code, done.err) == (2, blocks("text")[0])
        assert " swag " in works(*analyze[1:])
        assert "swag" in works(*compare[1:])
    return home / "runs/demo"


def test_it_is_fitted_to_the_epochs_own_files(run: Path) -> None:
    [file] = (run / "fitted").glob("swag-*.safetensors")
    fitted = safetensors.torch.load_file(file)
    adapters = [
        safetensors.torch.load_file(RunFolder(run).adapter(MEMBER, epoch) / "adapter_model.safetensors")
        for epoch in range(1, EPOCHS + 1)
    ]
    assert len(fitted) == len(adapters[0])
    for key, (std, mean) in fitted.items():
        first, second = (of[f"base_model.model.{key[:-1]}lora_{key[-1]}.weight"] for of in adapters)
        torch.testing.assert_close(mean, (first + second) / 2)
        torch.testing.assert_close(std, (first - second).abs() / 2)  # of two values
    assert any(std.any() for std, _ in fitted.values())


def test_draws_differ_repeat_and_are_adapters_that_peft_reads(run: Path, tmp_path: Path) -> None:
    p = stored(run, LABEL)
    assert p.members == (MEMBER,) * DRAWS
    assert min(np.abs(p.probs[a] - p.probs[b]).max() for a in range(DRAWS) for b in range(a)) > 1e-5
    # From the fit as the run keeps it, and from a new one.
    [file] = (run / "fitted").glob("swag-*.safetensors")
    ensemble, method = Ensemble.load(run), methods.named("swag")
    of_run = trained(run, ensemble, MEMBER, EPOCHS)
    asked = ensemble.encode(read_questions(run.parents[1] / "test.jsonl"))
    for fitted in (method.fit(of_run), safetensors.torch.load_file(file)):
        # Stored answers were rounded to float32; these come from a stack of another size.
        answers = method.answer(of_run, fitted, asked, DRAWS)
        np.testing.assert_allclose(answers.log_probs, p.log_probs, atol=2**-16)
    for draw, _ in enumerate(method.draws(of_run, fitted, DRAWS)):
        again = saved(run, ensemble, tmp_path / str(draw)).answer(asked, [0])
        np.testing.assert_allclose(again.log_probs[0], p.log_probs[draw], atol=2**-16)


def test_of_one_epoch_every_draw_is_the_member(run: Path) -> None:
    works("evaluate", run)
    works("evaluate", run, "--method", "swag", "--setting", "last=1", "--draws", "2")
    drawn, own = stored(run, f"swag-last=1-epoch-{EPOCHS:03d}"), stored(run, f"ensemble-epoch-{EPOCHS:03d}")
    np.testing.assert_allclose(drawn.log_probs, np.repeat(own.log_probs[[MEMBER]], 2, axis=0), atol=2**-16)


def test_its_row_stands_in_the_comparison_with_its_costs(run: Path) -> None:
    folder = run.parent / "swag"
    cost = {row.slug: row for row in read_index(folder).answered}
    swag, single = cost["swag"], cost["single"]
    assert "mean deviation" in swag.chosen[0]
    assert (swag.answers, len(cost)) == (2, 3)
    assert swag.training_tokens <= single.training_tokens < cost["ensemble"].training_tokens  # of fewer epochs to try
    assert swag.stored_bytes > 2 * single.stored_bytes  # means and deviations
    p = read(folder).answers["swag"].sets[read_index(folder).test[0]][0]
    assert np.abs(p.probs[0] - p.probs[1]).max() > 1e-5
