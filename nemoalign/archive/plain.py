"""Turn a pickled OmegaConf tree (``hyper_parameters`` of a Lightning checkpoint) into plain values."""

from __future__ import annotations

from typing import Any, cast

from nemoalign.archive.stand_ins import Record
from nemoalign.archive.store import DAMAGED
from nemoalign.errors import SourceError

MAX_DEPTH = 40
MAX_VALUES = 100_000

_CONTAINERS = ("DictConfig", "ListConfig")


def plain_config(value: object, where: str) -> Any:
    """Return dicts, lists and scalars for what OmegaConf pickled, or for an ordinary dict.

    Interpolations and ``???`` stay the text they are. Whatever is no configuration value (an
    object, a tensor) becomes None. Raises SourceError when the tree contains itself.
    """
    return _Plain(where).convert(value, 0)


class _Plain:
    def __init__(self, where: str) -> None:
        self._where = where
        self._left = MAX_VALUES

    def convert(self, value: object, depth: int) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            raise SourceError(f"{self._where} holds a configuration without end. {DAMAGED}")
        if isinstance(value, Record):
            return self._record(value, depth)
        if isinstance(value, dict):
            entries = cast("dict[Any, object]", value).items()
            return {
                str(key): self.convert(child, depth + 1)
                for key, child in entries
                if isinstance(key, str | int | None)
            }
        if isinstance(value, list | tuple):
            return [self.convert(child, depth + 1) for child in cast("list[object]", value)]
        return value if isinstance(value, str | int | float | None) else None

    def _record(self, value: Record, depth: int) -> Any:
        if value.kind in _CONTAINERS:
            return self.convert(value.fields.get("_content"), depth + 1)
        if "_val" in value.fields:
            return self.convert(value.fields["_val"], depth + 1)
        if value.kind == "Namespace":
            return self.convert(value.fields, depth + 1)
        return None
