"""From a run to decisions: a promise made once and kept by `predict`, or refused."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import ripieno, rows, works, write_config, write_rows

from ripieno import Ensemble
from ripieno.data.question import read_questions
from ripieno.errors import UserError

RISK, CONFIDENCE = 0.9, 0.9


@dataclass(frozen=True)
class Certified:
    """A run with a promise, questions to ask, and what was said."""

    config: Path
    path: Path
    asked: Path
    said: str
    certificate: dict[str, Any]


@pytest.fixture(scope="module")
def certified(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    folder = tmp_path_factory.mktemp("certified")
    counts = {"train": 8, "validation": 60, "calibration": 10, "certification": 60, "test": 4}
    data = {
        role: [write_rows(folder / f"{role}.jsonl", rows(count, seed, (2, 3)))]
        for seed, (role, count) in enumerate(counts.items())
    }
    asked = Path(write_rows(folder / "asked.jsonl", [{**row, "answer": None} for row in rows(7, 9, (2, 4))]))
    config, run = write_config(folder, base, data), folder / "run"
    works("train", config, "--run", run)
    said = works("certify", run, "--risk", str(RISK), "--confidence", str(CONFIDENCE), "--cost-error", "10",
                 "--cost-handover", "1")  # fmt: skip
    return Certified(config, run, asked, said, json.loads((run / "certificate.json").read_bytes())["certificate"])


def test_certify_says_what_is_promised(certified: Certified) -> None:
    promise = certified.certificate["promise"]
    assert promise["risk"] == RISK
    assert promise["answered"] <= promise["questions"] == 60
    assert "Promised: at most 90% wrong among the answered, at 90% confidence" in certified.said
    assert f"{promise['answered']} of the 60 certification questions" in certified.said
    assert "Prediction sets: choices of at least" in certified.said
    assert "At 10 an error and 1 a hand-over: answer" in certified.said


def test_the_certification_questions_are_used_once(certified: Certified) -> None:
    before = (certified.path / "certificate.json").read_bytes()
    again = works("certify", certified.path, "--risk", str(RISK), "--confidence", str(CONFIDENCE), "--cost-error", "10",
                  "--cost-handover", "1")  # fmt: skip
    assert again == certified.said
    other = ripieno("certify", certified.path, "--risk", "0.5")
    assert other.code == 2
    assert "were used on" in other.err
    assert (
        f"`ripieno certify {certified.path} --risk 0.9 --confidence 0.9 --cost-error 10 --cost-handover 1`" in other.err
    )
    assert (certified.path / "certificate.json").read_bytes() == before


def test_the_report_has_the_promise(certified: Certified) -> None:
    works("evaluate", certified.path)
    works("report", certified.path)
    page = (certified.path / "report/index.html").read_text()
    assert "<h2>What is promised?</h2>" in page
    assert "At most 90% wrong among the answered, at 90% confidence" in page
    # The test questions had no part in it; the certification questions are no set of the page.
    measured = {row["dataset"] for row in json.loads((certified.path / "report/metrics.json").read_bytes())["rows"]}
    assert [name.rpartition("-")[0] for name in measured] == ["test"]


def test_a_promise_is_not_shown_beside_other_members_or_questions(certified: Certified, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(certified.path, run)
    works("evaluate", run)
    works("evaluate", run, "--dataset", str(certified.config.parent / "validation.jsonl[0%:50%]"))
    works("report", run)
    page = (run / "report/index.html").read_text()
    assert "<h2>What is promised?</h2>" in page
    assert "holds questions that the promise was made from, so it shows nothing of how it went." in page
    file = run / "members/000/epoch-001/adapter_model.safetensors"
    file.write_bytes((run / "members/001/epoch-001/adapter_model.safetensors").read_bytes())
    works("report", run)
    page = (run / "report/index.html").read_text()
    assert "<h2>What is promised?</h2>" not in page
    assert "What was promised is of other members than those of this run now" in page


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_predict_keeps_the_promise(certified: Certified, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"decided{suffix}"
    said = works("predict", certified.path, "--input", certified.asked, "--output", output, "--max-risk", str(RISK))
    if suffix == ".jsonl":
        found = [json.loads(line) for line in output.read_text().splitlines()]
    elif suffix == ".parquet":
        found = pq.read_table(output).to_pylist()
    else:
        with output.open(newline="") as file:
            found = list(csv.DictReader(file))
        for row in found:
            row |= {k: json.loads(row[k]) for k in ("probs", "prediction_set", "answer", "total", "epistemic")}
            row["aleatoric"] = float(row["aleatoric"])
    questions = read_questions(certified.asked)
    assert [row["id"] for row in found] == [question.id for question in questions]
    threshold = certified.certificate["promise"]["threshold"]
    [of_all] = certified.certificate["sets"]["groups"]
    sets = of_all["threshold"]
    for row, question in zip(found, questions, strict=True):
        probs = row["probs"]
        assert len(probs) == len(question.choices)
        assert sum(probs) == pytest.approx(1, abs=1e-6)
        assert row["answer_text"] == question.choices[row["answer"]]
        assert probs[row["answer"]] == max(probs)
        assert row["total"] == pytest.approx(row["aleatoric"] + row["epistemic"], abs=1e-12)
        assert row["prediction_set"] == [k for k, p in enumerate(probs) if sets is None or 1 - p <= sets]
        value = row["epistemic"] if certified.certificate["rule"]["uncertainty"] == "mi" else 1 - max(probs)
        assert row["answered"] == ("yes" if threshold is None or value <= threshold else "no")
        assert "at most 90% wrong" in row["reason"]
    answered = sum(row["answered"] == "yes" for row in found)
    assert f"7 questions, {answered} answered and {7 - answered} handed over" in said


def test_python_decides_alike(certified: Certified, tmp_path: Path) -> None:
    output = tmp_path / "decided.jsonl"
    works("predict", certified.path, "--input", certified.asked, "--output", output, "--max-risk", str(RISK))
    ensemble = Ensemble.load(certified.path)
    decided = ensemble.decide(read_questions(certified.asked), max_risk=RISK)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(d.id, d.answer, d.answered, d.reason) for d in decided] == [
        (line["id"], line["answer"], line["answered"], line["reason"]) for line in lines
    ]
    assert {d.answered for d in ensemble.decide(read_questions(certified.asked))} == {None}


def test_what_was_not_promised_is_refused(certified: Certified, tmp_path: Path) -> None:
    output = tmp_path / "decided.jsonl"
    done = ripieno("predict", certified.path, "--input", certified.asked, "--output", output, "--max-risk", "0.001")
    assert done.code == 2
    assert "--max-risk 0.001: was not promised; give 0." in done.err
    assert not output.exists()
    done = ripieno("predict", certified.path, "--input", certified.asked, "--output", output, "--max-risk", "90")
    assert (done.code, "give a share between 0 and 1" in done.err) == (2, True)


def test_a_certificate_is_of_those_members_alone(certified: Certified, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(certified.path, run)
    predict = ("predict", run, "--input", certified.asked, "--output", tmp_path / "decided.csv", "--max-risk", "0.9")
    works(*predict)  # a copy is as good
    file = run / "members/000/epoch-001/adapter_model.safetensors"
    kept = file.read_bytes()
    file.write_bytes((run / "members/001/epoch-001/adapter_model.safetensors").read_bytes())
    done = ripieno(*predict)
    assert done.code in (1, 2)  # it is not the file that was written, nor the one that was certified
    assert "members/000/epoch-001" in done.err
    file.write_bytes(kept)
    certificate = run / "certificate.json"
    certificate.write_text(certificate.read_text().replace('"risk": 0.9', '"risk": 0.1'))
    done = ripieno(*predict)
    assert (done.code, "certificate.json: missing or damaged" in done.err) == (1, True)


def test_a_risk_too_low_is_refused_with_the_labels_needed(base: Path, tmp_path: Path) -> None:
    data = {
        role: [write_rows(tmp_path / f"{role}.jsonl", rows(count, seed))]
        for seed, (role, count) in enumerate({"train": 4, "validation": 20, "certification": 20, "test": 4}.items())
    }
    # Solved examples of a set that --data-dir alone tells where to find.
    (tmp_path / "released").mkdir()
    choices = [{"text": text, "label": label} for text, label in (("yes", "A"), ("no", "B"))]
    solved = {"id": "7-980", "question": {"stem": "Is ice cold?", "choices": choices}, "answerKey": "A"}
    (tmp_path / "released" / "train.jsonl").write_text(json.dumps(solved) + "\n")
    few_shot = {"few_shot": {"dataset": "openbookqa/train", "count": 1}}
    given = ("--data-dir", tmp_path / "released")
    run = tmp_path / "run"
    works("train", write_config(tmp_path, base, data, prompt=few_shot), "--run", run, *given)
    said = works("certify", run, "--risk", "0.05", *given)
    assert "Cannot be promised: at most 5% wrong among the answered, at 95% confidence." in said
    assert "even without an error that takes 59 answered questions, and there are 20" in said


def test_roles_that_a_promise_needs(base: Path, tmp_path: Path) -> None:
    train, test = (write_rows(tmp_path / f"{n}.jsonl", rows(4, n)) for n in (1, 2))
    run = tmp_path / "run"
    works("train", write_config(tmp_path, base, {"train": [train], "test": [test]}), "--run", run)
    done = ripieno("certify", run)
    assert (done.code, "names no data.validation, which a promise needs" in done.err) == (2, True)
    assert not (run / "certificate.json").exists()
    done = ripieno("predict", run, "--input", test, "--output", tmp_path / "o.csv", "--max-risk", "0.1")
    assert (done.code, "names no data.validation" in done.err) == (2, True)
    with pytest.raises(UserError, match=r"--max-risk 0\.1: nothing is certified of these members"):
        Ensemble.load(run).decide(read_questions(Path(test)), max_risk=0.1)


def test_a_plan_needs_no_run() -> None:
    said = works("certify", "--plan", "--risk", "0.2", "--confidence", "0.9", "--accuracy", "0.9")
    lines = said.splitlines()
    assert lines[0] == "At most 20% wrong among the answered, at 90% confidence, in simulated draws:"
    assert lines[2].split()[0] == "11"  # ln 0.1 / ln 0.8, rounded up
    assert ripieno("certify").code == 2
    done = ripieno("certify", "--plan", "--error-auroc", "0.5")
    assert (done.code, "give one between" in done.err) == (2, True)
    assert ripieno("certify", "--risk", "5", "--plan").err.startswith("ripieno: --risk 5: give a share between 0 and 1")
