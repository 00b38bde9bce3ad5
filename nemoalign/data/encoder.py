"""Rows of any meaning to token ids and loss masks, cut to the longest a run takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nemoalign.data.chat import ChatRules, Mask, Rendered, encode_chats, render_row, unwritten
from nemoalign.data.dialogues import render_dialogue
from nemoalign.data.formats import RowFile, Schema, read_rows
from nemoalign.data.markers import Markers
from nemoalign.data.nemo_chat import TurnTokens, render_nemo_chat
from nemoalign.data.rows import ChatRow, Dialogue, NemoChatRow, PromptRow, Row, TokenRow
from nemoalign.data.templates import (
    DEFAULT_TEMPLATE,
    Encoded,
    PromptTemplate,
    RowRules,
    cut_right,
    encode_prompts,
)
from nemoalign.errors import DataError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """How rows become training samples; NeMo's names of ``model.data.train_ds`` where it has them.

    ``prompt_template`` is what the user asked for; without it ``checkpoint_template`` and then
    ``{input} {output}`` are used. ``label_key`` and ``truncation_field`` follow from the template
    when None.
    """

    max_seq_length: int
    format: str = "auto"
    prompt_template: str | None = None
    checkpoint_template: str | None = None
    label_key: str | None = None
    truncation_field: str | None = None
    truncation_method: Literal["left", "right"] = "right"
    add_bos: bool = False
    add_sep: bool = False
    add_eos: bool = True
    mask: Mask = "assistant"
    turns: TurnTokens = field(default_factory=TurnTokens)
    """What stands around the turns of NeMo's own chat rows."""

    def template(self) -> PromptTemplate:
        """Return the prompt template in force; raises ConfigError when it makes no sense."""
        text = self.prompt_template or self.checkpoint_template or DEFAULT_TEMPLATE
        return PromptTemplate.parse(text, self.label_key, self.truncation_field)


class Encoder:
    """Turns rows into ids as the settings say."""

    def __init__(self, tokenizer: Tokenizer, settings: SftSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.template = settings.template()
        self._markers = Markers(
            tokenizer.special_tokens,
            settings.turns,
            self.template.text,
            tokenizer.decode([tokenizer.eos_id]) if settings.add_eos else "",
        )

    def key(self) -> dict[str, Any]:
        """Return all that decides which ids a row becomes, beside the row and its schema."""
        return {"tokenizer": self.tokenizer.fingerprint, **asdict(self.settings)}

    def marks(self, file: RowFile, schema: Schema, rows: Sequence[int]) -> list[str | None]:
        """Return of some rows what a template writes and their text holds already."""
        return [self._markers.find(row) for row in read_rows(file, schema, rows)]

    def unwritten(self, file: RowFile, schema: Schema, rows: Sequence[int]) -> list[str | None]:
        """Return of some rows which of their fields the chat template does not write."""
        return [self._unwritten(row) for row in read_rows(file, schema, rows)]

    def _unwritten(self, row: Row) -> str | None:
        if isinstance(row, Dialogue):
            if isinstance(row.prompt, str) or isinstance(row.answer, str):
                return "tools" if row.tools else None
            row = ChatRow([*row.prompt, *row.answer], row.tools)
        try:
            return unwritten(row, self.tokenizer) if isinstance(row, ChatRow) else None
        except DataError:  # it insists on something, so it writes it; the row itself was rendered
            return None

    def encode(self, file: RowFile, schema: Schema, rows: Sequence[int]) -> list[Encoded]:
        """Return the ids of some rows of a file; raises DataError that names the first bad one."""
        found = read_rows(file, schema, rows)
        if not found:
            return []
        match found[0]:  # a schema reads one kind of row
            case PromptRow():
                return self._prompts([r for r in found if isinstance(r, PromptRow)])
            case TokenRow():
                pairs = [
                    (n, r) for n, r in zip(rows, found, strict=True) if isinstance(r, TokenRow)
                ]
                return [self._tokens(row, file.where(number)) for number, row in pairs]
            case ChatRow() | NemoChatRow() | Dialogue():
                chats = [
                    self._rendered(row, file.where(number))
                    for number, row in zip(rows, found, strict=True)
                    if isinstance(row, ChatRow | NemoChatRow | Dialogue)
                ]
        settings = self.settings
        rules = ChatRules(settings.max_seq_length, settings.mask, settings.add_eos)
        return encode_chats(chats, self.tokenizer, rules)

    def _prompts(self, rows: Sequence[PromptRow]) -> list[Encoded]:
        settings = self.settings
        rules = RowRules(
            max_seq_length=settings.max_seq_length,
            truncation_method=settings.truncation_method,
            add_bos=settings.add_bos,
            add_sep=settings.add_sep,
            add_eos=settings.add_eos,
            answer_only_loss=settings.mask != "none",
        )
        values = [row.values for row in rows]
        return encode_prompts(values, self.template, self.tokenizer, rules)

    def _rendered(self, row: ChatRow | NemoChatRow | Dialogue, where: str) -> Rendered:
        settings = self.settings
        try:
            if isinstance(row, NemoChatRow):
                return render_nemo_chat(row, settings.turns, train_all=settings.mask == "none")
            if isinstance(row, Dialogue):
                return render_dialogue(row, self.tokenizer)
            return render_row(row, self.tokenizer, settings.mask)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error

    def _tokens(self, row: TokenRow, where: str) -> Encoded:
        if row.ids.max() >= self.tokenizer.vocab_size:
            raise DataError(
                f"{where} has the id {row.ids.max()}, but the tokenizer has {self.tokenizer.vocab_size} "
                "tokens. The row was made with another tokenizer: give its text instead."
            )
        mask = np.ones_like(row.loss_mask) if self.settings.mask == "none" else row.loss_mask
        # One id more than fits: the last one is only predicted, never an input.
        return cut_right(row.ids, mask, self.settings.max_seq_length + 1)
