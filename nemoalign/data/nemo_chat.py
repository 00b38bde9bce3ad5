"""NeMo's chat format as text, and which of its characters are learned.

The rules are those of ``gpt_sft_chat_dataset.py`` (``_get_header_conversation_type_mask_role`` and
``_mask_targets`` at v2.3.0), told in characters: turns begin with special tokens, so that the tokens of
the whole are the tokens of its turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemoalign.data.chat import Rendered, Span
from nemoalign.data.rows import NemoChatRow, Turn


@dataclass(frozen=True)
class TurnTokens:
    """What stands around turns: ``data.chat_prompt_tokens`` of a checkpoint."""

    system_turn_start: str = "\x00"
    turn_start: str = "\x11"
    label_start: str = "\x12"
    end_of_turn: str = "\n"
    end_of_name: str = "\n"


def render_nemo_chat(row: NemoChatRow, tokens: TurnTokens, *, train_all: bool = False) -> Rendered:
    """Return a conversation as NeMo writes it, and the characters it learns.

    No beginning or end token is ever added. A start of turn closes the last answer, and of what a masked
    speaker says it is the only part that is learned.
    """
    text, spans = _header(row, tokens), list[Span]()
    for index, turn in enumerate(row.turns):
        at = len(text)
        text += _written(turn, row.kind, tokens)
        spans += [(at + start, at + end) for start, end in _learned(row, index, tokens)]
    if row.turns[-1].speaker not in row.masked:
        spans.append((len(text), len(text) + len(tokens.turn_start)))
        text += tokens.turn_start
    return Rendered(text, [(0, len(text))] if train_all else spans, ends_with_answer=False)


def render_nemo_prompt(row: NemoChatRow, tokens: TurnTokens) -> str:
    """Return what stands before the value of the last turn: what its speaker is to go on from."""
    last = row.turns[-1]
    label = "" if row.kind == "TEXT_TO_VALUE" else _label(last, row.kind, tokens)
    before = "".join(_written(turn, row.kind, tokens) for turn in row.turns[:-1])
    return _header(row, tokens) + before + _head(last, tokens) + label


def _header(row: NemoChatRow, tokens: TurnTokens) -> str:
    return f"{tokens.system_turn_start}System{tokens.end_of_name}{row.system}{tokens.end_of_turn}"


def _written(turn: Turn, kind: str | None, tokens: TurnTokens) -> str:
    """Return one turn as text."""
    head, label = _head(turn, tokens), _label(turn, kind, tokens)
    if kind == "TEXT_TO_VALUE":
        return head + turn.value + tokens.end_of_turn + label
    return head + label + turn.value + tokens.end_of_turn


def _learned(row: NemoChatRow, index: int, tokens: TurnTokens) -> Iterator[Span]:
    """Yield the characters of turn ``index`` that are learned, counted from its start."""
    turn, after_text = row.turns[index], row.kind == "TEXT_TO_VALUE"
    if index == 0 and not after_text:
        return
    if turn.speaker in row.masked:
        if index > 1 or (index == 1 and after_text):
            yield 0, len(tokens.turn_start)
        return
    head, label = _head(turn, tokens), _label(turn, row.kind, tokens)
    end = len(_written(turn, row.kind, tokens))
    if after_text and label:
        yield end - len(label) + len(tokens.label_start), end
    else:
        yield len(head) + len(label), end


def _head(turn: Turn, tokens: TurnTokens) -> str:
    return f"{tokens.turn_start}{turn.speaker}{tokens.end_of_name}"


def _label(turn: Turn, kind: str | None, tokens: TurnTokens) -> str:
    if kind is None or turn.label is None:
        return ""
    return f"{tokens.label_start}{turn.label}{tokens.end_of_name}"
