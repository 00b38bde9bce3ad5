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
from nemoalign.data.parts import Part
from nemoalign.data.rows import ChatRow, Dialogue, NemoChatRow, PromptRow, Row, TokenRow
from nemoalign.data.templates import (
    DEFAULT_TEMPLATE,
    Encoded,
    PromptTemplate,
    RowRules,
    cut_left,
    cut_right,
    dropped,
    encode_prompts,
)
from nemoalign.errors import DataError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class JudgedRules:
    """What a run takes from rows whose answers are judged; nothing here changes a token."""

    default_rewards: tuple[float, float] = (1.0, 0.0)
    """Rewards of the better and the worse answer of a pair that gives none."""
    partner_step: Literal[1, -1] = 1
    """Which way along the global batch the answer of a mismatched row is looked for."""
    label_weights: tuple[float, float] | None = None
    """Weights of wanted and of unwanted answers, where the report shall judge them."""


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
    overlong: Literal["truncate", "drop"] = "truncate"
    """What becomes of a row that is longer than ``max_seq_length``."""
    only_prompts: bool = False
    """Answers are left away: the policy writes them itself."""
    mask: Mask = "assistant"
    turns: TurnTokens = field(default_factory=TurnTokens)
    """What stands around the turns of NeMo's own chat rows."""
    part: Part | None = None
    """Which rows of every file are taken; None takes all."""
    judged: JudgedRules = field(default_factory=JudgedRules)

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
        settings = asdict(self.settings)
        del settings["judged"]
        return {"tokenizer": self.tokenizer.fingerprint, **settings}

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
        made = self._encode(file, schema, rows)
        if self.settings.overlong == "truncate":
            return made
        return [dropped(one) if one.truncated else one for one in made]

    def _encode(self, file: RowFile, schema: Schema, rows: Sequence[int]) -> list[Encoded]:
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
                numbered = [
                    (row, file.where(number))
                    for number, row in zip(rows, found, strict=True)
                    if isinstance(row, ChatRow | NemoChatRow | Dialogue)
                ]
        settings = self.settings
        if isinstance(found[0], Dialogue) and settings.truncation_method == "left":
            return [self._prompt_cut(r, where) for r, where in numbered if isinstance(r, Dialogue)]
        rules = ChatRules(
            *(settings.max_seq_length, settings.mask, settings.add_eos, settings.truncation_method)
        )
        chats = [self._rendered(row, where) for row, where in numbered]
        return encode_chats(chats, self.tokenizer, rules)

    def _prompt_cut(self, row: Dialogue, where: str) -> Encoded:
        """Return a judged answer whose prompt lost its start, as much as all answers to it need."""
        chats = [self._rendered(one, where) for one in (row, *row.beside)]
        whole = ChatRules(max_seq_length=1 << 40, add_eos=self.settings.add_eos)
        mine, *others = encode_chats(chats, self.tokenizer, whole)
        longest = max(len(one.ids) for one in (mine, *others))
        excess = longest - self.settings.max_seq_length - 1
        cut = cut_left(mine.ids, mine.loss_mask, excess)
        # Without its own start an answer would be judged for something it does not say.
        return dropped(cut) if excess > 0 and mine.loss_mask[: excess + 1].any() else cut

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
