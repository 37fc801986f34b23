"""`ripieno analyze` on other programs' files: what it prints, without torch, and what it says of a wrong one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ripieno, works
from synthetic import answers

from ripieno.parquet import to_parquet

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "analysis.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three members' answers in domain (5 choices) and out of it (4), as parquet and npz."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, seed, sizes in (("home", 0, (5,)), ("away", 1, (4,))):
        p = answers(f"{name}/test", seed=seed, n=60, sizes=sizes)
        found[name] = folder / f"{name}.parquet"
        found[name].write_bytes(to_parquet(p))
        np.savez(folder / f"{name}.npz", probs=p.probs, targets=p.targets)
    return found | {"npz": folder / "home.npz"}


def rows_of(text: str) -> list[dict[str, Any]]:
    def no_constant(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    rows: list[dict[str, Any]] = json.loads(text, parse_constant=no_constant)["rows"]
    return rows


def test_sets_out_of_domain_are_told_apart_as_they_are_and_k_matched(files: dict[str, Path]) -> None:
    rows = rows_of(works("analyze", files["home"], "--ood", files["away"], "--json"))
    found = {(r["variant"], r["measure"]): r for r in rows if r["against"] == "home/test"}
    assert {r["dataset"] for r in found.values()} == {"away"}
    # Fewer choices have less entropy, whatever the questions; with as many in both that is gone.
    assert found[None, "ood_auroc_choices"]["value"] == 0.0
    assert found["k_matched", "ood_auroc_choices"]["value"] == 0.5
    assert found[None, "ood_auroc_entropy"]["value"] < found["k_matched", "ood_auroc_entropy"]["value"]
    assert found["k_matched", "ood_auroc_entropy"]["low"] < found["k_matched", "ood_auroc_entropy"]["high"]
    assert "evaluate" in found["k_matched", "ood_auroc_perplexity"]["reason"]


def test_npz_needs_its_axes_and_then_measures_the_same(files: dict[str, Path]) -> None:
    done = ripieno("analyze", files["npz"])
    assert done.code == 2
    assert "--axes" in done.err
    from_npz = rows_of(works("analyze", files["npz"], "--axes", "mnk", "--json"))
    from_parquet = rows_of(works("analyze", files["home"], "--json"))
    values = [{(r["who"], r["pooling"], r["measure"]): r["value"] for r in rows} for rows in (from_npz, from_parquet)]
    assert values[0].keys() == values[1].keys()
    for key, value in values[0].items():
        # The parquet file holds float32 log-probabilities: 2^-24 of themselves off, and they are at most ~20.
        if key[2] not in ("ece", "adaptive_ece", "smooth_ece"):  # which bin holds a question may hang on that
            assert value == pytest.approx(values[1][key], abs=1e-5), key


def test_costs_and_bins_and_labels(files: dict[str, Path]) -> None:
    options = ("--cost-error", "5", "--cost-handover", "1", "--bins", "10", "--labels", "a,b,c,d,e")
    names = {r["measure"] for r in rows_of(works("analyze", files["home"], "--json", *options))}
    assert {"decision_threshold_confidence", "decision_saving_mi", "macro_f1", "recall_c"} <= names


def test_any_two_rows_are_compared_by_a_paired_test(files: dict[str, Path]) -> None:
    said = works("analyze", files["home"], "--pair", "ensemble:0,ensemble:1", "--pair", "ensemble:2,ensemble")
    assert "nll: ensemble:0 less ensemble:1 " in said
    assert "nll: ensemble:2 less ensemble " in said
    done = ripieno("analyze", files["home"], "--pair", "ensemble@9,ensemble")
    assert done.code == 2
    assert done.err == "ripieno: --pair 'ensemble@9': there is no such row; there are ensemble@2\n"


def test_for_people_it_prints_a_table(files: dict[str, Path]) -> None:
    said = works("analyze", files["home"], "--ood", files["away"])
    assert "nan" not in said
    assert "None" not in said
    assert said.count("home/test · ensemble epoch 2 · ensemble\n") == 1
    assert "against home/test" in said


def test_it_runs_where_torch_is_not_installed(files: dict[str, Path]) -> None:
    """An import of torch, transformers or peft fails in this process, as on a laptop without them."""
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft', 'tokenizers'): sys.modules[name] = None\n"
        f"sys.argv = ['ripieno', 'analyze', {str(files['home'])!r}, '--json']\n"
        "from ripieno.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert rows_of(done.stdout)


def test_five_thousand_questions_take_half_of_what_the_benchmark_allows_twice_as_many() -> None:
    """On one core; every part of it grows with the questions, so the benchmark's own size stays within its limits."""
    command = [sys.executable, BENCHMARK, "--questions", "5000"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["seconds"] < 60 / 2, found
    assert found["mebibytes"] < 1024 / 2, found
