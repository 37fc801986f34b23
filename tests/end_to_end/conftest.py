import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny models are slower on several threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_bars() -> None:
    """The command line turns the library's own bars off by its environment, which must be set before its import."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer keeps in RIPIENO_DATA must not decide where these tests read."""
    monkeypatch.delenv("RIPIENO_DATA", raising=False)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder."""
    from families import save_tiny

    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def released() -> Path:
    """The folder with the originally released files, beside the checkout (RIPIENO_TEST_DATA: elsewhere)."""
    beside = Path(__file__).resolve().parents[2] / "../shared/data"
    folder = Path(os.environ.get("RIPIENO_TEST_DATA") or beside).resolve()
    if not folder.is_dir():
        pytest.skip(f"the released data files are not in {folder}")
    return folder
