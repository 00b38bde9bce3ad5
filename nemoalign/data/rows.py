"""What a row of data means once it is read, whatever it looked like, and how single values are checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemoalign.data.jsonl import kind_of
from nemoalign.errors import DataError

Record = Mapping[str, Any]
Message = Mapping[str, Any]


@dataclass(frozen=True)
class PromptRow:
    """Values of the prompt template's fields; the label key holds the answer."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class ChatRow:
    """A conversation of roles and text; message fields we do not know go to the chat template."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Turn:
    """What one speaker of a NeMo conversation says, and the label it carries."""

    speaker: str
    value: str
    label: str | None


@dataclass(frozen=True)
class NemoChatRow:
    """NeMo's own conversation; ``masked`` names the speakers nothing is learned from."""

    system: str
    turns: Sequence[Turn]
    masked: str
    kind: str | None
    """VALUE_TO_TEXT (a label comes before the text), TEXT_TO_VALUE (after it) or None."""


@dataclass(frozen=True, eq=False)
class TokenRow:
    """A row somebody tokenized already: ids, and which of them are to be predicted."""

    ids: np.ndarray
    loss_mask: np.ndarray


@dataclass(frozen=True)
class Dialogue:
    """What an answer follows and the answer: messages for the chat template, or text as it stands."""

    prompt: Sequence[Message] | str
    answer: Sequence[Message] | str
    tools: Sequence[Mapping[str, Any]] | None = None
    beside: tuple[Dialogue, ...] = ()
    """Other answers to the same prompt, which is cut alike in all of them."""


Row = PromptRow | ChatRow | NemoChatRow | TokenRow | Dialogue


def value_of(record: Record, key: str) -> Any:
    """Return what is in a field; DataError without the place, which the caller knows."""
    if key not in record:
        raise DataError(
            f'has no "{key}" field; it has {listed(record)}. Every row of a file has the same fields.'
        )
    return record[key]


def text_of(record: Record, key: str) -> str:
    """Return the text in a field; DataError without the place, which the caller knows."""
    return checked_text(value_of(record, key), f'"{key}"')


def number_of(record: Record, key: str) -> float:
    """Return the number in a field; DataError without the place, which the caller knows."""
    return checked_number(value_of(record, key), f'"{key}"')


def checked_number(value: object, what: str) -> float:
    """Return ``value`` when it is a finite number; DataError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise DataError(f"has {value!r:.60} as {what}, which must be a number.")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def list_of(value: object, what: str) -> list[Any]:
    """Return ``value`` when it is a list of something; DataError otherwise."""
    if not isinstance(value, list) or not value:
        raise DataError(f"has no list as {what}.")
    return value


def answer_of(record: Record, key: str) -> str:
    """Return the text in a field that is learned; DataError when there is none."""
    text = text_of(record, key)
    if not text.strip():
        raise DataError(
            f'has an empty "{key}": there is nothing to learn. Remove the row or fill it.'
        )
    return text


def checked_text(value: object, what: str) -> str:
    """Return ``value`` when it is text that can be encoded; DataError otherwise."""
    if not isinstance(value, str):
        raise DataError(f"has a {kind_of(value)} as {what}, which must be text.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"has half of a surrogate pair in {what}, which is no character."
            ) from error
    return value


def listed(fields: Sequence[str] | Record) -> str:
    """Return field names as a person lists them."""
    return " and ".join(f'"{field}"' for field in fields) or "no fields"
