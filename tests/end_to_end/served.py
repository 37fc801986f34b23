"""A run with a promise, and a service of it that listens in a thread of the tests' process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from commands import rows, works, write_config, write_rows

from ripieno.ensemble import Ensemble
from ripieno.runs import RunFolder
from ripieno.serving.app import create_app
from ripieno.serving.batcher import Batcher
from ripieno.serving.schema import Limits
from ripieno.serving.server import LOOPBACK, listen

RISK, CONFIDENCE = 0.9, 0.9
TOKEN = "a-token-of-some-length"
LIMITS = Limits()


def certified_run(folder: Path, base: Path, counts: Mapping[str, int], **sections: Any) -> Path:
    """Train members on made-up questions, so many of each role, and certify `RISK`; return the run."""
    data = {
        role: [write_rows(folder / f"{role}.jsonl", rows(count, seed, (2, 3)))]
        for seed, (role, count) in enumerate(counts.items())
    }
    run = folder / "run"
    works("train", write_config(folder, base, data, **sections), "--run", run, "--quiet")
    works("certify", run, "--risk", str(RISK), "--confidence", str(CONFIDENCE), "--quiet")
    return run


@contextmanager
def serving(
    run: Path, ensemble: Ensemble, risk: float | None, limits: Limits = LIMITS, token: str | None = None
) -> Iterator[tuple[int, Batcher]]:
    """As `ripieno serve`, in a thread, which takes no signals; yield the port.

    Args:
        run: whose service it is.
        ensemble: asked by this service alone.
        risk, limits, token: as of the command.
    """
    batcher = Batcher(ensemble, risk, limits.waiting, limits.seconds)
    listening = listen("127.0.0.1", 0, token)
    listening.listen()
    server = uvicorn.Server(
        uvicorn.Config(create_app(RunFolder(run), batcher, limits, token, LOOPBACK), log_config=None)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1], batcher
    finally:
        server.should_exit = True
        thread.join()
        batcher.close()
        listening.close()
