"""Amazon's REST APIs: who asks, where, and the signature of a request.

``AWS_ENDPOINT_URL`` says where a service is, for others that speak the same protocol, and
``AWS_SESSION_TOKEN`` belongs to keys that are good for some hours. They may be configs, or of the
environment, as for Amazon's own libraries.

Source: AWS documentation, "Signature Version 4 signing process".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlsplit

from containerd_shim_slight_v1.capabilities.context import BackendContext, ConfigValueError
from containerd_shim_slight_v1.capabilities.rest import MAX_SMALL_BYTES, RestAnswer, RestClient

_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class _Access:
    key_id: str
    secret: str = field(repr=False)
    token: str | None = field(repr=False)
    region: str
    endpoint: str
    """Without a slash at the end."""


class AwsService:
    """One service of a region."""

    def __init__(self, context: BackendContext, service: str) -> None:
        """service: ``dynamodb`` or ``s3``."""
        self._context = context
        self._service = service
        self._rest = RestClient(context.app.certificates.context)
        self._access: _Access | None = None

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most_bytes: int = MAX_SMALL_BYTES,
    ) -> RestAnswer:
        """Return an answer of any status. Raises ConfigValueError, RestError.

        path: encoded, with a slash.  headers: by their names in lower case.
        most_bytes: of the answer.
        """
        access = await self._open()
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        base = urlsplit(access.endpoint)
        sent = {
            **(headers or {}),
            "host": base.netloc,  # said here, so that it is as it is signed
            "x-amz-date": now,
            "x-amz-content-sha256": digest,
        }
        if access.token is not None:
            sent["x-amz-security-token"] = access.token
        encoded = sorted((quote(k, safe=""), quote(v, safe="")) for k, v in (query or {}).items())
        text = "&".join(f"{name}={value}" for name, value in encoded)
        names = ";".join(sorted(sent))
        request = "\n".join(
            (
                *(method, base.path + path, text),
                *(f"{name}:{sent[name].strip()}" for name in sorted(sent)),
                *("", names, digest),
            )
        )
        scope = f"{now[:8]}/{access.region}/{self._service}/aws4_request"
        hashed = hashlib.sha256(request.encode()).hexdigest()
        to_sign = "\n".join((_ALGORITHM, now, scope, hashed))
        signature = hmac.new(_signing_key(access, scope), to_sign.encode(), hashlib.sha256)
        sent["authorization"] = (
            f"{_ALGORITHM} Credential={access.key_id}/{scope}, SignedHeaders={names}, "
            f"Signature={signature.hexdigest()}"
        )
        url = f"{access.endpoint}{path}" + (f"?{text}" if text else "")
        return await self._rest.ask(method, url, sent, body, most_bytes)

    async def where(self) -> str:
        """Return what messages call the service. Raises ConfigValueError."""
        return (await self._open()).endpoint

    async def close(self) -> None:
        """End every connection."""
        await self._rest.close()

    async def _open(self) -> _Access:
        if self._access is None:
            context = self._context
            key_id = await context.value("AWS_ACCESS_KEY_ID")
            secret = await context.value("AWS_SECRET_ACCESS_KEY")
            region = await context.first_value("AWS_REGION", "AWS_DEFAULT_REGION")
            if not re.fullmatch("[a-z0-9-]{1,40}", region) or not key_id.isalnum():
                raise ConfigValueError("config 'AWS_REGION' or 'AWS_ACCESS_KEY_ID' is no such name")
            domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
            endpoint = await context.endpoint("AWS_ENDPOINT_URL")
            endpoint = endpoint or f"https://{self._service}.{region}.{domain}"
            token = await context.extra_value("AWS_SESSION_TOKEN")
            self._access = _Access(key_id, secret, token, region, endpoint)
        return self._access


def _signing_key(access: _Access, scope: str) -> bytes:
    key = f"AWS4{access.secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    return key
