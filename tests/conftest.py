"""What every test needs: one thread, no data folder of the developer's own, and the released files where they are."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import settings

TORTURE = os.environ.get("RIPIENO_TORTURE") == "1"  # many faults in place of a few, and a table of them
# A busy machine is no failure: how long one example takes is not what these tests are about.
settings.register_profile("ripieno", deadline=None)
settings.register_profile("torture", deadline=None)  # tests/fuzz draws many more files under it
settings.load_profile("torture" if TORTURE else "ripieno")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models are slower on several threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer keeps in RIPIENO_DATA must not decide where these tests read."""
    monkeypatch.delenv("RIPIENO_DATA", raising=False)


@pytest.fixture(scope="session")
def released() -> Path:
    """The folder with the originally released files, beside the checkout (RIPIENO_TEST_DATA: elsewhere)."""
    beside = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("RIPIENO_TEST_DATA") or beside).resolve()
    if not folder.is_dir():
        pytest.skip(f"the released data files are not in {folder}")
    return folder


# ---- the table of `make torture` --------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each report say which fault its test tried, from whatever process it comes."""
    for item in items:
        item.user_properties += [("fault", mark.args[0]) for mark in item.iter_markers("fault")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which faults were tried, and how often nothing was lost."""
    if not TORTURE:
        return
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if "fault" in told:
                counts.setdefault(told["fault"], Counter())[outcome] += told.get("tried", 1)
    terminalreporter.section("faults")
    terminalreporter.write_line(f"{'':<50}{'tried':>8}{'survived':>10}{'lost':>6}")
    for fault, of in sorted(counts.items()):
        lost, skipped = of["failed"] + of["error"], f"  ({of['skipped']} skipped)" if of["skipped"] else ""
        terminalreporter.write_line(f"{fault:<50}{of['passed'] + lost:>8}{of['passed']:>10}{lost:>6}{skipped}")
