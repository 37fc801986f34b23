"""Configs: what is written is what is read, nothing unknown passes, and the hash names what is computed."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from ripieno.config import Adapter, Config, FewShot, Repulsion, Variational, differences, in_turn, load, parse
from ripieno.errors import UserError

MINIMAL: dict[str, Any] = {"name": "tiny", "data": {"train": ["commonsense_qa/train"]}}
FULL: dict[str, Any] = {
    "name": "Full-1.0",
    "base": {"model": "a/b", "revision": "main", "dtype": "bfloat16", "trust_remote_code": True},
    "adapter": {"targets": ["q_proj", "o_proj"], "rank": 4, "alpha": 1.5, "dropout": 0.25, "rslora": True,
                "member_ranks": [4, 2], "member_targets": [["q_proj"], ["o_proj"]]},
    "prompt": {
        "template": "letters",
        "few_shot": {"dataset": "mmlu:all/dev", "count": 3, "same_subject": False},
        "normalisation": "sum",
        "terminator": "end_of_text",
    },
    "data": {
        "train": ["mmlu:stem/dev+validation[0%:50%]"],
        "validation": ["mmlu:stem/validation[50%:75%]"],
        "calibration": ["arc:easy/validation"],
        "certification": ["openbookqa/validation"],
        "test": ["mmlu:stem/test"],
        "out_of_domain": ["arc:challenge/test"],
        "labels": ["oui", "né", "no", "yes"],
        "seed": 7,
    },
    "training": {
        "members": 2, "seed": 3, "epochs": 4, "loss": "answer_token", "learning_rate": 5e-6, "schedule": "cosine",
        "warmup": 0.1, "batch_size": 2, "weight_decay": 0.01, "lora_l2": 1.0, "clip": None, "bagging": True,
        "variational": {"prior_std": 0.1, "initial_std": 0.01, "divergence_rate": 0.001},
        "shuffle_choices": True, "templates": ["paper", "letters"], "init_scale": 3.0,
        "repulsion": {"questions": ["arc:easy/train"], "weight": 0.5, "batch_size": 3},
        "patience": 2, "max_tokens": 128, "too_long": "drop", "save_every": 5,
    },
    "evaluation": {"max_tokens": 512, "too_long": "shorten_context", "fixed_letters": True, "store_top": "all"},
    "compute": {"device": "cpu", "members_per_pass": 1, "batch_tokens": 64, "threads": 1},
    "launch": {
        "on": "slurm", "workers": 2, "cpus": 4, "gpus": 0, "questions": 10, "retries": 1, "address": "auto",
        "storage": "memory://runs",
        "slurm": {"partition": "gpu", "account": "me", "time": "1:00:00", "memory": "4G",
                  "options": ["--exclusive"], "setup": ["module load cuda"]},
    },
    "track": "tensorboard",
}  # fmt: skip


def write(folder: Path, content: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def message(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        parse(content, "file.yaml")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("file.yaml: ")
    return text.removeprefix("file.yaml: ")


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return nested mappings with one dotted key set."""
    first, _, rest = key.partition(".")
    return {**content, first: changed(content.get(first, {}), rest, value) if rest else value}


# ---- in and out -------------------------------------------------------------------------------------------------


def test_on_no_and_yes_are_words(tmp_path: Path) -> None:
    """In YAML 1.1, which PyYAML reads, they are booleans; a switch may still be written with them."""
    text = "name: a\ndata: {train: [a.jsonl], labels: [no, yes, off]}\nlaunch: {on: ray}\ntraining: {bagging: yes}\n"
    config = load(write(tmp_path, text))
    assert (config.data.labels, config.launch.on, config.training.bagging) == (("no", "yes", "off"), "ray", True)
    assert load(write(tmp_path, config.to_yaml())) == config


@pytest.mark.parametrize("content", [MINIMAL, FULL], ids=["minimal", "full"])
def test_what_is_written_is_read_back(content: dict[str, Any], tmp_path: Path) -> None:
    config = parse(content)
    again = load(write(tmp_path, config.to_yaml()))
    assert again == config
    assert again.hash() == config.hash()
    assert again.to_yaml() == config.to_yaml()
    assert not differences(config, again)


def test_full_sets_every_key_to_another_value_than_its_default() -> None:
    """So that the test above sees every key there is."""
    defaults, full = dict(leaves(parse(MINIMAL))), dict(leaves(parse(FULL)))
    optional = {  # sections that are absent by default
        "prompt.few_shot": FewShot,
        "training.repulsion": Repulsion,
        "training.variational": Variational,
    }
    inside = {f"{section}.{key}" for section, kind in optional.items() for key in kind.model_fields}
    assert set(full) == {key for key in defaults if key not in optional} | inside
    same = [key for key in full if key in defaults and defaults[key] == full[key]]
    # Letters have one normalisation alone, and no score without their question.
    assert same == ["prompt.normalisation", "evaluation.unconditional"]


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_configs_are_frozen() -> None:
    config = parse(MINIMAL)
    with pytest.raises(ValidationError):
        config.training.epochs = 5


def test_every_field_outside_its_section_has_its_default_in_one_place() -> None:
    """An empty section and an absent one are the same."""
    for section in ("base", "adapter", "prompt", "training", "evaluation", "compute"):
        assert parse({**MINIMAL, section: {}}) == parse(MINIMAL)


def test_numbers_as_yaml_writes_them(tmp_path: Path) -> None:
    """YAML 1.1 reads 5e-6 as a text; a learning rate is a number all the same."""
    path = write(tmp_path, "name: tiny\ndata: {train: [commonsense_qa/train]}\ntraining: {learning_rate: 5e-6}\n")
    assert load(path).training.learning_rate == 5e-6


def test_lists_of_members_entries_are_taken_in_turn() -> None:
    assert [in_turn((8, 4, 2), member, 16) for member in range(5)] == [8, 4, 2, 8, 4]
    assert in_turn((), 3, 16) == 16


def test_adapter_scale() -> None:
    assert Adapter(rank=16, alpha=8).scale == 0.5
    assert Adapter(rank=16, alpha=8, rslora=True).scale == 2


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trainning", "training"),
        ("base.modle", "model"),
        ("adapter.ranks", "rank"),
        ("prompt.templates", "template"),
        ("prompt.few_shot.counts", "count"),
        ("data.out_of_domains", "out_of_domain"),
        ("training.learning_rates", "learning_rate"),
        ("training.repulsion.question", "questions"),
        ("evaluation.fixed_leters", "fixed_letters"),
        ("compute.batch_token", "batch_tokens"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    content = changed(FULL, key, 1)
    assert message(content) == f"unknown key {key}; did you mean {nearest}?"


def test_an_unknown_key_like_no_other_lists_those_there_are() -> None:
    text = message(changed(MINIMAL, "compute.zzz", 1))
    assert text == "unknown key compute.zzz; known: device, members_per_pass, batch_tokens, threads"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a/b"), ("name", ""), ("base.dtype", "float16"), ("adapter.rank", 0), ("adapter.alpha", 0),
        ("adapter.dropout", 1.0), ("adapter.targets", 3), ("prompt.template", "mine"), ("prompt.few_shot.count", 0),
        ("data.train", "commonsense_qa/train"), ("data.seed", 1.5), ("training.members", -1), ("training.epochs", "x"),
        ("training.learning_rate", 0), ("training.learning_rate", float("inf")), ("adapter.alpha", float("nan")),
        ("training.warmup", 1), ("training.clip", 0), ("training.loss", "mse"), ("training.too_long", "cut"),
        ("evaluation.store_top", 0), ("evaluation.store_top", "some"), ("compute.batch_tokens", 0),
        ("training.templates", "text"), ("training.init_scale", 0),
        ("training.repulsion.weight", 0), ("training.repulsion.batch_size", 0), ("training.repulsion.questions", []),
        ("adapter.member_ranks", 4), ("adapter.member_targets", "q_proj"),
        ("compute.members_per_pass", "all"), ("training", 3), ("training", None),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_in_one_line(key: str, value: Any) -> None:
    text = message(changed(FULL, key, value))
    assert text.startswith(f"{key}: {'null' if value is None else repr(value)} should be ")


@pytest.mark.parametrize(
    ("key", "content"), [("name", {"data": MINIMAL["data"]}), ("data.train", {"name": "a", "data": {}})]
)
def test_a_missing_key_is_named(key: str, content: dict[str, Any]) -> None:
    assert message(content) == f"{key} is missing"


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (changed(MINIMAL, "training.loss", "answer_token"), "training.loss: answer_token needs a letters template"),
        (
            changed(MINIMAL, "training.templates", ["text", "letters"]),
            "training.templates: letters is not of the kind of prompt.template text-listed, by which members are asked "
            "later; choose among text, text-listed",
        ),
        (changed(FULL, "training.templates", ["text"]), "training.templates: text is not of the kind of prompt.templ"),
        (changed(MINIMAL, "adapter.member_ranks", [8, 9]), "adapter.member_ranks: 9 is over adapter.rank 8"),
        (changed(FULL, "training.members", 1), "training.repulsion drives members apart; set training.members to 2"),
        (changed(MINIMAL, "training.patience", 1), "training.patience needs data.validation"),
        (changed(FULL, "prompt.normalisation", "byte"), "prompt.normalisation: a letter is one token"),
        (changed(MINIMAL, "evaluation.fixed_letters", True), "evaluation.fixed_letters and store_top need a letters"),
        (changed(MINIMAL, "evaluation.store_top", 3), "evaluation.fixed_letters and store_top need a letters"),
        (
            changed(changed(FULL, "evaluation", {}), "evaluation.unconditional", True),
            "evaluation.unconditional needs a text template",
        ),
    ],
)
def test_fields_that_do_not_go_together_say_so(content: dict[str, Any], begins: str) -> None:
    assert message(content).startswith(begins)


# ---- --set ------------------------------------------------------------------------------------------------------


def test_settings_are_yaml_values_under_dotted_keys(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    config = load(
        path,
        [
            "training.epochs=7", "training.bagging=true", "training.clip=null", "training.learning_rate=1e-3",
            "data.test=[arc:easy/test, 'arc:challenge/test[0%:50%]']", "base.model=../a=b", "name=other",
            "prompt.few_shot.dataset=mmlu:all/dev", "adapter.targets=[q_proj]", " training.seed =5",
        ],
    )  # fmt: skip
    assert (config.training.epochs, config.training.bagging, config.training.clip) == (7, True, None)
    assert (config.training.learning_rate, config.training.seed) == (1e-3, 5)
    assert config.data.test == ("arc:easy/test", "arc:challenge/test[0%:50%]")
    assert (config.base.model, config.name, config.adapter.targets) == ("../a=b", "other", ("q_proj",))
    assert config.prompt.few_shot == FewShot(dataset="mmlu:all/dev")
    assert load(path, ["training.epochs=7", "training.epochs=8"]).training.epochs == 8


def test_a_setting_begins_a_section_that_is_null(tmp_path: Path) -> None:
    """As each section that is left out is in a run's config.yaml."""
    resolved = load(write(tmp_path, MINIMAL)).to_yaml()
    assert "variational: null" in resolved
    config = load(write(tmp_path, resolved), ["training.variational.prior_std=0.5"])
    assert config.training.variational == Variational(prior_std=0.5)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.epochs", "--set training.epochs: give key=value"),
        ("training.epoch=3", "unknown key training.epoch; did you mean epochs?"),
        ("name.first=3", "--set name.first=3: name is a value, not a section"),
        ("data.test=[a", "--set data.test=[a: '[a' is not a YAML value"),
        ("=3", "unknown key "),
        ("training.epochs=", "training.epochs: "),
        ("training.epochs={a: 1}", "training.epochs: "),
    ],
)
def test_a_bad_setting_is_named_in_one_line(setting: str, expected: str, tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    with pytest.raises(UserError) as caught:
        load(path, [setting])
    text = str(caught.value).removeprefix(f"{path}: ")
    assert text.startswith(expected)
    assert "\n" not in text


# ---- the hash ---------------------------------------------------------------------------------------------------


def other(key: str, value: Any) -> Any:
    """Return a value of a key that a config may have as well."""
    choices: dict[str, Any] = {
        "base.dtype": "float32", "prompt.template": "paper", "prompt.terminator": "newline",
        "training.schedule": "constant", "training.loss": "choices", "training.too_long": "error",
        "evaluation.too_long": "error", "evaluation.store_top": 3, "training.clip": 1.0,
    }  # fmt: skip
    if key in choices:
        return choices[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) else value + 1
    if isinstance(value, tuple):
        return value[::-1] if len(value) > 1 else [f"openbookqa/{key.rpartition('.')[2]}"]
    assert isinstance(value, str)
    return value + "x"


def test_hash_changes_with_everything_that_changes_results() -> None:
    config = parse(FULL)
    hashes = {"": config.hash()}
    for key, value in leaves(config):
        fixed = ("name", "track", "training.save_every", "prompt.normalisation", "evaluation.unconditional")
        if key in fixed or key.startswith(("compute.", "launch.")):
            continue
        moved = parse(changed(FULL, key, other(key, value)))
        hashes[key] = moved.hash()
        assert [line.partition(": ")[0] for line in differences(config, moved)] == [key]
    text = parse({**MINIMAL, "prompt": {"normalisation": "sum"}})
    hashes |= {"sum": text.hash(), "byte": parse({**MINIMAL, "prompt": {"normalisation": "byte"}}).hash()}
    hashes["unconditional"] = parse({**MINIMAL, "evaluation": {"unconditional": True}}).hash()
    moving = [key for key, _ in leaves(config) if not key.startswith(("compute.", "launch."))]
    # Less name, track and save_every, and the two that letters fix; and the config itself, and those of text.
    assert len(set(hashes.values())) == len(hashes) == len(moving) - 3 - 2 + 4
    assert len(config.hash()) == 16


@pytest.mark.parametrize("section", ["training.repulsion", "training.variational", "prompt.few_shot"])
def test_a_section_that_one_leaves_out_differs_both_ways(section: str) -> None:
    with_it, without = parse(FULL), parse(changed(FULL, section, None))
    for old, new in ((with_it, without), (without, with_it)):
        assert differences(old, new)
        assert all(line.startswith(section) for line in differences(old, new))
    assert differences(without, without) == []


def test_hash_leaves_out_the_name_and_what_changes_no_result() -> None:
    config = parse(FULL)
    for key in ("name", "training.save_every", *(f"compute.{name}" for name in FULL["compute"])):
        value = {"name": "b", "compute.device": "cuda"}.get(key, 2)
        moved = parse(changed(FULL, key, value))
        assert moved != config
        assert moved.hash() == config.hash()
        assert not differences(config, moved)


@pytest.mark.parametrize(
    "paths",
    [
        ("mine.jsonl", "./mine.jsonl", "../a/mine.jsonl", "/b/mine.jsonl", "~/mine.jsonl", "data/mine.jsonl"),
        ("mine.csv[0%:50%]", "./mine.csv[0%:50%]", "/b/mine.csv[0%:50%]", "data/mine.csv[0%:50%]"),
        ("mine.parquet[:50%]", "data/mine.parquet[:50%]"),
    ],
)
def test_hash_leaves_out_the_folders_of_files(paths: tuple[str, ...]) -> None:
    """What a file holds is compared by its sha256; where it lies says nothing."""
    configs = [parse({**MINIMAL, "data": {"train": [path]}}) for path in paths]
    assert len({config.hash() for config in configs}) == 1
    assert not [line for config in configs for line in differences(configs[0], config)]
    elsewhere = [parse({**MINIMAL, "data": {"train": [path.replace("mine", "yours")]}}) for path in paths]
    assert {config.hash() for config in elsewhere}.isdisjoint({configs[0].hash()})


def test_hash_leaves_out_the_folder_of_a_local_base() -> None:
    models = ("/models/tiny", "../tiny", "./tiny", "~/x/tiny")
    assert len({parse({**MINIMAL, "base": {"model": model}}).hash() for model in models}) == 1
    assert len({parse({**MINIMAL, "base": {"model": model}}).hash() for model in ("a/tiny", "b/tiny")}) == 2


# ---- docs -------------------------------------------------------------------------------------------------------


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        kinds = (
            typing.get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else [field.annotation]
        )
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


def test_every_section_is_documented_and_refuses_what_it_does_not_know() -> None:
    found = list(sections(Config))
    assert len(found) == 13
    for section in found:
        assert section.__doc__
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"]
