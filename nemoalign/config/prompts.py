r"""NeMo's prompt templates as text: typed escapes read, and cut as they are tokenized, piece by piece."""

from __future__ import annotations

import re

_PIECE = re.compile(r"( *\{.+?\})")
_NAMED = re.compile(r"( *)\{(.+)\}")
_ESCAPE = re.compile(r"\\(?:[ntr\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")


def unescaped(text: str) -> str:
    r"""Return a template as it is meant: a typed ``\n`` is a newline."""
    return _ESCAPE.sub(lambda match: match[0].encode().decode("unicode_escape"), text)


def pieces(template: str) -> list[str]:
    """Return the pieces that are tokenized one by one: text, and fields with the spaces before them."""
    return [piece for piece in _PIECE.split(template) if piece]


def named_piece(piece: str) -> tuple[str, str | None]:
    """Return (spaces, field) for a piece that is a field, (text, None) for another."""
    match = _NAMED.fullmatch(piece)
    return (match[1], match[2]) if match else (piece, None)
