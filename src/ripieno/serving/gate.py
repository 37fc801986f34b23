"""Who and what gets in: requests of a bounded size, that come in time, under the service's own name."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Refuses a body that is too large or too slow, as it comes: what a header says of its length proves nothing.

    Args:
        app: what answers.
        limit: bytes.
        seconds: for all of the body.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float):
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received, whole = 0, False
        until = asyncio.get_running_loop().time() + self.seconds

        async def bounded() -> Message:
            nonlocal received, whole
            if whole:  # what comes now is that the caller went away
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not come within {self.seconds:g} s") from None
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > self.limit:
                raise HTTPException(
                    413, f"the request is larger than {self.limit:,} bytes; ask fewer questions at once"
                )
            return message

        return await self.app(scope, bounded, send)


class OwnHost:
    """Refuses requests under names that are not the service's.

    Args:
        app: what answers.
        hosts: names, without ports.
    """

    def __init__(self, app: ASGIApp, hosts: set[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if name.lower() not in self.hosts:
                said = "this service answers on its own machine alone, under localhost"
                return await JSONResponse({"detail": said}, 421)(scope, receive, send)
        return await self.app(scope, receive, send)
