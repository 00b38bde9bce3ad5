"""Prompts to be answered: rows of any known kind, their answers left away if they have any."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.data.encoder import SftSettings
from nemoalign.data.files import open_rows
from nemoalign.data.formats import choose_schema_of
from nemoalign.data.nemo_chat import render_nemo_prompt
from nemoalign.data.rows import ChatRow, NemoChatRow, PromptRow, TokenRow
from nemoalign.data.templates import PromptTemplate, RowRules, encode_prompts
from nemoalign.errors import DataError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer

STAND_IN = "."
"""An answer for rows without one, so that they are read as any other; it is never used."""


@dataclass(frozen=True)
class Prompt:
    """What a model is to continue, and the tokens at which its answer ends."""

    ids: tuple[int, ...]
    stop_ids: frozenset[int]
    source: str


def read_prompts(path: Path, tokenizer: Tokenizer, settings: SftSettings) -> list[Prompt]:
    """Return the prompts of a file, written as training rows of their kind are.

    Raises:
        DataError: for a row that is none, or whose prompt leaves no room for an answer.
    """
    file = open_rows(path)
    return [
        read_prompt(file.record(number), file.where(number), tokenizer, settings)
        for number in range(len(file))
    ]


def read_prompt(
    record: Mapping[str, Any], where: str, tokenizer: Tokenizer, settings: SftSettings
) -> Prompt:
    """Return the prompt of one row; see ``read_prompts``."""
    template = settings.template()
    full = answered(record, template)
    try:
        row = choose_schema_of(full, template, settings.format).read(full)
        ids, end = _ids(row, tokenizer, settings, template)
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    return made_prompt(ids, {tokenizer.eos_id, *end}, where, settings)


def made_prompt(
    ids: Sequence[int], stop_ids: Collection[int], where: str, settings: SftSettings
) -> Prompt:
    """Return a prompt that has tokens, and room for an answer behind them."""
    if not 0 < len(ids) < settings.max_seq_length:
        raise DataError(
            f"{where} is a prompt of {len(ids)} tokens; it must have some, and fewer than the "
            f"{settings.max_seq_length} of --seq-len."
        )
    return Prompt(tuple(int(token) for token in ids), frozenset(stop_ids), where)


def answered(record: Mapping[str, Any], template: PromptTemplate) -> dict[str, Any]:
    """Return a record that ends with an answer, its own or a stand-in."""
    full = dict(record)
    messages, turns = record.get("messages"), record.get("conversations")
    if isinstance(messages, list) and messages and _get(messages[-1], "role") != "assistant":
        full["messages"] = [*messages, {"role": "assistant", "content": STAND_IN}]
    if isinstance(turns, list) and turns:
        speaker = str(_get(turns[-1], "from"))
        if speaker in ("human", "user", "system"):
            full["conversations"] = [*turns, {"from": "gpt", "value": STAND_IN}]
        elif speaker in str(record.get("mask", "User")):
            full["conversations"] = [*turns, {"from": "Assistant", "value": STAND_IN}]
    asks = {"messages", "conversations", "instruction", "prompt", "input_ids", *template.keys}
    if "text" in full and asks.isdisjoint(full.keys() - {template.label_key}):
        full["prompt"] = full["text"]  # as NeMo-Aligner's prompts are written (RLHFDataset)
    for question, answer in (("instruction", "output"), ("prompt", "completion")):
        if question in full:
            full.setdefault(answer, STAND_IN)
    full.setdefault(template.label_key, STAND_IN)
    return full


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else None


def _ids(
    row: object, tokenizer: Tokenizer, settings: SftSettings, template: PromptTemplate
) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt, and the token that ends an answer of its kind beside the usual one."""
    match row:
        case ChatRow():
            return _chat(row, tokenizer)
        case NemoChatRow():
            text = render_nemo_prompt(row, settings.turns)
            return tokenizer.encode(text), tokenizer.encode(settings.turns.turn_start)[-1:]
        case PromptRow():
            rules = RowRules(
                max_seq_length=1 << 30,
                add_bos=settings.add_bos,
                add_sep=settings.add_sep,
                add_eos=settings.add_eos,
            )
            (encoded,) = encode_prompts([row.values], template, tokenizer, rules)
            return encoded.ids[: int(encoded.loss_mask.argmax())].tolist(), []
        case TokenRow():
            return row.ids[: int(row.loss_mask.argmax())].tolist(), []
    raise DataError("is no prompt.")


def _chat(row: ChatRow, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    messages = row.messages
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError("has no message before the answer.")
    text = tokenizer.render_chat(messages, add_generation_prompt=True, tools=row.tools)
    answer = {"role": "assistant", "content": STAND_IN}
    whole = tokenizer.render_chat([*messages, answer], add_generation_prompt=False, tools=row.tools)
    ending = whole.rpartition(STAND_IN)[2].strip()
    return tokenizer.encode(text), tokenizer.encode(ending)[:1] if ending else []
