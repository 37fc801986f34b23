"""What benchmarks/README.md says is what benchmarks/results.json holds, and that is what the contract asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
