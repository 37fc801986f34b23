"""The service's process: where it listens, how it starts, and how it stops."""

from __future__ import annotations

import copy
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from ripieno.ensemble import Ensemble
from ripieno.errors import EnvironmentFault, UserError
from ripieno.runs import RunFolder
from ripieno.serving.app import create_app
from ripieno.serving.batcher import Batcher
from ripieno.serving.schema import Limits

TOKEN = "RIPIENO_TOKEN"
LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}


def serve(
    run: RunFolder,
    listening: socket.socket,
    max_risk: float | None,
    *,
    token: str | None,
    limits: Limits,
    quiet: bool,
    started: Callable[[str], None],
) -> None:
    """Answer requests until a signal comes; then answer what was accepted, and return by that signal.

    Args:
        run: a trained run.
        listening: made by `listen`.
        max_risk: as in `Ensemble.decide`.
        token: that callers have to know.
        limits: of requests.
        quiet: log no requests; what goes wrong is logged all the same.
        started: called with the service's address once it listens.

    Raises:
        UserError: that risk was not promised.
    """
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    batcher = Batcher(Ensemble.load(run.path), max_risk, limits.waiting, limits.seconds)
    try:
        app = create_app(run, batcher, limits, token, LOOPBACK | {name} if is_loopback(host) else None)
        config = uvicorn.Config(
            app,
            log_config=_logging(),
            access_log=not quiet,
            log_level="warning" if quiet else "info",
            timeout_graceful_shutdown=int(limits.seconds) + 5,
        )
        listening.listen(config.backlog)
        started(f"http://{name}:{port}")
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        batcher.close()


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """Return a socket that is bound to an address; nobody is answered before `serve`.

    Args:
        host, port: where; port 0: any that is free.
        token: that callers will have to know.

    Raises:
        UserError: others can reach the address and there is no token, or it is none of this machine.
        EnvironmentFault: it is taken, or only root may have it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the second: no name of a machine is written so ("a..b")
        said = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--host {host}: is no address of this machine ({said}); give one, such as 127.0.0.1") from None
    if token is None and not is_loopback(str(address[0])):
        raise UserError(
            f"--host {host}: others can reach this address, and nothing would keep them out; give --token-file FILE or "
            f"set {TOKEN}, or listen on 127.0.0.1"
        )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise EnvironmentFault(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror or error}); choose another port"
        ) from error
    return bound


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach an IP address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def read_token(file: Path | None) -> str | None:
    """Return the token of a file, or else of the environment; None where neither has one.

    Raises:
        UserError: the file cannot be read, or a token is too short to keep anybody out, or cannot stand in a header.
    """
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError:
            raise UserError(f"--token-file {file}: is no text; write one line of it") from None
        except OSError as error:
            raise UserError(f"--token-file {file}: cannot be read ({error.strerror}); write one line to it") from None
        where = f"--token-file {file}"
    elif TOKEN in os.environ:
        token, where = os.environ[TOKEN].strip(), TOKEN
    else:
        return None
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{where}: a token is 16 or more ASCII characters without spaces; "
            'make one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


def _logging() -> dict[str, object]:
    """Return uvicorn's own logging, all of it on stderr."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config
