"""What benchmarks/README.md says is what benchmarks/results.json holds, and that is what the contract asks for.

And what larger bases need on paper is what a closed form has.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CONTRACT = {"name", "ours", "theirs", "ratio", "ratio_low", "ratio_high", "unit", "machine", "versions"}


def test_results_are_as_the_contract_has_them() -> None:
    results = json.loads((BENCHMARKS / "results.json").read_text(encoding="utf-8"))
    assert len({line["name"] for line in results}) == len(results) > 0
    for line in results:
        assert set(line) >= CONTRACT
        assert 0 < line["ratio_low"] <= line["ratio"] <= line["ratio_high"]
        assert not line["quick"], f"{line['name']}: quick results are no results"


def test_the_table_is_that_of_the_results() -> None:
    done = subprocess.run([sys.executable, BENCHMARKS / "table.py", "--check"], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_what_a_pass_keeps_on_paper_is_a_sum_over_its_layers() -> None:
    spec = importlib.util.spec_from_file_location("on_paper", BENCHMARKS / "on_paper.py")
    assert spec
    assert spec.loader
    on_paper = importlib.util.module_from_spec(spec)
    sys.modules["on_paper"] = on_paper  # where dataclasses look for it
    spec.loader.exec_module(on_paper)
    h, inside, kv, V, r = 512, 1408, 128, 32000, 8
    shape = {"hidden_size": h, "intermediate_size": inside, "num_attention_heads": 4, "num_key_value_heads": 1}
    few, more = (on_paper.needs(shape | {"num_hidden_layers": L}) for L in (2, 5))
    assert few.parameters == 2 * V * h + h + 2 * (2 * h * h + 2 * h * kv + 3 * h * inside + 2 * h)
    assert few.adapter == 4 * 2 * r * (h + h + h + kv)
    # A token and layer: both norms keep their input and one number, two adapters theirs and A x, in float32; the
    # attention q, k, v and its output, the MLP its gate before and after the activation and what that is multiplied by,
    # in bfloat16.
    layer = 2 * 4 * (h + 1) + 2 * 4 * (h + r) + 2 * (h + 2 * kv + h) + 3 * 2 * inside
    assert more.token - few.token == pytest.approx(3 * layer)
