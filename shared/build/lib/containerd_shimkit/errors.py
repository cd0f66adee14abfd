"""Every error the shims raise on purpose, its RPC status, and the exit code of its container.

``ShimError``
 ├── ``InvalidArgumentError``
 │    ├── ``BundleError``       config.json or the bundle directory
 │    └── ``ManifestError``     the app's manifest (exit code 78)
 ├── ``NotFoundError``
 │    └── ``MissingFileError``  a file the image should hold (66)
 ├── ``AlreadyExistsError``
 ├── ``FailedPreconditionError``
 ├── ``UnimplementedError``
 ├── ``UnavailableError``
 │    └── ``ListenError``       the app's address cannot be bound (69)
 ├── ``SandboxError``           a step of the isolation failed (71)
 ├── ``ModuleError``            a file that is no usable WebAssembly (65)
 └── ``EngineError``            the engine itself failed (70)

Exit codes are those of sysexits.h. 137 is never among them: it means "killed".
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Status(IntEnum):
    """Status codes of gRPC, which ttrpc shares. Source: google/rpc/code.proto."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class ExitCode(IntEnum):
    """Exit codes of a container whose app could not be run. Source: sysexits.h."""

    OK = 0
    INVALID_MODULE = 65
    MISSING_FILE = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    SANDBOX = 71
    MANIFEST = 78


class ShimError(Exception):
    """Base of every error this package raises on purpose."""

    status: ClassVar[Status] = Status.UNKNOWN
    exit_code: int = ExitCode.INTERNAL


class InvalidArgumentError(ShimError):
    """The caller asked for something that can never work."""

    status = Status.INVALID_ARGUMENT


class BundleError(InvalidArgumentError):
    """The bundle or its ``config.json`` cannot be used."""

    exit_code = ExitCode.SANDBOX


class ManifestError(InvalidArgumentError):
    """The app's manifest breaks a rule; the message names file, field, value and rule."""

    exit_code = ExitCode.MANIFEST


class NotFoundError(ShimError):
    """The task, process or file does not exist."""

    status = Status.NOT_FOUND


class MissingFileError(NotFoundError):
    """A file that the image should hold is not there."""

    exit_code = ExitCode.MISSING_FILE


class AlreadyExistsError(ShimError):
    """A task of this id exists already."""

    status = Status.ALREADY_EXISTS


class FailedPreconditionError(ShimError):
    """The task is not in a state that allows the call."""

    status = Status.FAILED_PRECONDITION


class UnimplementedError(ShimError):
    """The call makes no sense for a WebAssembly guest; the message says why."""

    status = Status.UNIMPLEMENTED


class UnavailableError(ShimError):
    """Something the call needs is not there now."""

    status = Status.UNAVAILABLE
    exit_code = ExitCode.UNAVAILABLE


class ListenError(UnavailableError):
    """The address the app shall listen on cannot be bound."""


class SandboxError(ShimError):
    """A step of the isolation failed."""

    exit_code = ExitCode.SANDBOX

    def __init__(self, step: str, cause: str) -> None:
        super().__init__(f"{step}: {cause}")
        self.step = step
        self.cause = cause


class ModuleError(ShimError):
    """A file is no WebAssembly, or asks for what the host does not provide."""

    status = Status.INVALID_ARGUMENT
    exit_code = ExitCode.INVALID_MODULE


class EngineError(ShimError):
    """The engine failed for a reason that is not the app's."""


def status_of(exc: BaseException) -> Status:
    """Return the RPC status for ``exc``; anything not ours is ``UNKNOWN``."""
    return exc.status if isinstance(exc, ShimError) else Status.UNKNOWN
