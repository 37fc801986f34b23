"""`ripieno read` and `evaluate --tokens all` on a tiny model: the files, the numbers, and how they fail."""

from __future__ import annotations

import hashlib
import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import files_of, ripieno, rows, works, write_config, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM

from families import byte_level_tokenizer
from ripieno.config import Prompt
from ripieno.data.question import read_questions
from ripieno.data.splits import DatasetName
from ripieno.measures import ece
from ripieno.model import reading
from ripieno.model.trees import Encoder
from ripieno.parquet import read_parquet as read_predictions
from ripieno.runs import RunFolder
from ripieno.tokens import Tokens, read_parquet

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own

TEXT = "Where is the bird?\r\n\tNear a window of the house — naïve 😀.\n<script>alert('&')</script>"


@dataclass(frozen=True)
class Run:
    path: Path
    test: str


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("read")
    asked = rows(5, 2)
    del asked[1]["answer"]
    train, test = write_rows(folder / "train.jsonl", rows(8, 1)), write_rows(folder / "test.jsonl", asked)
    config = write_config(folder, base, {"train": [train], "test": [test]}, training={"epochs": 2})
    works("train", config, "--run", folder / "run")
    return Run(folder / "run", test)


def text_file(folder: Path, content: str = TEXT, name: str = "my text.md") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


@torch.inference_mode()
def log_probs(base: Path, adapter: Path | None, tokens: list[int]) -> np.ndarray:
    """Return float64 [T - 1, V] of the library's own model with PEFT's adapter."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    logits = model.eval()(input_ids=torch.tensor([tokens])).logits[0, :-1]
    return logits.double().log_softmax(-1).numpy()


def assert_truth(t: Tokens, each: np.ndarray) -> None:
    """Compare a text's table with every member's log-probabilities [M, T - 1, V]."""
    of_tokens = each[:, np.arange(each.shape[1]), t.token_ids[1:]]
    pooled = np.exp(each).mean(axis=0)
    entropies = -(np.exp(each) * each).sum(axis=-1)
    entropy = -(pooled * np.log(pooled)).sum(axis=-1)
    # A log-probability of two float32 layers is off by less than 1e-5 + 1e-7 of itself (DESIGN's bound); an entropy,
    # whose -p ln p moves by (1 + |ln p|) p times that and sums to 6 at most, by 1e-4. The file keeps 7 digits.
    np.testing.assert_allclose(t.member_log_probs[:, 1:], of_tokens, atol=1e-5, rtol=3e-7)
    np.testing.assert_allclose(t.log_probs[1:], np.log(np.exp(of_tokens).mean(axis=0)), atol=1e-5, rtol=3e-7)
    np.testing.assert_allclose(t.entropy[1:], entropy, atol=1e-4)
    np.testing.assert_allclose(t.expected_entropy[1:], entropies.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(t.confidence[1:], pooled.max(axis=-1), rtol=2e-5)
    assert t.correct[1:].tolist() == (pooled.argmax(axis=-1) == t.token_ids[1:]).tolist()


def test_a_text_is_read_as_by_the_members_adapters_in_peft(run: Run, base: Path, tmp_path: Path) -> None:
    file = text_file(tmp_path)
    said = works("read", run.path, "--text", file)
    folder = run.path / "read" / f"my text-{hashlib.sha256(TEXT.encode()).hexdigest()[:8]}-epoch-002"
    assert said.endswith(f"Table: {folder / 'tokens.parquet'}\nPage: {folder / 'index.html'}\n")
    t = read_parquet(folder / "tokens.parquet")
    tokens = byte_level_tokenizer()(TEXT).input_ids
    assert t.token_ids.tolist() == tokens
    assert "".join(t.tokens) == TEXT
    assert [TEXT[a:b] for a, b in zip(t.starts, t.ends, strict=True)] == list(t.tokens)
    assert t.predicted.tolist() == [False] + [True] * (len(tokens) - 1)
    adapters = [run.path / f"members/{m:03d}/epoch-002" for m in range(2)]
    assert_truth(t, np.stack([log_probs(base, adapter, tokens) for adapter in adapters]))
    assert t.mutual_information.max() > 1e-3  # the members do differ, by more than the bounds above
    nll = -t.log_probs[1:].mean()
    assert f"{nll:.3f} nats a token" in said
    assert f"{t.entropy[1:].mean():.3f} nats a token" in said
    assert (t.method, t.epoch, t.members, t.answer) == ("ensemble", 2, (0, 1), None)
    assert t.metadata["config_hash"] == RunFolder(run.path).config().hash()
    assert RunFolder(run.path).whole(folder / "tokens.parquet", folder / "index.html")
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1  # the page's own
    assert html.unescape(re.sub("<[^>]*>", "", page)).count("<script>alert('&')</script>") == 1
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*["']""", page)


def test_the_base_and_an_earlier_epoch_are_read_into_a_folder_of_ones_own(run: Run, base: Path, tmp_path: Path) -> None:
    file, before = text_file(tmp_path), files_of(run.path)
    tokens = byte_level_tokenizer()(TEXT).input_ids
    for epoch, adapters in ((0, [None]), (1, [run.path / f"members/{m:03d}/epoch-001" for m in range(2)])):
        output = tmp_path / "deep" / f"epoch {epoch}"
        said = works("read", run.path, "--text", file, "--epoch", str(epoch), "--output", output)
        assert f"Page: {output / 'index.html'}" in said
        t = read_parquet(output / "tokens.parquet")
        assert_truth(t, np.stack([log_probs(base, adapter, tokens) for adapter in adapters]))
        assert t.method == ("ensemble" if epoch else "base")
    assert "cannot disagree" in works("read", run.path, "--text", file, "--epoch", "0", "--output", tmp_path / "zero")
    assert files_of(run.path) == before
    with RunFolder(run.path).lock():  # while the run goes on training
        works("read", run.path, "--text", file, "--output", tmp_path / "locked")


def test_prompts_of_a_jsonl_file_are_read_each_by_itself(run: Run, base: Path, tmp_path: Path) -> None:
    texts = ["a bird near the house", "two", "Which animal has feathers?\n"]
    content = [{"id": f"p{n}", "text": text} for n, text in enumerate(texts)]
    del content[2]["id"]
    file = Path(write_rows(tmp_path / "prompts.jsonl", content))
    works("read", run.path, "--text", file, "--output", tmp_path / "out")
    t = read_parquet(tmp_path / "out" / "tokens.parquet")
    assert list(t.texts())[:2] == ["p0", "p1"]
    adapters = [run.path / f"members/{m:03d}/epoch-002" for m in range(2)]
    for text, span in zip(texts, t.texts().values(), strict=True):
        tokens = byte_level_tokenizer()(text).input_ids
        assert t.token_ids[span].tolist() == tokens
        assert t.positions[span].tolist() == list(range(len(tokens)))
        truth = np.stack([log_probs(base, adapter, tokens) for adapter in adapters])
        of_tokens = truth[:, np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(t.member_log_probs[:, span][:, 1:], of_tokens, atol=1e-5, rtol=3e-7)


def test_a_text_beyond_the_bases_limit_is_read_whole(run: Run, tmp_path: Path) -> None:
    text = "It is day in New York City, and the bird is near a window. " * 40
    works("read", run.path, "--text", text_file(tmp_path, text), "--output", tmp_path)
    t = read_parquet(tmp_path / "tokens.parquet")
    assert len(t.token_ids) > 512 + 256  # the tiny base's limit, and more than one further window
    assert "".join(t.tokens) == text
    assert t.predicted.sum() == len(t.token_ids) - 1
    assert t.metadata["window"] == 512
    assert "At most 512 tokens at once" in (tmp_path / "index.html").read_text(encoding="utf-8")


# ---- solved questions -------------------------------------------------------------------------------------------


def tables(run: Run, method: str, epoch: int) -> Path:
    folder = DatasetName.parse(run.test).folder
    return run.path / "tokens" / folder / "all" / f"{method}-epoch-{epoch:03d}.parquet"


def test_solved_questions_are_read_once(run: Run, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = works("evaluate", run.path, "--tokens", "all")
    questions = [q for q in read_questions(Path(run.test)) if q.answer is not None]
    assert len(questions) == 4
    spelled, _ = Encoder(byte_level_tokenizer(), Prompt()).solved(questions, None, "error")
    for method, epoch, adapters in (
        ("base", 0, [None]),
        ("ensemble", 2, [run.path / f"members/{m:03d}/epoch-002" for m in range(2)]),
    ):
        t = read_parquet(tables(run, method, epoch))
        assert tuple(t.texts()) == tuple(question.id for question in questions)
        assert (t.method, t.epoch, t.split) == (method, epoch, "all")
        assert t.answer is not None
        for text, span in zip(spelled, t.texts().values(), strict=True):
            assert t.token_ids[span].tolist() == list(text.tokens)
            truth = np.stack([log_probs(base, adapter, list(text.tokens)) for adapter in adapters])
            of_tokens = truth[:, np.arange(text.length - 1), text.tokens[1:]]
            np.testing.assert_allclose(t.member_log_probs[:, span][:, 1:], of_tokens, atol=1e-5, rtol=3e-7)
        assert_printed(said, t)
    before = files_of(run.path)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "read", lambda *_: pytest.fail("a set was read again"))
        assert works("evaluate", run.path, "--tokens", "all") == said
    assert files_of(run.path) == before
    damaged = tables(run, "ensemble", 2)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    assert works("evaluate", run.path, "--tokens", "all") == said
    assert damaged.read_bytes() == content


def assert_printed(said: str, t: Tokens) -> None:
    """The printed numbers are those of the table: means over its tokens, by hand."""
    assert t.answer is not None
    block = said[said.index(f"{t.dataset}/{t.split}, {t.method}, epoch {t.epoch}") :].splitlines()[2:4]
    for line, chosen in zip(block, (t.predicted, t.predicted & t.answer), strict=True):
        nll = -t.log_probs[chosen].mean()
        right = t.correct[chosen].astype(float)
        expected = [
            f"{chosen.sum():,}", f"{nll:.3f}", f"{np.exp(nll):,.1f}", f"{right.mean():.3f}",
            f"{ece(t.confidence[chosen], right):.3f}",
        ]  # fmt: skip
        assert line.split()[2:] == expected


def test_an_answers_tokens_add_up_to_the_score_of_the_right_choice(run: Run) -> None:
    """Two ways to the same numbers: token trees scored by `evaluate`, running text read here."""
    works("evaluate", run.path, "--epoch", "last")
    works("evaluate", run.path, "--tokens", "all", "--epoch", "last")
    folder = DatasetName.parse(run.test).folder
    [p] = read_predictions(run.path / "predictions" / folder / "all" / "ensemble-epoch-002.parquet")
    t = read_parquet(tables(run, "ensemble", 2))
    assert p.scores is not None
    assert t.answer is not None
    for text_id, span in t.texts().items():
        n = p.question_ids.index(text_id)
        sums = np.where(t.answer[span], t.member_log_probs[:, span], 0.0).sum(axis=1)
        # Each side is within the bound of the truth, at most ten tokens of it.
        np.testing.assert_allclose(sums, p.scores[:, n, p.targets[n]], atol=2e-4)


def test_epochs_and_sets_are_chosen(run: Run, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", rows(2, 7))
    said = works("evaluate", run.path, "--tokens", "all", "--epoch", "1", "--dataset", other)
    folder = DatasetName.parse(other).folder
    assert said.startswith(f"{folder}/all, ensemble, epoch 1\n")
    assert [path.name for path in (run.path / "tokens" / folder / "all").iterdir()] == ["ensemble-epoch-001.parquet"]
    works("evaluate", run.path, "--tokens", "all", "--epoch", "all", "--dataset", other)
    assert len(list((run.path / "tokens" / folder / "all").iterdir())) == 3


# ---- mistakes ---------------------------------------------------------------------------------------------------


def test_a_damaged_adapter_is_named(run: Run, tmp_path: Path) -> None:
    file = text_file(tmp_path)
    adapter = run.path / "members/001/epoch-001/adapter_model.safetensors"
    content = adapter.read_bytes()
    adapter.write_bytes(content[:-1])
    try:
        done = ripieno("read", run.path, "--text", file, "--epoch", "1")
    finally:
        adapter.write_bytes(content)
    assert done.code == 1
    assert str(adapter) in done.err


def test_the_files_metadata_is_json_of_plain_values(run: Run, tmp_path: Path) -> None:
    works("read", run.path, "--text", text_file(tmp_path), "--output", tmp_path)
    metadata: dict[str, Any] = read_parquet(tmp_path / "tokens.parquet").metadata
    assert json.loads(json.dumps(metadata)) == metadata
    assert metadata["text"] == {"file": "my text.md", "sha256": hashlib.sha256(TEXT.encode()).hexdigest(), "texts": 1}
