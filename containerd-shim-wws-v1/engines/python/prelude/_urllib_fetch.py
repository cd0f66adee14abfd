"""What the library's `urllib.request` imports at its end: the host makes its requests.

There are no sockets. Redirects are followed by the host, too.
"""

from __future__ import annotations

import email.message
import http.client
import io
from urllib.error import URLError
from urllib.request import HTTPHandler, Request
from urllib.response import addinfourl

from workers import Headers, fetch

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing it costs each request pages
    from typing import Any

_SAID_BY_THE_HOST = ("host", "content-length", "transfer-encoding")


def _open(self: HTTPHandler, request: Request) -> Any:
    given = Headers({**request.unredirected_hdrs, **request.headers})
    for name in _SAID_BY_THE_HOST:
        given.pop(name, None)
    try:
        answer = fetch(request.full_url, request.get_method(), given, _read(request.data))
    except OSError as exc:
        raise URLError(exc) from exc
    headers = email.message.Message()
    for name in answer.headers:
        for value in answer.headers.get_all(name):
            headers[name] = value
    response: Any = addinfourl(io.BytesIO(answer.content), headers, answer.url, answer.status)
    response.msg = http.client.responses.get(answer.status, "")
    return response


def _read(data: Any) -> bytes | None:
    """Return the body that a request was given as bytes, as a file or in parts."""
    if data is None or isinstance(data, bytes):
        return data
    if hasattr(data, "read"):
        return bytes(data.read())
    return bytes(data) if isinstance(data, (bytearray, memoryview)) else b"".join(data)


_handler: Any = HTTPHandler
_handler.http_open = _handler.https_open = _open
_handler.https_request = _handler.http_request
