"""What a worker in Python works with: Request, Response, Headers, Cache and fetch.

`Request`, `Response` and `Cache` do what those of Wasm Workers Server's own Python kit do, and
more; all names here are also global in every worker, as the kit's are.
"""

from __future__ import annotations

from _collections_abc import Mapping  # the rest of collections costs each request pages
from binascii import a2b_base64

import _wws

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from typing import Any, ClassVar

__all__ = ("Cache", "FetchError", "FetchResponse", "Headers", "Request", "Response", "fetch")

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
_ERRORS = (
    *("invalid-request", "invalid-request-body", "invalid-response-body", "not-allowed"),
    *("internal-error", "timeout", "redirect-loop"),
)


class Headers(dict):  # type: ignore[type-arg]
    """A dict by lower-case names that is asked by names in any case.

    A value is a string, or a list of strings for a header that is there several times.
    """

    def __init__(self, headers: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__()
        if isinstance(headers, Mapping):
            self.update(headers)
        else:
            for name, value in headers:
                self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Add a header beside those of the same name."""
        old = self.get(name)
        self[name] = value if old is None else [*(old if isinstance(old, list) else [old]), value]

    def get_all(self, name: str) -> list[str]:
        """Return all values of a header; none if it is not there."""
        value = self.get(name)
        if value is None:
            return []
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.lower())

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name.lower(), value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)

    def pop(self, name: str, *default: Any) -> Any:
        return super().pop(name.lower(), *default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        return super().setdefault(name.lower(), default)

    def update(self, *others: Any, **more: Any) -> None:
        for name, value in dict(*others, **more).items():
            self[name] = value

    def copy(self) -> Headers:
        return Headers(self)

    def __or__(self, other: Mapping[str, Any]) -> Headers:  # type: ignore[override]
        result = self.copy()
        result.update(other)
        return result

    def __ior__(self, other: Mapping[str, Any]) -> Headers:  # type: ignore[override]
        self.update(other)
        return self


class Request:
    """A request: url, method, headers, params, and its body.

    body: a string; bytes if they are no UTF-8.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.method: str = fields["method"]
        self.url: str = fields["url"]
        self.params: dict[str, str] = fields["params"]
        self.headers = Headers(fields["headers"])
        for name, value in fields.get("headers_list", ()):
            if name not in self.headers:
                self.headers[name] = value
        self._list: list[list[str]] = fields.get("headers_list") or [
            [name, value] for name, value in self.headers.items()
        ]
        self.body: str | bytes = fields["body"]
        if fields.get("base64"):
            self.body = a2b_base64(self.body)

    @property
    def content(self) -> bytes:
        """The body as bytes, whatever is in it."""
        return self.body.encode() if isinstance(self.body, str) else self.body

    def header_values(self, name: str) -> list[str]:
        """Return all values of a header, as they came."""
        name = name.lower()
        return [value for key, value in self._list if key.lower() == name]

    def text(self) -> str:
        """Return the body as text; what is no UTF-8 is replaced."""
        return self.body if isinstance(self.body, str) else self.body.decode(errors="replace")

    def json(self) -> Any:
        """Return what the body says in JSON; raises ValueError if it is none."""
        import json

        return json.loads(self.body)


class Response:
    """A response.

    body: a string or bytes.  headers: names -> strings, or lists of strings for headers that are
    sent several times. Without a content-type it is text/html.
    """

    def __init__(
        self,
        body: str | bytes = "",
        status: int = 200,
        headers: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    ) -> None:
        self.body = body
        self.status_code = status
        self.headers = Headers(headers)

    @property
    def status(self) -> int:
        """The status; `status_code` is the kit's name for it."""
        return self.status_code

    @status.setter
    def status(self, status: int) -> None:
        self.status_code = status

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Any = ()) -> Response:
        """Return a response that says ``value`` in JSON."""
        import json

        response = cls(json.dumps(value), status, headers)
        response.headers.setdefault("content-type", "application/json")
        return response


class Cache:
    """The worker's key-value store: strings by strings, kept if the worker does not fail."""

    store: ClassVar[dict[str, str]] = {}

    @classmethod
    def get(cls, key: str, default: str | None = None) -> str | None:
        return cls.store.get(key, default)

    @classmethod
    def set(cls, key: str, value: Any) -> None:
        cls.store[key] = str(value)

    @classmethod
    def delete(cls, key: str) -> None:
        """Remove a key, if it is there."""
        cls.store.pop(key, None)

    @classmethod
    def keys(cls) -> Iterator[str]:
        return iter(tuple(cls.store))


class FetchError(OSError):
    """An HTTP request failed, or the worker may not make it.

    kind: invalid-request, invalid-request-body, invalid-response-body, not-allowed,
    internal-error, timeout or redirect-loop.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{message} ({kind})" if message else kind)
        self.kind = kind


class FetchResponse:
    """What a request was answered. It can be awaited, too, and is there at once."""

    def __init__(self, url: str, status: int, headers: Headers, content: bytes) -> None:
        self.url = url
        self.status = self.status_code = status
        self.headers = headers
        self.content = content

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        import json

        return json.loads(self.content)

    def __await__(self) -> Generator[None, None, FetchResponse]:
        yield from ()
        return self


def fetch(
    url: str,
    method: str = "GET",
    headers: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
    body: str | bytes | None = None,
) -> FetchResponse:
    """Make an HTTP request and return its response, of any status.

    Which hosts and methods there are, the worker's `[features.http_requests]` says.
    Raises FetchError.
    """
    if method.upper() not in _METHODS:
        raise FetchError("invalid-request", f"there is no method {method!r}")
    given = Headers(headers)
    pairs = [(name, str(value)) for name in given for value in given.get_all(name)]
    content = body.encode() if isinstance(body, str) else body
    answer = _wws.send_http_request(
        _METHODS.index(method.upper()), url, pairs, None if content is None else bytes(content)
    )
    if len(answer) == 2:
        kind, message = answer
        name = _ERRORS[kind] if kind < len(_ERRORS) else "internal-error"
        raise FetchError(name, _text(message))
    status, listed, content = answer
    came = Headers((_text(name), _text(value)) for name, value in listed)
    return FetchResponse(url, status, came, content or b"")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
