"""What a run's files say of how they were made, and the hash by which they are known to be still right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ripieno.config import Config
from ripieno.data.prompts import TEMPLATES
from ripieno.data.question import Question, questions_to_parquet
from ripieno.runs import RunFolder, sha256_of


def metadata(run: RunFolder, config: Config) -> dict[str, Any]:
    """Return what the metadata of predictions, tokens and features say alike."""
    template = TEMPLATES[config.prompt.template]
    rule = {"normalisation": config.prompt.normalisation, "terminator": config.prompt.terminator}
    return {
        "config_hash": config.hash(),
        "base": {"model": config.base.model, "sha256": run.manifest()["base_sha256"]},
        "template": {"name": template.name, "version": template.version},
        "scoring": {"rule": "letters"} if template.letters else {"rule": "text", **rule},
    }


def inputs(
    run: RunFolder, how: Sequence[Any], questions: Sequence[Question], members: Mapping[int, int] | None = None
) -> str:
    """Return a sha256 of all that decides a file: the base, how it is asked, what, and by which adapters.

    Args:
        run: whose base and adapters.
        how: JSON of the parts of the config that matter.
        questions: that are asked.
        members: member -> the epoch of its adapter; none for the base alone.
    """
    adapters = {member: sha256_of(run.adapter_files(member, at)[1]) for member, at in (members or {}).items()}
    asked = hashlib.sha256(questions_to_parquet(questions)).hexdigest()
    content = [run.manifest()["base_sha256"], how, adapters, asked]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
