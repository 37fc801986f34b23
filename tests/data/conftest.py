import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer keeps in RIPIENO_DATA must not decide where these tests read."""
    monkeypatch.delenv("RIPIENO_DATA", raising=False)


@pytest.fixture(scope="session")
def released() -> Path:
    """The folder with the originally released files, beside the checkout (RIPIENO_TEST_DATA: elsewhere)."""
    beside = Path(__file__).resolve().parents[2] / "../shared/data"
    folder = Path(os.environ.get("RIPIENO_TEST_DATA") or beside).resolve()
    if not folder.is_dir():
        pytest.skip(f"the released data files are not in {folder}")
    return folder
