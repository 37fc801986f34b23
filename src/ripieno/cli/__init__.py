"""The command line: each command reads its arguments, calls a function of the library, and prints.

Heavy imports stand inside the commands, so that `--help` never waits for torch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from ripieno.cli import asking, deciding, showing, training
from ripieno.cli.output import Terminated, fail
from ripieno.errors import EnvironmentFault, UserError
from ripieno.memory import ran_out

app = typer.Typer(
    help="Fine-tune an ensemble of LoRA adapters of one language model, and see when to believe its answers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: dict[str, Callable[..., None]] = {  # in the order of a job, in which `--help` lists them
    "demo": training.demo,
    "init": training.init,
    "train": training.train,
    "plan": training.plan,
    "import": training.import_,
    "evaluate": asking.evaluate,
    "compare": asking.compare,
    "read": asking.read,
    "calibrate": deciding.calibrate,
    "certify": deciding.certify,
    "predict": deciding.predict,
    "serve": deciding.serve,
    "acquire": deciding.acquire,
    "export": showing.export,
    "report": showing.report,
    "analyze": showing.analyze,
    "datasets": showing.datasets,
    "status": showing.status,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ripieno {version('ripieno')}")
        raise typer.Exit


# Of `ripieno` itself; it says nothing of what it is for, which `app` does.
@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run a command; a failure is one line on stderr and an exit code (2: a user's mistake, 1: the environment's)."""
    # On a terminated session the exception unwinds as on Ctrl-C, so that temporary files go.
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        do(sys.argv[1:] or ["--help"])
        sys.exit(0)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        see = f" See `{context.command_path} --help`" if context else ""
        said = " ".join(error.format_message().split()).replace("Value error, ", "").replace("Input should", "should")
        fail(said + ("" if said.endswith((".", "?")) else ".") + see, 2)
    except UserError as error:
        fail(str(error), 2)
    except EnvironmentFault as error:
        fail(str(error), 1)
    except OSError as error:  # such as a folder that may not be read, or a disk that no longer answers
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        fail("out of memory: close other programs, or take a smaller base, base.dtype bfloat16 or fewer members", 1)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted; the same command goes on from what is saved", 130)
    except Terminated:
        fail("terminated; the same command goes on from what is saved", 143)


def do(command: Sequence[str]) -> None:
    """Do a command in this process; unlike `main`, raise what it fails with."""
    code = app(list(command), prog_name="ripieno", standalone_mode=False)
    if code == 130:  # typer turns Ctrl-C into this without a word
        raise KeyboardInterrupt


def _terminated(*_: Any) -> None:
    # A second one, as Slurm sends, must not cut short what the first began.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated
