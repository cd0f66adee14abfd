"""``keyvalue.awsdynamodb``: an item for each key, in a table of the store's name.

The table must be there, with the string ``key`` as its only key; the value is the attribute
``value``. Upstream knows strings only: what is no UTF-8 is stored as binary. To remove a key that
is not there is no error, as DynamoDB and upstream have it.

Source: SpiderLightning 0.5 crates/keyvalue/src/implementors/awsdynamodb.rs; AWS documentation,
"DynamoDB low-level API".
"""

from __future__ import annotations

import base64
import binascii
import json
from http import HTTPStatus
from typing import Any, Final

from containerd_shim_slight_v1.capabilities.aws import AwsService
from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.keyvalue.base import (
    AuthenticationError,
    InvalidKeyError,
    InvalidValueError,
    KeyNotFoundError,
    KeyValueBackend,
    KeyValueError,
    StoreConnectionError,
    StoreIoError,
    StoreTimeoutError,
)
from containerd_shim_slight_v1.capabilities.listing import Names
from containerd_shim_slight_v1.capabilities.rest import (
    RestConnectionError,
    RestError,
    RestTimeoutError,
)

_PROTOCOL: Final = "DynamoDB_20120810"
_MAX_KEY_BYTES: Final = 2048
_MAX_ITEM_BYTES: Final = 400 << 10
_NAMES_BYTES: Final = len("key") + len("value")
_REFUSALS: Final = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "IncompleteSignatureException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class Backend(KeyValueBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._service = AwsService(context, "dynamodb")

    async def open(self, store: str) -> None:
        """Ask nobody: the first call that needs the table finds out."""

    async def get(self, store: str, key: str) -> bytes:
        answer = await self._call("GetItem", store, {"Key": _key(key), "ConsistentRead": True})
        match answer:
            case {"Item": {"value": {"S": str(text)}}}:
                return text.encode(errors="replace")
            case {"Item": {"value": {"B": str(text)}}}:
                return _decoded(text)
            case {"Item": _}:
                raise KeyValueError(f"key {key!r}: its item has no value that is text or binary")
        raise KeyNotFoundError(key)

    async def set(self, store: str, key: str, value: bytes) -> None:
        item = _key(key)
        size = len(key.encode()) + len(value) + _NAMES_BYTES
        if size > _MAX_ITEM_BYTES:
            raise InvalidValueError(f"an item of {size} bytes, more than {_MAX_ITEM_BYTES}")
        try:
            item["value"] = {"S": value.decode()}
        except UnicodeDecodeError:
            item["value"] = {"B": base64.b64encode(value).decode()}
        await self._call("PutItem", store, {"Item": item})

    async def keys(self, store: str) -> list[str]:
        keys = Names(f"store {store!r}", StoreIoError)
        question: dict[str, Any] = {
            "ProjectionExpression": "#key",
            "ExpressionAttributeNames": {"#key": "key"},
        }
        while True:
            answer = await self._call("Scan", store, question)
            items = answer.get("Items")
            if not isinstance(items, list):
                raise KeyValueError(f"{await self._service.where()}: unknown answer")
            for item in items:
                match item:
                    case {"key": {"S": str(key)}}:
                        keys.add((key,))
            if not answer.get("LastEvaluatedKey"):
                return list(keys)
            question["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def delete(self, store: str, key: str) -> None:
        await self._call("DeleteItem", store, {"Key": _key(key)})

    async def close(self) -> None:
        await self._service.close()

    async def _call(self, operation: str, table: str, question: dict[str, Any]) -> dict[str, Any]:
        headers = {
            "content-type": "application/x-amz-json-1.0",
            "x-amz-target": f"{_PROTOCOL}.{operation}",
        }
        body = json.dumps({"TableName": table, **question}).encode()
        try:
            answer = await self._service.ask("POST", "/", headers=headers, body=body)
        except RestTimeoutError as exc:
            raise StoreTimeoutError(str(exc)) from None
        except RestConnectionError as exc:
            raise StoreConnectionError(str(exc)) from None
        except RestError as exc:
            raise StoreIoError(str(exc)) from None
        try:
            content = json.loads(answer.body)
        except (ValueError, RecursionError):
            content = None
        if answer.status == HTTPStatus.OK and isinstance(content, dict):
            return content
        raise _error(await self._service.where(), answer.status, content, table)


def _key(key: str) -> dict[str, Any]:
    if not key:
        raise InvalidKeyError("a key must not be empty")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise InvalidKeyError(f"{len(key.encode())} bytes, more than {_MAX_KEY_BYTES}")
    return {"key": {"S": key}}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise KeyValueError("the value is not base64") from None


def _error(where: str, status: int, content: Any, table: str) -> KeyValueError:
    """Return the error of an answer: of that no more than its name, as it may quote the value."""
    name = ""
    match content:
        case {"__type": str(kind)}:
            name = kind.rpartition("#")[2]
    shown = f": {name}" if name.isalnum() else ""
    message = f"{where} answers {status}{shown}"
    if name in _REFUSALS or status == HTTPStatus.FORBIDDEN:
        return AuthenticationError(message)
    if name == "ResourceNotFoundException":
        return KeyValueError(f"{message}: there is no table {table!r}")
    return KeyValueError(message)
