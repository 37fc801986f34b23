"""What the command line makes of its arguments; the commands themselves are tested end to end."""

from __future__ import annotations

import runpy
from importlib.metadata import version

import pytest

from ripieno import cli
from ripieno.cli import options
from ripieno.cli.output import Terminated
from ripieno.errors import EnvironmentFault, UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", [0]), ("0-4", [0, 1, 2, 3, 4]), ("0,2", [0, 2]), ("3,0-1,1", [0, 1, 3]), ("4-4", [4])],
)
def test_members_are_numbers_and_ranges(text: str, expected: list[int]) -> None:
    assert options.members(text, 5) == expected


@pytest.mark.parametrize("text", ["", "a", "-1", "0-", "0,,1", "1.5", "0-1-x"])
def test_other_members_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--members .*: give numbers and ranges, such as 0-4 or 0,2"):
        options.members(text, 5)


@pytest.mark.parametrize("text", ["5", "0-5", "2-1", "0,7", "0-99999999999"])
def test_members_that_the_ensemble_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=rf"--members {text}: the ensemble has members 0 to 4"):
        options.members(text, 5)


@pytest.mark.parametrize(("text", "expected"), [("all", None), ("last", [3]), ("0", [0]), ("2", [2]), ("99", [99])])
def test_epochs(text: str, expected: list[int] | None) -> None:
    assert options.epochs(text, 3) == expected


@pytest.mark.parametrize("text", ["", "first", "-1", "1.0", "²"])
def test_other_epochs_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="give a number, last or all"):
        options.epochs(text, 3)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a"), 2),
        (EnvironmentFault("b"), 1),
        (MemoryError(), 1),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
)
def test_every_failure_has_its_exit_code_and_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ripieno: ")
    assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "app", bug)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main()


def test_as_a_program_it_is_the_module_that_others_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m ripieno.cli`, as torchrun starts it, hands Ray's workers functions that they find again."""
    called: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: called.append(cli.__name__))
    runpy.run_module("ripieno.cli", run_name="__main__")
    assert called == ["ripieno.cli"]


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    cli.do(["--version"])
    assert capsys.readouterr().out == f"ripieno {version('ripieno')}\n"
