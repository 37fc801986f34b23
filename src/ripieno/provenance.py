"""What a run's files say of how they were made, and the hash by which they are known to be still right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

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


def header(file: Path) -> dict[str, Any]:
    """Return what a parquet file of the run says of itself."""
    said: dict[str, Any] = json.loads(pq.read_schema(file).metadata[b"ripieno"])
    return said


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


def inputs_of_prompts(run: RunFolder, config: Config, questions: Sequence[Question], members: Mapping[int, int]) -> str:
    """Return `inputs` of questions that members read by the config's prompt, as long as evaluation lets them be."""
    parts = [config.adapter.model_dump(mode="json"), config.prompt.model_dump(mode="json")]
    how = [config.base.dtype, *parts, config.evaluation.max_tokens, config.evaluation.too_long]
    return inputs(run, how, questions, members)
