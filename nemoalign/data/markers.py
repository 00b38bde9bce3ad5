"""Marks of a template that stand in the text of a row already: the template would write them twice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from typing import TYPE_CHECKING

from nemoalign.data.rows import ChatRow, NemoChatRow, PromptRow, Row

if TYPE_CHECKING:
    from nemoalign.data.nemo_chat import TurnTokens

NEMO_MARKS = ("<extra_id_0>", "<extra_id_1>", "<extra_id_2>")
"""What most NeMo chat models put around turns."""


class Markers:
    """What looks for the marks that a template writes around the text of rows."""

    def __init__(
        self, special_tokens: Iterable[str], turns: TurnTokens, prompt_template: str, end: str
    ) -> None:
        """Collect the marks.

        Args:
            special_tokens: the tokenizer's, by their text.
            turns: what stands around NeMo's turns.
            prompt_template: of its words only special tokens are marks.
            end: the text of an end token that is added to answers, or nothing.
        """
        special = set(special_tokens)
        own = {mark for mark in astuple(turns) if mark.strip()}
        self._chat = _finder(special | {*NEMO_MARKS})
        self._nemo = _finder(special | own | {*NEMO_MARKS})
        in_template = {mark for mark in special | {*NEMO_MARKS} if mark in prompt_template}
        self._prompt = _finder(in_template | ({end} & special))

    def find(self, row: Row) -> str | None:
        """Return the first mark in the text of a row, if there is one."""
        match row:
            case PromptRow():
                finder = self._prompt
            case NemoChatRow():
                finder = self._nemo
            case _:
                finder = self._chat
        if finder is None:
            return None
        found = (finder.search(text) for text in _texts(row))
        return next((match[0] for match in found if match), None)


def _texts(row: Row) -> Iterator[str]:
    match row:
        case PromptRow():
            yield from row.values.values()
        case ChatRow():
            yield from (str(message["content"]) for message in row.messages)
        case NemoChatRow():
            yield row.system
            yield from (turn.value for turn in row.turns)


def _finder(marks: set[str]) -> re.Pattern[str] | None:
    longest_first = sorted((mark for mark in marks if mark), key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
