"""A run that goes on from another one's checkpoints, under a config which that one was not started with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ripieno.config import Config, differences
from ripieno.errors import UserError
from ripieno.runs import FORKED, IMPORTED, RunFolder, stopped_members
from ripieno.training.checkpoints import files_until

# What a member's state, or what it has seen, belongs to: with another one it could not go on, or not be asked.
FIXED = (
    "base.", "adapter.", "training.batch_size", "training.seed", "training.init_scale", "training.variational",
    "training.repulsion",
)  # fmt: skip
ASKED = ("prompt.", "evaluation.")  # by which validation losses of before compare with those to come


def was_cut_short(run: RunFolder) -> bool:
    """Whether a fork into this folder has begun, and not ended."""
    return FORKED in run.recorded() and not _is_run(run)


@contextmanager
def fork(source: RunFolder, run: RunFolder, config: Config, identity: Mapping[str, str]) -> Iterator[None]:
    """Copy what the members of a run have done so far into a folder where they go on.

    The folder becomes a run inside the block.

    A member that had stopped is tried again. Nothing is copied where the folder is a run already.

    Args:
        source: the run.
        run: the new one.
        config: the new one's, resolved; it may have more members, or fewer.
        identity: the new one's `base_sha256`, and sha256 of what it trains and validates on, as in a manifest.

    Raises:
        UserError: there is no such run, its members were imported, or cannot go on under that config.
        EnvironmentFault: another process trains the members, or a file is damaged or cannot be written.
    """
    if source.path.resolve() == run.path.resolve():
        raise UserError(f"--fork {run.path}: is the run itself; name a new folder")
    old, manifest = source.config(), source.manifest()
    if _is_run(run):
        yield
        return
    if manifest["members"] == IMPORTED:
        raise UserError(f"--fork: the members of {source.path} were imported, and cannot go on; train anew with --run")
    differing = differences(old, config)
    other = [line for line in differing if line.startswith(FIXED)]
    for key in ("base_sha256", "trained_on_sha256"):
        if manifest[key] != identity[key]:
            other.append(f"{key}: {manifest[key]} | {identity[key]}")
    if other:
        raise UserError(
            f"--fork: the members of {source.path} cannot go on with another base, adapter, batch size, seed, "
            f"repulsion or training questions; what differs (there | now): {'; '.join(other)}. Train anew with --run"
        )
    members, epochs = range(min(old.training.members, config.training.members)), config.training.epochs
    comparable = manifest["validated_on_sha256"] == identity["validated_on_sha256"]
    comparable &= not any(line.startswith(ASKED) for line in differing)
    if config.training.repulsion and (config.training.members > len(members) or stopped_members(source)):
        raise UserError(
            f"--fork: with training.repulsion members go on together, and not all of {source.path} can; "
            "train anew with --run"
        )
    with run.alone(), source.lock(members):  # of several processes that fork at once, the first does it
        if not _is_run(run):
            for name in [name for name in run.recorded() if name.startswith(("members/", "resume/"))]:
                run.remove(run.path / name)  # of another fork into this folder, that was cut short
            facts = {"path": str(source.path), "config_hash": manifest["config_hash"], "differing": differing}
            run.write(run.path / FORKED, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
            for member in members:
                for file in files_until(source, member, epochs):
                    run.write(run.path / file.relative_to(source.path), file.read_bytes())
            kinds = ("step", "epoch") if comparable else ("step",)
            _copy_lines(source, run, "metrics.jsonl", lambda x: x["kind"] in kinds and x["member"] in members)
            _copy_lines(
                source,
                run,
                "timing.jsonl",
                lambda x: x["what"] == "train" and x["epoch"] <= epochs and not set(members).isdisjoint(x["members"]),
            )
        yield


def _is_run(run: RunFolder) -> bool:
    return not {"manifest.json", "config.yaml"}.isdisjoint(run.recorded())


def _copy_lines(source: RunFolder, run: RunFolder, name: str, kept: Callable[[dict[str, Any]], bool]) -> None:
    if lines := [line for line in source.lines(name) if kept(line)]:
        run.arrange(name, lambda _: lines)
        run.seal(name)
