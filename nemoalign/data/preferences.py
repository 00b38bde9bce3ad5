"""Preference pairs in the spellings people keep them in, read to one meaning.

Known are NeMo-Aligner's, TRL's with and without a prompt, OpenAI messages, ShareGPT with two answers,
Alpaca with two outputs, HH-RLHF's text, UltraFeedback's scores, NeMo-RL's ranked completions and
HelpSteer3's strengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemoalign.data.conversations import SHAREGPT_ROLES, checked_message, messages_of
from nemoalign.data.rows import Dialogue, Message, Record, checked_text, text_of
from nemoalign.errors import DataError

_HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class PairRow:
    """A better and a worse answer to one prompt, with what the row says of how much better."""

    chosen: Dialogue
    rejected: Dialogue
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    margin: float | None = None


def pair_reader(record: Record) -> Callable[[Record], PairRow] | None:
    """Return what reads rows of the shape of ``record``, or None when it holds no pair."""
    for fields, reader in _READERS:
        if record.keys() >= set(fields):
            return reader
    return None


def _nemo(record: Record) -> PairRow:
    """Read ``prompt``, ``chosen_response`` and ``rejected_response`` (``DPOModelDataset``)."""
    prompt = prompt_of(record["prompt"])
    return _pair(
        record,
        after(prompt, record["chosen_response"], '"chosen_response"'),
        after(prompt, record["rejected_response"], '"rejected_response"'),
    )


def _explicit(record: Record) -> PairRow:
    """Read ``prompt``, ``chosen`` and ``rejected``; answers may repeat the prompt's messages."""
    prompt = prompt_of(record["prompt"])
    if _is_conversation(record["chosen"]):
        whole = _implicit(record)
        repeats = isinstance(whole.chosen.prompt, list) and bool(whole.chosen.prompt)
        if repeats:
            return whole
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
    return _pair(
        record,
        after(prompt, record["chosen"], '"chosen"'),
        after(prompt, record["rejected"], '"rejected"'),
    )


def _implicit(record: Record) -> PairRow:
    """Read two whole conversations: what they share is the prompt."""
    both = [_whole(record[name], f'"{name}"') for name in ("chosen", "rejected")]
    return _parted(record, *both)


def _two_messages(record: Record) -> PairRow:
    """Read ``chosen_messages`` and ``rejected_messages``, whole conversations."""
    names = ("chosen_messages", "rejected_messages")
    return _parted(record, *(messages_of(record[name], f'"{name}"') for name in names))


def _sharegpt(record: Record) -> PairRow:
    """Read ``conversations`` and two answers {from, value}."""
    prompt = [_turn(turn, "a turn") for turn in _listed(record["conversations"], '"conversations"')]
    if isinstance(record.get("system"), str) and record["system"]:
        prompt.insert(0, {"role": "system", "content": checked_text(record["system"], '"system"')})
    return _pair(
        record,
        Dialogue(prompt, [_answer_turn(record["chosen"], '"chosen"')]),
        Dialogue(prompt, [_answer_turn(record["rejected"], '"rejected"')]),
    )


def _alpaca(record: Record) -> PairRow:
    """Read ``instruction``, ``input`` and two answers."""
    question = text_of(record, "instruction")
    if record.get("input"):
        question = f"{question}\n\n{text_of(record, 'input')}"
    prompt = [{"role": "user", "content": question}]
    return _pair(
        record,
        after(prompt, record["chosen"], '"chosen"'),
        after(prompt, record["rejected"], '"rejected"'),
    )


def _rejected_response(record: Record) -> PairRow:
    """Read ``messages`` whose last answer is the better one, and ``rejected_response``."""
    *prompt, answer = messages_of(record["messages"], '"messages"')
    return _pair(
        record,
        Dialogue(prompt, [answer]),
        after(prompt, record["rejected_response"], '"rejected_response"'),
    )


def _ranked(record: Record) -> PairRow:
    """Read NeMo-RL's ``context`` and ``completions``: the lowest rank against the highest."""
    prompt = messages_of(record["context"], '"context"')
    ranked = _listed(record["completions"], '"completions"')
    if len(ranked) < 2 or not all(isinstance(one, dict) and "rank" in one for one in ranked):
        raise DataError('needs two or more "completions", each with a "rank" and a "completion".')
    best, *_, worst = sorted(ranked, key=lambda one: one["rank"])
    if best["rank"] == worst["rank"]:
        raise DataError('has no better completion: every "rank" is the same. Remove the row.')
    return _pair(
        record,
        after(prompt, best.get("completion"), '"completion"'),
        after(prompt, worst.get("completion"), '"completion"'),
    )


def _strength(record: Record) -> PairRow:
    """Read HelpSteer3's ``response1``, ``response2`` and ``overall_preference``, below 0 for the first."""
    prompt = prompt_of(record["context"])
    strength = number_of(record, "overall_preference")
    if not strength:
        raise DataError('prefers neither response ("overall_preference" is 0). Remove the row.')
    first = after(prompt, record["response1"], '"response1"')
    second = after(prompt, record["response2"], '"response2"')
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return PairRow(chosen, rejected, margin=abs(strength))


_READERS: tuple[tuple[tuple[str, ...], Callable[[Record], PairRow]], ...] = (
    (("prompt", "chosen_response", "rejected_response"), _nemo),
    (("context", "response1", "response2", "overall_preference"), _strength),
    (("context", "completions"), _ranked),
    (("chosen_messages", "rejected_messages"), _two_messages),
    (("messages", "rejected_response"), _rejected_response),
    (("conversations", "chosen", "rejected"), _sharegpt),
    (("instruction", "chosen", "rejected"), _alpaca),
    (("prompt", "chosen", "rejected"), _explicit),
    (("chosen", "rejected"), _implicit),
)
"""Fields a spelling has and what reads it; the first that fits wins."""


def _pair(record: Record, chosen: Dialogue, rejected: Dialogue) -> PairRow:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not _said(side.answer):
            raise DataError(f"has an empty {name} answer. Remove the row or fill it.")
    if chosen.answer == rejected.answer:
        raise DataError("has the same answer as chosen and as rejected. Remove the row.")
    return PairRow(
        chosen,
        rejected,
        chosen_reward=_one_of(record, ("chosen_reward", "score_chosen", "chosen_score")),
        rejected_reward=_one_of(record, ("rejected_reward", "score_rejected", "rejected_score")),
        margin=_one_of(record, ("margin",)),
    )


def _parted(record: Record, chosen: Any, rejected: Any) -> PairRow:
    """Return the pair of two whole conversations, parted where they begin to differ."""
    if isinstance(chosen, str):
        at = _common_words(chosen, rejected)
        return _pair(
            record,
            Dialogue(chosen[:at], chosen[at:]),
            Dialogue(rejected[:at], rejected[at:]),
        )
    at = 0
    while at < min(len(chosen), len(rejected)) and chosen[at] == rejected[at]:
        at += 1
    prompt = chosen[:at]
    return _pair(record, Dialogue(prompt, chosen[at:]), Dialogue(prompt, rejected[at:]))


def _common_words(one: str, other: str) -> int:
    """Return how many characters two texts share from the start, never cutting a word."""
    limit = next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    while 0 < limit < len(one) and not one[limit - 1].isspace():
        limit -= 1
    return limit


def _whole(value: object, what: str) -> Sequence[Message] | str:
    """Return a whole conversation: messages, HH-RLHF's turns as messages, or plain text."""
    if not isinstance(value, str):
        return messages_of(value, what)
    return hh_messages(checked_text(value, what)) or value


def hh_messages(text: str) -> list[Message]:
    r"""Return the turns of ``\n\nHuman: ...\n\nAssistant: ...``; none when the text has no such turns."""
    parts = _HH_TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or len(parts) < 3:
        return []
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": _HH_ROLES[who], "content": said.strip()} for who, said in turns]


def prompt_of(value: object) -> Sequence[Message] | str:
    """Return a prompt: messages or text; HH-RLHF's turns become messages."""
    if not isinstance(value, str):
        return messages_of(value, '"prompt"')
    turns = hh_messages(checked_text(value, '"prompt"'))
    return [turn for turn in turns if turn["content"]] if len(turns) > 1 else value


def after(prompt: Sequence[Message] | str, answer: object, what: str) -> Dialogue:
    """Return the answer after its prompt, in the prompt's form."""
    if isinstance(answer, str):
        text = checked_text(answer, what)
        if isinstance(prompt, str):
            return Dialogue(prompt, text)
        return Dialogue(prompt, [{"role": "assistant", "content": text}])
    said = [answer] if isinstance(answer, dict) else _listed(answer, what)
    messages = [checked_message(message, f"a message of {what}") for message in said]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return Dialogue(prompt, messages)


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def _turn(turn: object, what: str) -> Message:
    if not isinstance(turn, dict) or turn.get("from") not in SHAREGPT_ROLES:
        raise DataError(f'has {what} without a "from" that is one of {", ".join(SHAREGPT_ROLES)}.')
    return {"role": SHAREGPT_ROLES[turn["from"]], "content": checked_text(turn.get("value"), what)}


def _answer_turn(answer: object, what: str) -> Message:
    if isinstance(answer, str):
        return {"role": "assistant", "content": checked_text(answer, what)}
    return _turn(answer, what)


def _listed(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise DataError(f"has no list as {what}.")
    return value


def _said(answer: Sequence[Message] | str) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    return any(str(m["content"]).strip() or m.get("tool_calls") for m in answer)


def _one_of(record: Record, names: Sequence[str]) -> float | None:
    return next((number_of(record, n) for n in names if record.get(n) is not None), None)


def number_of(record: Record, key: str) -> float:
    """Return the number in a field; DataError without the place, which the caller knows."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f'has {value!r} as "{key}", which must be a number.')
    return float(value)
