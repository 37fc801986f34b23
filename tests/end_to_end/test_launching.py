"""Questions answered in parts, by shards, in any order: the same file; and members trained by several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from commands import one_line, results_of, ripieno, rows, works, write_config, write_rows

from ripieno import runs
from ripieno.config import Launch, parse
from ripieno.errors import EnvironmentFault, UserError
from ripieno.launching import evaluate_steps, groups, train_commands
from ripieno.launching.local import Local
from ripieno.parquet import read_parquet
from ripieno.runs import RunFolder


def config(folder: Path, base: Path, **sections: dict[str, object]) -> Path:
    data = {
        "train": [write_rows(folder / "train.jsonl", rows(10, 1))],
        "test": [write_rows(folder / "test.jsonl", rows(11, 2))],
        "out_of_domain": [write_rows(folder / "ood.jsonl", rows(5, 3))],
    }
    return write_config(folder, base, data, launch={"questions": 3}, training={"members": 3}, **sections)


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A config, and its run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    file = config(folder, base)
    works("train", file, "--run", folder / "run")
    works("evaluate", folder / "run")
    return file, folder / "run"


def test_shares_in_any_order_make_the_files_of_one_process(alone: tuple[Path, Path], tmp_path: Path) -> None:
    file, whole = alone
    works("train", file, "--run", tmp_path / "run")
    for shard in ("3/3", "1/3", "2/3"):
        assert works("evaluate", tmp_path / "run", "--shard", shard).startswith(f"Shard {shard} is answered")
    parts = [path for path in RunFolder(tmp_path / "run").recorded() if path.startswith("parts/")]
    # 11 and 5 questions in threes, by the base and after the one epoch, and once more with two choices.
    assert len(parts) == 2 * 2 * (4 + 2)
    works("evaluate", tmp_path / "run")
    assert results_of(tmp_path / "run") == results_of(whole)
    assert not list((tmp_path / "run" / "parts").rglob("*.parquet"))
    assert works("status", tmp_path / "run", "--verify")


def test_parts_that_are_there_are_not_answered_again(alone: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of predictions is gone, two of its four parts are left: the other two alone are answered."""
    from ripieno import evaluation

    _, run = alone
    before = results_of(run)
    file = next((run / "predictions").glob("test-*/all/ensemble-epoch-001.parquet"))
    content = file.read_bytes()
    answered: list[int] = []
    answer = evaluation._answer

    def noted(run, ensemble, part, *rest):  # type: ignore[no-untyped-def]
        answered.append(len(part.questions))
        if len(answered) == 3:
            raise KeyboardInterrupt
        return answer(run, ensemble, part, *rest)

    file.unlink()
    monkeypatch.setattr(evaluation, "_answer", noted)
    assert ripieno("evaluate", run).code == 130
    part = next((run / "parts").rglob("*.parquet"))
    assert ripieno("evaluate", run).code == 0
    part.write_bytes(b"as a kill leaves it between its record and itself")
    assert ripieno("status", run, "--verify").code == 1
    works("evaluate", run)
    assert works("status", run, "--verify")
    assert answered == [3, 3, 3, 3, 2]
    assert file.read_bytes() == content
    assert results_of(run) == before


def test_a_part_that_is_too_long_altogether(alone: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    """Its questions are left out as in one file; where all are, that is said as of one."""
    long = [{**row, "question": "where " * 400} for row in rows(3, 7)]
    file = config(tmp_path, base, evaluation={"too_long": "drop", "max_tokens": 300})
    works("train", file, "--run", tmp_path / "run")
    mixed = write_rows(tmp_path / "mixed.jsonl", [*long, *rows(4, 8)])
    works("evaluate", tmp_path / "run", "--dataset", mixed)
    [path] = (tmp_path / "run/predictions").glob("mixed-*/all/ensemble-epoch-001.parquet")
    [p] = read_parquet(path)
    assert p.question_ids == tuple(row["id"] for row in rows(4, 8))
    assert p.metadata["too_long"] == [row["id"] for row in long]
    none = write_rows(tmp_path / "none.jsonl", [{**row, "question": "where " * 400} for row in rows(4, 9)])
    assert "all of them are too long" in one_line(ripieno("evaluate", tmp_path / "run", "--dataset", none), 2)


def test_a_share_that_is_held_and_one_that_does_not_exist(alone: tuple[Path, Path]) -> None:
    _, run = alone
    assert one_line(ripieno("evaluate", run, "--shard", "4/3"), 2).endswith("give one of them, such as 1/3")
    assert one_line(ripieno("evaluate", run, "--shard", "two"), 2).endswith("give one of so many, such as 2/8")
    assert "share out the answers" in one_line(ripieno("evaluate", run, "--shard", "1/2", "--workers", "2"), 2)
    with RunFolder(run).lock(shard=(1, 2)):
        assert works("evaluate", run, "--shard", "2/2")
        assert "answers 1 of 2, held by process" in works("status", run)


def test_a_made_file_is_whole_or_absent(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)

    def fails(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(runs.EnvironmentFault):
        run.make(tmp_path / "predictions/a.parquet", fails)
    assert not list((tmp_path / "predictions").iterdir())
    run.make(tmp_path / "predictions/a.parquet", lambda file: file.write(b"whole"))
    assert run.whole(tmp_path / "predictions/a.parquet")


def test_a_file_put_together_has_a_row_group_a_part(alone: tuple[Path, Path]) -> None:
    """So that making it, and reading it, holds a part at a time."""
    _, run = alone
    [file] = (run / "predictions").glob("test-*/all/ensemble-epoch-001.parquet")
    made = pq.ParquetFile(file)
    assert [made.metadata.row_group(n).num_rows for n in range(made.num_row_groups)] == [9, 9, 9, 6]


# ---- launching --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "workers"), [(1, 4), (5, 2), (10, 3), (7, 7), (50, 8)])
def test_groups_are_even_and_hold_each_member_once(count: int, workers: int) -> None:
    found = groups(range(count), workers)
    assert [m for group in found for m in group] == list(range(count))
    assert len(found) == min(count, workers)
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_commands_are_ones_that_anybody_could_type() -> None:
    assert train_commands(["train", "a.yaml"], [0, 1, 2], 2) == [
        ["train", "a.yaml", "--members", "0", "--quiet"],
        ["train", "a.yaml", "--members", "1,2", "--quiet"],
    ]
    assert evaluate_steps(["evaluate", "run"], 2) == [
        [["evaluate", "run", "--shard", "1/2", "--quiet"], ["evaluate", "run", "--shard", "2/2", "--quiet"]],
        [["evaluate", "run", "--on", "local", "--workers", "1", "--quiet"]],
    ]


def test_two_processes_make_the_run_of_one(alone: tuple[Path, Path], tmp_path: Path) -> None:
    file, whole = alone
    run = tmp_path / "run"
    said = works("train", file, "--run", run, "--workers", "2", "--set", "launch.cpus=1")
    assert said == f"Trained: {run}. Next: ripieno evaluate {run}\n"
    assert results_of(run, "members") == results_of(whole, "members")
    assert results_of(run, "questions").items() <= results_of(whole, "questions").items()
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_mistake_is_said_once_in_its_own_words(tmp_path: Path) -> None:
    missing = ["datasets", "check", str(tmp_path / "none.jsonl")]
    [said] = ripieno(*missing).err.removeprefix("ripieno: ").splitlines()
    with pytest.raises(UserError) as caught:
        Local(Launch(workers=2), "cpu").run("check", [[missing, missing], [["demo"]]])
    assert str(caught.value) == said


def test_a_step_waits_for_the_one_before(tmp_path: Path) -> None:
    """The second one finds what the first one wrote, and refuses to write over it."""
    file = write_rows(tmp_path / "rows.jsonl", rows(160, 1))
    init = ["init", file, "--output", str(tmp_path / "rows.yaml")]
    with pytest.raises(UserError, match=r"rows\.yaml: is there already"):
        Local(Launch(workers=2), "cpu").run("check", [[init], [init]])


def test_bytes_that_are_no_text_hide_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a library's message, cut in the middle of a letter."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '\\303\\nripieno: the reason\\n' >&2\nexit 2\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=r"^the reason$"):
        Local(Launch(workers=1), "cpu").run("train", [[["train"]]])


def test_a_killed_worker_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for Python that kills itself the first times it is started."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho >> {tmp_path}/starts\n[ $(wc -l < {tmp_path}/starts) -gt 2 ] || kill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert Local(Launch(workers=1, retries=2), "cpu").run("train", [[["train"]]]) == ""
    assert len((tmp_path / "starts").read_text().splitlines()) == 3
    (tmp_path / "starts").unlink()
    with pytest.raises(
        EnvironmentFault, match=r"`ripieno train` failed \(killed by signal 9\); the same command goes on"
    ):
        Local(Launch(workers=1, retries=1), "cpu").run("train", [[["train"]]])


def test_launch_moves_no_result(base: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config(tmp_path, base).read_text())
    assert parse(content).hash() == parse({**content, "launch": {"on": "ray", "workers": 2}}).hash()
