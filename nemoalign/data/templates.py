"""Prompt templates as NeMo reads them: ``Question: {input} Answer: {output}`` to ids and loss mask.

The rules are those of ``gpt_sft_dataset.py::GPTSFTDataset._process_example``: each piece of the
template is tokenized by itself, and over-long rows lose tokens from the truncation fields first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nemoalign.config.prompts import named_piece, pieces, unescaped
from nemoalign.errors import ConfigError

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer

DEFAULT_TEMPLATE = "{input} {output}"
SEPARATOR_ID = 0
"""What NeMo puts between prompt and answer with ``add_sep``: id 0, whatever it means."""

_FIELD = re.compile(r"\{(.*?)\}")
_SETTING = "model.data.train_ds"


Removed = Sequence[tuple[int, Sequence[int]]]
"""Runs of ids that are gone, each with the place in the remaining ids where it stood."""


@dataclass(frozen=True)
class Encoded:
    """One row as ids; ``loss_mask[t]`` is true where token ``t`` is to be predicted."""

    ids: np.ndarray
    loss_mask: np.ndarray
    truncated: bool
    removed: Removed = ()
    """What was cut away and where; known when a row is tokenized, not when it comes from an index."""
    too_long: bool = False
    """True for a row that is dropped because of its length; nothing of it is trained."""


def cut_right(ids: np.ndarray, loss_mask: np.ndarray, limit: int) -> Encoded:
    """Return the first ``limit`` ids of a row."""
    if len(ids) <= limit:
        return Encoded(ids, loss_mask, truncated=False)
    return Encoded(ids[:limit], loss_mask[:limit], True, [(limit, ids[limit:].tolist())])


def cut_left(ids: np.ndarray, loss_mask: np.ndarray, excess: int) -> Encoded:
    """Return a row without its first ``excess`` ids."""
    if excess <= 0:
        return Encoded(ids, loss_mask, truncated=False)
    return Encoded(ids[excess:], loss_mask[excess:], True, [(0, ids[:excess].tolist())])


def dropped(row: Encoded) -> Encoded:
    """Return a row of which nothing is trained, since it is too long."""
    return replace(row, loss_mask=np.zeros_like(row.loss_mask), truncated=False, too_long=True)


@dataclass(frozen=True)
class RowRules:
    """How prompt-response rows become token ids; NeMo's names."""

    max_seq_length: int
    truncation_method: Literal["left", "right"] = "right"
    add_bos: bool = False
    add_sep: bool = False
    add_eos: bool = True
    answer_only_loss: bool = True


@dataclass(frozen=True)
class PromptTemplate:
    """A parsed template: text around ``{field}`` placeholders, the answer's last."""

    text: str
    keys: tuple[str, ...]
    label_key: str
    truncation_fields: tuple[str, ...]

    @classmethod
    def parse(
        cls, text: str, label_key: str | None = None, truncation_field: str | None = None
    ) -> PromptTemplate:
        r"""Return the template of a setting, where a typed ``\n`` is a newline.

        Args:
            text: the template; it must end with the answer's field.
            label_key: that field's name, checked; None takes the last one.
            truncation_field: fields to shorten, comma separated; None takes ``input``, or the first
                field where there is no such; empty takes none.
        """
        plain = unescaped(text)
        found = _FIELD.findall(plain)
        if not found or "" in found:
            raise ConfigError(
                f"prompt_template {text!r} names no fields or an empty one. Write it with the fields of "
                f"the data in braces, the answer last: -s {_SETTING}.prompt_template='{DEFAULT_TEMPLATE}'"
            )
        keys = tuple(dict.fromkeys(found))
        label = label_key or found[-1]
        if not plain.endswith(f"{{{label}}}"):
            raise ConfigError(
                f"prompt_template {text!r} must end with the answer's field {{{label}}}. "
                f"Change the template or the field: -s {_SETTING}.label_key={found[-1]}"
            )
        context = [key for key in keys if key != label]
        default = "input" if "input" in context else "".join(context[:1])
        asked = default if truncation_field is None else truncation_field
        fields = tuple(field.strip() for field in asked.split(",") if field.strip())
        if not set(fields) <= set(keys):
            raise ConfigError(
                f"truncation_field {asked!r} names a field that prompt_template {text!r} does not have. "
                f"Use one or more of: -s {_SETTING}.truncation_field={','.join(keys)}"
            )
        return cls(plain, keys, label, fields)

    def pieces(self, space_sensitive: bool) -> list[tuple[str, str | None]]:
        """Return the template cut as it is tokenized: (spaces, field) or (text, None).

        Where a tokenizer puts a space before every text, one leading space of a piece is dropped.
        """
        cut = pieces(self.text)
        if not space_sensitive:
            cut = [piece.removeprefix(" ") for piece in cut]
        return [named_piece(piece) for piece in cut]


def template_of(config: Mapping[str, Any]) -> str | None:
    """Return the prompt template that a checkpoint's ``model_config.yaml`` carries, if any."""
    data = config.get("data") or {}
    train = data.get("train_ds") or {}
    found = train.get("prompt_template") or data.get("prompt_template")
    return found if isinstance(found, str) else None


def encode_prompts(
    rows: Sequence[Mapping[str, str]],
    template: PromptTemplate,
    tokenizer: Tokenizer,
    rules: RowRules,
) -> list[Encoded]:
    """Return the token ids of rows of field values.

    Raises:
        ConfigError: when ``add_bos`` is set and the tokenizer has no such token.
    """
    pieces = template.pieces(tokenizer.space_sensitive)
    texts = [_filled(piece, row) for row in rows for piece in pieces]
    ids = tokenizer.encode_batch(texts)
    ends = _Ends.of(tokenizer, rules)
    fields = [field for _, field in pieces]
    width = len(pieces)
    return [
        _assembled(ids[start : start + width], fields, template, rules, ends)
        for start in range(0, len(ids), width)
    ]


@dataclass(frozen=True)
class _Ends:
    """The tokens around prompt and answer."""

    before: list[int]
    between: list[int]
    after: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, rules: RowRules) -> _Ends:
        if rules.add_bos and tokenizer.bos_id is None:
            raise ConfigError(
                "add_bos is set, but the tokenizer has no beginning-of-sequence token. "
                f"Use -s {_SETTING}.add_bos=false"
            )
        return cls(
            [int(tokenizer.bos_id or 0)] if rules.add_bos else [],
            [SEPARATOR_ID] if rules.add_sep else [],
            [tokenizer.eos_id] if rules.add_eos else [],
        )


def _assembled(
    pieces: list[list[int]],
    fields: Sequence[str | None],
    template: PromptTemplate,
    rules: RowRules,
    ends: _Ends,
) -> Encoded:
    added = len(ends.before) + len(ends.between) + len(ends.after)
    excess = sum(map(len, pieces)) + added - rules.max_seq_length
    whole = pieces
    if excess > 0:
        pieces = _shortened(
            pieces, fields, template.truncation_fields, excess, rules.truncation_method
        )
    context = ends.before + [token for piece in pieces[:-1] for token in piece] + ends.between
    answer = pieces[-1]
    ids = np.array(context + answer + ends.after, np.int32)
    mask = np.ones(len(ids), bool)
    if rules.answer_only_loss:
        mask[: len(context)] = False
        # An end token after an answer cut to nothing would teach to answer nothing.
        mask &= bool(answer)
    removed = _removed(whole, pieces, rules.truncation_method, ends) if excess > 0 else ()
    return Encoded(ids, mask, excess > 0, removed)


def _removed(
    whole: Sequence[list[int]],
    pieces: Sequence[list[int]],
    method: Literal["left", "right"],
    ends: _Ends,
) -> Removed:
    """Return what pieces lost, and where in the ids it stood."""
    found: list[tuple[int, list[int]]] = []
    at = len(ends.before)
    for number, (before, after) in enumerate(zip(whole, pieces, strict=True)):
        at += len(ends.between) if number + 1 == len(pieces) else 0
        gone = len(before) - len(after)
        if gone:
            lost = before[:gone] if method == "left" else before[len(after) :]
            found.append((at if method == "left" else at + len(after), lost))
        at += len(after)
    return found


def _shortened(
    pieces: Sequence[list[int]],
    fields: Sequence[str | None],
    truncation_fields: Sequence[str],
    excess: int,
    method: Literal["left", "right"],
) -> list[list[int]]:
    """Take ``excess`` tokens: evenly from the truncation fields, then whole pieces from one end."""
    lengths = [len(piece) for piece in pieces]
    chosen = [index for index, field in enumerate(fields) if field in truncation_fields]
    total = excess
    for rank, index in enumerate(chosen):
        share = total // len(chosen) + (rank < total % len(chosen))
        taken = min(share, lengths[index])
        lengths[index] -= taken
        excess -= taken
    order = range(len(pieces)) if method == "left" else reversed(range(len(pieces)))
    for index in order:
        taken = min(excess, lengths[index])
        lengths[index] -= taken
        excess -= taken
    return [_cut(piece, length, method) for piece, length in zip(pieces, lengths, strict=True)]


def _cut(ids: list[int], length: int, method: Literal["left", "right"]) -> list[int]:
    return ids[len(ids) - length :] if method == "left" else ids[:length]


def _filled(piece: tuple[str, str | None], row: Mapping[str, str]) -> str:
    text, field = piece
    return text if field is None else text + row[field].strip(" ")
