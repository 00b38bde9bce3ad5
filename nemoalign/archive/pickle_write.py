"""Write a pickle that names classes which are not installed, as torch would have written it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Global:
    """A class or function by module and name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What ``callee(*args)`` returns when the pickle is loaded, with ``entries`` set in it."""

    callee: Global
    args: tuple[Any, ...] = ()
    entries: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Instance:
    """A new object of ``kind``; ``state`` becomes its attributes, None leaves it bare.

    Compared by identity, so that it can be the key of a dictionary as it is in ``.metadata``.
    """

    kind: Global
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    """A reference that torch resolves to a storage record of the same file."""

    pid: tuple[Any, ...]


def dump_pickle(value: object) -> bytes:
    """Return the protocol 2 pickle of plain values, Global, Call, Instance and Persistent."""
    writer = _Writer()
    writer.put(value)
    return b"\x80\x02" + b"".join(writer.parts) + b"."


class _Writer:
    """Collects opcodes; texts and globals are written once and recalled from the memo."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._memo: dict[str | Global, int] = {}

    def put(self, value: Any) -> None:
        _WRITERS[type(value)](self, value)

    def constant(self, value: bool | None) -> None:
        self.parts.append({None: b"N", True: b"\x88", False: b"\x89"}[value])

    def integer(self, value: int) -> None:
        if 0 <= value < 1 << 8:
            self.parts.append(b"K" + value.to_bytes(1))
        elif 0 <= value < 1 << 16:
            self.parts.append(struct.pack("<cH", b"M", value))
        elif -(1 << 31) <= value < 1 << 31:
            self.parts.append(struct.pack("<ci", b"J", value))
        else:
            self.parts.append(b"\x8a\x09" + value.to_bytes(9, "little", signed=True))

    def text(self, value: str) -> None:
        if not self._recalled(value):
            encoded = value.encode()
            self.parts.append(b"X" + len(encoded).to_bytes(4, "little") + encoded)
            self._remember(value)

    def name(self, value: Global) -> None:
        if not self._recalled(value):
            self.parts.append(f"c{value.module}\n{value.name}\n".encode())
            self._remember(value)

    def tuple_(self, value: tuple[Any, ...]) -> None:
        if not value:
            self.parts.append(b")")
            return
        if len(value) > 3:
            self.parts.append(b"(")
        for item in value:
            self.put(item)
        self.parts.append({1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t"))

    def list_(self, value: list[Any]) -> None:
        self.parts.append(b"](")
        for item in value:
            self.put(item)
        self.parts.append(b"e")

    def dict_(self, value: dict[Any, Any]) -> None:
        self.parts.append(b"}")
        self.entries(value)

    def entries(self, value: dict[Any, Any]) -> None:
        self.parts.append(b"(")
        for key, item in value.items():
            self.put(key)
            self.put(item)
        self.parts.append(b"u")

    def call(self, value: Call) -> None:
        self.name(value.callee)
        self.tuple_(value.args)
        self.parts.append(b"R")
        if value.entries:
            self.entries(value.entries)

    def instance(self, value: Instance) -> None:
        self.name(value.kind)
        self.parts.append(b")\x81")
        if value.state is not None:
            self.put(value.state)
            self.parts.append(b"b")

    def persistent(self, value: Persistent) -> None:
        self.tuple_(value.pid)
        self.parts.append(b"Q")

    def _recalled(self, value: str | Global) -> bool:
        number = self._memo.get(value)
        if number is not None:
            self._numbered(b"h", b"j", number)
        return number is not None

    def _remember(self, value: str | Global) -> None:
        number = self._memo[value] = len(self._memo)
        self._numbered(b"q", b"r", number)

    def _numbered(self, short: bytes, long: bytes, number: int) -> None:
        if number < 1 << 8:
            self.parts.append(short + number.to_bytes(1))
        else:
            self.parts.append(struct.pack("<cL", long, number))


_WRITERS: dict[type, Callable[[_Writer, Any], None]] = {
    type(None): _Writer.constant,
    bool: _Writer.constant,
    int: _Writer.integer,
    str: _Writer.text,
    Global: _Writer.name,
    tuple: _Writer.tuple_,
    list: _Writer.list_,
    dict: _Writer.dict_,
    Call: _Writer.call,
    Instance: _Writer.instance,
    Persistent: _Writer.persistent,
}
