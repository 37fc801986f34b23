"""The shipped configs say what they claim to say; the tests that run them stand elsewhere."""

import math
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from ripieno import comparison_config
from ripieno.config import Config, differences, load, parse
from ripieno.data import mmlu
from ripieno.data.splits import DatasetName

ROOT = Path(__file__).resolve().parents[1]
COMPARED = sorted((ROOT / "configs").glob("compare-*.yaml"))
BENCHMARK = sorted((ROOT / "configs").glob("benchmark-*.yaml"))
SHIPPED = sorted(set((ROOT / "configs").glob("*.yaml")) - {*COMPARED, *BENCHMARK})
EXACT = sorted((ROOT / "configs").glob("paper-exact-*.yaml"))
CLEAN = sorted((ROOT / "configs").glob("paper-clean-*.yaml"))

MISTRAL, LLAMA = "mistralai/Mistral-7B-v0.1", "meta-llama/Llama-2-13b-hf"
STEM, SOCIAL = "mmlu:stem/test", "mmlu:social_sciences/test"
PAPER = {  # base, train, test, out of domain
    "csqa-mistral-7b": (MISTRAL, "commonsense_qa/train", "commonsense_qa/validation", {STEM, SOCIAL}),
    "mmlu-stem-mistral-7b": (MISTRAL, "mmlu:stem/dev+validation", STEM, {SOCIAL, "commonsense_qa/validation"}),
    "mmlu-social-sciences-mistral-7b": (
        MISTRAL,
        "mmlu:social_sciences/dev+validation",
        SOCIAL,
        {STEM, "commonsense_qa/validation"},
    ),
    "csqa-llama-2-13b": (LLAMA, "commonsense_qa/train", "commonsense_qa/validation", {STEM, SOCIAL}),
}
HYPERPARAMETERS = {
    "base.dtype": "float32",
    "adapter.targets": ("q_proj", "v_proj"),
    "adapter.rank": 8,
    "adapter.alpha": 32,
    "adapter.scale": 4,
    "adapter.dropout": 0,
    "adapter.rslora": False,
    "prompt.template": "paper",
    "prompt.few_shot": None,
    "training.members": 5,
    "training.epochs": 10,
    "training.loss": "answer_token",
    "training.learning_rate": 5e-6,
    "training.schedule": "constant",
    "training.warmup": 0,
    "training.batch_size": 8,
    "training.weight_decay": 0,
    "training.lora_l2": 1.0,
    "training.clip": 0.3,
    "training.bagging": False,
    "training.shuffle_choices": False,
    "training.max_tokens": 128,
    "training.too_long": "drop",
    "evaluation.max_tokens": 512,
    "evaluation.too_long": "drop",
    "evaluation.fixed_letters": True,
}

# What theirs and ours have in common (docs/benchmark.md); by set, how many questions are released to train on.
PROTOCOL = {
    "adapter.rank": 8,
    "adapter.alpha": 16,
    "adapter.dropout": 0,
    "prompt.template": "letters",
    "prompt.few_shot": None,
    "training.members": 3,
    "training.loss": "choices",
    "training.learning_rate": 1e-4,
    "training.schedule": "linear",
    "training.warmup": 0.06,
    "training.batch_size": 4,
    "training.weight_decay": 0,
    "training.lora_l2": 0,
    "training.clip": None,
    "training.bagging": False,
    "training.shuffle_choices": False,
    "training.max_tokens": 300,
    "training.patience": None,
}
STEPS = 5000
RELEASED = {
    "winogrande:s": 640,
    "winogrande:m": 2558,
    "arc:challenge": 1119,
    "arc:easy": 2251,
    "openbookqa": 4957,
    "boolq": 9427,
}


def value(config: Config, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def name_of(path: Path) -> str:
    return path.stem


def config_of(path: Path) -> Config:
    """What a shipped file trains; of a comparison, its plain way of training."""
    return load(path) if path in SHIPPED else comparison_config.load(path).experiment("plain", 3)


def role_sets(config: Config) -> dict[str, tuple[str, ...]]:
    """Each role's sets as written; calibration that is done on validation's sets is the same role."""
    data = config.data
    roles = {
        "train": data.train,
        "validation": data.validation,
        "calibration": data.calibration,
        "certification": data.certification,
        "test": data.test,
        "out_of_domain": data.out_of_domain,
    }
    if set(roles["calibration"]) <= set(roles["validation"]):
        del roles["calibration"]
    return roles


def overlap(first: DatasetName, second: DatasetName) -> bool:
    """Whether two names can hold the same question of a released set."""
    if first.name != second.name or not set(first.splits) & set(second.splits):
        return False
    if first.name == mmlu.NAME:
        if not set(mmlu.subjects(first.part or "all")) & set(mmlu.subjects(second.part or "all")):
            return False
    elif first.part != second.part and "all" not in (first.part or "all", second.part or "all"):
        return False
    if (first.part, first.splits) != (second.part, second.splits):
        return True  # ranges of different wholes are drawn apart from each other
    return first.start < second.stop and second.start < first.stop


def test_configs_are_shipped() -> None:
    assert {path.stem for path in EXACT} == {f"paper-exact-{run}" for run in PAPER}
    assert {path.stem for path in CLEAN} == {f"paper-clean-{run}" for run in PAPER}


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_config_parses_and_is_written_back(path: Path) -> None:
    config = load(path)
    assert config.name == path.stem
    again = parse(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.hash() == config.hash()


@pytest.mark.parametrize("path", [*COMPARED, *BENCHMARK], ids=name_of)
def test_comparison_parses(path: Path) -> None:
    config = comparison_config.load(path)
    assert config.name == path.stem
    for name in config.trainings:
        assert config.experiment(name, 3).training.epochs == config.training.epochs


@pytest.mark.parametrize("path", [*SHIPPED, *COMPARED, *BENCHMARK], ids=name_of)
def test_config_names_data_sets_that_exist(path: Path) -> None:
    config = config_of(path)
    few_shot = (config.prompt.few_shot.dataset,) if config.prompt.few_shot else ()
    names = [name for sets in role_sets(config).values() for name in sets] + list(config.data.calibration)
    for name in (*names, *few_shot):
        assert DatasetName.parse(name).path is None, "a shipped config can name no file of a user's"
    assert config.data.train
    assert config.data.test


@pytest.mark.parametrize("path", [*SHIPPED, *COMPARED, *BENCHMARK], ids=name_of)
def test_config_keeps_its_roles_apart(path: Path) -> None:
    sets = [(role, DatasetName.parse(name)) for role, names in role_sets(config_of(path)).items() for name in names]
    shared = [(a[1].written, b[1].written) for a, b in combinations(sets, 2) if overlap(a[1], b[1])]
    assert not shared


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("commonsense_qa/train[0%:90%]", "commonsense_qa/train[90%:95%]", False),
        ("commonsense_qa/train[0%:90%]", "commonsense_qa/train[89%:95%]", True),
        ("commonsense_qa/train", "commonsense_qa/validation", False),
        ("mmlu:stem/dev+validation[0%:50%]", "mmlu:stem/validation[50%:100%]", True),
        ("mmlu:stem/test", "mmlu:all-stem/test", False),
        ("mmlu:stem/test", "mmlu:anatomy/test", True),
        ("arc:easy/test", "arc:challenge/test", False),
        ("arc:easy/test", "openbookqa/test", False),
    ],
)
def test_overlap_of_names(first: str, second: str, expected: bool) -> None:
    a, b = DatasetName.parse(first), DatasetName.parse(second)
    assert overlap(a, b) is expected
    assert overlap(b, a) is expected


@pytest.mark.parametrize("key", HYPERPARAMETERS)
@pytest.mark.parametrize("path", EXACT, ids=name_of)
def test_exact_config_has_the_papers_values(path: Path, key: str) -> None:
    assert value(load(path), key) == HYPERPARAMETERS[key]


@pytest.mark.parametrize("run", PAPER)
def test_exact_config_has_the_papers_data(run: str) -> None:
    config = load(ROOT / "configs" / f"paper-exact-{run}.yaml")
    base, train, test, out_of_domain = PAPER[run]
    assert config.base.model == base
    assert config.data.train == (train,)
    assert config.data.test == (test,)
    assert set(config.data.out_of_domain) == out_of_domain
    assert not config.data.validation
    assert not config.data.calibration
    assert config.training.patience is None


@pytest.mark.parametrize("run", PAPER)
def test_clean_config_differs_from_the_exact_one_in_its_roles_alone(run: str) -> None:
    exact, clean = (load(ROOT / "configs" / f"paper-{kind}-{run}.yaml") for kind in ("exact", "clean"))
    changed = {line.partition(": ")[0] for line in differences(exact, clean)}
    assert changed == {"data.train", "data.validation", "data.calibration", "training.patience"}
    assert clean.compute == exact.compute
    assert clean.data.validation
    assert clean.data.calibration
    whole = DatasetName.parse(*exact.data.train)
    for name in map(DatasetName.parse, (*clean.data.train, *clean.data.validation, *clean.data.calibration)):
        assert (name.name, name.part, name.splits) == (whole.name, whole.part, whole.splits)


@pytest.mark.parametrize("path", [*EXACT, *CLEAN], ids=name_of)
def test_page_on_the_paper_names_the_config(path: Path) -> None:
    assert f"`{path.name}`" in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", PROTOCOL)
@pytest.mark.parametrize("path", BENCHMARK, ids=name_of)
def test_benchmark_has_the_protocols_values(path: Path, key: str) -> None:
    assert value(config_of(path), key) == PROTOCOL[key]


@pytest.mark.parametrize("path", BENCHMARK, ids=name_of)
def test_benchmark_takes_the_fewest_whole_epochs_of_the_protocols_steps(path: Path) -> None:
    """Of the questions that are left to train on; its comment says how many steps that makes."""
    config = comparison_config.load(path)
    (train,) = map(DatasetName.parse, config.data.train)
    per_epoch = math.ceil(round(RELEASED[train.dataset] * (train.stop - train.start)) / config.training.batch_size)
    epochs = math.ceil(STEPS / per_epoch)
    assert config.training.epochs == epochs
    assert f"epochs: {epochs} # of {per_epoch:,} steps: {epochs * per_epoch:,}," in path.read_text(encoding="utf-8")
    assert config.data.test == (f"{train.dataset}/validation",)
    assert (config.seeds, config.trials) == (3, 1)


def test_benchmarks_differ_in_their_questions_alone() -> None:
    assert {DatasetName.parse(*config_of(path).data.train).dataset for path in BENCHMARK} == set(RELEASED)
    first = comparison_config.load(BENCHMARK[0])
    lengths = {"training.too_long", "evaluation.max_tokens", "evaluation.too_long"}  # passages are cut, questions never
    for path in BENCHMARK[1:]:
        other = comparison_config.load(path)
        assert (other.rows, other.trainings, other.base) == (first.rows, first.trainings, first.base)
        changed = {line.partition(": ")[0] for line in differences(config_of(BENCHMARK[0]), config_of(path))}
        allowed = {"data.train", "data.validation", "data.calibration", "data.test", "data.out_of_domain"}
        assert changed - {"training.epochs"} <= allowed | (lengths if path.stem.endswith("boolq") else set())


def test_comparisons_that_run_here_differ_in_their_questions_alone() -> None:
    ours, other = (
        comparison_config.load(ROOT / "configs" / f"compare-{name}.yaml").model_dump(exclude={"name", "data"})
        for name in ("openbookqa", "arc-easy")
    )
    assert ours == other


@pytest.mark.parametrize("name", ["openbookqa", "arc-easy"])
def test_what_runs_here_has_the_benchmarks_rows(name: str) -> None:
    ours, theirs = (
        comparison_config.load(ROOT / "configs" / f"{kind}-{name}.yaml") for kind in ("compare", "benchmark")
    )
    kinds = [{(row.method, row.training, row.pooling, row.tuned) for row in of.rows} for of in (ours, theirs)]
    assert kinds[0] - kinds[1] == {("ensemble", ("plain",), "prob", "member")}  # whether tuning each member is a remedy
    assert kinds[1] <= kinds[0]
    assert set(ours.trainings) == set(theirs.trainings)


@pytest.mark.parametrize("path", BENCHMARK, ids=name_of)
def test_page_on_the_benchmark_names_the_config(path: Path) -> None:
    assert f"`{path.name}`" in (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
