"""What tokenizers return and what is asked of all of them alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Encoding:
    """Token ids of one text, and for each the [start, end) characters it came from."""

    ids: Sequence[int]
    spans: Sequence[tuple[int, int]]


def is_space_sensitive(pieces: Callable[[str], list[str]]) -> bool:
    """True when a space between words is a piece's business (byte BPE), as NeMo asks it.

    False for SentencePiece, which puts a space before every text: there the templates drop one.
    """
    return pieces("x y") != pieces("x") + pieces("y")


def fingerprint(*parts: object) -> str:
    """Return a digest of what makes a tokenizer what it is."""
    found = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, default=str).encode()
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()
