"""No input crashes a reader, keeps it for over 5 seconds or takes over 1 GiB: it is read, or refused in one line.

`make test` draws the same few files every time; `make torture` many, always others.
"""

from __future__ import annotations

import gzip
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
SECONDS, PATIENCE = 5.0, 60.0  # of the processor, which a busy machine stretches little; of the clock
TORTURE = settings.get_current_profile_name() == "torture"
fuzzed = settings(
    max_examples=2000 if TORTURE else 60,
    derandomize=not TORTURE,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass
class Reader:
    """The other process, which reads; started anew where one did not live."""

    folder: Path
    process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        warm = [self.write(name, content) for name, content in VALID.items()]
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py")), *map(str, warm)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def read(self, reader: str, name: str, content: bytes) -> tuple[str, str]:
        """Return what became of a file, "read" or "refused", and what was said.

        Raises:
            AssertionError: it was neither.
        """
        if self.process is None:
            self.process = self.start()
        process, path = self.process, self.write(name, content)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{reader}\t{path}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            self.stop()
            raise AssertionError(f"{reader} was still reading {name} after {PATIENCE:g} seconds")
        line = process.stdout.readline()
        if not line:
            self.stop()
            raise AssertionError(f"{reader} took its process down with {name}: exit code {process.returncode}")
        outcome, said, seconds = json.loads(line)
        assert seconds < SECONDS, f"{reader} read {name} for {seconds:.1f} seconds"
        assert outcome in ("read", "refused"), said
        assert len(said) < 10_000, f"{reader} said {len(said)} characters: {said[:1000]}"
        return outcome, said

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    reader = Reader(tmp_path_factory.mktemp("fuzz"))
    yield reader
    reader.stop()


QUESTIONS: list[Any] = [
    {"id": "a", "question": "what?", "choices": ["yes", "no", "A"], "answer": 1, "context": "c", "subject": "s"},
    {"id": "b", "question": "where?", "choices": ["here", "there"], "answer": "there"},
    {"id": "c", "question": "when?", "choices": ["now", "1"], "answer": "B"},
]
TYPED: list[Any] = [{**row, "answer": n} for n, row in enumerate(QUESTIONS[:2])]  # as a column of parquet must be
LABELLED: list[Any] = [{"text": "one", "label": "yes"}, {"text": "two", "label": "no"}, {"id": 3, "text": "three"}]
TEXTS: list[Any] = [{"text": "one"}, {"text": "two", "id": "t"}]
PREDICTIONS: list[Any] = [
    {"id": f"q{n}", "probs": [[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]], "target": n, "subject": "s", "epoch": 1}
    for n in range(3)
]
LAPLACE: list[Any] = [
    {"index": n, "true": 1, "pred": 1, "conf": 0.5, "logits": [0.1, 2.0], "probs": [0.25, 0.75]} for n in (0, 1)
]
ROWS = [
    {
        "question_id": f"q{n}",
        "dataset": "d",
        "split": "test",
        "subject": None,
        "epoch": 1,
        "member": m,
        "replicate": 0,
        "draw": 0,
        "choice_log_probs": np.log([0.5, 0.25, 0.25]).tolist(),
        "choice_scores": [-1.0, -2.0, -2.0],
        "choice_tokens": [1, 2, 3],
        "outside_mass": 0.1,
        "target": n,
    }
    for m in range(2)
    for n in range(3)
]  # fmt: skip
HEADER = {b"ripieno": json.dumps({"schema": 1, "method": "ensemble", "too_long": []}).encode()}
FEATURES: list[Any] = [
    {"question_id": f"q{n}", "dataset": "d", "split": "s", "prompt_tokens": 3, "prompt_nll": 1.0, "hidden": [0.5, n]}
    for n in range(3)
]
TOKENS: list[Any] = [
    {
        "text_id": "t", "position": n, "token_id": n, "token": "x", "start": n, "end": n + 1, "log_prob": -0.5,
        "entropy": 1.0,
        "expected_entropy": 0.5, "mutual_information": 0.5, "confidence": 0.5, "correct": True,
        "member_log_probs": [-0.5, -0.5], "answer": False,
    }
    for n in range(2)
]  # fmt: skip
TOKEN_HEADER = {"schema": 1, "method": "ensemble", "epoch": 1, "members": [0, 1], "dataset": "d", "split": "s"}
NPZ: dict[str, Any] = {
    "probs": np.full((2, 3, 2), 0.5),
    "targets": np.array([0, 1, -1]),
    "mask": np.ones((3, 2), dtype=bool),
    "ids": np.array(["a", "b", "c"]),
    "members": np.arange(2),
}
CONFIG = yaml.safe_load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))
COMPARISON = yaml.safe_load((ROOT / "configs/compare-demo.yaml").read_text(encoding="utf-8"))
INDEX: dict[str, Any] = {
    "schema": 1, "replicates": 1, "members": 2, "reference": "single", "test": ["d/test"],
    "rows": [{"name": "single", "slug": "single", "method": "single", "answers": 1, "training_tokens": 1,
              "evaluation_tokens": 1, "stored_bytes": 1}],
}  # fmt: skip
SUM = "0" * 64
RECORDS: list[Any] = [
    {"path": "config.yaml", "sha256": SUM},
    {"path": "timing.jsonl", "sha256": SUM, "bytes": 9, "before": {"sha256": SUM, "bytes": 3}},
    {"path": "questions/x/all.parquet", "sha256": None},
]
LOG: list[Any] = [{"kind": "step", "epoch": 1, "step": 1, "member": 0, "loss": 1.5}] * 2
ARC: list[Any] = [
    {
        "id": "7-1",
        "question": {"stem": "which?", "choices": [{"label": x, "text": f"t{x}"} for x in "ABC"]},
        "answerKey": "B",
    }
]
HUB_ARC: list[Any] = [
    {"id": "1", "question": "which?", "choices": {"label": ["A", "B"], "text": ["x", "y"]}, "answerKey": "A"}
]
BOOLQ: list[Any] = [{"question": "is it", "passage": "It is.", "answer": True}]
WINOGRANDE: list[Any] = [{"sentence": "The _ is.", "option1": "a", "option2": "b", "answer": "1"}]
MMLU: list[Any] = [{"subject": "x", "question": "q", "choices": ["a", "b", "c", "d"], "answer": 2}]
MMLU_CSV = b'what?,a,b,c,d,A\n"two\nlines",1,2,3,4,D\n'
REQUESTS: list[Any] = [{"doc": {"id": "1", "query": "Question: q\nAnswer:", "choices": ["a", "b"], "gold": 1}}]


def as_predictions(rows: Any) -> pa.Table:
    return hostile.table(rows).replace_schema_metadata(HEADER)


def as_tokens(rows: Any) -> pa.Table:
    return hostile.table(rows).replace_schema_metadata({b"ripieno": json.dumps(TOKEN_HEADER).encode()})


def tables(content: Any, build: Any = hostile.table) -> st.SearchStrategy[bytes]:
    """Draw parquet files: other values, other types, damaged bytes."""
    whole = build(content)
    return hostile.either(
        hostile.changed(content).map(build).map(hostile.parquet),
        hostile.recast(whole).map(hostile.parquet),
        hostile.damaged(hostile.parquet(whole, compression="none")),
        hostile.damaged(hostile.parquet(whole, use_dictionary=False, compression="zstd")),
    )


def streams(content: Any) -> st.SearchStrategy[bytes]:
    """Draw arrow streams, likewise."""
    whole = hostile.table(content)
    return hostile.either(
        hostile.changed(content).map(hostile.table).map(hostile.arrow),
        hostile.recast(whole).map(hostile.arrow),
        hostile.damaged(hostile.arrow(whole)),
    )


FILES: dict[str, tuple[tuple[str, ...], st.SearchStrategy[bytes]]] = {
    "questions.jsonl": (("questions", "check", "init"), hostile.mutated(QUESTIONS, hostile.lines)),
    "questions.csv": (("questions", "check", "init"), hostile.mutated(QUESTIONS, hostile.cells)),
    "questions.parquet": (("questions", "check"), tables(TYPED)),
    "labelled.csv": (("labelled", "init"), hostile.mutated(LABELLED, hostile.cells)),
    "texts.jsonl": (("texts",), hostile.mutated(TEXTS, hostile.lines)),
    "predictions.jsonl": (("predictions",), hostile.mutated(PREDICTIONS, hostile.lines)),
    "laplace.json": (("predictions",), hostile.mutated(LAPLACE, hostile.lines)),
    "predictions.parquet": (("predictions",), tables(ROWS, as_predictions)),
    "predictions.npz": (
        ("predictions", "mnk", "nmk"),
        hostile.either(hostile.arrays(NPZ), hostile.damaged(hostile.npz(**NPZ))),
    ),
    "features.parquet": (("features",), tables(FEATURES)),
    "tokens.parquet": (("tokens",), tables(TOKENS, as_tokens)),
    "config.yaml": (("config", "settings"), hostile.either(hostile.yaml_text(CONFIG))),
    "compare.yaml": (("comparison",), hostile.either(hostile.yaml_text(COMPARISON))),
    "checksums.jsonl": (("records",), hostile.mutated(RECORDS, hostile.lines)),
    "metrics.jsonl": (("log",), hostile.mutated(LOG, hostile.lines)),
    "rows.json": (("rows",), hostile.mutated(INDEX, lambda content: json.dumps(content).encode())),
    "arc.jsonl": (("arc",), hostile.mutated(ARC, hostile.lines)),
    "arc.arrow": (("arc",), streams(HUB_ARC)),
    "requests.jsonl.gz": (
        ("arc",),
        hostile.either(
            hostile.changed(REQUESTS).map(hostile.lines).map(gzip.compress),
            hostile.damaged(gzip.compress(hostile.lines(REQUESTS))),
        ),
    ),
    "boolq.jsonl": (("boolq",), hostile.mutated(BOOLQ, hostile.lines)),
    "boolq.arrow": (("boolq",), streams(BOOLQ)),
    "winogrande.jsonl": (("winogrande",), hostile.mutated(WINOGRANDE, hostile.lines)),
    "winogrande.arrow": (("winogrande",), streams(WINOGRANDE)),
    "mmlu.csv": (("mmlu",), hostile.either(hostile.damaged(MMLU_CSV))),
    "mmlu.arrow": (("mmlu",), streams(MMLU)),
}
VALID = {
    "questions.jsonl": hostile.lines(QUESTIONS),
    "questions.csv": hostile.cells(QUESTIONS),
    "questions.parquet": hostile.parquet(hostile.table(TYPED)),
    "predictions.parquet": hostile.parquet(as_predictions(ROWS)),
    "predictions.jsonl": hostile.lines(PREDICTIONS),
    "predictions.npz": hostile.npz(**NPZ),
    "features.parquet": hostile.parquet(hostile.table(FEATURES)),
    "tokens.parquet": hostile.parquet(as_tokens(TOKENS)),
    "config.yaml": (ROOT / "configs/demo.yaml").read_bytes(),
    "compare.yaml": (ROOT / "configs/compare-demo.yaml").read_bytes(),
    "checksums.jsonl": hostile.lines(RECORDS),
    "metrics.jsonl": hostile.lines(LOG),
    "rows.json": json.dumps(INDEX).encode(),
    "arc.jsonl": hostile.lines(ARC),
    "arc.arrow": hostile.arrow(hostile.table(HUB_ARC)),
    "requests.jsonl.gz": gzip.compress(hostile.lines(REQUESTS)),
    "boolq.jsonl": hostile.lines(BOOLQ),
    "winogrande.arrow": hostile.arrow(hostile.table(WINOGRANDE)),
    "mmlu.csv": MMLU_CSV,
    "mmlu.arrow": hostile.arrow(hostile.table(MMLU)),
}


@pytest.mark.parametrize("name", VALID)
def test_what_is_mutated_is_read_as_it_is(reader: Reader, name: str) -> None:
    """Else the fuzzer would only see what is refused at once."""
    way = {"predictions.npz": "mnk"}.get(name) or FILES[name][0][0]
    assert reader.read(way, name, VALID[name]) == ("read", "")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.fault("a fuzzed file")
def test_no_file_crashes_its_reader(reader: Reader, name: str, record_property: Callable[[str, object], None]) -> None:
    readers, files = FILES[name]
    record_property("tried", fuzzed.max_examples)

    @fuzzed
    @given(st.sampled_from(readers), files)
    def fuzz(way: str, content: bytes) -> None:
        reader.read(way, name, content)

    fuzz()


def lists(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BOMBS: dict[str, tuple[str, str, bytes, str]] = {
    "a billion laughs": ("config", "config.yaml", hostile.laughs(10), "stands for over 50,000 values"),
    "a billion merges": (
        "config",
        "config.yaml",
        b"l0: &l0 {k: 1}\n"
        + b"".join(b"l%d: &l%d {<<: [%s]}\n" % (n, n, b", ".join([b"*l%d" % (n - 1)] * 10)) for n in range(1, 10)),
        "stands for over 50,000 values",
    ),
    "YAML in itself": ("config", "config.yaml", b"name: &a [*a, *a]\n", "nested over 50 levels deep"),
    "deep YAML": ("config", "config.yaml", b"name: " + lists(200), "nested over 50 levels deep"),
    "very deep YAML": ("config", "config.yaml", b"name: " + lists(30_000), "nested over 50 levels deep"),
    "deep blocks": ("config", "config.yaml", b"- " * 30_000, "nested over 50 levels deep"),
    "long YAML": ("config", "config.yaml", b"name: " + b"x" * 2**20, "characters long"),
    "a laughing setting": ("settings", "setting", b"&a [*a]", "is not a YAML value"),
    "a number of 5000 digits": ("config", "config.yaml", b"name: " + b"9" * 5000, "a value is not of its kind"),
    "deep JSON": ("questions", "questions.jsonl", lists(100_000), "not JSON"),
    "JSON with 5000 digits": ("predictions", "predictions.jsonl", b'{"probs": ' + b"9" * 5000 + b"}", "not JSON"),
    "long texts, all unlike": (
        "questions",
        "questions.jsonl",
        json.dumps({"question": "q", "choices": ["ab" * 300_000, "cd" * 300_000], "answer": "bc" * 300_000}).encode(),
        "the nearest is",
    ),
    "a long label": (
        "labelled",
        "labelled.jsonl",
        json.dumps({"text": "t", "label": "ye" * 10**6}).encode(),
        "nearest",
    ),
    "many columns": (
        "questions",
        "questions.jsonl",
        json.dumps({f"questoin{n}": n for n in range(20_000)}).encode(),
        "is not known; is it `question`",
    ),
    "a long cell": ("questions", "questions.csv", b'question,choices\n"' + b"x" * 10**6, "not csv"),
    "rows of nothing": (
        "questions",
        "questions.parquet",
        hostile.parquet(pa.table({"question": pa.nulls(2**23, pa.int8())})),
        "bytes that unpack to",
    ),
    "a list of nothing": (
        "predictions",
        "predictions.parquet",
        hostile.parquet(pa.table({"choice_log_probs": pa.array([np.zeros(2**23, np.int8)])})),
        "bytes that unpack to",
    ),
    "packed zeros": (
        "mnk",
        "predictions.npz",
        hostile.zipped(
            probs=hostile.npy("{'descr': '|b1', 'fortran_order': False, 'shape': (2, 1, 33554432), }") + bytes(2**26)
        ),
        "bytes that unpack to",
    ),
    "zeros that are not there": (
        "mnk",
        "predictions.npz",
        hostile.zipped(probs=hostile.npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 8, 100000000000), }")),
        "`probs` cannot be read",
    ),
    "packed lines": ("arc", "requests.jsonl.gz", gzip.compress(bytes(2**26)), "bytes that unpack to"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.fault("a file made to do harm")
def test_what_is_made_to_do_harm_is_refused(reader: Reader, name: str) -> None:
    way, file, content, message = BOMBS[name]
    outcome, said = reader.read(way, file, content)
    assert (outcome, message in said) == ("refused", True), said
