"""Where exceptions end: every one becomes an answer, and ours are logged with their stack."""

from __future__ import annotations

import asyncio

from loguru import logger
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.errors import ActorStopped, RuntimeFault
from runtime.http.dialect import Dialects

_UNTOLD = "internal error; the node's log has the details"


class Boundary:
    """Wraps the routes. What escapes them is answered here, so that no other layer answers without a dialect."""

    def __init__(self, app: ASGIApp, *, dialects: Dialects) -> None:
        self._app = app
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application. A response that has begun cannot be replaced: the server closes the connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def observed(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        fault: RuntimeFault
        try:
            await self._app(scope, receive, observed)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # The server stops and this request outlived its deadline. This is the request's outermost frame but for
            # uvicorn's own, which would log the cancellation as a crash.
            fault = ActorStopped("the node is stopping; send the request again")
        except RuntimeFault as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - the boundary: logged with its stack, answered without it
            logger.opt(exception=error).error("{} {} failed", scope["method"], scope["path"])
            fault = RuntimeFault(_UNTOLD)
        else:
            return
        if not started:
            await self._dialects.response(scope["path"], fault)(scope, receive, send)
