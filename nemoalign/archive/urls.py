"""Tell an address from a path, without importing what could fetch it."""

from __future__ import annotations

import re
from pathlib import PosixPath

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class UrlPath(PosixPath):
    """A URL where errors and reports name a path: it keeps both of its slashes."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)


def is_url(source: str) -> bool:
    """True for what begins with a scheme, also after a Path has folded its slashes."""
    return _SCHEME.match(source) is not None
