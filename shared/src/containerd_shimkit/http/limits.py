"""What every trigger does around a guest's answer: limits, clients that leave, the app's end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from containerd_shimkit.http.deadlines import Deadlines
from containerd_shimkit.http.messages import (
    TEXT,
    BodyTooLarge,
    ClientGone,
    read_body,
    refuse_body,
    respond,
)
from containerd_shimkit.http.server import Receive, Scope, Send, client_gone

_CLOSE: Final = (b"connection", b"close")

T = TypeVar("T")

log = logging.getLogger(__name__)


class RequestLimits:
    """Of the requests of an app, in one event loop."""

    def __init__(
        self,
        what: str,
        seconds: float | None,
        max_body_bytes: int,
        headers: Sequence[tuple[bytes, bytes]] = (TEXT,),
    ) -> None:
        """what: answers them, for clients.  seconds: what each may take; None is no limit.

        headers: of the answers that are given here.
        """
        self._what = what
        self._seconds = seconds
        self._max_body_bytes = max_body_bytes
        self._headers = list(headers)
        self._deadlines = Deadlines(seconds)

    async def run(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        line: Callable[[], str],
        answer: Callable[[bytes], Awaitable[T]],
    ) -> T | None:
        """Return what ``answer`` gives for the request's body; None if the client needs no more.

        line: what the log calls the request.  Raises what ``answer`` raises.
        """
        try:
            with self._deadlines.limit():
                body = await read_body(scope, receive, self._max_body_bytes)
                return await answer(body)
        except ClientGone:
            pass
        except BodyTooLarge as exc:
            await refuse_body(receive, send, self._headers, f"{exc}\n".encode())
        except TimeoutError:
            log.error("%s took more than %g s", line(), self._seconds)
            await respond(send, 504, self._headers, f"the {self._what} took too long\n".encode())
        except asyncio.CancelledError:  # by the server
            if client_gone(scope):
                raise
            log.error("%s is cut off: the app stops", line())
            await respond(send, 503, [*self._headers, _CLOSE], b"the app stops\n")
        return None
