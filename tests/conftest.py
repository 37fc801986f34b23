"""What every test needs: one thread, no data folder of the developer's own, and the released files where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A busy machine is no failure: how long one example takes is not what these tests are about.
settings.register_profile("ripieno", deadline=None)
settings.load_profile("ripieno")


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
