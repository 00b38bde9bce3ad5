"""The steps of the pickle machine: what each opcode does to its stack, marks and memo."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, cast

from nemoalign.archive.dtypes import DType
from nemoalign.archive.stand_ins import Known, Record, StorageRef, build, persistent, resolve

MAX_KEY_DEPTH, MAX_KEY_LENGTH = 2, 16
MAX_NUMBER_BYTES = 128  # far above any random state, so that every number can be printed


class Machine:
    """The data, stack, marks and memo of one pickle."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data = data
        self.where = where
        self.position = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes of the pickle."""
        end = self.position + size
        if end > len(self.data):
            raise ValueError(f"{size} bytes are announced where {len(self.data)} end it")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def number(self, size: int) -> int:
        """Return the next little-endian unsigned number."""
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        """Return the text up to the next newline."""
        end = self.data.index(b"\n", self.position)
        text = self.data[self.position : end].decode()
        self.position = end + 1
        return text

    def marked(self) -> list[Any]:
        """Return what was pushed since the last mark, which is gone then."""
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def put(self, value: Any) -> None:
        """Push a value."""
        self.stack.append(value)


_Step = Callable[[Machine], None]


def _mark(machine: Machine) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.marked()


def _constant(value: object) -> _Step:
    return lambda machine: machine.stack.append(value)


def _unsigned(size: int) -> _Step:
    return lambda machine: machine.stack.append(machine.number(size))


def _int32(machine: Machine) -> None:
    machine.put(int.from_bytes(machine.take(4), "little", signed=True))


def _long(size: int) -> _Step:
    def step(machine: Machine) -> None:
        digits = machine.take(machine.number(size))
        if len(digits) > MAX_NUMBER_BYTES:
            raise ValueError(f"a number has {len(digits)} bytes")
        machine.put(int.from_bytes(digits, "little", signed=True))

    return step


def _float(machine: Machine) -> None:
    machine.put(struct.unpack(">d", machine.take(8))[0])


def _text(size: int, encoding: str) -> _Step:
    def step(machine: Machine) -> None:
        machine.put(machine.take(machine.number(size)).decode(encoding, "surrogatepass"))

    return step


def _bytes(size: int) -> _Step:
    return lambda machine: machine.stack.append(machine.take(machine.number(size)))


def _tuple(machine: Machine) -> None:
    machine.put(tuple(machine.marked()))


def _tuple_of(count: int) -> _Step:
    def step(machine: Machine) -> None:
        items = tuple(machine.stack.pop() for _ in range(count))
        machine.put(items[::-1])

    return step


def _list(machine: Machine) -> None:
    machine.put(machine.marked())


def _append(machine: Machine) -> None:
    item = machine.stack.pop()
    _as_list(machine.stack[-1]).append(item)


def _extend(machine: Machine) -> None:
    items = machine.marked()
    _as_list(machine.stack[-1]).extend(items)


def _as_list(target: Any) -> list[Any]:
    if not isinstance(target, list):
        raise TypeError(f"items are added to a {type(target).__name__}")
    return cast("list[Any]", target)


def _dict(machine: Machine) -> None:
    items = machine.marked()
    target: dict[Any, Any] = {}
    _set_items(target, items)
    machine.put(target)


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _set_items(machine.stack[-1], [key, value])


def _set_many(machine: Machine) -> None:
    items = machine.marked()
    _set_items(machine.stack[-1], items)


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise TypeError(f"entries are set in a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        _check_key(key, MAX_KEY_DEPTH)
        target[key] = value


def _check_key(key: Any, depth: int) -> None:
    """Hashing recurses into tuples, and giant numbers can be made to collide."""
    if type(key) is str or isinstance(key, Record | Known | DType | bytes | bool | None):
        return
    if type(key) is int and abs(key) < 1 << 60:
        return
    parts = cast("tuple[Any, ...]", key) if isinstance(key, tuple) else None
    if parts is None or not depth or len(parts) > MAX_KEY_LENGTH:
        raise TypeError("a key is a mutable or oversized value")
    for part in parts:
        _check_key(part, depth - 1)


def _remember(size: int) -> _Step:
    def step(machine: Machine) -> None:
        machine.memo[machine.number(size)] = machine.stack[-1]

    return step


def _recall(size: int) -> _Step:
    return lambda machine: machine.stack.append(machine.memo[machine.number(size)])


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _global(machine: Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.put(resolve(module, name, machine.where))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(module, str) and isinstance(name, str)):
        raise TypeError("a global is not named by text")
    machine.put(resolve(module, name, machine.where))


def _call(machine: Machine) -> None:
    args, callee = machine.stack.pop(), machine.stack.pop()
    if not (isinstance(callee, Known) and isinstance(args, tuple)):
        raise TypeError(f"a {type(callee).__name__} is called")
    machine.put(callee.call(cast("tuple[Any, ...]", args)))


def _call_with_keywords(machine: Machine) -> None:
    keywords = machine.stack.pop()
    _call(machine)
    build(_buildable(machine.stack[-1]), keywords)


def _build(machine: Machine) -> None:
    state = machine.stack.pop()
    build(_buildable(machine.stack[-1]), state)


def _buildable(target: Any) -> object:
    if not isinstance(target, Record | dict):
        raise TypeError(f"a {type(target).__name__} is given a state")
    return cast("object", target)


def _persistent(machine: Machine) -> None:
    storage = persistent(machine.stack.pop(), machine.where)
    machine.storages[storage.key] = storage
    machine.put(storage)


def _skip(size: int) -> _Step:
    def step(machine: Machine) -> None:
        machine.take(size)

    return step


STOP = ord(".")

STEPS: dict[int, _Step] = {
    0x80: _skip(1),  # PROTO
    0x95: _skip(8),  # FRAME: the lengths inside are checked on their own
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): lambda machine: machine.marked().clear(),
    ord("2"): lambda machine: machine.put(machine.stack[-1]),
    ord("N"): _constant(None),
    0x88: _constant(value=True),
    0x89: _constant(value=False),
    ord("K"): _unsigned(1),
    ord("M"): _unsigned(2),
    ord("J"): _int32,
    0x8A: _long(1),
    0x8B: _long(4),
    ord("G"): _float,
    ord("X"): _text(4, "utf-8"),
    0x8C: _text(1, "utf-8"),
    0x8D: _text(8, "utf-8"),
    ord("T"): _text(4, "latin-1"),  # str of Python 2
    ord("U"): _text(1, "latin-1"),
    ord("B"): _bytes(4),
    ord("C"): _bytes(1),
    0x8E: _bytes(8),
    0x96: _bytes(8),
    ord(")"): _constant(()),
    ord("t"): _tuple,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("]"): lambda machine: machine.put([]),
    ord("l"): _list,
    ord("a"): _append,
    ord("e"): _extend,
    0x8F: lambda machine: machine.put([]),  # a set is read as a list: its items need no hash
    0x90: _extend,
    0x91: _list,
    ord("}"): lambda machine: machine.put({}),
    ord("d"): _dict,
    ord("s"): _set_item,
    ord("u"): _set_many,
    ord("q"): _remember(1),
    ord("r"): _remember(4),
    ord("h"): _recall(1),
    ord("j"): _recall(4),
    0x94: _memoize,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _call,
    0x81: _call,  # NEWOBJ
    0x92: _call_with_keywords,
    ord("b"): _build,
    ord("Q"): _persistent,
}
