"""Keys and credentials of a NATS server that trusts one operator.

Source: nats-io/nkeys, nats-io/jwt v2.
"""

from __future__ import annotations

import binascii
import json
from base64 import b32encode, urlsafe_b64encode
from typing import Any, Final

from nacl.signing import SigningKey

ACCOUNT: Final = 0
OPERATOR: Final = 14
USER: Final = 20
_LIMITS: dict[str, Any] = {
    "account": {
        "limits": {
            **{"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1},
            **{"imports": -1, "exports": -1, "wildcards": True},
        }
    },
    "user": {"subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}},
}


class Signer:
    """A key of an operator, an account or a user."""

    def __init__(self, kind: int) -> None:
        """kind: ``OPERATOR``, ``ACCOUNT`` or ``USER``."""
        self._key, self._kind = SigningKey.generate(), kind
        self.public = _base32(bytes([kind << 3]), bytes(self._key.verify_key))

    @property
    def seed(self) -> str:
        prefix = self._kind << 3
        first = 18 << 3 | prefix >> 5, (prefix & 31) << 3
        return _base32(bytes(first), bytes(self._key))

    def token(self, subject: str, kind: str) -> str:
        claims = {
            **{"jti": "x", "iat": 1, "iss": self.public, "name": kind, "sub": subject},
            "nats": {"type": kind, "version": 2, **_LIMITS.get(kind, {})},
        }
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        parts = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        return f"{parts}.{_base64(self._key.sign(parts.encode()).signature)}"


class Operator:
    """An operator with one account, which has one user."""

    def __init__(self) -> None:
        self._own, self.account, self.user = Signer(OPERATOR), Signer(ACCOUNT), Signer(USER)

    @property
    def lines(self) -> tuple[str, ...]:
        """The server's configuration."""
        key, token = self.account.public, self._own.token(self.account.public, "account")
        return (
            f"operator: {self._own.token(self._own.public, 'operator')}",
            "resolver: MEMORY",
            f"resolver_preload: {{ {key}: {token} }}",
        )

    def credentials(self, seed: str) -> str:
        """Return the content of the user's ``.creds`` file. seed: the user's, if it is to work."""
        token = self.account.token(self.user.public, "user")
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )


def _base32(head: bytes, key: bytes) -> str:
    checksum = binascii.crc_hqx(head + key, 0).to_bytes(2, "little")
    return b32encode(head + key + checksum).decode().rstrip("=")


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
