"""A SentencePiece model as Hugging Face's tokenizer.json: written as data, no library needed.

Both libraries know the same two models (unigram, and byte-pair encoding whose merges follow from the
scores), so what is translated is the frame around them: how spaces become "▁", and which pieces are
cut out of a text before the model sees it.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemoalign.checkpoint.settings.protobuf import message_fields

_SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_LONGEST_PIECE = 512
"""SentencePiece makes pieces of at most 16 characters unless told; no model's are longer than this."""


@dataclass(frozen=True)
class _Model:
    """What a SentencePiece file says; field numbers are those of sentencepiece_model.proto."""

    pieces: tuple[tuple[str, float, int], ...]
    """Text, score and kind of every piece, by id."""
    trainer: Mapping[int, Any]
    normalizer: Mapping[int, Any]

    @property
    def kind(self) -> int:
        return self.trainer.get(3, _UNIGRAM)

    @property
    def unk_id(self) -> int:
        return self.trainer.get(40, 0)

    @property
    def has_byte_fallback(self) -> bool:
        return bool(self.trainer.get(35, 0))

    @property
    def adds_space(self) -> bool:
        return bool(self.normalizer.get(3, 1))

    @property
    def removes_spaces(self) -> bool:
        return bool(self.normalizer.get(4, 1))


def tokenizer_json(content: bytes, added: Sequence[str] = (), bos: str | None = None) -> Any:
    """Return tokenizer.json as a tree, or None for a model that has no such form.

    ``added`` are tokens numbered from the model's size on, unless the model has them; ``bos`` is put
    before every text that is encoded with special tokens.
    """
    model = _read(content)
    if model is None or model.kind not in (_UNIGRAM, _BPE) or model.trainer.get(24, 0):
        return None
    ids = {text: number for number, (text, _, _) in reversed(list(enumerate(model.pieces)))}
    tokens = _added_tokens(model, ids, added)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "post_processor": _post_processor(bos, ids),
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": _unigram(model) if model.kind == _UNIGRAM else _bpe(model, ids),
    }


def _read(content: bytes) -> _Model | None:
    sections: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    pieces: list[tuple[str, float, int]] = []
    try:
        for number, value in message_fields(content):
            if number == 1:
                pieces.append(_piece(dict(message_fields(value))))
            elif number in sections:
                sections[number].update(message_fields(value))
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        return None
    model = _Model(tuple(pieces), sections[2], sections[3])
    return model if 0 <= model.unk_id < len(pieces) else None


def _piece(fields: Mapping[int, Any]) -> tuple[str, float, int]:
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    text = fields[1].decode()
    if len(text) > _LONGEST_PIECE:
        raise ValueError("a piece longer than any model's")
    return text, score, fields.get(3, _NORMAL)


def _added_tokens(
    model: _Model, ids: Mapping[str, int], added: Sequence[str]
) -> list[dict[str, Any]]:
    special = {
        number: kind == _CONTROL
        for number, (_, _, kind) in enumerate(model.pieces)
        if kind in (_CONTROL, _USER_DEFINED)
    }
    texts = {number: model.pieces[number][0] for number in special}
    new = [text for text in dict.fromkeys(added) if text not in ids]
    for text in dict.fromkeys(added):
        number = ids[text] if text in ids else len(model.pieces) + new.index(text)
        special[number], texts[number] = True, text
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    # The model's own symbols are found in the normalized text, after its first space.
    return [
        {
            "id": number,
            "content": texts[number],
            **flags,
            "normalized": not special[number],
            "special": special[number],
        }
        for number in sorted(special)
    ]


def _normalizers(model: _Model) -> list[dict[str, Any]]:
    """SentencePiece's steps in its order: characters, spaces at the ends and in rows, the first space."""
    steps: list[dict[str, Any]] = []
    charsmap: bytes = model.normalizer.get(2, b"")
    if charsmap:
        text = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    if model.removes_spaces:
        # \A and \z: the ends of the text, not of a line; and spaces only, other blanks are kept.
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.adds_space:
        symbols = [re.escape(text) for text, _, kind in model.pieces if kind == _USER_DEFINED]
        # A symbol alone gets no space: that is how tokenizers looks for it in other texts.
        start = rf"\A(?!(?:{'|'.join(symbols)})?\z)"
        first = {"type": "Replace", "pattern": {"Regex": start}, "content": _SPACE}
        steps.append(first if symbols else {"type": "Prepend", "prepend": _SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]


def _decoders(model: _Model) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.adds_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _post_processor(bos: str | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    if bos is None or bos not in ids:
        return None
    first: list[dict[str, Any]] = [{"SpecialToken": {"id": bos, "type_id": 0}}]
    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    second: list[dict[str, Any]] = [
        {"SpecialToken": {"id": bos, "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": first + text,
        "pair": first + text + second,
        "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
    }


def _unigram(model: _Model) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": model.unk_id,
        "vocab": [[text, score] for text, score, _ in model.pieces],
        "byte_fallback": model.has_byte_fallback,
    }


def _bpe(model: _Model, ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": model.pieces[model.unk_id][0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.has_byte_fallback,
        "ignore_merges": False,
        "vocab": dict(ids),
        "merges": [[left, right] for left, right in _merges(model, ids)],
    }


def _merges(model: _Model, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges in the order SentencePiece makes them: by the score of what they make."""
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, score, kind in model.pieces:
        if kind != _NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                # Where one piece has two ways, SentencePiece goes from the left: the longer left first.
                ranked.append((-score, -len(left), ids[left], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
