"""``blobstore.aws_s3``: buckets and objects of Amazon S3.

Buckets are named in the path, which is good for names with dots and for servers of others.

Source: SpiderLightning 0.5 crates/blob-store/src/implementors/aws_s3.rs; AWS documentation, "Amazon
S3 API Reference".
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from containerd_shim_slight_v1.capabilities.aws import AwsService
from containerd_shim_slight_v1.capabilities.blobstore.base import (
    BlobBackend,
    BlobError,
    ContainerInfo,
    NoContainerError,
    NoObjectError,
    ObjectInfo,
    Upload,
)
from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.listing import Names
from containerd_shim_slight_v1.capabilities.rest import MAX_SMALL_BYTES, RestAnswer, RestError
from containerd_shim_slight_v1.capabilities.xml_answers import XmlError, parse_xml

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_NAME_BYTES: Final = 1024
_MOST_DELETED: Final = 1000  # by one request
_NAMESPACE: Final = re.compile(rb' xmlns="[^"]*"')


class Backend(BlobBackend):
    """See the module."""

    def __init__(self, context: BackendContext) -> None:
        super().__init__(context)
        self._s3 = _S3(context)

    async def open(self, container: str) -> None:
        await self._s3.ask("HEAD", container)

    async def container_info(self, container: str) -> ContainerInfo:
        created = 0
        document = await _parsed(await self._s3.ask("GET", ""))
        for bucket in document.iterfind("Buckets/Bucket"):
            if bucket.findtext("Name") == container:
                created = _iso_seconds(bucket.findtext("CreationDate", ""))
        return ContainerInfo(container, created)

    async def object_info(self, container: str, name: str) -> ObjectInfo:
        answer = await self._s3.ask("HEAD", container, name)
        length = answer.headers.get("content-length", "")
        if not length.isdigit():
            raise BlobError(f"object {name!r}: the server tells no length")
        created = _seconds(answer.headers, "last-modified")
        version = answer.headers.get("etag", "*")
        return ObjectInfo(name, container, created, int(length), version)

    async def list_objects(self, container: str) -> list[str]:
        names = Names(f"container {container!r}", BlobError)
        query = {"list-type": "2", "encoding-type": "url"}  # names may have what XML has not
        while True:
            document = await _parsed(await self._s3.ask("GET", container, query=query))
            plain = document.findtext("EncodingType") != "url"
            keys = [key.text or "" for key in document.iterfind("Contents/Key")]
            names.add(keys if plain else map(unquote_plus, keys))
            token = document.findtext("NextContinuationToken")
            if not token:
                return list(names)
            query["continuation-token"] = token

    async def read(self, info: ObjectInfo, start: int, size: int) -> bytes:
        headers = {"range": f"bytes={start}-{start + size - 1}", "if-match": info.version}
        most = max(size, MAX_SMALL_BYTES)
        answer = await self._s3.ask(
            "GET", info.container, info.name, headers=headers, most_bytes=most
        )
        return answer.body

    async def write(self, container: str, name: str, content: bytes) -> None:
        await self._s3.ask("PUT", container, _checked(name), body=content)

    async def begin(self, container: str, name: str) -> Upload:
        answer = await self._s3.ask("POST", container, _checked(name), {"uploads": ""})
        upload = (await _parsed(answer)).findtext("UploadId")
        if not upload:
            raise BlobError(f"object {name!r}: the server begins no upload")
        return _Parts(self._s3, container, name, upload)

    async def delete(self, container: str, names: Sequence[str]) -> None:
        for first in range(0, len(names), _MOST_DELETED):
            await self._delete(container, names[first : first + _MOST_DELETED])

    async def close(self) -> None:
        await self._s3.service.close()

    async def _delete(self, container: str, names: Sequence[str]) -> None:
        if len(names) == 1:
            await self._s3.ask("DELETE", container, _checked(names[0]))
            return
        keys = "".join(f"<Object><Key>{escape(_checked(n))}</Key></Object>" for n in names)
        body = f"<Delete><Quiet>true</Quiet>{keys}</Delete>".encode()
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest())
        headers = {"content-md5": digest.decode(), "content-type": "application/xml"}
        answer = await self._s3.ask("POST", container, "", {"delete": ""}, headers, body)
        if (error := (await _parsed(answer)).find("Error")) is not None:
            code = error.findtext("Code", "")
            raise BlobError(f"{await self._s3.service.where()} does not delete all: {code[:100]}")


class _Parts(Upload):
    def __init__(self, s3: _S3, container: str, name: str, upload: str) -> None:
        self._s3 = s3
        self._container = container
        self._name = name
        self._query = {"uploadId": upload}
        self._tags: list[str] = []

    async def add(self, part: bytes) -> None:
        query = {**self._query, "partNumber": str(len(self._tags) + 1)}
        answer = await self._s3.ask("PUT", self._container, self._name, query, body=part)
        self._tags.append(answer.headers.get("etag", ""))

    async def finish(self) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(self._tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = await self._s3.ask("POST", self._container, self._name, self._query, body=body)
        # It may fail after S3 has begun to answer.
        if (await _parsed(answer)).tag == "Error":
            raise BlobError(f"object {self._name!r}: the server does not join its parts")

    async def abandon(self) -> None:
        await self._s3.ask("DELETE", self._container, self._name, self._query)


class _S3:
    """Requests for buckets and objects, whose errors are those of the family."""

    def __init__(self, context: BackendContext) -> None:
        self.service = AwsService(context, "s3")

    async def ask(
        self,
        method: str,
        bucket: str,
        name: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most_bytes: int = MAX_SMALL_BYTES,
    ) -> RestAnswer:
        """Return an answer of success. bucket: empty for all. Raises BlobError."""
        path = "/"
        if bucket:
            if not _BUCKET.fullmatch(bucket):
                raise NoContainerError(f"{bucket[:100]!r} cannot be the name of a bucket")
            path += bucket
        if name:
            path += "/" + quote(name, safe="/~")
        try:
            answer = await self.service.ask(method, path, query, headers, body, most_bytes)
        except RestError as exc:
            raise BlobError(str(exc)) from None
        if answer.status < HTTPStatus.BAD_REQUEST:
            return answer
        code = await _error_code(answer)
        shown = f": {code}" if code.isalnum() else ""
        message = f"{await self.service.where()} answers {answer.status}{shown}"
        # The answer to HEAD has no body that says more.
        if code == "NoSuchBucket" or (answer.status == HTTPStatus.NOT_FOUND and not name):
            raise NoContainerError(f"{message}: there is no bucket {bucket!r}")
        if answer.status == HTTPStatus.NOT_FOUND:
            raise NoObjectError(name)
        if answer.status == HTTPStatus.PRECONDITION_FAILED:
            raise BlobError(f"object {name!r} has changed since it was opened")
        raise BlobError(message)


def _checked(name: str) -> str:
    """Return a name that can be in a path, whoever is on the way."""
    if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
        raise BlobError(f"an object's name must have 1 to {_MAX_NAME_BYTES} bytes")
    if any(step in (".", "..") for step in name.split("/")):
        raise BlobError(f"{name!r} cannot be the name of an object: it has a step of dots")
    return name


async def _parsed(answer: RestAnswer) -> ElementTree.Element:
    try:
        return await parse_xml(_NAMESPACE.sub(b"", answer.body, count=1))
    except XmlError:
        raise BlobError(f"unknown answer with status {answer.status}") from None


async def _error_code(answer: RestAnswer) -> str:
    try:
        return (await _parsed(answer)).findtext("Code", "")[:100]
    except BlobError:
        return ""


def _seconds(headers: Mapping[str, str], name: str) -> int:
    try:
        return max(int(parsedate_to_datetime(headers[name]).timestamp()), 0)
    except (KeyError, ValueError):
        return 0


def _iso_seconds(text: str) -> int:
    try:
        return max(int(datetime.fromisoformat(text).timestamp()), 0)
    except ValueError:
        return 0
