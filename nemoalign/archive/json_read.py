"""Read a JSON object from a file that may be hostile."""

from __future__ import annotations

import json
from typing import Any, cast

from nemoalign.archive.store import DAMAGED
from nemoalign.errors import SourceError


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the object that ``data`` is; SourceError for anything else and for doubled names."""
    try:
        value: object = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not valid JSON ({error}). {DAMAGED}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where} is not a JSON object. {DAMAGED}")
    return cast("dict[str, Any]", value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        message = "a name occurs twice"
        raise ValueError(message)
    return result
