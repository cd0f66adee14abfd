"""Azure Blob Storage's REST API, as far as blobs of both families need it.

``AZURE_STORAGE_ENDPOINT`` says where the service is, for other clouds than Azure's public one and
for emulators: ``http://127.0.0.1:10000/ACCOUNT``. It may be a config, or of the environment.

Source: Azure Storage REST API, "Authorize with Shared Key", "Blob service".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

from containerd_shim_slight_v1.capabilities.context import BackendContext, ConfigValueError
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.capabilities.listing import Names
from containerd_shim_slight_v1.capabilities.rest import (
    MAX_SMALL_BYTES,
    RestAnswer,
    RestClient,
    place,
)
from containerd_shim_slight_v1.capabilities.xml_answers import XmlError, parse_xml

_VERSION: Final = "2021-12-02"
_CONTAINER: Final = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}|\$root")
_MAX_BLOB_NAME: Final = 1024
_MAX_PAGE_BYTES: Final = 32 << 20  # of 5000 names and what else is told of their blobs
_MAX_SHOWN: Final = 200


class AzureError(CapabilityError):
    """The service refuses a request."""

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        """As ``BlobNotFound``."""
        self.status = status

    @property
    def denied(self) -> bool:
        """Whether it is for who asks."""
        return self.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class BadNameError(CapabilityError):
    """No container or blob can have such a name."""


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    key: bytes = field(repr=False)
    endpoint: str
    """Without a slash at the end."""
    path: str
    """Of the endpoint."""


class AzureStorage:
    """One account's blobs."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context
        self._rest = RestClient(context.app.certificates.context)
        self._account: _Account | None = None

    async def ask(
        self,
        method: str,
        container: str,
        blob: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most_bytes: int = MAX_SMALL_BYTES,
    ) -> RestAnswer:
        """Return an answer of success.

        query, headers: by their names in lower case.  most_bytes: of the answer.
        Raises AzureError, BadNameError, ConfigValueError, RestError.
        """
        account = await self._open()
        path = f"/{check_container(container)}"
        if blob:
            path += f"/{quote(_check_blob(blob), safe='')}"
        query = query or {}
        sent = {
            **(headers or {}),
            "x-ms-date": format_datetime(datetime.now(UTC), usegmt=True),
            "x-ms-version": _VERSION,
        }
        sent["authorization"] = _authorization(account, method, path, query, sent, len(body))
        url = account.endpoint + path
        if query:
            url += "?" + "&".join(f"{name}={quote(query[name], safe='')}" for name in query)
        answer = await self._rest.ask(method, url, sent, body, most_bytes)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise _error(account, answer)
        return answer

    async def list_blobs(self, container: str, names: Names) -> None:
        """Add the names of all blobs. Raises as ``ask``, and the error of ``names``."""
        query = {"restype": "container", "comp": "list"}
        while True:
            answer = await self.ask("GET", container, query=query, most_bytes=_MAX_PAGE_BYTES)
            try:
                document = await parse_xml(answer.body)
            except XmlError:
                raise AzureError(
                    f"{await self._where()}: unknown answer", "", answer.status
                ) from None
            names.add(map(_name, document.iterfind("Blobs/Blob/Name")))
            marker = document.findtext("NextMarker")
            if not marker:
                return
            query["marker"] = marker

    async def close(self) -> None:
        """End every connection."""
        await self._rest.close()

    async def _where(self) -> str:
        return place((await self._open()).endpoint)

    async def _open(self) -> _Account:
        if self._account is None:
            context = self._context
            name = await context.value("AZURE_STORAGE_ACCOUNT")
            if not re.fullmatch("[a-z0-9]{3,24}", name):
                raise ConfigValueError("config 'AZURE_STORAGE_ACCOUNT' is no name of an account")
            try:
                key = base64.b64decode(await context.value("AZURE_STORAGE_KEY"), validate=True)
            except binascii.Error:
                raise ConfigValueError("config 'AZURE_STORAGE_KEY' is not base64") from None
            endpoint = await context.endpoint("AZURE_STORAGE_ENDPOINT")
            endpoint = endpoint or f"https://{name}.blob.core.windows.net"
            self._account = _Account(name, key, endpoint, urlsplit(endpoint).path)
        return self._account


def _name(element: ElementTree.Element) -> str:
    # What XML cannot have is encoded.
    text = element.text or ""
    return unquote(text) if element.get("Encoded") == "true" else text


def check_container(name: str) -> str:
    """Return the name. Raises BadNameError."""
    if not _CONTAINER.fullmatch(name) or len(name) > 63:
        raise BadNameError(f"{name[:_MAX_SHOWN]!r} cannot be the name of an Azure container")
    return name


def _check_blob(name: str) -> str:
    if len(name) > _MAX_BLOB_NAME:
        raise BadNameError(f"a name of {len(name)} characters, more than {_MAX_BLOB_NAME}")
    # Paths with these steps would be another blob's, on the way or at the server.
    if any(step in (".", "..") for step in name.split("/")):
        raise BadNameError(f"{name!r} cannot be the name of a blob: it has a step of dots")
    return name


def _authorization(
    account: _Account,
    method: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    length: int,
) -> str:
    """Return the header for a request. path: encoded, from the account's name on."""
    standard = (
        *("content-encoding", "content-language", "content-length", "content-md5"),
        *("content-type", "date", "if-modified-since", "if-match", "if-none-match"),
        *("if-unmodified-since", "range"),
    )
    values = {**headers, "content-length": str(length) if length else ""}
    lines = [method, *(values.get(name, "") for name in standard)]
    lines += [f"{name}:{headers[name]}" for name in sorted(headers) if name.startswith("x-ms-")]
    lines.append(f"/{account.name}{account.path}{path}")
    lines += [f"{name}:{query[name]}" for name in sorted(query)]
    digest = hmac.digest(account.key, "\n".join(lines).encode(), hashlib.sha256)
    return f"SharedKey {account.name}:{base64.b64encode(digest).decode()}"


def _error(account: _Account, answer: RestAnswer) -> AzureError:
    code = answer.headers.get("x-ms-error-code", "")[:_MAX_SHOWN]
    shown = f": {code}" if code.isalnum() else ""
    return AzureError(
        f"{place(account.endpoint)} answers {answer.status}{shown}", code, answer.status
    )
