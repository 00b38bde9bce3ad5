"""Evaluating ``${...}`` in a checkpoint's configuration: references and NeMo's four sums, nothing else.

OmegaConf would evaluate them too, but a file made to harm can chain them until that never ends. Here
every value is evaluated once, and what cannot be evaluated stays the text it is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

RESOLVERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "multiply": operator.mul,
    "int_div": lambda x, y: x // y,
    "subtract": operator.sub,
    "sum": operator.add,
}
"""The resolvers NeMo and NeMo-Aligner register."""

_LARGEST = 2**63
_MAX_CHAIN = 50
_TOKEN = re.compile(r"\s*(\$\{|\}|,|:|[^\s,:{}$]+)")

Path = tuple[str | int, ...]


class Unresolved(Exception):
    """A value that cannot be evaluated; it stays as written."""


class Interpolation:
    """The values of one parsed configuration, each evaluated at most once."""

    def __init__(self, root: dict[Any, Any]) -> None:
        self._root = root
        self._known: dict[Path, Any] = {}
        self._depth = 0

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration; ``???`` becomes None."""
        return cast("dict[str, Any]", self._plain(self._root, ()))

    def _plain(self, raw: Any, path: Path) -> Any:
        if isinstance(raw, dict):
            items = cast("dict[Any, Any]", raw).items()
            return {str(key): self._plain(child, (*path, key)) for key, child in items}
        if isinstance(raw, list):
            items = enumerate(cast("list[Any]", raw))
            return [self._plain(child, (*path, index)) for index, child in items]
        try:
            return self._value(path)
        except Unresolved:
            return raw

    def _value(self, path: Path) -> Any:
        """Return the scalar at ``path``; raises Unresolved for text around an interpolation."""
        if path not in self._known:
            self._known[path] = Unresolved  # seen again while it is evaluated, it refers to itself
            self._known[path] = self._evaluated(self._at(path), path)
        value = self._known[path]
        if value is Unresolved:
            raise Unresolved
        return value

    def _evaluated(self, raw: Any, path: Path) -> Any:
        if raw == "???":
            return None
        if not (isinstance(raw, str) and "${" in raw):
            return raw
        if self._depth >= _MAX_CHAIN:
            return Unresolved
        self._depth += 1
        try:
            return _Expression(raw, lambda name: self._lookup(name, path)).value()
        except (Unresolved, ArithmeticError):
            return Unresolved
        finally:
            self._depth -= 1

    def _lookup(self, name: str, path: Path) -> Any:
        target = _absolute(name, path)
        found = self._at(target)
        return cast("Any", found) if isinstance(found, dict | list) else self._value(target)

    def _at(self, path: Path) -> Any:
        node: Any = self._root
        for key in path:
            try:
                node = node[int(key) if isinstance(node, list) else key]
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise Unresolved from error
        return node


def _absolute(name: str, path: Path) -> Path:
    """Return the path a reference means: one leading dot is the siblings of ``path``, two its aunts."""
    steps = name.lstrip(".")
    dots = len(name) - len(steps)
    if dots > len(path):
        raise Unresolved
    base = path[: len(path) - dots] if dots else ()
    return (*base, *steps.split("."))


class _Expression:
    """One ``${reference}`` or ``${resolver:x,y}`` whose arguments are numbers or expressions."""

    def __init__(self, text: str, lookup: Callable[[str], Any]) -> None:
        self._tokens = _TOKEN.findall(text)
        self._rest = _TOKEN.sub("", text).strip()
        self._lookup = lookup

    def value(self) -> Any:
        """Return the value of the whole text."""
        if self._rest or self._tokens.count("${") > _MAX_CHAIN:
            raise Unresolved
        self._tokens.reverse()
        value = self._term()
        if self._tokens:
            raise Unresolved
        return value

    def _term(self) -> Any:
        token = self._next()
        if token != "${":
            return _number(token)
        name = self._next()
        if self._next() == "}":
            return self._lookup(name)
        if name not in RESOLVERS:
            raise Unresolved
        first, comma, second, end = self._term(), self._next(), self._term(), self._next()
        if (comma, end) != (",", "}"):
            raise Unresolved
        return RESOLVERS[name](_ordinary(first), _ordinary(second))

    def _next(self) -> str:
        if not self._tokens:
            raise Unresolved
        return self._tokens.pop()


def _number(token: str) -> float:
    try:
        return int(token)
    except ValueError:
        pass
    try:
        return float(token)
    except ValueError as error:
        raise Unresolved from error


def _ordinary(value: Any) -> Any:
    """Return a number of ordinary size: a chain of products would otherwise be a bomb."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        raise Unresolved
    return value
