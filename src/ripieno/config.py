"""Configs: frozen data, YAML in and YAML out, with a canonical hash."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ripieno.errors import UserError
from ripieno.userfiles import nearest, quoted, read_text, require_file, short

TooLong = Literal["error", "shorten_context", "drop"]
TemplateName = Literal["paper", "letters", "text", "text-listed"]
LETTERS = ("paper", "letters")  # templates whose answer is a letter; of the others it is the choice's text
_FILE = re.compile(r"\.(jsonl|csv|parquet|gguf)(\[[^]]*\])?$")  # with a range or not
# What changes no result: a run goes on whatever it says.
WITHOUT_RESULT: dict[str, Any] = {
    "name": True,
    "compute": True,
    "launch": True,
    "track": True,
    "training": {"save_every"},
}
DEEPEST, LONGEST, MOST_VALUES = 50, 2**16, 50_000  # of a config: levels of nesting, characters, values
TOO_DEEP = f"it is nested over {DEEPEST} levels deep"
_BOOL = "tag:yaml.org,2002:bool"
_BRANCHES = ("int", "float", "constrained-int", "constrained-float")
# pydantic's names of errors -> what should stand there, where its own words are a programmer's.
_EXPECTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a section, with keys of its own"),
    "tuple_type": "a list, such as [a, b]",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "too_short": "a list of 1 or more",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores, a letter or digit first",  # `name`
}
PositiveInt = Annotated[int, Field(gt=0, le=2**53)]  # what a float holds exactly
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Entry = TypeVar("Entry")


class Section(BaseModel):
    """Frozen, unknown keys are errors, docstrings below the fields become their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Base(Section):
    """The frozen pretrained causal language model."""

    model: str = "embedded:SmolLM2-135M-Instruct"
    """Hub id, folder, `.gguf` file, or `embedded:SmolLM2-135M-Instruct`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base's weights; adapters, answer rows and softmax are float32 always."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model; off unless you know its author."""


class Adapter(Section):
    """One low-rank update a member: W x + scale * B A x (LoRA, arXiv:2106.09685)."""

    targets: Literal["auto", "all-linear"] | tuple[str, ...] = "auto"
    """Names of linear modules; `auto` is q_proj and v_proj, or else the family's fused attention projection."""
    rank: PositiveInt = 8
    """Of B A: in how many directions a member can change what a layer does."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The scale is alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' inputs that training sets to 0; when a member is asked, none."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv:2312.03732)."""
    member_ranks: tuple[PositiveInt, ...] = ()
    """A member's own rank, `rank` at most, in turn by its number (member m takes entry m mod their count); empty:
    `rank` for all. The scale is that of `rank` for all."""
    member_targets: tuple[Names, ...] = ()
    """The modules that a member adapts, among those of `targets` (names, whole or their last parts), in turn by its
    number; empty: all of them."""

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class FewShot(Section):
    """Solved examples that stand before each question."""

    dataset: str
    """A named split, such as `mmlu:all/dev`."""
    count: PositiveInt = 5
    """How many."""
    same_subject: bool = True
    """Take the examples of the question's own subject, where it has one."""


class Prompt(Section):
    """How a question is put to the model, and how a choice is scored."""

    template: TemplateName = "text-listed"
    """`letters`, `paper` (its wording): the choices stand in the prompt, the answer is a letter. `text-listed`: they
    stand there, the answer is a choice's own text. `text`: the same, without the list."""
    few_shot: FewShot | None = None
    """Solved examples that stand before each question."""
    normalisation: Literal["sum", "token", "byte"] = "sum"
    """Text templates: a choice's summed log-likelihood, or its mean over tokens or bytes."""
    terminator: Literal["newline", "end_of_text"] = "newline"
    """Text templates: what ends a choice; without it "New York" always beats "New York City"."""


class Data(Section):
    """Which questions play which role (`NAME[:PART]/SPLIT[+SPLIT][[A%:B%]]`, or a path to a file)."""

    train: tuple[str, ...]
    """What the members learn."""
    validation: tuple[str, ...] = ()
    """For early stopping and hyperparameters."""
    calibration: tuple[str, ...] = ()
    """For the temperature; may name the same sets as `validation`, then every report says so."""
    certification: tuple[str, ...] = ()
    """For thresholds with a guarantee; used once, shared with nothing."""
    test: tuple[str, ...] = ()
    """In domain."""
    out_of_domain: tuple[str, ...] = ()
    """Questions of another kind, to see whether the ensemble notices."""
    labels: tuple[str, ...] | None = None
    """Fixed-label classification: files of `text,label` become questions with these choices."""
    seed: int = 0
    """Draws the questions of each `[A%:B%]`."""


class Variational(Section):
    """Bayes by backprop on A: q(A) = N(mean, std^2), prior N(0, prior_std^2), B a point (BLoB, arXiv:2406.11675).

    Each step of the loss, taken under one draw of A, is followed by a plain gradient step of the divergence from the
    prior alone, as its authors' code does: the two differ too much in size for one optimizer.
    """

    prior_std: Annotated[float, Field(gt=0)] = 0.2
    """Of every entry of A."""
    initial_std: Annotated[float, Field(ge=0)] = 0.002
    """Of every entry of A before the first step."""
    divergence_rate: Annotated[float, Field(ge=0)] = 0.02
    """Learning rate of the divergence; it follows the loss's schedule, and an epoch's steps share one divergence."""

    @model_validator(mode="after")
    def _has_a_divergence(self) -> Self:
        if self.divergence_rate and not self.initial_std:
            raise ValueError("initial_std 0: its divergence from any prior is infinite; set divergence_rate 0 as well")
        return self


class Repulsion(Section):
    """Members driven apart: each one's loss less weight * MI, the members' mutual information on questions whose
    answers are not used (training/diversity.py)."""

    questions: Names
    """Data sets; the training questions may be among them, what any later role asks is left out."""
    weight: Annotated[float, Field(gt=0)]
    """Of MI = H(mean_m p_m) - mean_m H(p_m) over the K choices, in nats, a mean over a step's questions. A member's own
    share of it is one in M, so that more members take a larger weight."""
    batch_size: PositiveInt = 8
    """Questions a step, the same ones for all members."""


class Training(Section):
    """How the members are trained."""

    members: PositiveInt = 5
    """How many."""
    seed: int = 0
    """A member's own seed, from which initialisation, order and dropout follow, comes from this and its number."""
    epochs: PositiveInt = 3
    """How often a member sees its questions."""
    loss: Literal["choices", "answer_token", "next_token"] = "choices"
    """`choices`: over the K choices; `answer_token`: over the vocabulary at the answer; `next_token`: every token."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Of the learning rate after the warm-up; `linear` and `cosine` fall to 0 at the last step."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps in which the learning rate rises from 0."""
    batch_size: PositiveInt = 8
    """Questions a step and member; more than fit in memory at once are accumulated."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW, on A and B alike."""
    lora_l2: Annotated[float, Field(ge=0)] = 0.0
    """lambda of lambda * sum ||B A||_F^2, once a step (arXiv:2402.12264, its regulariser)."""
    variational: Variational | None = None
    """Train a distribution of A in place of one value (`ripieno evaluate --method variational` draws from it)."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of a member's gradient."""
    bagging: bool = False
    """Each member trains on its own bootstrap sample of the questions."""
    shuffle_choices: bool = False
    """Each member sees the choices in a new order every epoch (training alone)."""
    templates: tuple[TemplateName, ...] = ()
    """The template that a member trains with, few-shot examples too, in turn by its number; empty: `prompt.template`
    for all. Of the kind of `prompt.template` (letters or text), which is what validation and evaluation ask with."""
    init_scale: Annotated[float, Field(gt=0)] = 1.0
    """Times the bound 1 / sqrt(in) of the draws of A: members start further apart."""
    repulsion: Repulsion | None = None
    """What drives members apart; their training then depends on one another, through this alone."""
    save_every: PositiveInt | None = None
    """Steps after which a member's state is saved within an epoch too, for long epochs; moves no result."""
    patience: PositiveInt | None = None
    """Stop a member after so many epochs without a lower validation NLL."""
    max_tokens: PositiveInt | None = None
    """Longest prompt with its answer; the base's own limit where null."""
    too_long: TooLong = "error"
    """`shorten_context` cuts the context from its front; choices and answers are never cut."""

    @property
    def driven_on(self) -> tuple[str, ...]:
        """The data sets on which members are driven apart."""
        return self.repulsion.questions if self.repulsion else ()


class Evaluation(Section):
    """What is computed for each evaluated question."""

    max_tokens: PositiveInt | None = None
    """Longest prompt with a choice; the base's own limit where null."""
    too_long: TooLong = "error"
    """As `training.too_long`."""
    fixed_letters: bool = False
    """Letters: also store the log-probabilities of a to e, whatever K (the paper's variant)."""
    store_top: PositiveInt | Literal["all"] | None = None
    """Letters: also store the likeliest tokens of the whole vocabulary at the answer."""
    unconditional: bool = False
    """Text: also store each choice's log-likelihood after the bare answer cue, without the question
    (domain-conditional PMI, arXiv:2104.08315)."""


class Compute(Section):
    """Where and how large the passes are; nothing here changes results beyond rounding."""

    device: str = "auto"
    """`cpu`, `cuda` or `cuda:1`; `auto` is a GPU where there is one."""
    members_per_pass: PositiveInt | Literal["auto"] = "auto"
    """Members that share a forward pass; the others take turns."""
    batch_tokens: PositiveInt | Literal["auto"] = "auto"
    """Most tokens in a forward pass, padding included where a model has to run padded."""
    threads: PositiveInt | None = None
    """Of the CPU; what torch chooses where null."""


class Slurm(Section):
    """What each job of an array asks Slurm for."""

    partition: str | None = None
    """Which queue."""
    account: str | None = None
    """Who is charged."""
    time: str | None = None
    """Longest time of a job, such as "04:00:00" (in quotes); one that runs out of it is queued again, and goes on."""
    memory: str | None = None
    """Of a job, such as 40G."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as `--constraint=a100`."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the work, such as `module load cuda` or `source .venv/bin/activate`."""


class Launch(Section):
    """Where the members and the questions are shared out; nothing here changes results beyond rounding."""

    on: Literal["local", "ray", "slurm"] = "local"
    """On this machine, on a Ray cluster, or as Slurm jobs (docs/launching.md)."""
    workers: PositiveInt | Literal["auto"] = "auto"
    """Processes that share out members, or questions. `auto`: locally one per GPU, or one with all cores; on Ray one
    per GPU of the cluster, or else one per node; on Slurm it has to be said."""
    cpus: PositiveInt | None = None
    """Cores of a worker; by default, locally and on Ray, what a node has, shared by its workers."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a worker, 0 or 1; by default 1 where there are any, on Slurm 1."""
    questions: PositiveInt = 1000
    """Questions that are answered between one write and the next; a killed worker loses as many at most."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a worker that died is started again, on another node where there is one (Ray)."""
    address: str | None = None
    """Of a running Ray cluster, such as `auto` or ray://head:10001; one is started on this machine by default."""
    storage: str | None = None
    """A folder that all nodes reach, as an fsspec URL such as s3://bucket/runs; by default they share the run's."""
    slurm: Slurm = Slurm()
    """What Slurm is asked for."""


class Experiment(Section):
    """What an experiment is made of: the sections of a config, and of a comparison of several ways to train."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run's folder, runs/NAME, where no other is given."""
    base: Base = Base()
    adapter: Adapter = Adapter()
    prompt: Prompt = Prompt()
    data: Data
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    compute: Compute = Compute()


class Config(Experiment):
    """A whole experiment."""

    launch: Launch = Launch()
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send losses and validation metrics, after each epoch, to a tracker."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        letters = self.prompt.template in LETTERS
        if self.training.loss == "answer_token" and not letters:
            raise ValueError("training.loss: answer_token needs a letters template (paper, letters); use choices")
        odd = [name for name in self.training.templates if (name in LETTERS) != letters]
        if odd:
            raise ValueError(
                f"training.templates: {odd[0]} is not of the kind of prompt.template {self.prompt.template}, by which "
                "members are asked later; choose among " + ("paper, letters" if letters else "text, text-listed")
            )
        if any(rank > self.adapter.rank for rank in self.adapter.member_ranks):
            raise ValueError(
                f"adapter.member_ranks: {max(self.adapter.member_ranks)} is over adapter.rank {self.adapter.rank}, "
                "which is the largest of them; raise that"
            )
        if self.training.repulsion and self.training.members < 2:
            raise ValueError("training.repulsion drives members apart; set training.members to 2 at least")
        if self.training.patience is not None and not self.data.validation:
            raise ValueError("training.patience needs data.validation; name a set, or leave patience out")
        if letters and self.prompt.normalisation != "sum":
            raise ValueError("prompt.normalisation: a letter is one token, so only sum applies to letters templates")
        if not letters and (self.evaluation.fixed_letters or self.evaluation.store_top):
            raise ValueError("evaluation.fixed_letters and store_top need a letters template (paper, letters)")
        if letters and self.evaluation.unconditional:
            raise ValueError("evaluation.unconditional needs a text template (text, text-listed)")
        return self

    def hash(self) -> str:
        """Return 16 hex digits that name what is computed: all but the name and what never changes results."""
        content = _flatten(self.model_dump(mode="json", exclude=WITHOUT_RESULT))
        content = {key: _without_folder(value) for key, value in content.items()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the config as YAML that `load` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def in_turn(entries: Sequence[Entry], member: int, otherwise: Entry) -> Entry:
    """Return a member's entry of a list that members take in turn by their number; `otherwise` where it is empty."""
    return entries[member % len(entries)] if entries else otherwise


def load(path: Path | str, settings: Sequence[str] = ()) -> Config:
    """Read a config from YAML; `settings` are `key=value` with dotted keys and YAML values, applied on top.

    Raises:
        UserError: the file is missing or no YAML, a key is unknown (the nearest is named) or a value is out of range.
    """
    return parse(read(Path(path), settings), str(path))


def read(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Read the mapping in a YAML file, with `key=value` settings applied on top.

    Raises:
        UserError: the file is missing or holds no such mapping.
    """
    try:
        content = parse_yaml(read_text(path))
    except (FileNotFoundError, IsADirectoryError):
        require_file(path)
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UserError(f"{path}{line}: not YAML ({short(error.problem or error.context)}); mend it") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({short(error)}); mend it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a config is a YAML mapping of keys; see configs/demo.yaml")
    for setting in settings:
        _apply(content, setting, "--set")
    return content


class _Loader(yaml.SafeLoader):
    """The safe kind, in which no key stands twice: the first one would be lost without a word.

    It gives up on brackets in brackets before it looks for where all of them end. Its booleans are those of YAML 1.2,
    true and false: `on` is a key of ours, and `no` and `yes` are labels.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's)
        first: [(tag, pattern) for tag, pattern in of_first if tag != _BOOL or first in "tTfF"]
        for first, of_first in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        met: set[str] = set()
        for key, _ in node.value:
            if key.value in met:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            met.add(key.value)
        return super().construct_mapping(node, deep)

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 (PyYAML's name)
        if self.flow_level >= DEEPEST:
            raise yaml.YAMLError(TOO_DEEP)
        super().fetch_flow_collection_start(TokenClass)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text: the safe kind, in which nothing runs.

    Raises:
        yaml.YAMLError: it is none, or stands for more than a person writes: a few lines of aliases can fill any memory.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it is {len(text):,} characters long; a config has {LONGEST:,} at most")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(TOO_DEEP) from None
    except (ValueError, OverflowError, KeyError, AttributeError, IndexError, TypeError) as error:
        # What PyYAML makes of `2001-99-99`, `!!bool x`, `!!timestamp x`, a number of 5000 digits ...
        raise yaml.YAMLError(f"a value is not of its kind ({short(repr(error))})") from None
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, depth: int = 1) -> int:
    """Return how many values a YAML node stands for, each alias written out."""
    if depth > DEEPEST:
        raise yaml.YAMLError(TOO_DEEP)
    inside = node.value if isinstance(node, yaml.CollectionNode) else []
    total = 1
    for part in inside:
        for one in part if isinstance(part, tuple) else (part,):
            total += _count_values(one, depth + 1)
            if total > MOST_VALUES:
                raise yaml.YAMLError(f"it stands for over {MOST_VALUES:,} values, its aliases written out")
    return total


def settings(texts: Sequence[str], option: str) -> dict[str, Any]:
    """Read `key=value` texts, with dotted keys and YAML values, as nested mappings; `option` names them in errors."""
    content: dict[str, Any] = {}
    for text in texts:
        _apply(content, text, option)
    return content


def parse(content: dict[str, Any], source: str = "config") -> Config:
    """Build a config from nested mappings; `source` names them in errors."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, Config)}") from None


def differences(old: Config, new: Config) -> list[str]:
    """Return the keys that would change results and differ, side by side, one `key: old | new` each."""
    a, b = (_flatten(c.model_dump(mode="json", exclude=WITHOUT_RESULT)) for c in (old, new))
    # A section that one of the two leaves out is None there, and its keys in the other.
    every = (*a, *(key for key in b if key not in a))
    keys = [key for key in every if _without_folder(a.get(key)) != _without_folder(b.get(key))]
    return [f"{key}: {a.get(key)} | {b.get(key)}" for key in keys]


def _without_folder(value: Any) -> Any:
    """Cut files down to their names: what they hold is compared by its sha256 (see runs.py), where they lie is not."""
    if isinstance(value, list):
        return [_without_folder(item) for item in value]
    if isinstance(value, str) and (value.startswith((".", "/", "~")) or _FILE.search(value)):
        return Path(value).name
    return value


def _flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        k: v for key, sub in content.items() for k, v in _flatten(sub, f"{prefix}.{key}" if prefix else key).items()
    }


def _apply(content: dict[str, Any], setting: str, option: str) -> None:
    key, equals, value = setting.partition("=")
    if not equals:
        raise UserError(f"{option} {setting}: give key=value, such as training.epochs=2")
    try:
        put(content, key.strip(), parse_yaml(value))
    except yaml.YAMLError:
        raise UserError(f"{option} {short(setting)}: {quoted(value)} is not a YAML value") from None
    except ValueError as error:
        raise UserError(f"{option} {setting}: {error}") from None


def put(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings; a section that is null, as one left out by default, is begun.

    Raises:
        ValueError: a part of the key is a value.
    """
    *sections, last = key.split(".")
    for section in sections:
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise ValueError(f"{section} is a value, not a section")
    content[last] = value


def _section(annotation: Any) -> Any:
    """Return the section inside an annotation: one that may be left out is a union with None, several are a tuple."""
    inside = [_section(one) for one in get_args(annotation)]
    return next((one for one in inside if isinstance(one, type) and issubclass(one, Section)), annotation)


def explain(error: ValidationError, kind: type[Section]) -> str:
    """Say the first problem of a config in one line, with the nearest right key for an unknown one."""
    errors = error.errors(include_url=False)
    first, where = errors[0], _key(errors[0]["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = kind
        for part in first["loc"][:-1]:
            if not isinstance(part, int):  # a place in a list of sections
                section = _section(section.model_fields[part].annotation)
        known = list(section.model_fields)
        near = nearest(str(first["loc"][-1]), known)
        return f"unknown key {where}; " + (f"did you mean {near}?" if near else f"known: {', '.join(known)}")
    if first["type"] == "missing":
        return f"{where} is missing"
    # Every branch of a union says why the value is none of its own: together they are what may be given.
    expected = dict.fromkeys(words for e in errors if _key(e["loc"]) == where and (words := _expected(e)))
    if expected:
        given = "null" if first["input"] is None else quoted(first["input"])
        return f"{where}: {given} should be {', or '.join(expected)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _expected(error: Mapping[str, Any]) -> str:
    """Return what pydantic expected in the place of a value; "" where its message is one of ours."""
    if error["type"] == "greater_than":
        return f"a number above {error['ctx']['gt']:g}"
    given, begins, rest = error["msg"].partition("Input should be ")
    return _EXPECTED.get(error["type"]) or (rest if begins and not given else "")


def _key(place: tuple[int | str, ...]) -> str:
    """Return the dotted key of a place in a config."""
    # pydantic names the tried branch of a union ("literal['auto']", "constrained-int") after the key itself
    return short(".".join(str(part) for part in place if "[" not in str(part) and part not in _BRANCHES))
