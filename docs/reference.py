"""The pages of the site that are made from the program: every key, every command, every public name.

Each function returns Markdown that is added to the page of its name (`PAGES`); nothing of it is kept as a copy.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, get_args

import typer
import yaml

from ripieno import cli, comparison_config, config, measures

# What commands and functions take and give, beside the names of ripieno/__init__.py.
TAKEN = {
    "Questions and data sets": (
        "ripieno.data.question.Question", "ripieno.data.question.read_questions", "ripieno.data.splits.load",
        "ripieno.data.splits.Loaded", "ripieno.data.splits.Source", "ripieno.data.question.Text",
        "ripieno.data.splits.DatasetName",
    ),
    "Predictions and decisions": (
        "ripieno.predictions.Predictions", "ripieno.arrays.read_predictions", "ripieno.parquet.read_parquet",
        "ripieno.decisions.Decision",
    ),
    "What measures give": (
        "ripieno.measures.accuracy.Recall", "ripieno.measures.selective.Decision",
        "ripieno.measures.selective.RiskCoverage", "ripieno.measures.table.Estimate",
    ),
    "Configs": ("ripieno.config.load",),
    "Methods": (
        "ripieno.methods.Method", "ripieno.methods.names", "ripieno.methods.named", "ripieno.methods.trained.Trained",
    ),
    "Errors": ("ripieno.errors.UserError", "ripieno.errors.EnvironmentFault"),
}  # fmt: skip


# ---- the config -----------------------------------------------------------------------------------------------------


def configuration() -> str:
    """Return a table a section: each key, what it may be, its default and what it means."""
    text = _section("An experiment", config.Config, "")
    return text + _section("A comparison", comparison_config.Comparison, "", leave=set(config.Experiment.model_fields))


def _section(title: str, kind: type[config.Section], prefix: str, leave: Set[str] = frozenset()) -> str:
    rows, inside = [], []
    for name, field in kind.model_fields.items():
        if name in leave:
            continue
        key = f"{prefix}{name}"
        if (section := _inner(field.annotation)) is not None:
            inside.append(_section(f"`{key}`", section, f"{key}[]." if "tuple" in str(field.annotation) else f"{key}."))
            if field.default is not None:  # always there: its own table says it all
                continue
        default = field.get_default(call_default_factory=True)
        shown = "has to be given" if field.is_required() else f"`{_value(default)}`"
        rows.append((f"`{key}`", _kind(field.annotation), shown, _prose(" ".join((field.description or "").split()))))
    table = _table(("key", "may be", "default", "meaning"), rows)
    return f"\n## {title}\n\n{_prose(inspect.getdoc(kind) or '')}\n\n{table}\n" + "".join(inside)


def _inner(annotation: Any) -> type[config.Section] | None:
    """Return the section that a key holds, alone, in a list or left out; None where it holds a value."""
    if isinstance(annotation, type) and issubclass(annotation, config.Section):
        return annotation
    return next((found for one in get_args(annotation) if (found := _inner(one)) is not None), None)


def _kind(annotation: Any) -> str:
    """Return what a value may be, in words."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if annotation in words:
        return words[annotation]
    if annotation is Any:
        return "any value"
    origin, args = getattr(annotation, "__origin__", None), get_args(annotation)
    if str(annotation).startswith("typing.Annotated"):
        return _kind(args[0])
    if str(annotation).startswith("typing.Literal"):
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        return "a list of " + re.sub(r"^an? (.+?)( of .+)?$", r"\1s\2", _kind(args[0])).replace("any value", "values")
    if origin is dict:
        return "keys with values"
    if _inner(annotation) is not None:
        return "a section"
    return ", or ".join(dict.fromkeys(_kind(one) for one in args))


def _value(value: Any) -> str:
    """Return a default as YAML has it."""
    return yaml.safe_dump(_plain(value), default_flow_style=True).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


# ---- the commands ---------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return a section a command: what it does, its arguments and its options."""
    text = ""
    group: Any = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        rows = []
        for parameter in command.params:
            shown = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            if parameter.param_type_name == "argument":
                shown = f"`{parameter.metavar}`"
            elif not parameter.is_flag and parameter.metavar:
                shown += f" `{parameter.metavar}`"
            given = "" if parameter.default in (None, False) else f" Default: `{parameter.default}`."
            rows.append((shown, _prose(parameter.help or "") + (" Has to be given." if parameter.required else given)))
        text += f"\n## ripieno {name}\n\n{_prose(inspect.cleandoc(command.help or ''))}\n\n"
        text += _table(("argument or option", "what it does"), rows) + "\n"
    return text


# ---- the public names -----------------------------------------------------------------------------------------------


def api() -> str:
    """Return the public names: those that the packages' `__init__.py` export, and what they take and give."""
    text = _documented("The package", ("ripieno.Ensemble", "ripieno.train"))
    for title, names in TAKEN.items():
        text += _documented(title, names)
    homes: dict[str, list[str]] = {}
    for name in measures.__all__:
        homes.setdefault(getattr(measures, name).__module__, []).append(f"ripieno.measures.{name}")
    for home in (*homes, *(f"ripieno.measures.{name}" for name in ("certify", "certificate", "sets", "shift"))):
        module = importlib.import_module(home)
        names = homes.get(home) or [f"{home}.{name}" for name in _own(module)]
        first = (module.__doc__ or "").split("\n\n")[0]
        text += _documented(f"`{home.removeprefix('ripieno.')}`", names, " ".join(first.split()))
    return text


def _own(module: Any) -> Iterator[str]:
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_") and value.__doc__:
            yield name


def _documented(title: str, names: Sequence[str], about: str = "") -> str:
    lines = []
    for name in names:
        home, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(home), last)
        lines.append(f".. auto{_directive(value)}:: {name}")
        lines += ["   :members:", "   :exclude-members: model_config", ""] if inspect.isclass(value) else [""]
    return "\n".join([f"\n## {title}\n", about, "", "```{eval-rst}", *lines, "```\n"])


def _directive(value: Any) -> str:
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function"


def place(module: str, name: str) -> tuple[Path, int] | None:
    """Return the file in which a public name is defined, and the line; None of a field, which has none of its own."""
    value: Any = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    value = value.fget if isinstance(value, property) else value
    if not (inspect.isclass(value) or inspect.isfunction(value) or inspect.ismethod(value)):
        return None
    return Path(str(inspect.getsourcefile(value))).resolve(), inspect.getsourcelines(value)[1]


def to_rst(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring reStructuredText: formulas, which stand indented after an empty line, and code in backticks.

    What is returned is one text here; napoleon would take all before a colon for a type.
    """
    made: list[str] = []
    formula = False
    section = ""
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith(" "):
            formula, section = False, line if re.fullmatch(r"[A-Z]\w+:", line) else ""
        elif line.startswith("    ") and not before and not section and not formula:
            made += ["::", ""]
            formula = True
        if section == "Returns:" and line:
            line = f"    {line.strip()}" if before != section else f":returns: {line.strip()}"
        if line.strip() != "Returns:":
            made.append(line if formula else _escaped(line))
    lines[:] = made


def shorten(app: Any, what: str, name: str, value: Any, options: Any, given: str | None, result: str | None) -> Any:
    """Return a signature in which arrays are arrays: their docstrings say of which shape and kind."""
    array = re.compile(r"(~?numpy\.ndarray)\[~?(?:builtins\.)?tuple\[[^]]*\], ~?numpy\.dtype\[[^]]*\]\]")
    return tuple(text and array.sub(r"\1", text).replace("<factory>", "...") for text in (given, result))


def _escaped(line: str) -> str:
    """Return a line in which code and a stressed word stay what they are, and nothing else is taken for markup."""
    parts = re.split(r"(`[^`]+`|(?<![\w*])\*\w+\*(?!\w))", line)
    made = [f"`{part}`" if part.startswith("`") else part for part in parts]
    made[::2] = [re.sub(r"([*|]|_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "".join(made)


# ---- Markdown -------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _prose(text: str) -> str:
    """Return a docstring as Markdown reads it: what looks like a tag or a star is none, and papers have links."""
    parts = re.split(r"(`[^`]+`)", text)
    text = "".join(part if n % 2 else re.sub(r"([*<_])", r"\\\1", part) for n, part in enumerate(parts))
    text = re.sub(r"(?<![\w`-])(--[\w-]+)", r"`\1`", text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


PAGES = {"configuration": configuration, "commands": commands, "api": api}
