"""Imports go down DESIGN.md's list of layers, and torch stays above the line."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "ripieno"
# Top first; a line's modules may import one another's siblings in a package, and whatever stands on lower lines.
LAYERS = (
    "cli",
    "serving",
    "launching",
    "comparing",
    "certification",
    "acquisition",
    "exporting",
    "importing",
    "planning",
    "experiment",
    "forking",
    "evaluation",
    "reading",
    "rotations",
    "prompt_features",
    "methods",
    "ensemble",
    "training",
    "tracking",
    "model",
    # ---- no torch from here down ----
    "report",
    "decisions",
    "measures",
    "comparison",
    "provenance",
    "data",
    "live",
    "runs",
    "locks",
    "arrays",
    "published",
    "parquet",
    "predictions",
    "tokens",
    "features",
    "comparison_config",
    "config",
    "progress",
    "memory",
    "signals",
    "seeds",
    "escaping",
    "untrusted",
    "userfiles",
    "errors",
)
WITHOUT_TORCH = LAYERS[LAYERS.index("report") :]
HEAVY = {"torch", "transformers", "peft", "tokenizers", "accelerate"}


def files() -> list[Path]:
    found = sorted(SOURCE.rglob("*.py"))
    assert len(found) > 20
    return found


def layer(module: str) -> str:
    """Return the layer of "ripieno.data.splits", "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those for type checkers alone; imports inside functions are among them."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            for other in node.orelse:
                yield from running(other)
            continue
        yield node
        yield from running(node)


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and whole name of each module that a file imports when it runs."""
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the whole name"
            assert node.module
            # `from ripieno import config` imports a module, `from ripieno.config import Config` a name of one.
            names = [f"ripieno.{alias.name}" for alias in node.names] if node.module == "ripieno" else [node.module]
            yield from ((node.lineno, name) for name in names)


def test_the_reader_of_imports_sees_what_it_should() -> None:
    source = """
import torch.nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ripieno.cli import app
def f():
    if True:
        from ripieno import config as c, runs
        from ripieno.data.splits import load
"""
    assert [name for _, name in imports(source)] == [
        "torch.nn", "typing", "ripieno.config", "ripieno.runs", "ripieno.data.splits",
    ]  # fmt: skip


def test_every_module_has_its_layer() -> None:
    """A new module or package takes a place in DESIGN.md's list first."""
    found = {layer(module_of(file)) for file in files()} - {""}
    assert found <= set(LAYERS)


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_only_go_down(file: Path) -> None:
    mine = layer(module_of(file))
    for line, name in imports(file.read_text()):
        if not name.startswith("ripieno"):
            continue
        if not mine:  # ripieno/__init__.py: the public names
            continue
        theirs = layer(name)
        up = theirs != mine and LAYERS.index(theirs) <= LAYERS.index(mine)
        assert not up, f"{file}:{line}: {mine} imports {name}, which stands above it"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_no_torch_below_the_line(name: str) -> None:
    below = [file for file in files() if layer(module_of(file)) == name]
    for file in [*below, SOURCE / "__init__.py"]:
        heavy = [(line, module) for line, module in imports(file.read_text()) if module.partition(".")[0] in HEAVY]
        assert not heavy, f"{file}: {heavy}"


def test_importing_what_is_below_the_line_loads_no_torch() -> None:
    """What the files import in turn, other packages' own imports among it; the command line too, for `--help`."""
    modules = [module_of(file) for file in files() if layer(module_of(file)) in ("", "cli", *WITHOUT_TORCH)]
    modules = [module for module in modules if module.rpartition(".")[2] != "__main__"]
    code = f"""
import importlib, json, sys
loaded = {{}}
for name in {modules!r}:
    importlib.import_module(name)
    loaded[name] = sorted({HEAVY!r} & set(sys.modules))
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert len(loaded) > 15
    assert {name: heavy for name, heavy in loaded.items() if heavy} == {}


def test_help_takes_less_than_half_a_second() -> None:
    """In seconds of processor time, which a busy machine stretches less than the clock's; the best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "ripieno.cli", "--help"], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert "evaluate" in done.stdout
        assert not done.stderr
    assert min(seconds) < 0.5
