"""What SECURITY.md promises: no file runs code, leaves its folder, or gives orders to what shows it."""

from __future__ import annotations

import ast
import csv
import html
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import ripieno, rows, works, write_config, write_rows
from populations import random_predictions

from families import save_tiny
from ripieno import Ensemble, config, decisions, measures
from ripieno.arrays import read_predictions
from ripieno.config import Base, Prompt
from ripieno.data.splits import DatasetName
from ripieno.errors import EnvironmentFault, UserError
from ripieno.escaping import csv_cell, markdown_text, terminal_line
from ripieno.model import backbone
from ripieno.report.build import write_tables
from ripieno.runs import RunFolder

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "ripieno"
FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1+1"]
ORDERS = [
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\rb",
    "a\nb",
    "\u202egnp.exe",
    "\u2066x",
    "\b\b",
    "\x00",
    "\u2028",
    "\ud800",
]

pytestmark = pytest.mark.fault("a hostile input")


# ---- what runs ------------------------------------------------------------------------------------------------------

RUNS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "runpy", "imp"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.save", "torch.load", "pd.read_pickle",
    "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load",
    "tempfile.mktemp",
    "pickle.load", "pickle.loads",
}  # fmt: skip
LOADERS = {"UnsafeLoader", "FullLoader", "Loader", "CLoader"}


def dangers(source: str) -> Iterator[str]:
    """Yield what in a file could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.partition(".")[0] in RUNS)
        if isinstance(node, ast.Attribute) and node.attr in LOADERS and ast.unparse(node.value) == "yaml":
            yield ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            yield ast.unparse(node.func)
        if isinstance(node, ast.keyword):
            given = ast.unparse(node.value)
            if node.arg in ("allow_pickle", "shell") and given != "False":
                yield f"{node.arg}={given}"
            if node.arg == "weights_only" and given != "True":
                yield f"{node.arg}={given}"
            if node.arg == "trust_remote_code" and given not in ("False", "base.trust_remote_code"):
                yield f"{node.arg}={given}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "yaml.load(f)", "yaml.load(f, Loader=yaml.UnsafeLoader)", "eval(text)", "subprocess.run(c, shell=True)",
        "M.from_pretrained(f, trust_remote_code=True)", "marshal.loads(b)\nimport marshal", "tempfile.mktemp()",
    ],
)  # fmt: skip
def test_the_search_sees_what_it_should(source: str) -> None:
    assert list(dangers(source))


def test_no_file_of_ours_could_run_what_it_reads() -> None:
    found = {file.relative_to(SOURCE).as_posix(): list(dangers(file.read_text())) for file in SOURCE.rglob("*.py")}
    assert len(found) > 100
    assert {file: what for file, what in found.items() if what} == {}
    # Every model and tokenizer is told so, as the library asks the terminal where it is told nothing.
    for file in found:
        for node in ast.walk(ast.parse((SOURCE / file).read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            given = {keyword.arg for keyword in node.keywords} if isinstance(node, ast.Call) else set()
            if called.endswith(".from_pretrained"):
                assert "trust_remote_code" in given, f"{file}:{node.lineno}"
                assert "Model" not in called or given & {"use_safetensors", "gguf_file"}, (
                    f"{file}:{node.lineno}: pickles"
                )
            if called in ("np.load", "numpy.load"):
                assert "allow_pickle" in given, f"{file}:{node.lineno}"


class Trap:
    """A pickle that makes a file as it is read."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[bytes]:
    """Return a pickle that works, which nothing may have read at the end of the test."""
    canary = tmp_path / "canary"
    content = pickle.dumps(Trap(canary))
    pickle.loads(content)
    assert canary.exists()
    canary.unlink()
    yield content
    assert not canary.exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


def test_arrays_of_objects_are_refused(tmp_path: Path, trap: bytes) -> None:
    objects = np.array([Trap(tmp_path / "canary")], dtype=object)
    for name in ("probs", "ids", "targets"):
        arrays = {"probs": np.full((1, 1, 2), 0.5), name: objects}
        np.savez(tmp_path / "p.npz", **arrays)
        with pytest.raises(UserError, match=f"`{name}` holds Python objects"):
            read_predictions(tmp_path / "p.npz", "mnk")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "adapter_model.bin"])
def test_pickled_weights_of_a_base_are_never_read(tiny: Path, tmp_path: Path, trap: bytes, name: str) -> None:
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    for folder in (alone, beside):
        shutil.copytree(tiny, folder)
        (folder / name).write_bytes(trap)
    (alone / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled weights are never read"):
        backbone.load(Base(model=str(alone)))
    backbone.load(Base(model=str(beside)))


def test_a_pickled_adapter_is_never_read(tiny: Path, tmp_path: Path, trap: bytes) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**about, "base_model_name_or_path": str(tiny)}))
    (folder / "adapter_model.bin").write_bytes(trap)
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        Ensemble.load([folder], prompt=Prompt())
    (folder / "adapter_model.safetensors").write_bytes(trap)
    with pytest.raises(EnvironmentFault, match="missing or damaged"):
        Ensemble.load([folder], prompt=Prompt())


@pytest.mark.parametrize("kind", ["AutoModelForCausalLM", "AutoConfig", "AutoTokenizer"])
def test_code_in_a_model_folder_runs_only_where_it_is_asked_for(tiny: Path, tmp_path: Path, kind: str) -> None:
    """The folder names its code as the hub's models do; with the switch it runs, so that the test can fail."""
    folder, canary = tmp_path / "model", tmp_path / "canary"
    shutil.copytree(tiny, folder)
    for file in ("config.json", "tokenizer_config.json"):
        about = json.loads((folder / file).read_text())
        if kind != "AutoTokenizer" or file == "tokenizer_config.json":
            about["auto_map"] = {kind: ["evil.Evil", "evil.Evil"] if kind == "AutoTokenizer" else "evil.Evil"}
        about |= {"model_type": "evil"} if kind == "AutoConfig" and file == "config.json" else {}
        about |= {"tokenizer_class": "Evil"} if kind == "AutoTokenizer" else {}
        (folder / file).write_text(json.dumps(about))
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    try:
        backbone.load(Base(model=str(folder)))
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (some of these folders can be read without their code)
    assert not canary.exists()
    with pytest.raises(UserError):  # the class is none
        backbone.load(Base(model=str(folder), trust_remote_code=True))
    assert canary.exists()


def test_yaml_is_the_safe_kind(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "c.yaml"
    tags = ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
    for tag in tags:
        path.write_text(f"name: {tag} ['touch {canary}']\n")
        with pytest.raises(UserError, match="could not determine a constructor"):
            config.load(path)
        with pytest.raises(UserError, match="is not a YAML value"):
            config.settings([f"name={tag} ['touch {canary}']"], "--set")
    assert not canary.exists()


# ---- a run's own files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose questions, ids and file names are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    asked = rows(24, 0, choices=(3,))
    for n, row in enumerate(asked):
        bad = [*FORMULAS, *ORDERS[:-1], "</script><script>alert(1)</script>", "{{ 7 * 7 }}", "$\\frac{$"]
        row["id"] = f"{bad[n % len(bad)]}{n}"
        row["question"] = bad[(n + 3) % len(bad)] + row["question"]
        row["choices"][0] = bad[(n + 5) % len(bad)] + " first"
        row["answer"] = n % 3
        row["subject"] = bad[n % 4]
    parts = {"train": asked[:8], "calibration": asked[8:14], "test": asked[14:]}
    names = {"train": "t.jsonl", "calibration": "c.jsonl", "test": "=1+1 <b>$x$ \x1b[2J.jsonl"}
    data = {role: [write_rows(folder / names[role], part)] for role, part in parts.items()}
    run = folder / "run"
    works("train", write_config(folder, tiny, data), "--run", run, "--quiet")
    works("evaluate", run, "--quiet")
    works("report", run)
    return run


def test_a_run_holds_no_pickle(run: Path) -> None:
    kinds = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert kinds - {""} <= {".yaml", ".json", ".jsonl", ".safetensors", ".parquet", ".html", ".csv"}
    for path in run.rglob("*"):
        if path.is_file():
            start = path.read_bytes()[:4]
            # A pickle of protocol 2 or later, a zip of pickles as torch writes it, a gzip.
            assert not (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"), path
            assert start not in (b"PK\3\4", b"\x1f\x8b\x08\x00"), path


def test_a_pickle_in_the_place_of_a_runs_file_is_never_read(run: Path, tmp_path: Path, trap: bytes) -> None:
    copied = tmp_path / "run"
    for name in sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file()):
        if name.parts[0] in ("report", ".locks") or name.suffix == ".lock":
            continue
        shutil.copytree(run, copied)
        (copied / name).write_bytes(trap)
        done = ripieno("analyze", copied) if name.parts[0] != "members" else ripieno("status", copied, "--verify")
        assert done.code in (0, 1, 2), (name, done.err)
        assert "Traceback" not in done.err
        shutil.rmtree(copied)


def test_what_is_shown_of_a_hostile_run_gives_no_orders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert "=1+1 &lt;b&gt;$x$ " in page
    assert "Content-Security-Policy" in page
    for path in run.rglob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
            assert [text for text in row if csv_cell(text) != text and not number(text)] == []
    for command in (["report", run], ["analyze", run], ["status", run], ["status", run, "--verify"]):
        done = ripieno(*command)
        assert done.code == 0, done.err
        for text in (done.out, done.err):
            assert [c for c in text if c != "\n" and terminal_line(c) != c] == [], command
    assert json.loads(ripieno("analyze", run, "--json").out)["schema"] == 1


def number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["../../etc/passwd", "mmlu:../x/test", "mmlu/../../test", "..:x/test", "arc:x/../x"])
def test_names_of_data_sets_are_no_paths(text: str) -> None:
    with pytest.raises(UserError):
        DatasetName.parse(text)


@pytest.mark.parametrize("stem", ["..", "...", "a:b+c", "-rf", "x\n", "~"])
def test_the_folder_of_a_users_file_is_below_the_run(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.jsonl"
    path.write_text("x")
    name = DatasetName.parse(str(path))
    for part in (name.folder, name.file):
        assert Path(part).name == part
        assert part not in ("", ".", "..")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "/tmp/x", "a\\b/c"])
def test_names_in_configs_name_no_other_folder(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        config.parse({"name": name, "data": {"train": ["q.jsonl"]}})


def test_names_in_a_comparison_name_no_other_folder(tmp_path: Path) -> None:
    from ripieno import comparison, comparison_config

    content = yaml.safe_load((ROOT / "configs/compare-demo.yaml").read_text())
    content["trainings"]["../../x"] = {}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"trainings|name"):
        comparison_config.load(path).experiment("../../x", 2)
    assert comparison_config.MethodRow(name="../../x", method="ensemble").slug == "x"
    file = comparison.predictions_file(tmp_path, "row", "../../x/../y")
    assert file.parent == tmp_path / "predictions" / "row"
    assert file.resolve().parent == file.parent.resolve()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "members/../../x"])
def test_a_certificate_names_no_file_outside_of_its_run(tmp_path: Path, name: str) -> None:
    from ripieno.measures import certificate

    for key in ("adapters", "features"):
        content: dict[str, Any] = {"adapters": {}, "features": {}, "certificate": {"schema": certificate.SCHEMA}}
        content[key] = {name: "0" * 64}
        run = RunFolder(tmp_path / key)
        run.write(run.certificate, json.dumps(content))
        with pytest.raises(EnvironmentFault, match="which leaves the folder"):
            decisions.recorded(run)


# ---- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_a_formula(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1, -0.5, 1e-9, None, True, "a=1", "1", ""])
def test_numbers_stay_numbers(value: Any) -> None:
    assert csv_cell(value) is value


@pytest.mark.parametrize("text", ORDERS)
def test_a_terminal_gets_no_orders(text: str) -> None:
    shown = terminal_line(text)
    assert shown.isprintable()
    assert "\\" in shown
    shown.encode()


@pytest.mark.parametrize("text", ["plain", "naïve 😀 日本語", "ab − x·y … “q”", "👩‍👩‍👧", "\\n"])
def test_what_is_no_order_is_shown_as_it_is(text: str) -> None:
    assert terminal_line(text) == text


@pytest.mark.parametrize("text", FORMULAS)
def test_decisions_hold_no_formula(tmp_path: Path, text: str) -> None:
    decision = decisions.Decision(text, 0, text, (0.5, 0.5), 0.1, 0.1, 0.0, (0, 1), "yes", "why")
    decisions.write(tmp_path / "d.csv", [decision])
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["id"] == row["answer_text"] == f"'{text}"
    assert float(row["total"]) == 0.1


def test_tables_hold_no_formula() -> None:
    p = replace(random_predictions(2, 20, 3, seed=0), dataset="=1+1", method="@x")
    tables = write_tables(measures.Evidence([p]).analyze(resamples=5))
    found = [*csv.DictReader(io.StringIO(tables["measures.csv"]))]
    assert {row["dataset"] for row in found} == {"'=1+1"}
    assert {row["method"] for row in found} == {"'@x"}


def test_a_first_config_holds_nothing_of_its_files_name(tmp_path: Path) -> None:
    path = tmp_path / "a\nbase: {trust_remote_code: true}\n.jsonl"
    write_rows(path, rows(150, 0))
    works("init", path, "--output", tmp_path / "made.yaml")
    text = (tmp_path / "made.yaml").read_text()
    assert [line for line in text.splitlines() if "trust_remote_code: true" in line and line[0] not in "# "] == []
    assert config.read(tmp_path / "made.yaml")["base"] == {"model": "embedded:SmolLM2-135M-Instruct"}


@pytest.mark.parametrize("text", ["<script>x", "a|b", "`<b>", "a\n# b", "&lt;"])
def test_markdown_takes_texts_as_texts(text: str) -> None:
    shown = markdown_text(text)
    assert not set("<>|`\n") & set(shown)
    assert html.unescape(shown).replace("\\n", "\n") == text


def test_errors_and_progress_give_no_orders(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb\u202e.jsonl"
    path.write_text('{"question": "q", "choices": ["a", "b"], "answer": "\\u001b]0;x"}\n')
    for command in (["datasets", "check", path], ["analyze", path], ["train", path], ["evaluate", "x", "--\x1b[2J"]):
        done = ripieno(*command)
        assert done.code == 2
        assert done.err.count("\n") == 1
        assert done.err.rstrip("\n").isprintable()
        assert "\x1b" not in done.out


# ---- files ----------------------------------------------------------------------------------------------------------


def test_temporary_files_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has its last name only once it is whole; before that nobody else can read it, or guess its name."""
    from ripieno.runs import write_atomically

    seen = []

    def fsync(descriptor: int) -> None:
        seen.extend((path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(2):
        write_atomically(tmp_path / "x", b"content")
        (tmp_path / "x").unlink()
    temporary = [(name, mode) for name, mode in seen if name != "x"]
    assert {mode for _, mode in temporary} == {0o600}
    assert len({name for name, _ in temporary}) == 2


@pytest.mark.parametrize("kind", [np.float64, bool])
def test_a_small_file_does_not_fill_the_memory(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("probs.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (2, 10_000_000, 2)}
        )
        for _ in range(40):
            file.write(bytes(2_000_000 if kind is bool else 8_000_000))
    with pytest.raises(UserError, match="bytes that unpack to"):
        read_predictions(path, "mnk")
