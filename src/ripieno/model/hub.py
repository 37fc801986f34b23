"""Files of the Hugging Face hub, kept in its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ripieno.errors import UserError


def snapshot(what: str, repository: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Return the folder with a repository's files, downloaded the first time; its name is the commit.

    Args:
        what: how errors name what was asked for.
        repository: ORGANISATION/NAME.
        patterns: of the files that are wanted.
        revision: a branch, tag or commit; the default branch where None.

    Raises:
        UserError: the hub has no such repository, or cannot be reached and the cache does not hold it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{what}: no folder here, and not on the hub ({why}); check the name and the network"
        ) from error
