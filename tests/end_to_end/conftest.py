from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_bars() -> None:
    """The command line turns the library's own bars off by its environment, which must be set before its import."""
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as a user's folder."""
    from families import save_tiny

    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")
