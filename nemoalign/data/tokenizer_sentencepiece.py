"""SentencePiece models, with the special tokens that NeMo or Hugging Face put around them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece

from nemoalign.data.encoding import Encoding, fingerprint, is_space_sensitive
from nemoalign.data.rendering import Messages, render
from nemoalign.errors import SourceError

_SEPARATOR = "▁"


class SentencePieceTokenizer:
    """A SentencePiece model and special tokens that are cut out of a text before it sees it."""

    def __init__(
        self,
        model: bytes,
        special: Mapping[str, int],
        names: Mapping[str, str],
        *,
        chat_template: str | None = None,
        trim_after_special: bool = False,
    ) -> None:
        """Load the model.

        Args:
            model: the serialized SentencePiece model.
            special: id by text; ids at or above the model's size are new.
            names: text of ``bos_token``, ``eos_token``, ``pad_token`` where they are not the model's.
            chat_template: Jinja template of the checkpoint.
            trim_after_special: drop the lone space piece after a special token, as NeMo does.
        """
        self._model = _loaded(model)
        self._special = dict(special)
        self._spelled = {token_id: text for text, token_id in special.items()}
        self._trim = trim_after_special
        longest_first = sorted(special, key=len, reverse=True)
        self._split = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if special else None
        )
        size = self._model.get_piece_size()
        self.vocab_size = max([size, *(token_id + 1 for token_id in special.values())])
        self.bos_id = self._named(names.get("bos_token"), self._model.bos_id())
        self.eos_id = _eos_of(self._named(names.get("eos_token"), self._model.eos_id()))
        pad_id = self._named(names.get("pad_token"), self._model.pad_id())
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self.space_sensitive = is_space_sensitive(self._pieces)
        self.chat_template = chat_template
        self._variables = {
            "bos_token": self._text_of(self.bos_id),
            "eos_token": self._text_of(self.eos_id),
        }
        self.special_tokens = tuple(special)
        self.fingerprint = fingerprint(
            sentencepiece.__version__,
            model,
            [self._special, self._variables, chat_template, trim_after_special],
        )

    @classmethod
    def from_nemo(cls, model: bytes, settings: Mapping[str, Any]) -> SentencePieceTokenizer:
        """Return it as NeMo's ``sentencepiece_legacy`` says: only then are there added tokens.

        They are numbered from the model's size on in the order of the config; those the model has
        as a piece keep its id.
        """
        named = settings.get("special_tokens") or {}
        names = {str(k): str(v) for k, v in named.items()} if isinstance(named, Mapping) else {}
        listed = [str(token) for token in (named if not names else names.values())]
        listed += [str(token) for token in settings.get("additional_special_tokens") or ()]
        if listed and not settings.get("sentencepiece_legacy", True):
            raise SourceError(
                f"The checkpoint's config adds special tokens ({', '.join(listed)}) to a SentencePiece "
                "model with sentencepiece_legacy: false, which NeMo refuses. One of the two is wrong."
            )
        return cls(
            model,
            _numbered(_loaded(model), listed),
            names,
            chat_template=settings.get("chat_template") or None,
            trim_after_special=True,
        )

    @classmethod
    def from_hf(cls, model: bytes, config: Mapping[str, Any]) -> SentencePieceTokenizer:
        """Return it as an older Hugging Face folder without tokenizer.json describes it."""
        added = config.get("added_tokens_decoder") or {}
        special = {str(token["content"]): int(token_id) for token_id, token in added.items()}
        names = {
            key: _content(config[key])
            for key in ("bos_token", "eos_token", "pad_token")
            if config.get(key)
        }
        template = config.get("chat_template")
        return cls(
            model, special, names, chat_template=template if isinstance(template, str) else None
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""
        return list(self._encoded(text).ids) if self._split else self._model.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts."""
        return [self.encode(text) for text in texts]

    def encode_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """Return ids with the characters they came from."""
        return [self._encoded(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        text, run = "", list[int]()
        for token_id in map(int, ids):
            if token_id in self._spelled:
                text += self._model.decode(run) + self._spelled[token_id]
                run = []
            else:
                run.append(token_id)
        return text + self._model.decode(run)

    def render_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool,
        tools: Messages | None = None,
    ) -> str:
        """Return a conversation as the chat template writes it."""
        return render(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables=self._variables,
        )[0]

    def render_marked(
        self, messages: Messages, *, tools: Messages | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the conversation and the template's generation blocks."""
        return render(
            self.chat_template,
            messages,
            add_generation_prompt=False,
            tools=tools,
            variables=self._variables,
            marked=True,
        )

    def _encoded(self, text: str) -> Encoding:
        """Special tokens first; what lies between them is the model's."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for part in self._split.split(text) if self._split else [text]:
            if part in self._special:
                ids.append(self._special[part])
                spans.append((at, at + len(part)))
            elif part:
                found = self._model.encode(part, return_type="offset_mapping")
                drop = int(
                    self._trim and bool(ids) and ids[-1] in self._spelled and _starts_bare(found)
                )
                ids += found["ids"][drop:]
                spans += [(at + start, at + end) for start, end in found["offsets"][drop:]]
            at += len(part)
        return Encoding(ids, spans)

    def _pieces(self, text: str) -> list[str]:
        return self._model.encode(text, out_type=str)

    def _named(self, text: str | None, otherwise: int) -> int | None:
        if text is not None:
            return self._special.get(text, self._model.piece_to_id(text))
        return None if otherwise < 0 else otherwise

    def _text_of(self, token_id: int | None) -> str:
        if token_id is None:
            return ""
        return self._spelled.get(token_id) or self._model.id_to_piece(token_id)


def _loaded(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise SourceError(
            "The checkpoint's tokenizer model is not a SentencePiece model or is damaged. "
            "Embed a working one: nemoalign convert MODEL -o NEW.nemo --tokenizer HF_DIR"
        ) from error
    return processor


def _numbered(model: sentencepiece.SentencePieceProcessor, tokens: Iterable[str]) -> dict[str, int]:
    special: dict[str, int] = {}
    following = model.get_piece_size()
    for token in tokens:
        piece = model.piece_to_id(token)
        if piece != model.unk_id():
            special[token] = piece
        elif token not in special:
            special[token] = following
            following += 1
    return special


def _starts_bare(found: Mapping[str, Any]) -> bool:
    return bool(found["pieces"]) and found["pieces"][0] == _SEPARATOR


def _eos_of(token_id: int | None) -> int:
    if token_id is None:
        raise SourceError(
            "The checkpoint's SentencePiece model has no end-of-sequence token, which ends every answer "
            "and fills short rows. Embed a tokenizer that has one: nemoalign convert MODEL -o NEW.nemo "
            "--tokenizer HF_DIR"
        )
    return token_id


def _content(token: Any) -> str:
    return str(token["content"]) if isinstance(token, Mapping) else str(token)
