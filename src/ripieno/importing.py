"""A run of adapters that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ripieno import config as configs
from ripieno.config import Config
from ripieno.ensemble import assemble, device_of
from ripieno.errors import UserError
from ripieno.experiment import assign_roles, resolve, start_run
from ripieno.model import backbone as backbones
from ripieno.model.adapters import locate, read_base, read_peft_config
from ripieno.runs import RunFolder


def import_adapters(
    config: Config | Path | str,
    sources: Sequence[str | Path],
    path: Path | None = None,
    *,
    data_dir: Path | None = None,
) -> RunFolder:
    """Make a run whose members are PEFT's LoRA adapters, as if it had trained them for one epoch.

    Args:
        config: an experiment, or the YAML file of one: its base, prompt and questions count. What `adapter` says comes
            from the folders; `training.members` is how many there are, `training.epochs` 1. `data.train` names what
            they were trained on, as far as it is at hand: no other role may ask any of it.
        sources: one a member: PEFT folders, or ids on the Hugging Face hub, as `Ensemble.load` takes them.
        path: the run folder, runs/NAME by default.
        data_dir: a folder with originally released data files.

    Raises:
        UserError: the adapters are not plain LoRA of one shape and of the config's base, the folder holds a run, or a
            question that they were trained on is in another role.
        EnvironmentFault: a file is missing or damaged.
    """
    config = config if isinstance(config, Config) else configs.load(config)
    run = RunFolder(Path(path or f"runs/{config.name}"))
    folders = [locate(source) for source in sources]
    for folder in folders:
        name, _ = read_base(folder)
        if name != config.base.model:
            raise UserError(
                f"{folder}: is an adapter of {name!r}, and the config's base.model is {config.base.model!r}; name that "
                "base there, or leave the adapter out"
            )
    # Nothing drove these members apart, and a single one could not be.
    training = config.training.model_copy(update={"members": len(folders), "epochs": 1, "repulsion": None})
    config = config.model_copy(update={"adapter": read_peft_config(folders[0]), "training": training})
    if (run.path / "config.yaml").exists() or "config.yaml" in run.recorded():
        raise UserError(f"{run.path}: holds a run already; choose another folder with --run")
    with run.lock(range(len(folders))):
        roles = assign_roles(config, data_dir)
        # Where a run trains its own members such questions are left out of the training; these have seen them.
        if seen := [drop for drop in roles.drops if drop.role == "train"]:
            raise UserError(
                f"data.train: {len(seen)} questions that the adapters were trained on are in data.{seen[0].also_in} "
                f"too, the first is {seen[0].id!r}; take them out there"
            )
        backbone = backbones.load(config.base, device_of(config.compute))
        config = resolve(config, backbone)
        ensemble = assemble(config, backbone, range(len(folders)), data_dir)
        for position, folder in enumerate(folders):
            ensemble.stack.load_peft(position, folder)  # all of them, before anything is written
        # Manifest and config last: an import that was cut short is no run yet, and can be started again.
        for position in range(len(folders)):
            content = ensemble.stack.to_peft(position, config.base.model, backbone.identity["revision"])
            config_file, weights_file = run.adapter_files(position, 1)
            run.write(config_file, content[0])
            run.write(weights_file, content[1])
        dropped: dict[str, list[str]] = {"train": [], "validation": []}
        start_run(run, config, backbone, roles, ensemble.encoder.pool, dropped, read=None)
    return run
