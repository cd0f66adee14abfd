"""One connection to a MySQL server: aiomysql's, with prepared statements.

aiomysql puts parameters into the statement's text. Spin's guests write ``?`` and expect the server
to put them in, and results in their binary form, which a ``FLOAT`` needs to be exact; so these
commands of the protocol are here. Differences to aiomysql besides:

- one statement at a time
- a server that should use TLS and does not is never told a password, nor is any in clear text
- what an answer may be in size is limited

Source: MySQL's "Client/Server Protocol", "Prepared Statements".
"""

from __future__ import annotations

import asyncio
import encodings.ascii
import encodings.idna
import encodings.latin_1  # codecs are found by name, which is too late in a container  # noqa: F401
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from pymysql import err
from pymysql.charset import charset_by_name
from pymysql.connections import MAX_PACKET_LEN
from pymysql.constants import CLIENT, COMMAND, FIELD_TYPE
from pymysql.protocol import (
    EOFPacketWrapper,
    FieldDescriptorPacket,
    MysqlPacket,
    OKPacketWrapper,
)

from containerd_shim_spin_v1.host.database import Kind, Value
from containerd_shim_spin_v1.host.mysql_address import MysqlAddress
from containerd_shim_spin_v1.host.named_user import named_user
from containerd_shimkit.http_client.networks import Networks
from containerd_shimkit.pool import ConnectionLostError

with named_user():
    import aiomysql

_STMT_PREPARE: Final = 0x16
_STMT_EXECUTE: Final = 0x17
_STMT_CLOSE: Final = 0x19
_RESET_CONNECTION: Final = 0x1F
_GREETING_BYTES: Final = 1 << 20
_VALUES_AT_ONCE: Final = 1000
_UNSIGNED: Final = 0x80
_UNPREPARABLE: Final = 1295  # ER_UNSUPPORTED_PS
_LAST_WORDS: Final = (1053, 1927)  # ER_SERVER_SHUTDOWN, ER_CONNECTION_KILLED: then it closes
_SSL_ERROR: Final = 2026  # CR_SSL_CONNECTION_ERROR
_AUTH_ERROR: Final = 2059  # CR_AUTH_PLUGIN_CANNOT_LOAD
_FIRST_CLIENT_ERROR, _LAST_CLIENT_ERROR = 2000, 2999

_SENT: Final[dict[str, tuple[int, str]]] = {
    Kind.FLOATING32: (FIELD_TYPE.FLOAT, "<f"),
    Kind.FLOATING64: (FIELD_TYPE.DOUBLE, "<d"),
    **dict.fromkeys(
        (Kind.BOOLEAN, Kind.INT8, Kind.INT16, Kind.INT32, Kind.INT64), (FIELD_TYPE.LONGLONG, "<q")
    ),
    **dict.fromkeys(
        (Kind.UINT8, Kind.UINT16, Kind.UINT32, Kind.UINT64),
        (FIELD_TYPE.LONGLONG | _UNSIGNED << 8, "<Q"),
    ),
}
_NUMBERS: Final = {
    FIELD_TYPE.TINY: ("<b", "<B"),
    FIELD_TYPE.SHORT: ("<h", "<H"),
    FIELD_TYPE.YEAR: ("<h", "<H"),
    FIELD_TYPE.INT24: ("<i", "<I"),
    FIELD_TYPE.LONG: ("<i", "<I"),
    FIELD_TYPE.LONGLONG: ("<q", "<Q"),
    FIELD_TYPE.FLOAT: ("<f", "<f"),
    FIELD_TYPE.DOUBLE: ("<d", "<d"),
}
_UNSIGNED_FLAG: Final = 0x20
# Their length, one byte, and parts of a date or a time.
_TIMES: Final = frozenset(
    {FIELD_TYPE.DATE, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP, FIELD_TYPE.TIME}
)


class ResultTooLargeError(Exception):
    """A result has more bytes than may be taken."""


class StatementError(Exception):
    """The server refused a statement, or it does not fit its parameters."""


RowReader = Callable[[Sequence[Any], Sequence[Any]], None]
"""Gets the columns, FieldDescriptorPacket, and the values of one row: numbers, bytes or None."""


class MysqlConnection:
    """A connection as the pool lends it."""

    def __init__(self, connection: _Connection, max_result_bytes: int) -> None:
        self._connection = connection
        self._max_result_bytes = max_result_bytes
        self._busy = False
        self.lent_before = False

    @property
    def usable(self) -> bool:
        return not self._busy and self._connection.alive

    async def run(
        self, statement: str, params: Sequence[Value], row: RowReader
    ) -> Sequence[Any] | None:
        """Run a statement and return the columns of its first result, None if it has none.

        row: called for each row of the first result.
        Raises StatementError, ConnectionLostError, ResultTooLargeError; after any other exception
        the connection is not usable.
        """
        connection = self._connection
        connection.budget_bytes = self._max_result_bytes
        sent = False
        # It stays so where the call is cancelled, or the state unknown.
        self._busy = True
        try:
            try:
                prepared = await connection.prepare(statement)
            except err.MySQLError as exc:
                if params or exc.args[:1] != (_UNPREPARABLE,):
                    raise
                sent = True
                await connection.query(statement)
                columns = None
            else:
                sent = True
                columns = await connection.execute_prepared(prepared, params, row)
        except err.MySQLError as exc:
            number = exc.args[0] if exc.args and isinstance(exc.args[0], int) else 0
            if connection.exceeded:
                raise ResultTooLargeError(
                    f"the result is larger than {self._max_result_bytes} bytes"
                ) from None
            if (
                not connection.alive
                or number in _LAST_WORDS
                or _FIRST_CLIENT_ERROR <= number <= _LAST_CLIENT_ERROR
            ):
                raise ConnectionLostError(message_of(exc), sent=sent) from None
            self._busy = False
            raise StatementError(message_of(exc)) from None
        except OSError as exc:
            raise ConnectionLostError(str(exc), sent=sent) from None
        except StatementError:
            self._busy = False
            raise
        self._busy = False
        return columns

    async def reset(self) -> None:
        await self._connection.reset()
        self.lent_before = True

    async def quit(self) -> None:
        if self.usable:
            await self._connection.say_goodbye()
        self.abort()

    def abort(self) -> None:
        self._connection.close()


class _Prepared:
    """A statement that the server has prepared."""

    def __init__(self, packet: Any) -> None:
        packet.advance(1)
        self.statement_id, self.columns, self.parameters = packet.read_struct("<IHH")


class _Connection(aiomysql.Connection):  # type: ignore[misc]  # aiomysql has no types
    """aiomysql's connection, and what it lacks."""

    def __init__(self, address: MysqlAddress, ip: str, tls: ssl.SSLContext | None) -> None:
        """ip: where to connect to; may be the name, too."""
        super().__init__(
            host=ip,
            port=address.port,
            user=address.user,
            # It is encoded as Latin 1, and servers take UTF-8.
            password=address.password.encode().decode("latin-1"),
            db=address.database,
            charset="utf8mb4",
            autocommit=None,
            local_infile=False,
        )
        self.budget_bytes = _GREETING_BYTES
        self.exceeded = False
        self._address = address
        self._tls = tls

    @property
    def alive(self) -> bool:
        """Whether it is open, as far as this side knows."""
        reader = self._reader
        return (
            not self.closed
            and reader is not None
            and not reader.at_eof()
            and reader.exception() is None
        )

    # What aiomysql does otherwise

    def close(self) -> None:
        # With TLS a transport that is only closed waits for the server to close, too.
        if self._writer is not None:
            self._writer.transport.abort()
        super().close()

    async def _request_authentication(self) -> None:
        self.client_flag &= ~CLIENT.MULTI_STATEMENTS
        self.client_flag |= CLIENT.MULTI_RESULTS
        if self._tls is not None:
            await self._start_tls(self._tls)
        await super()._request_authentication()

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        """Go on by TLS, on the same transport: aiomysql would hand the socket to another one."""
        if not self.server_capabilities & CLIENT.SSL:
            raise err.OperationalError(_SSL_ERROR, "the server does not support TLS")
        self.client_flag |= CLIENT.SSL
        charset = charset_by_name(self.charset).id
        self.write_packet(struct.pack("<iIB23s", self.client_flag, MAX_PACKET_LEN, charset, b""))
        await self._writer.start_tls(context, server_hostname=self._address.host)
        self._secure = True

    async def _process_auth(self, plugin_name: bytes, auth_packet: Any) -> Any:
        if plugin_name in (b"mysql_clear_password", b"mysql_old_password") and not self._secure:
            raise err.OperationalError(
                _AUTH_ERROR, f"the server asks for {plugin_name.decode()}, which needs TLS"
            )
        return await super()._process_auth(plugin_name, auth_packet)

    async def _read_bytes(self, num_bytes: int) -> Any:
        self.budget_bytes -= num_bytes
        if self.budget_bytes < 0:
            self.exceeded = True
            self.close()
            raise err.OperationalError(0, "the answer is too large")
        return await super()._read_bytes(num_bytes)

    # What it lacks

    async def say_goodbye(self) -> None:
        await self._execute_command(COMMAND.COM_QUIT, b"")
        await self._writer.drain()

    async def prepare(self, statement: str) -> _Prepared:
        await self._execute_command(_STMT_PREPARE, statement.encode())
        prepared = _Prepared(await self._read_packet())
        for count in (prepared.parameters, prepared.columns):
            for _ in range(count):
                await self._read_packet()
            if count:
                await self._read_packet()
        return prepared

    async def execute_prepared(
        self, prepared: _Prepared, params: Sequence[Value], row: RowReader
    ) -> Sequence[Any] | None:
        """Run a statement once, and have the server forget it; returns as ``run``."""
        try:
            if len(params) != prepared.parameters:
                raise StatementError(
                    f"the statement has {prepared.parameters} parameters, "
                    f"and {len(params)} were given"
                )
            head = struct.pack("<IBI", prepared.statement_id, 0, 1)
            await self._execute_command(_STMT_EXECUTE, head + encode_parameters(params))
            columns, more = await self._read_result(row)
            while more:  # of a procedure; the last is its status
                _, more = await self._read_result(_ignore_row)
        except (StatementError, err.MySQLError):
            if self.alive:
                await self._forget(prepared)
            raise
        await self._forget(prepared)
        return columns

    async def _forget(self, prepared: _Prepared) -> None:
        await self._execute_command(_STMT_CLOSE, struct.pack("<I", prepared.statement_id))

    async def _read_result(self, row: RowReader) -> tuple[Sequence[Any] | None, bool]:
        """Read one result; return its columns, and whether another follows."""
        first = await self._read_packet()
        if first.is_ok_packet():
            done = OKPacketWrapper(first)
            self.server_status = done.server_status
            return None, bool(done.has_next)
        count = first.read_length_encoded_integer()
        columns = [await self._read_packet(FieldDescriptorPacket) for _ in range(count)]
        await self._read_packet()
        readers = [_reader_of(column) for column in columns]
        rows, at_once = 0, max(1, _VALUES_AT_ONCE // max(1, len(columns)))
        while not (packet := await self._read_packet()).is_eof_packet():
            row(columns, _read_row(packet, readers))
            rows += 1
            if rows % at_once == 0:
                await asyncio.sleep(0)  # others are served meanwhile
        end = EOFPacketWrapper(packet)
        self.server_status = end.server_status
        return columns, bool(end.has_next)

    async def reset(self) -> None:
        """Roll back, and forget variables, temporary tables, locks and the current database."""
        self.budget_bytes = _GREETING_BYTES
        await self._execute_command(_RESET_CONNECTION, b"")
        await self._read_ok_packet()
        await self.query("SET NAMES utf8mb4 COLLATE utf8mb4_general_ci")
        if self._address.database is not None:
            await self.select_db(self._address.database)
            return
        current = await self.run_text("SELECT DATABASE() IS NULL")
        if current != "1":
            raise err.OperationalError(0, "a database was chosen, and cannot be left")

    async def run_text(self, statement: str) -> str | None:
        """Return the only value of a statement without parameters, as text."""
        found: list[Any] = []
        await self.execute_prepared(
            await self.prepare(statement), (), lambda _, row: found.extend(row)
        )
        return None if found[0] is None else str(found[0])


def _ignore_row(columns: Sequence[Any], row: Sequence[Any]) -> None:
    pass


def encode_parameters(params: Sequence[Value]) -> bytes:
    """Return the parameters as a statement's execution has them."""
    if not params:
        return b""
    nulls = bytearray((len(params) + 7) // 8)
    types, values = bytearray(), bytearray()
    for index, (kind, value) in enumerate(params):
        if kind == Kind.DB_NULL:
            nulls[index // 8] |= 1 << index % 8
            types += struct.pack("<H", FIELD_TYPE.NULL)
        elif isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            types += struct.pack("<H", FIELD_TYPE.VAR_STRING)
            values += _length(len(data)) + data
        else:
            type_, form = _SENT[kind]
            types += struct.pack("<H", type_)
            values += struct.pack(form, value)
    return bytes(nulls) + b"\1" + bytes(types) + bytes(values)


def _length(number: int) -> bytes:
    if number < 251:
        return struct.pack("<B", number)
    if number < 1 << 16:
        return b"\xfc" + struct.pack("<H", number)
    if number < 1 << 24:
        return b"\xfd" + struct.pack("<I", number)[:3]
    return b"\xfe" + struct.pack("<Q", number)


def _reader_of(column: Any) -> Callable[[Any], Any]:
    """Return what reads a column's value from a packet."""
    forms = _NUMBERS.get(column.type_code)
    if forms is not None:
        form = forms[1 if column.flags & _UNSIGNED_FLAG else 0]
        return lambda packet: packet.read_struct(form)[0]
    if column.type_code in _TIMES:
        return lambda packet: packet.read(packet.read_uint8())
    return MysqlPacket.read_length_coded_string  # type: ignore[no-any-return]


def _read_row(packet: Any, readers: Sequence[Callable[[Any], Any]]) -> list[Any]:
    """Return the values of a row: after a zero, a bit for each that is null, from the third on."""
    packet.advance(1)
    nulls = packet.read((len(readers) + 9) // 8)
    return [
        None if nulls[(index + 2) // 8] >> (index + 2) % 8 & 1 else read(packet)
        for index, read in enumerate(readers)
    ]


def message_of(exc: BaseException) -> str:
    """Return what a server or this side says about an error."""
    if isinstance(exc, err.MySQLError) and len(exc.args) == 2:
        number, message = exc.args
        cause = exc.__cause__
        if isinstance(cause, OSError):
            return str(cause) or type(cause).__name__
        return f"{message} (error {number})" if number else str(message)
    return str(exc) or type(exc).__name__


async def connect(
    address: MysqlAddress,
    networks: Networks,
    tls: Callable[[], ssl.SSLContext],
    max_result_bytes: int,
) -> MysqlConnection:
    """Return a new connection. Raises OSError, BlockedNetworkError and what pymysql raises."""
    context = tls() if address.tls else None
    places = [address.host]
    if networks.active:
        places = await networks.resolve(address.host, address.port)
    failure: BaseException | None = None
    for place in places:
        connection = _Connection(address, place, context)
        try:
            await connection._connect()
        except BaseException as exc:
            connection.close()
            if not (isinstance(exc, err.MySQLError) and isinstance(exc.__cause__, OSError)):
                raise
            failure = exc
        else:
            return MysqlConnection(connection, max_result_bytes)
    assert failure is not None
    raise failure
