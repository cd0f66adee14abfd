"""What can go wrong between two peers.

``LocalProtocolError``   our side was about to break the protocol: a bug here, nothing was sent
``RemoteProtocolError``  the peer broke it; the connection is of no further use
``RemoteError``          the protocol worked, and the peer answered with a status that is not OK
"""

from __future__ import annotations

from containerd_shimkit.errors import Status


class LocalProtocolError(Exception):
    """We were about to send what the protocol forbids."""


class RemoteProtocolError(Exception):
    """The peer sent what the protocol forbids."""


class RemoteError(Exception):
    """A call was answered with an error, or its deadline passed (``DEADLINE_EXCEEDED``)."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(f"{status.name.lower()}: {message}")
        self.status = status
        self.message = message
