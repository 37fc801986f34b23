"""Every block of every page is run or checked; links lead somewhere; every page has its place in the site."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from pages import FENCED, NAMES, ROOT, Block, blocks, command_lines, prose, read, ripieno_commands, run_python
from ripieno import comparison_config, config
from ripieno.arrays import read_predictions
from ripieno.cli import app
from ripieno.config import Config
from ripieno.data.question import holds_texts, read_questions, read_texts
from test_config import FULL

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
EVERY = [block for name in NAMES for block in blocks(name)]
README, GUIDES, METHOD = (f"end_to_end/test_{name}.py::test_" for name in ("readme", "guides", "add_a_method"))

# Python that takes a run, or a place in the program: which test runs it. What is not here, a test below runs.
PYTHON = {
    "README.md": f"{README}files_commands_and_python_of_the_readme_work",
    "docs/adapters.md": f"{GUIDES}adapters_come_in_and_are_handed_on",
    "docs/add-a-data-set.md": f"{GUIDES}a_data_set_is_added",
    "docs/add-a-method.md": f"{METHOD}draws_differ_repeat_and_are_adapters_that_peft_reads",
    "docs/serving.md": "end_to_end/test_serving.py::test_python_of_the_page_asks",
    "docs/api.md": f"{README}python_of_the_page_of_public_names",
}
# Commands that a test runs as they stand, on a tiny model: which one. Those of other pages are parsed by the program.
RUN = {
    "README.md": {
        2: f"{README}three_commands_lead_from_a_csv_to_a_refusal_or_decisions",
        3: f"{README}files_commands_and_python_of_the_readme_work",
        7: f"{README}another_programs_file_is_analysed",
    },
    "docs/adapters.md": {0: PYTHON["docs/adapters.md"], 3: PYTHON["docs/adapters.md"]},
    "docs/add-a-data-set.md": {2: PYTHON["docs/add-a-data-set.md"]},
    "docs/add-a-measure.md": {4: f"{GUIDES}a_measure_is_added"},
    "docs/add-a-method.md": dict.fromkeys((1, 4), f"{METHOD}its_row_stands_in_the_comparison_with_its_costs"),
    "docs/own-data.md": dict.fromkeys((0, 2), f"{GUIDES}files_of_ones_own"),
}
# Output that no test can print again, since it took minutes of a real model: what it is the output of. That the program
# still says these words is checked below.
SHOWN = {
    ("README.md", 1): "make demo",
    ("docs/benchmark.md", 1): "ripieno compare configs/compare-openbookqa.yaml",
    ("docs/benchmark.md", 2): "ripieno compare configs/compare-arc-easy.yaml",
    ("docs/benchmark.md", 3): "ripieno compare configs/compare-overtrained.yaml",
    ("docs/methods.md", 1): "ripieno compare configs/compare-demo.yaml",
    ("docs/methods.md", 2): "ripieno compare configs/compare-diversity.yaml",
    ("docs/reproducibility.md", 0): "make torture",
    ("docs/tutorial.md", 4): "ripieno predict runs/tickets",
    ("docs/tutorial.md", 6): "Ask for 1% instead of 5%",
}
# Blocks that are no code of ours: read by a test of their own.
READ = {
    ("docs/add-a-measure.md", "diff"): f"{GUIDES}a_measure_is_added",
    ("docs/add-a-measure.md", "markdown"): f"{GUIDES}a_measure_is_added",
    ("docs/add-a-method.md", "text"): f"{METHOD}its_row_stands_in_the_comparison_with_its_costs",
    ("docs/add-a-data-set.md", "json"): f"{GUIDES}a_data_set_is_added",
}
TESTS = {*PYTHON.values(), *READ.values(), *(name for of_page in RUN.values() for name in of_page.values())}


def test_every_block_is_run_or_checked() -> None:
    """By its language; blocks of any other language have to be listed above."""
    followed = {(b.page, b.place + 1) for b in EVERY if b.language == "python" and b.page not in PYTHON}
    for block in EVERY:
        place = (block.page, block.place)
        if (block.page, block.language) in READ or block.language in ("python", "console", "yaml", "json"):
            continue
        assert block.language == "text", f"{block}: nothing reads it"
        assert (place in followed) != (place in SHOWN), f"{block}: is the output of nothing that is known"
    assert set(SHOWN) <= {(block.page, block.place) for block in EVERY if block.language == "text"}


def test_what_is_said_to_be_run_is_run() -> None:
    """The tests named above are there, and the blocks too."""
    for name in TESTS:
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
    for page, places in RUN.items():
        assert set(places) <= {block.place for block in blocks(page, "console")}, page


@pytest.mark.parametrize("page", [name for name in NAMES if blocks(name, "python") and name not in PYTHON])
def test_code_prints_what_the_page_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks run in order, in one namespace."""
    monkeypatch.chdir(tmp_path)
    every, namespace = blocks(page), dict[str, Any]()
    for block in blocks(page, "python"):
        printed = run_python(block, namespace)
        shown = every[block.place + 1] if block.place + 1 < len(every) else None
        assert printed == (shown.code if shown and shown.language == "text" else ""), str(block)


def no_check(*_: Any) -> None:
    """The command is looked at in another way."""


def make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def pip(words: Sequence[str]) -> None:
    verb, *packages = words
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert verb == "install"
    for package in packages:
        match = re.fullmatch(r"ripieno\[(\w+)\]", package)
        assert package == "." or (match and match[1] in extras), package


def python(words: Sequence[str]) -> None:
    assert (ROOT / words[0]).is_file(), words[0]


def ripieno(words: Sequence[str]) -> None:
    """The program's own parser takes them: the command, its options, their values' kinds, and what has to be given."""
    name, *rest = words
    COMMANDS[name].make_context(name, list(rest))


def torchrun(words: Sequence[str]) -> None:
    ripieno(words[words.index("ripieno.cli") + 1 :])


PROGRAMS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": make,
    "pip": pip,
    "python": python,
    "ripieno": ripieno,
    "torchrun": torchrun,
    "tensorboard": no_check,
}


@pytest.mark.parametrize("page", [name for name in NAMES if blocks(name, "console")])
def test_commands_are_accepted(page: str) -> None:
    for block in blocks(page, "console"):
        for line in command_lines(block):
            program, *words = [word for word in line if not re.fullmatch(r"[A-Z_]+=\S*", word) or line[0] == "make"]
            PROGRAMS[program](words)
    # Elsewhere on a page formulas are indented, and nothing else.
    assert not re.search(r"^    (?:ripieno|pip|python|make) ", prose(page), re.MULTILINE)


@pytest.mark.parametrize("page", NAMES)
def test_commands_in_sentences_exist(page: str) -> None:
    """`ripieno COMMAND --option`, with words in capitals for what a reader puts there."""
    for name, rest in re.findall(r"`ripieno ([a-z]+)\b([^`]*)`", prose(page)):
        options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= options, f"ripieno {name}{rest}"


@pytest.mark.parametrize("block", [b for b in EVERY if b.language == "yaml"], ids=str)
def test_configs_are_valid(block: Block) -> None:
    """A whole experiment, or a part of one; rows are those of a comparison."""
    content = config.parse_yaml(block.code)
    if "rows" in content:
        data = {role: ["arc:easy/test"] for role in ("train", "validation", "calibration", "test")}
        comparison_config.Comparison.model_validate({"name": "part", "data": data, **content})
    else:
        config.parse({"name": "part", "data": {"train": ["arc:easy/train"]}, **content}, str(block))


@pytest.mark.parametrize("block", [b for b in EVERY if b.language == "json" and (b.page, "json") not in READ], ids=str)
def test_files_are_read(block: Block, tmp_path: Path) -> None:
    """Lines of predictions, of running text, or of questions."""
    file = tmp_path / "lines.jsonl"
    file.write_text(block.code, encoding="utf-8")
    lines = block.code.count("\n")
    if '"probs"' in block.code:
        assert sum(len(p.question_ids) for p in read_predictions(file)) == lines
    elif holds_texts(file):
        assert len(read_texts(file)) == lines
    else:
        questions = read_questions(file)
        assert len(questions) == lines
        assert all(question.answer is not None for question in questions)


SPEAKERS = ("src/ripieno/*.py", "src/ripieno/report/*.py", "src/ripieno/measures/cert*.py")  # of what commands print


def spoken() -> str:
    """Return every text that these files hold, as one, with names of faults (in tests) and of rows (in configs)."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for files in SPEAKERS for file in ROOT.glob(files)]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    tests = "\n".join(file.read_text(encoding="utf-8") for file in ROOT.glob("tests/*/test_*.py"))
    faults = re.findall(r'fault\("([^"]+)"\)', tests)
    configs = [file.read_text(encoding="utf-8") for file in ROOT.glob("configs/compare-*.yaml")]
    return "\n".join([*(value for value in constants if isinstance(value, str)), *faults, *configs])


def says(texts: str, words: list[str]) -> bool:
    """Return whether the program says these words, in one piece or in two that it puts together."""
    alone = words[0].istitle()  # a sentence may begin with a word and go on with another text
    cuts = [(" ".join(words[:n]), " ".join(words[n:])) for n in range(len(words)) if n != 1 or alone]
    return any(first in texts and second in texts for first, second in cuts)


def test_output_that_is_shown_is_what_the_program_says() -> None:
    """Its phrases of three words and more, that is, between numbers; and the page says what printed it."""
    texts = spoken()
    for (page, place), command in SHOWN.items():
        assert command in " ".join(read(page).split()), f"{page}: {command}"
        block = blocks(page)[place]
        phrases = re.findall(r"[A-Za-z][a-z']+(?:,? [a-z][a-z']+){2,}", block.code)
        assert phrases, str(block)
        for phrase in phrases:
            assert says(texts, phrase.split(" ")), f"{block}: the program does not say {phrase!r}"


def test_the_tutorials_commands_are_those_of_the_readme() -> None:
    """Which a test runs; the tutorial and the example keep the files in a folder."""
    expected = ripieno_commands("README.md")[:3]
    for page in ("docs/tutorial.md", "examples/support_tickets/README.md"):
        found = [[word.removeprefix("tickets/") for word in words] for words in ripieno_commands(page)[:3]]
        assert found == expected, page


# ---- pages that are made from the program -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """What fills them when the site is built."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(page: str) -> dict[str, str]:
    """Return the first cell of each row of a page's tables, without its code font, and the last."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {cells[0].split("`")[1]: cells[-1].strip(" |") for cells in lines}


def test_every_key_of_a_config_is_listed_with_its_meaning(reference: ModuleType) -> None:
    listed = table(reference.configuration())
    whole = Config.model_validate(FULL).model_dump()
    of_rows = {f"rows[].{key}" for key in comparison_config.MethodRow.model_fields}
    own = set(comparison_config.Comparison.model_fields) - set(config.Experiment.model_fields) - {"rows"}
    inside = {"prompt.few_shot", "training.variational", "training.repulsion"}  # sections that may be left out
    assert set(listed) == {*leaves(whole), *of_rows, *own, *inside}
    assert [key for key, meaning in listed.items() if len(meaning) < 4] == []


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def test_every_command_and_option_is_listed_with_its_meaning(reference: ModuleType) -> None:
    sections = re.split(r"^## ripieno ", reference.commands(), flags=re.MULTILINE)[1:]
    listed = {name: table(body) for name, _, body in (section.partition("\n") for section in sections)}
    assert set(listed) == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert len(listed[name]) == len(command.params)
        assert all(listed[name].values()), name


# ---- links, and a place for every page ------------------------------------------------------------------------------


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are linked by on GitHub: lower case, no punctuation, repeats numbered."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        repeats = sum(name == re.sub(r"-\d+$", "", other) for other in found)
        found.add(f"{name}-{repeats}" if repeats else name)
    return found


def test_every_page_is_in_the_index() -> None:
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+\.md)\)", read("docs/index.md"), re.MULTILINE)
    found = [(ROOT / "docs" / name).resolve().relative_to(ROOT).as_posix() for name in listed]
    assert sorted([*found, "docs/index.md"]) == NAMES


def test_papers_have_one_link_each() -> None:
    for page in NAMES:
        for text, link in re.findall(r"\[arXiv:([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", read(page)):
            assert text == link, page
