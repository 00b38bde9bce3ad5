"""Preference pairs in the spellings people keep them in, read to one meaning.

Known are NeMo-Aligner's, TRL's with and without a prompt, OpenAI messages, ShareGPT with two answers,
Alpaca with two outputs, HH-RLHF's text, UltraFeedback's scores, NeMo-RL's ranked completions and
HelpSteer3's strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemoalign.data.conversations import (
    after,
    alpaca_prompt,
    hh_messages,
    is_said,
    messages_of,
    prompt_of,
    sharegpt_messages,
    sharegpt_turn,
    tools_of,
)
from nemoalign.data.rows import (
    Dialogue,
    Message,
    Record,
    checked_text,
    list_of,
    listed,
    number_of,
    value_of,
)
from nemoalign.errors import DataError


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
    fields = _fields_of(record)
    return None if fields is None else lambda later: _read(later, fields)


def _fields_of(record: Record) -> tuple[str, ...] | None:
    return next((fields for fields in _READERS if record.keys() >= set(fields)), None)


def _read(record: Record, fields: tuple[str, ...]) -> PairRow:
    """Read a row of a file whose first one was told by ``fields``."""
    for field in fields:
        value_of(record, field)
    found = _fields_of(record)
    if found != fields:
        raise DataError(
            f"has {listed(found or ())}, while the file's first row is told by {listed(fields)}. "
            "Keep rows of one form in a file."
        )
    return _READERS[fields](record)


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
    prompt = sharegpt_messages(record)
    return _pair(
        record,
        Dialogue(prompt, [_answer_turn(record["chosen"], '"chosen"')]),
        Dialogue(prompt, [_answer_turn(record["rejected"], '"rejected"')]),
    )


def _alpaca(record: Record) -> PairRow:
    """Read ``instruction``, ``input`` and two answers."""
    prompt = alpaca_prompt(record)
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
    ranked = list_of(record["completions"], '"completions"')
    if len(ranked) < 2 or not all(isinstance(one, dict) and "rank" in one for one in ranked):
        raise DataError('needs two or more "completions", each with a "rank" and a "completion".')
    best, *_, worst = sorted(ranked, key=lambda one: number_of(one, "rank"))
    if best["rank"] == worst["rank"]:
        raise DataError('has no better completion: every "rank" is the same. Remove the row.')
    return _pair(
        record,
        after(prompt, best.get("completion"), '"completion"'),
        after(prompt, worst.get("completion"), '"completion"'),
    )


def _strength(record: Record) -> PairRow:
    """Read HelpSteer3's ``response1``, ``response2`` and ``overall_preference``, below 0 for the first."""
    prompt = prompt_of(record["context"], '"context"')
    strength = number_of(record, "overall_preference")
    if not strength:
        raise DataError('prefers neither response ("overall_preference" is 0). Remove the row.')
    first = after(prompt, record["response1"], '"response1"')
    second = after(prompt, record["response2"], '"response2"')
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return replace(_pair(record, chosen, rejected), margin=abs(strength))


_READERS: dict[tuple[str, ...], Callable[[Record], PairRow]] = {
    ("prompt", "chosen_response", "rejected_response"): _nemo,
    ("context", "response1", "response2", "overall_preference"): _strength,
    ("context", "completions"): _ranked,
    ("chosen_messages", "rejected_messages"): _two_messages,
    ("messages", "rejected_response"): _rejected_response,
    ("conversations", "chosen", "rejected"): _sharegpt,
    ("instruction", "chosen", "rejected"): _alpaca,
    ("prompt", "chosen", "rejected"): _explicit,
    ("chosen", "rejected"): _implicit,
}
"""Fields a spelling has and what reads it; the first that fits wins."""


def _pair(record: Record, chosen: Dialogue, rejected: Dialogue) -> PairRow:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not is_said(side.answer):
            raise DataError(f"has an empty {name} answer. Remove the row or fill it.")
    if isinstance(chosen.answer, str) != isinstance(rejected.answer, str):
        raise _two_forms(chosen.answer)
    if chosen.answer == rejected.answer:
        raise DataError("has the same answer as chosen and as rejected. Remove the row.")
    tools = tools_of(record)
    return PairRow(
        replace(chosen, tools=tools),
        replace(rejected, tools=tools),
        chosen_reward=_one_of(record, ("chosen_reward", "score_chosen", "chosen_score")),
        rejected_reward=_one_of(record, ("rejected_reward", "score_rejected", "rejected_score")),
        margin=_one_of(record, ("margin",)),
    )


def _parted(record: Record, chosen: Any, rejected: Any) -> PairRow:
    """Return the pair of two whole conversations, parted where they begin to differ."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise _two_forms(chosen)
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


def _two_forms(chosen: object) -> DataError:
    forms = ("text", "messages") if isinstance(chosen, str) else ("messages", "text")
    return DataError(
        f"has {forms[0]} as the chosen answer and {forms[1]} as the rejected one. Give both in one form."
    )


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


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def _answer_turn(answer: object, what: str) -> Message:
    if isinstance(answer, str):
        return {"role": "assistant", "content": checked_text(answer, what)}
    return sharegpt_turn(answer, what)


def _one_of(record: Record, names: Sequence[str]) -> float | None:
    return next((number_of(record, n) for n in names if record.get(n) is not None), None)
