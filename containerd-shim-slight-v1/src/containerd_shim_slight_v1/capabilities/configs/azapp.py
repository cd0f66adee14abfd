"""``configs.azapp``: keys of an Azure App Configuration store, those without a label.

Upstream asks for the label ``""``, to read and to write, which is no label; the same is asked for
by naming none. A key that has values with labels only is not found.

The container's environment says which: ``AZAPPCONFIG_ENDPOINT``, ``AZAPPCONFIG_KEYID`` and
``AZAPPCONFIG_KEYSECRET``.

Source: SpiderLightning 0.5 crates/runtime-configs/src/implementors/azapp.rs; Azure App
Configuration's REST API, "Key-values", "HMAC authentication".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlsplit

from containerd_shim_slight_v1.capabilities.configs.base import (
    ConfigNotFoundError,
    ConfigsBackend,
    ConfigsError,
    ConfigsIoError,
    InvalidConfigError,
    PermissionDeniedError,
)
from containerd_shim_slight_v1.capabilities.context import AppContext
from containerd_shim_slight_v1.capabilities.rest import RestAnswer, RestClient, RestError, place

_API_VERSION: Final = "1.0"
_CONTENT_TYPE: Final = "application/vnd.microsoft.appconfig.kv+json"
_MAX_BYTES: Final = 10_000  # of key and value together
_MAX_ANSWER_BYTES: Final = 64 << 10  # in JSON, with all that is told of a key
_PAUSES: Final = (0.2, 1.0)  # before another try, which upstream makes, too
_AGAIN: Final = frozenset({429, 500, 502, 503, 504})
_DENIED: Final = frozenset({401, 403, 409})  # 409: the key is locked
_ENDPOINT: Final = re.compile(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?/?")


@dataclass(frozen=True, slots=True)
class _Store:
    endpoint: str
    """Without a slash at the end."""
    key_id: str
    secret: bytes = field(repr=False)


class Backend(ConfigsBackend):
    """See the module."""

    def __init__(self, app: AppContext) -> None:
        super().__init__(app)
        self._rest = RestClient(app.certificates.context)
        # As it is now: a guest may set variables.
        self._environment = dict(app.environment)

    async def get(self, key: str) -> bytes:
        answer = await self._ask("GET", key)
        try:
            content = json.loads(answer.body)
        except (ValueError, RecursionError):
            content = None
        match content:
            case {"value": str(value)}:
                return value.encode(errors="replace")
            case {"value": None}:
                return b""
        raise ConfigsError(f"{place(self._store().endpoint)}: config {key!r}: unknown answer")

    async def set(self, key: str, value: bytes) -> None:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise InvalidConfigError("the value is not UTF-8") from None
        if len(key.encode()) + len(value) > _MAX_BYTES:
            raise InvalidConfigError(f"key and value have more than {_MAX_BYTES} bytes")
        await self._ask("PUT", key, json.dumps({"value": text}).encode())

    async def close(self) -> None:
        await self._rest.close()

    def _store(self) -> _Store:
        values = []
        for name in ("AZAPPCONFIG_ENDPOINT", "AZAPPCONFIG_KEYID", "AZAPPCONFIG_KEYSECRET"):
            value = self._environment.get(name)
            if not value:
                raise ConfigsError(f"the variable {name} is not set")
            values.append(value)
        endpoint, key_id, secret = values
        if not _ENDPOINT.fullmatch(endpoint):
            raise ConfigsError("AZAPPCONFIG_ENDPOINT is not of the form https://host")
        if not key_id.isprintable() or not key_id.isascii():
            raise ConfigsError("AZAPPCONFIG_KEYID is no name of a key")
        try:
            return _Store(endpoint.rstrip("/"), key_id, base64.b64decode(secret, validate=True))
        except binascii.Error:
            raise ConfigsError("AZAPPCONFIG_KEYSECRET is not base64") from None

    async def _ask(self, method: str, key: str, body: bytes = b"") -> RestAnswer:
        """Return an answer of success. Raises ConfigsError."""
        if key in ("", ".", "..") or "%" in key:
            raise InvalidConfigError(f"{key!r} cannot be the name of a config")
        store = self._store()
        path = f"/kv/{quote(key, safe='')}?api-version={_API_VERSION}"
        for pause in (*_PAUSES, None):
            headers = _signed(store, method, path, body)
            if body:
                headers["content-type"] = _CONTENT_TYPE
            try:
                answer = await self._rest.ask(
                    method, store.endpoint + path, headers, body, _MAX_ANSWER_BYTES
                )
            except RestError as exc:
                raise ConfigsIoError(str(exc)) from None
            if answer.status not in _AGAIN or pause is None:
                break
            await asyncio.sleep(pause)
        if answer.status < HTTPStatus.BAD_REQUEST:
            return answer
        if answer.status == HTTPStatus.NOT_FOUND:
            raise ConfigNotFoundError(key)
        message = f"{place(store.endpoint)}: config {key!r}: answers {answer.status}"
        if answer.status in _DENIED:
            raise PermissionDeniedError(message)
        if answer.status in _AGAIN:
            raise ConfigsIoError(message)
        raise ConfigsError(message)


def _signed(store: _Store, method: str, path: str, body: bytes) -> dict[str, str]:
    date = format_datetime(datetime.now(UTC), usegmt=True)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    host = urlsplit(store.endpoint).netloc
    to_sign = f"{method}\n{path}\n{date};{host};{digest}"
    signature = base64.b64encode(hmac.digest(store.secret, to_sign.encode(), hashlib.sha256))
    return {
        "host": host,
        "x-ms-date": date,
        "x-ms-content-sha256": digest,
        "authorization": f"HMAC-SHA256 Credential={store.key_id}"
        f"&SignedHeaders=x-ms-date;host;x-ms-content-sha256&Signature={signature.decode()}",
    }
