"""The canonical ABI: how values of an interface lie in a guest's memory.

The layout is the same for wit-bindgen 0.2, which Spin 1.x guests are made with, and for the
component model, as far as these types go. A type *lifts* what a guest passed, as flat arguments or
from memory, and *lowers* what it gets into blocks, for which the guest's allocator is called
afterwards, block by block (``Blocks``).

Everything a guest passes is checked. Numbers of elements and bytes are bounded for each call: a
list of strings that are all the same ten megabytes would fill the host.

Source: component-model design/mvp/CanonicalABI.md; wit-bindgen 0.2 crates/bindgen-core.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from containerd_shimkit.wasm.guest import take
from containerd_shimkit.wasm.native import GuestTrap

MAX_ELEMENTS: Final = 100_000
"""Of all lists that one call passes to the host, strings and bytes aside."""

_POINTER: Final = struct.Struct("<I")
_POINTER_AND_LENGTH: Final = struct.Struct("<II")
_ALL: Final = slice(None)


class AbiError(GuestTrap):
    """A guest passed what the interface has no value for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, None)


class Lifting:
    """One call's arguments: the guest's memory, and what may still be taken from it."""

    __slots__ = ("_bytes", "_elements", "memory")

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._bytes = len(memory)
        self._elements = MAX_ELEMENTS

    def take(self, at: int, size: int) -> bytes:
        """Copy ``size`` bytes."""
        data = take(self.memory, at, size)
        self._bytes -= size
        if self._bytes < 0:
            raise AbiError("the guest passes more than its memory holds: parts of it repeatedly")
        return data

    def count(self, elements: int) -> None:
        """Note elements of a list before they are read."""
        self._elements -= elements
        if self._elements < 0:
            raise AbiError(f"the guest passes more than {MAX_ELEMENTS} elements in a call")


class Blocks:
    """Blocks of memory to be allocated in a guest, with pointers from one into another."""

    __slots__ = ("aligns", "contents", "pointers")

    def __init__(self) -> None:
        self.contents: list[bytes | bytearray] = []
        self.aligns: list[int] = []
        self.pointers: list[tuple[bytearray, int, int]] = []
        """In a block at an offset: the address of the block with an index."""

    def add(self, content: bytes | bytearray, align: int, holder: bytearray, at: int) -> None:
        """Add a block whose address is to stand in ``holder`` at ``at``."""
        self.pointers.append((holder, at, len(self.contents)))
        self.contents.append(content)
        self.aligns.append(align)

    def resolve(self, addresses: Sequence[int], part: slice = _ALL) -> None:
        """Write the addresses of blocks into those that hold them. part: of the blocks."""
        pack_into = _POINTER.pack_into
        for holder, at, index in self.pointers[part]:
            pack_into(holder, at, addresses[index])


class Type(ABC):
    """A type of an interface."""

    size: int
    """Bytes in memory."""
    align: int
    flat: str
    """Kinds of the values that it is passed as: ``i`` i32, ``l`` i64, ``f`` f32, ``d`` f64."""

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> Any:
        """Return the value of flat arguments."""
        raise AssertionError("no function takes such a value as an argument of its own")

    def load(self, lifting: Lifting, data: bytes, at: int) -> Any:
        """Return the value that lies in ``data`` at ``at``."""
        raise AssertionError("no guest passes such a value")

    @abstractmethod
    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: Any) -> None:
        """Write a value into ``holder`` at ``at``, what it points to into blocks."""

    def lower_in_steps(
        self, blocks: Blocks, holder: bytearray, at: int, value: Any
    ) -> Iterator[None]:
        """Do ``lower``; yield after each element of a list that is in no other: it may be long."""
        self.lower(blocks, holder, at, value)
        return iter(())


# Values without parts


class _Number(Type):
    def __init__(self, code: str, flat: str) -> None:
        self._struct = struct.Struct(f"<{code}")
        self.size = self.align = self._struct.size
        self.flat = flat
        self.code = code
        self._mask = (1 << self.size * 8) - 1
        self._sign = 1 << (self.size * 8 - 1) if code in "bhiq" else 0

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> Any:
        value = next(values)
        if self.flat in "fd":
            return value
        value &= self._mask
        return (value ^ self._sign) - self._sign

    def load(self, lifting: Lifting, data: bytes, at: int) -> Any:
        return self._struct.unpack_from(data, at)[0]

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: Any) -> None:
        self._struct.pack_into(holder, at, value)


U8: Final = _Number("B", "i")
S8: Final = _Number("b", "i")
U16: Final = _Number("H", "i")
S16: Final = _Number("h", "i")
U32: Final = _Number("I", "i")
S32: Final = _Number("i", "i")
U64: Final = _Number("Q", "l")
S64: Final = _Number("q", "l")
F32: Final = _Number("f", "f")
F64: Final = _Number("d", "d")


class _Bool(Type):
    size = align = 1
    flat = "i"

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> bool:
        return bool(next(values))

    def load(self, lifting: Lifting, data: bytes, at: int) -> bool:
        return bool(data[at])

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: bool) -> None:
        holder[at] = bool(value)


BOOL: Final = _Bool()


class Enum(Type):
    """One of some names, as a string."""

    size = align = 1
    flat = "i"

    def __init__(self, *names: str) -> None:
        assert len(names) <= 256
        self._names = names
        self._codes = {name: code for code, name in enumerate(names)}

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> str:
        return self._name(next(values))

    def load(self, lifting: Lifting, data: bytes, at: int) -> str:
        return self._name(data[at])

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: str) -> None:
        holder[at] = self._codes[value]

    def _name(self, code: int) -> str:
        if code >= len(self._names):
            raise AbiError(f"the guest passes case {code} of {len(self._names)}")
        return self._names[code]


# Strings and lists


class _Pointed(Type):
    """Something elsewhere in memory, by its address and length."""

    size, align, flat = 8, 4, "ii"

    @abstractmethod
    def fetch(self, lifting: Lifting, at: int, length: int) -> Any:
        """Return what is at ``at``."""

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> Any:
        at = next(values)
        return self.fetch(lifting, at, next(values))

    def load(self, lifting: Lifting, data: bytes, at: int) -> Any:
        return self.fetch(lifting, *_POINTER_AND_LENGTH.unpack_from(data, at))


class _Bytes(_Pointed):
    def fetch(self, lifting: Lifting, at: int, length: int) -> bytes:
        return lifting.take(at, length)

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: bytes) -> None:
        _POINTER_AND_LENGTH.pack_into(holder, at, 0, len(value))
        blocks.add(value, 1, holder, at)


BYTES: Final = _Bytes()
"""``list<u8>``"""


class _String(_Bytes):
    def fetch(self, lifting: Lifting, at: int, length: int) -> str:  # type: ignore[override]
        try:
            return lifting.take(at, length).decode()
        except UnicodeDecodeError as exc:
            raise AbiError(f"the guest passes a string that is not UTF-8: {exc.reason}") from None

    def lower(  # type: ignore[override]
        self, blocks: Blocks, holder: bytearray, at: int, value: str
    ) -> None:
        super().lower(blocks, holder, at, value.encode(errors="replace"))


STRING: Final = _String()


class List(_Pointed):
    """``list<T>``, as a list."""

    def __init__(self, element: Type) -> None:
        self._element = element

    def fetch(self, lifting: Lifting, at: int, length: int) -> list[Any]:
        lifting.count(length)
        element, size = self._element, self._element.size
        data = lifting.take(at, length * size)
        return [element.load(lifting, data, n * size) for n in range(length)]

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: Sequence[Any]) -> None:
        for _ in self.lower_in_steps(blocks, holder, at, value):
            pass

    def lower_in_steps(
        self, blocks: Blocks, holder: bytearray, at: int, value: Sequence[Any]
    ) -> Iterator[None]:
        element, size = self._element, self._element.size
        _POINTER_AND_LENGTH.pack_into(holder, at, 0, len(value))
        if isinstance(element, _Number):
            array = bytearray(struct.pack(f"<{len(value)}{element.code}", *value))
            blocks.add(array, element.align, holder, at)
            return
        array = bytearray(len(value) * size)
        blocks.add(array, element.align, holder, at)
        for n, item in enumerate(value):
            element.lower(blocks, array, n * size, item)
            yield


# Composed values


class Record(Type):
    """``record`` and ``tuple``: fields one after another."""

    def __init__(
        self, *fields: Type, make: Callable[..., Any] | None = None, names: Sequence[str] = ()
    ) -> None:
        """make: gets the fields of what is lifted; without it that is a tuple.

        names: of the attributes to be lowered; without them the value is a sequence.
        """
        self._fields: list[tuple[Type, int]] = []
        at = 0
        for field in fields:
            at = _aligned(at, field.align)
            self._fields.append((field, at))
            at += field.size
        self.align = max((field.align for field in fields), default=1)
        self.size = _aligned(at, self.align)
        self.flat = "".join(field.flat for field in fields)
        self._make = make
        self._names = tuple(names)
        assert not names or len(names) == len(fields)

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> Any:
        return self._made([field.lift(lifting, values) for field, _ in self._fields])

    def load(self, lifting: Lifting, data: bytes, at: int) -> Any:
        return self._made([f.load(lifting, data, at + offset) for f, offset in self._fields])

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: Any) -> None:
        for (field, offset), part in zip(self._fields, self._parts(value), strict=True):
            field.lower(blocks, holder, at + offset, part)

    def lower_in_steps(
        self, blocks: Blocks, holder: bytearray, at: int, value: Any
    ) -> Iterator[None]:
        for (field, offset), part in zip(self._fields, self._parts(value), strict=True):
            yield from field.lower_in_steps(blocks, holder, at + offset, part)

    def _parts(self, value: Any) -> Sequence[Any]:
        return [getattr(value, name) for name in self._names] if self._names else value

    def _made(self, parts: list[Any]) -> Any:
        return tuple(parts) if self._make is None else self._make(*parts)


class Variant(Type):
    """``variant``: a pair of a case's name and its payload, None for a case without one.

    Of a flat form there is no need: no function takes one as it is.
    """

    flat = ""

    def __init__(self, **cases: Type | None) -> None:
        """cases: by names, with ``_`` for ``-``."""
        payloads = [payload for payload in cases.values() if payload is not None]
        assert 0 < len(cases) <= 256
        self.align = max((payload.align for payload in payloads), default=1)
        self._payload_at = _aligned(1, self.align)
        largest = max((payload.size for payload in payloads), default=0)
        self.size = _aligned(self._payload_at + largest, self.align)
        self._cases = [(name.replace("_", "-"), payload) for name, payload in cases.items()]
        self._codes = {name: (code, payload) for code, (name, payload) in enumerate(self._cases)}

    def load(self, lifting: Lifting, data: bytes, at: int) -> tuple[str, Any]:
        code = data[at]
        if code >= len(self._cases):
            raise AbiError(f"the guest passes case {code} of {len(self._cases)}")
        name, payload = self._cases[code]
        if payload is None:
            return name, None
        return name, payload.load(lifting, data, at + self._payload_at)

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: tuple[str, Any]) -> None:
        name, content = value
        holder[at], payload = self._codes[name]
        if payload is not None:
            payload.lower(blocks, holder, at + self._payload_at, content)


class Option(Type):
    """``option<T>``: the value, or None."""

    def __init__(self, some: Type) -> None:
        self._some = some
        self.align = some.align
        self._payload_at = _aligned(1, self.align)
        self.size = _aligned(self._payload_at + some.size, self.align)
        self.flat = "i" + some.flat

    def lift(self, lifting: Lifting, values: Iterator[Any]) -> Any:
        if _is_second(next(values)):
            return self._some.lift(lifting, values)
        for _ in self._some.flat:
            next(values)
        return None

    def load(self, lifting: Lifting, data: bytes, at: int) -> Any:
        if _is_second(data[at]):
            return self._some.load(lifting, data, at + self._payload_at)
        return None

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: Any) -> None:
        if value is not None:
            holder[at] = 1
            self._some.lower(blocks, holder, at + self._payload_at, value)


class Result(Type):
    """``result<T, E>`` (``expected``), which only the host returns: a pair of is-ok and value."""

    flat = ""

    def __init__(self, ok: Type | None, error: Type | None) -> None:
        self.error = error
        self._sides = (error, ok)
        present = [side for side in self._sides if side is not None]
        self.align = max((side.align for side in present), default=1)
        self._payload_at = _aligned(1, self.align)
        largest = max((side.size for side in present), default=0)
        self.size = _aligned(self._payload_at + largest, self.align)

    def lower(self, blocks: Blocks, holder: bytearray, at: int, value: tuple[bool, Any]) -> None:
        for _ in self.lower_in_steps(blocks, holder, at, value):
            pass

    def lower_in_steps(
        self, blocks: Blocks, holder: bytearray, at: int, value: tuple[bool, Any]
    ) -> Iterator[None]:
        is_ok, content = value
        holder[at] = not is_ok
        side = self._sides[is_ok]
        if side is not None:
            yield from side.lower_in_steps(blocks, holder, at + self._payload_at, content)


def _aligned(at: int, align: int) -> int:
    return -(-at // align) * align


def _is_second(code: int) -> bool:
    if code > 1:
        raise AbiError("the guest passes an option that is neither none nor some")
    return code == 1
