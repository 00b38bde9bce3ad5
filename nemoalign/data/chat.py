"""Conversations to ids and loss mask: which tokens of a rendered chat the assistant wrote.

A template that marks its answers (``{% generation %}``) is believed. For the others the answers are
found by rendering the conversation up to each of them: what a prefix writes, its answer follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nemoalign.data.encoding import Encoding
from nemoalign.data.rendering import marks_answers
from nemoalign.data.templates import Encoded, cut_left, cut_right
from nemoalign.errors import DataError

if TYPE_CHECKING:
    from nemoalign.data.rows import ChatRow
    from nemoalign.data.tokenizer import Tokenizer

Mask = Literal["assistant", "completion", "none"]
Span = tuple[int, int]


@dataclass(frozen=True)
class ChatRules:
    """What is trained of a conversation: every answer, the last one, or all of its tokens."""

    max_seq_length: int
    mask: Mask = "assistant"
    add_eos: bool = True
    truncation_method: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the characters of its answers that are trained."""

    text: str
    spans: Sequence[Span]
    ends_with_answer: bool


def render_row(row: ChatRow, tokenizer: Tokenizer, mask: Mask) -> Rendered:
    """Return one conversation as the chat template writes it, and its trained characters.

    Raises:
        DataError: when the template refuses it, or rewrites it so that an answer cannot be found.
    """
    template = tokenizer.chat_template or ""
    if marks_answers(template):
        text, spans = tokenizer.render_marked(row.messages, tools=row.tools)
        if mask == "completion":
            spans = spans[_marked_before_last(row, tokenizer) :]
    else:
        text = _render(row, len(row.messages), tokenizer, prompt=False)
        wanted = _answers(row)
        if mask == "completion":
            wanted = wanted[-1:]
        spans = [] if mask == "none" else [_span(row, index, text, tokenizer) for index in wanted]
    if mask == "none":
        spans = [(0, len(text))]
    return Rendered(text, spans, row.messages[-1]["role"] == "assistant")


def unwritten(row: ChatRow, tokenizer: Tokenizer) -> str | None:
    """Return what a conversation has and the chat template does not write, if anything."""
    calls = [message for message in row.messages if message.get("tool_calls")]
    if calls:
        silent = [{**message, "tool_calls": None} for message in row.messages]
        if not _differ(row, replace(row, messages=silent), tokenizer):
            return "tool_calls"
    if row.tools and not _differ(row, replace(row, tools=None), tokenizer):
        return "tools"
    return None


def _differ(one: ChatRow, other: ChatRow, tokenizer: Tokenizer) -> bool:
    first, second = (
        tokenizer.render_chat(row.messages, add_generation_prompt=False, tools=row.tools)
        for row in (one, other)
    )
    return first != second


def encode_chats(
    chats: Sequence[Rendered], tokenizer: Tokenizer, rules: ChatRules
) -> list[Encoded]:
    """Return the token ids of rendered conversations, cut at one end where they are too long.

    An end token is added and trained where the template ends its last answer without one.
    """
    encodings = tokenizer.encode_spans([chat.text for chat in chats])
    parts = [
        _encoded(chat, encoding, tokenizer.eos_id, rules)
        for chat, encoding in zip(chats, encodings, strict=True)
    ]
    # One id more than fits: the last one is only predicted, never an input.
    limit = rules.max_seq_length + 1
    if rules.truncation_method == "right":
        return [cut_right(ids, mask, limit) for ids, mask in parts]
    return [cut_left(ids, mask, len(ids) - limit) for ids, mask in parts]


def _encoded(
    chat: Rendered, encoding: Encoding, eos_id: int, rules: ChatRules
) -> tuple[np.ndarray, np.ndarray]:
    places = np.array(encoding.spans, np.int64).reshape(-1, 2)
    starts, ends = places[:, 0], np.maximum(places[:, 1], places[:, 0] + 1)
    mask = np.zeros(len(places), bool)
    for first, last in chat.spans:
        mask |= (ends > first) & (starts < last)
    ids = np.array(encoding.ids, np.int32)
    if rules.add_eos and chat.ends_with_answer:
        # White space after the template's own end token does not make it another token's turn.
        visible = ids[starts < len(chat.text.rstrip())]
        if not len(visible) or visible[-1] != eos_id:
            ids, mask = np.append(ids, np.int32(eos_id)), np.append(mask, True)
    return ids, mask


def _answers(row: ChatRow) -> list[int]:
    return [index for index, m in enumerate(row.messages) if m["role"] == "assistant"]


def _marked_before_last(row: ChatRow, tokenizer: Tokenizer) -> int:
    """Number of generation blocks that belong to earlier answers than the last."""
    last = _answers(row)[-1]
    if not last:
        return 0
    return len(tokenizer.render_marked(row.messages[:last], tools=row.tools)[1])


def _render(row: ChatRow, count: int, tokenizer: Tokenizer, *, prompt: bool) -> str:
    return tokenizer.render_chat(
        row.messages[:count], add_generation_prompt=prompt, tools=row.tools
    )


def _span(row: ChatRow, index: int, text: str, tokenizer: Tokenizer) -> Span:
    """Return the characters of one answer, its end token included."""
    answer = row.messages[index]
    start = _start(row, index, text, tokenizer)
    if index + 1 == len(row.messages):
        return start, _without_blank_end(text, start, len(text), answer)
    upto = _render(row, index + 1, tokenizer, prompt=False)
    if text.startswith(upto) and start <= len(upto):
        return start, _without_blank_end(text, start, len(upto), answer)
    end = _end_in_history(answer, upto, text, start)
    if end is None:
        raise DataError(
            f"The chat template rewrites the answer in message {index} when it is not the last, so its "
            "tokens cannot be told apart. Train on last answers with --mask completion, or use a "
            "template that marks answers with {% generation %}."
        )
    return start, _without_blank_end(text, start, end, answer)


def _start(row: ChatRow, index: int, text: str, tokenizer: Tokenizer) -> int:
    """Where the answer begins: after the prompt a model would be given to write it."""
    if not index:
        return max(0, text.find(str(row.messages[0]["content"]).strip()))
    prompt = _render(row, index, tokenizer, prompt=True)
    if text.startswith(prompt):
        return len(prompt)
    before = _render(row, index, tokenizer, prompt=False)
    # The prompt may say more than the answer's own turn does, such as the start of a thought.
    common = _common_length(text, prompt)
    if common < len(before) or not text.startswith(before):
        raise DataError(
            f"The chat template writes what comes before message {index} differently once that answer "
            "is there, so its tokens cannot be told apart. Use a template that marks answers with "
            "{% generation %}."
        )
    return common


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _end_in_history(answer: Mapping[str, Any], upto: str, text: str, start: int) -> int | None:
    """Where an answer ends that is written shorter when others follow (thoughts left out).

    Its words must stand right where it begins, and after them what ended it when it was the last.
    """
    words = str(answer["content"]).strip()
    here = text[start:].lstrip()
    for match in re.finditer(re.escape(words or "\0"), upto[start:]):
        closing = upto[start + match.end() :]
        if here.startswith(words + closing):
            return len(text) - len(here) + len(words) + len(closing)
    return None


def _without_blank_end(text: str, start: int, end: int, answer: Mapping[str, Any]) -> int:
    """Leave the line break after an end token untrained; where there is no such token, it is one."""
    words = str(answer["content"]).strip()
    visible = text[start:end].strip()
    if words and visible == words:
        return end
    return start + len(text[start:end].rstrip())
