"""What every error that a guest is told has in common."""

from __future__ import annotations

from typing import ClassVar, Final

UNEXPECTED: Final = "unexpected-error"


class CapabilityError(Exception):
    """A guest gets ``case`` of its interface's error, with the message.

    The message never has a secret in it: of a URL for instance only its host.
    """

    case: ClassVar[str] = UNEXPECTED


class NoCapabilityError(CapabilityError):
    """The slightfile names nothing that the guest could open."""


class TooManyHandlesError(CapabilityError):
    """The guest has more open than it may."""
