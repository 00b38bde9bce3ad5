"""HTML that cannot be forgotten to be escaped: text becomes ``Html`` only through ``tag``."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What a browser does not show, or what turns the text after it around."""


class Html(str):
    """Markup; any other string is text."""

    __slots__ = ()


def text(value: object) -> Html:
    """Return ``value`` as markup that shows exactly it."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_HIDDEN.sub(_visible, str(value))))


def tag(name: str, *inside: object, **attributes: object) -> Html:
    """Return an element; ``class_`` and ``data_x`` stand for ``class`` and ``data-x``."""
    words = [
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items()
    ]
    return Html(f"<{name}{''.join(words)}>{join(inside)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Return parts one after the other."""
    return Html(between.join(map(text, parts)))


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> Html:
    """Return a table that scrolls on its own where it is wider than the page."""
    heads = tag("tr", *(tag("th", name) for name in header))
    body = (tag("tr", *(tag("td", cell) for cell in row)) for row in rows)
    return tag("div", tag("table", tag("thead", heads), tag("tbody", *body)), class_="wide")


def _visible(found: re.Match[str]) -> str:
    code = ord(found.group())
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"
