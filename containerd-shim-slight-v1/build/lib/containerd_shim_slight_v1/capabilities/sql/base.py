"""What a backend of databases does, and how it fails.

Source: SpiderLightning 0.5 wit/sql.wit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from containerd_shim_slight_v1.capabilities.context import BackendContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError

MAX_VALUES: Final = 100_000
"""Of all rows of one answer."""
MAX_RESULT_BYTES: Final = 64 << 20

Value: TypeAlias = tuple[str, Any]
"""The name of a case of ``data-type``, and its content."""
Field: TypeAlias = tuple[str, Value]
"""The name of a column and a value."""


class SqlError(CapabilityError):
    """A statement failed: ``unexpected-error``."""


class StatementSyntaxError(SqlError):
    """The statement is wrong."""

    case = "syntax-error"


class ConstraintError(SqlError):
    """The data may not be as the statement wants it."""

    case = "constraint-violation"


class AccessError(SqlError):
    """The login is refused, or what the statement wants."""

    case = "access-violation"


@dataclass(frozen=True, slots=True)
class Statement:
    """What a guest has prepared: nothing is checked before it is run."""

    text: str
    parameters: tuple[str, ...]


class SqlBackend(ABC):
    """The database of one capability; its module has it under the name ``Backend``.

    Made in the event loop that serves, without any waiting: connections are made when they are
    first needed. Each statement is a transaction of its own.
    """

    def __init__(self, context: BackendContext) -> None:
        self.context = context

    @abstractmethod
    async def query(self, statement: Statement) -> list[Field]:
        """Run a statement and return the fields of all rows, row after row. Raises SqlError."""

    @abstractmethod
    async def execute(self, statement: Statement) -> None:
        """Run a statement. Raises SqlError."""

    async def close(self) -> None:
        """End every connection."""
        return


@dataclass(frozen=True, slots=True)
class OpenDatabase:
    """What a guest has opened."""

    backend: SqlBackend
