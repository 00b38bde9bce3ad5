"""Single judged answers: liked or not (KTO), and scored by attributes (reward models).

Labels are NeMo-Aligner's ``preference``, TRL's ``label``, LLaMA-Factory's ``kto_tag``: booleans, 0 and 1,
-1 and 1, words or thumbs.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    tools_of,
)
from nemoalign.data.preferences import PairRow
from nemoalign.data.rows import Dialogue, Record, checked_number, listed, text_of
from nemoalign.errors import DataError

LABEL_FIELDS = ("label", "preference", "kto_tag", "desirable")
WORDS = {
    True: {"chosen", "desirable", "good", "true", "yes", "thumbs_up", "like", "up", "👍", "1", "+1"},
    False: {"rejected", "undesirable", "bad", "false", "no", "thumbs_down", "dislike", "down", "👎", "0", "-1"},
}  # fmt: skip
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Attributes of HelpSteer and HelpSteer2, in the order NeMo-Aligner's scripts write them."""


@dataclass(frozen=True)
class LabelRow:
    """An answer, and whether it is wanted."""

    dialogue: Dialogue
    is_desirable: bool


@dataclass(frozen=True)
class ScoreRow:
    """An answer and its scores; None where an attribute was not judged."""

    dialogue: Dialogue
    scores: Sequence[float | None]


def has_label(record: Record) -> bool:
    """True for a row with an answer and a label of it."""
    return label_field(record) is not None and _answer_fields(record) is not None


def label_row(record: Record) -> LabelRow:
    """Return the answer of a row and its label."""
    field = label_field(record)
    if field is None:
        raise DataError(f"has none of {', '.join(LABEL_FIELDS)}; it has {listed(record)}.")
    return LabelRow(dialogue_of(record), _wanted(record[field], field))


def unpaired(pair: PairRow) -> tuple[LabelRow, LabelRow]:
    """Return the two answers of a pair as single ones."""
    return LabelRow(pair.chosen, True), LabelRow(pair.rejected, False)


def has_scores(record: Record) -> bool:
    """True for HelpSteer's attributes, or NeMo's list of labels beside a text."""
    return ("response" in record and HELPSTEER[0] in record) or (
        "text" in record and isinstance(record.get("label"), list)
    )


def score_row(record: Record, missing: float) -> ScoreRow:
    """Return the answer of a row and its scores; a score that equals ``missing`` was not given."""
    if isinstance(record.get("label"), list):
        values = record["label"]
        dialogue = Dialogue("", text_of(record, "text"))
    else:
        values = [record.get(name) for name in HELPSTEER]
        dialogue = dialogue_of(record)
    scores = [
        None if value is None or value == missing else checked_number(value, "a score")
        for value in values
    ]
    if all(score is None for score in scores):
        raise DataError("has no score at all. Remove the row.")
    return ScoreRow(dialogue, scores)


def dialogue_of(record: Record) -> Dialogue:
    """Return prompt and answer of a row that holds one answer."""
    fields = _answer_fields(record)
    if fields is None:
        raise DataError(f"has no answer; it has {listed(record)}.")
    found = _dialogue(record, fields)
    if not is_said(found.answer):
        raise DataError(f'has an empty answer in "{fields[-1]}". Remove the row or fill it.')
    if not isinstance(found.answer, str) and found.answer[-1]["role"] != "assistant":
        raise DataError("does not end with an assistant message, so no answer is judged.")
    return replace(found, tools=tools_of(record))


def _dialogue(record: Record, fields: tuple[str, ...]) -> Dialogue:
    match fields:
        case ("messages",) | ("conversations",):
            read = sharegpt_messages if fields == ("conversations",) else _messages
            *prompt, answer = read(record)
            return Dialogue(prompt, [answer])
        case ("text",):
            turns = hh_messages(text_of(record, "text"))
            return Dialogue(turns[:-1], turns[-1:]) if turns else Dialogue("", record["text"])
        case ("instruction", _):
            prompt = alpaca_prompt(record)
        case _:
            prompt = prompt_of(record[fields[0]], f'"{fields[0]}"')
    return after(prompt, record[fields[-1]], f'"{fields[-1]}"')


def label_field(record: Record) -> str | None:
    """Return which field holds the label."""
    return next((name for name in LABEL_FIELDS if name in record), None)


def _answer_fields(record: Record) -> tuple[str, ...] | None:
    known = (
        ("prompt", "response"),
        ("prompt", "completion"),
        ("context", "response"),
        ("instruction", "output"),
        ("messages",),
        ("conversations",),
        ("text",),
    )
    return next((fields for fields in known if record.keys() >= set(fields)), None)


def _messages(record: Record) -> list[dict[str, Any]]:
    return messages_of(record["messages"], '"messages"')


def _wanted(value: object, field: str) -> bool:
    word = str(value).strip().lower() if not isinstance(value, float) else f"{value:g}"
    for wanted, words in WORDS.items():
        if word in words:
            return wanted
    raise DataError(
        f'has {value!r} as "{field}", which is no label. Use true and false, 1 and 0, '
        '"chosen" and "rejected".'
    )
