"""Conversations in the spellings people keep them in.

OpenAI messages, ShareGPT, Alpaca, HH-RLHF's text and NeMo's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nemoalign.data.rows import (
    ChatRow,
    Dialogue,
    Message,
    NemoChatRow,
    Record,
    Turn,
    answer_of,
    checked_text,
    list_of,
    text_of,
)
from nemoalign.errors import DataError

_HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function-response": "tool",
}
"""Who speaks in a ShareGPT row; a capital letter makes it one of NeMo's."""

NEMO_KINDS = ("VALUE_TO_TEXT", "TEXT_TO_VALUE")


def messages_row(record: Record) -> ChatRow:
    """Return a row of OpenAI ``messages`` and, where given, ``tools``."""
    return _chat(messages_of(record.get("messages"), '"messages"'), record)


def messages_of(value: object, what: str) -> list[dict[str, Any]]:
    """Return checked messages of role and text; DataError without the place, which the caller knows."""
    if not isinstance(value, list) or not value:
        raise DataError(f"has no list of messages as {what}.")
    return [checked_message(message, f"message {index}") for index, message in enumerate(value)]


def is_sharegpt(record: Record) -> bool:
    """True for ``conversations`` whose speakers are ShareGPT's."""
    first = _first_speaker(record)
    return first in SHAREGPT_ROLES and not is_nemo_chat(record)


def is_nemo_chat(record: Record) -> bool:
    """True for ``conversations`` in NeMo's spelling: who is masked is said, or speakers are names."""
    first = _first_speaker(record)
    return first is not None and ("mask" in record or first not in SHAREGPT_ROLES)


def sharegpt_row(record: Record) -> ChatRow:
    """Return a row of ShareGPT ``conversations``, with a ``system`` text of its own where given."""
    return _chat(sharegpt_messages(record), record)


def sharegpt_messages(record: Record) -> list[dict[str, Any]]:
    """Return the turns of ShareGPT ``conversations`` as messages."""
    plain: list[dict[str, Any]] = []
    if isinstance(record.get("system"), str) and record["system"]:
        plain.append({"role": "system", "content": checked_text(record["system"], '"system"')})
    for index, turn in enumerate(_turns(record)):
        role = SHAREGPT_ROLES.get(turn["from"])
        if role is None:
            known = ", ".join(SHAREGPT_ROLES)
            raise DataError(
                f'has a turn {index} from "{turn["from"]}", who is no speaker of ShareGPT ({known}).'
            )
        what = f'"value" of turn {index}'
        plain.append({"role": role, "content": checked_text(turn.get("value"), what)})
    return plain


def sharegpt_turn(turn: object, what: str) -> Message:
    """Return one turn {from, value} of ShareGPT as a message."""
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise DataError(f'has {what} without a "from" that is one of {", ".join(SHAREGPT_ROLES)}.')
    return {"role": SHAREGPT_ROLES[speaker], "content": checked_text(turn.get("value"), what)}


def alpaca_row(record: Record) -> ChatRow:
    """Return an Alpaca row as a question, its input below the instruction, and its answer."""
    answer = {"role": "assistant", "content": answer_of(record, "output")}
    return ChatRow([*alpaca_prompt(record), answer], None)


def alpaca_prompt(record: Record) -> list[dict[str, Any]]:
    """Return the question of an Alpaca row, its input below the instruction, after its system text."""
    question = text_of(record, "instruction")
    if record.get("input"):
        question = f"{question}\n\n{text_of(record, 'input')}"
    plain = [{"role": "user", "content": question}]
    if isinstance(record.get("system"), str) and record["system"]:
        plain.insert(0, {"role": "system", "content": checked_text(record["system"], '"system"')})
    return plain


def hh_messages(text: str) -> list[Message]:
    r"""Return the turns of ``\n\nHuman: ...\n\nAssistant: ...``; none when the text has no such turns."""
    parts = _HH_TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or len(parts) < 3:
        return []
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": _HH_ROLES[who], "content": said.strip()} for who, said in turns]


def prompt_of(value: object, what: str = '"prompt"') -> Sequence[Message] | str:
    """Return a prompt: messages or text; HH-RLHF's turns become messages."""
    if not isinstance(value, str):
        return messages_of(value, what)
    turns = hh_messages(checked_text(value, what))
    if len(turns) < 2:
        return value
    said = [turn for turn in turns if turn["content"]]
    if not said:
        raise DataError(f"has nothing but empty turns as {what}. Remove the row or fill it.")
    return said


def after(prompt: Sequence[Message] | str, answer: object, what: str) -> Dialogue:
    """Return the answer after its prompt, in the prompt's form."""
    if isinstance(answer, str):
        text = checked_text(answer, what)
        if isinstance(prompt, str):
            return Dialogue(prompt, text)
        return Dialogue(prompt, [{"role": "assistant", "content": text}])
    said = [answer] if isinstance(answer, dict) else list_of(answer, what)
    messages = [checked_message(message, f"a message of {what}") for message in said]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return Dialogue(prompt, messages)


def is_said(answer: Sequence[Message] | str) -> bool:
    """True when an answer is more than white space."""
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(message["content"].strip() or message.get("tool_calls") for message in answer)


def nemo_chat_row(record: Record) -> NemoChatRow:
    """Return a row of NeMo's chat format (``gpt_sft_chat_dataset.py``)."""
    kind = record.get("type")
    if kind is not None and kind not in NEMO_KINDS:
        raise DataError(f'has "{kind}" as "type"; it is {" or ".join(NEMO_KINDS)}, or left out.')
    turns: list[Turn] = []
    for index, turn in enumerate(_turns(record)):
        label = turn.get("label")
        if label is not None:
            label = checked_text(label, f'"label" of turn {index}')
        value = checked_text(turn.get("value"), f'"value" of turn {index}')
        turns.append(Turn(turn["from"], value, label))
    masked = checked_text(record.get("mask", "User"), '"mask"')
    if not any(turn.speaker not in masked for turn in turns):
        raise DataError(
            f'masks every speaker ("mask" is "{masked}"): there is nothing to learn. Remove the row.'
        )
    system = checked_text(record.get("system") or "", '"system"')
    return NemoChatRow(system, turns, masked, kind)


def _first_speaker(record: Record) -> str | None:
    turns = record.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        speaker = turns[0].get("from")
        return speaker if isinstance(speaker, str) else None
    return None


def _turns(record: Record) -> Sequence[Record]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError('has no list of turns as "conversations".')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
            raise DataError(f'has a turn {index} without a "from".')
    return turns


def _chat(plain: list[dict[str, Any]], record: Record) -> ChatRow:
    tools = tools_of(record)
    answers = [message for message in plain if message["role"] == "assistant"]
    if not answers:
        raise DataError("has no assistant message: there is nothing to learn. Remove the row.")
    for message in answers:
        if not message["content"].strip() and not message.get("tool_calls"):
            raise DataError("has an empty assistant message. Remove the row or fill it.")
    return ChatRow(plain, tools)


def tools_of(record: Record) -> list[dict[str, Any]] | None:
    """Return the tools that a conversation may use, if a row has any."""
    tools = record.get("tools")
    if tools is not None and not _are_objects(tools):
        raise DataError('has something else than a list of objects as "tools".')
    return tools or None


def checked_message(message: object, name: str) -> dict[str, Any]:
    """Return one message whose content is text; parts of text are joined."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(f'has a {name} without a "role".')
    what = f'"content" of {name}'
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, what) for part in content)
    elif content is None and message.get("tool_calls"):
        content = ""
    return {**message, "content": checked_text(content, what)}


def _part(part: object, what: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        return checked_text(part.get("text"), what)
    raise DataError(f"has a part in {what} that is not text; only text is trained on.")


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
