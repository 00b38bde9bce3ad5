"""The tokenizer of a checkpoint, whatever made it, behind one protocol.

A file of a checkpoint is found by its name among the checkpoint's own files and nowhere else: a
value of ``model_config.yaml`` is never opened as a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from nemoalign.data.encoding import Encoding
from nemoalign.data.tokenizer_hf import load_gpt2, load_hf
from nemoalign.data.tokenizer_sentencepiece import SentencePieceTokenizer
from nemoalign.errors import SourceError

if TYPE_CHECKING:
    from nemoalign.archive.files import Region

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Largest tokenizer file that is read; the largest known ones have about 35 MB."""

HF_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "config.json",
)
EMBED_ONE = "Embed one: nemoalign convert MODEL -o NEW.nemo --tokenizer HF_DIR"


class Tokenizer(Protocol):
    """Text to ids and back. Nothing here adds a special token that the text does not spell."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def eos_id(self) -> int:
        """The token that ends a text; also what rows are padded with."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if there is one."""
        ...

    @property
    def pad_id(self) -> int:
        """The padding token, else ``eos_id``."""
        ...

    @property
    def space_sensitive(self) -> bool:
        """True when the tokens of "x y" are not those of "x" and "y" in a row (NeMo's meaning)."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja chat template, if there is one."""
        ...

    @property
    def special_tokens(self) -> Sequence[str]:
        """The texts that are one token wherever they stand, such as ``<|im_start|>``."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for two tokenizers that make the same ids of every text and conversation."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts, faster than one at a time."""
        ...

    def encode_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """Return ids with the characters they came from."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return a conversation as the chat template writes it; DataError when it refuses."""
        ...

    def render_marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the conversation and the characters inside the template's generation blocks."""
        ...


def build_tokenizer(files: Mapping[str, Region], tokenizer_config: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer held by a checkpoint's files.

    Args:
        files: the checkpoint's tokenizer files by name; those of a Hugging Face model under
            ``hf/`` (a ``.nemo``) or by their own names (a Hugging Face directory).
        tokenizer_config: the ``tokenizer`` section of ``model_config.yaml``; may be empty.

    Raises:
        SourceError: when there is none, it is damaged, or it is of a kind that is not read.
    """
    settings = dict(tokenizer_config)
    for prefix in ("hf/", ""):
        found = _hf_tokenizer(files, prefix, settings)
        if found is not None:
            return found
    build = _BY_LIBRARY.get(str(settings.get("library")))
    if build is None:
        raise SourceError(_no_tokenizer(files, settings))
    return build(files, settings)


def _hf_tokenizer(
    files: Mapping[str, Region], prefix: str, settings: Mapping[str, Any]
) -> Tokenizer | None:
    """A Hugging Face tokenizer when its files are there; they know more than NeMo's section."""
    found = {n: files[prefix + n] for n in HF_NAMES if prefix + n in files}
    if "tokenizer.json" in found or {"vocab.json", "merges.txt"} <= found.keys():
        contents = {name: region.read(MAX_FILE_BYTES) for name, region in found.items()}
        return load_hf(contents, settings)
    model = files.get(f"{prefix}tokenizer.model")
    if model is None or "tokenizer_config.json" not in found:
        return None
    content = _checked_sentencepiece(model.read(MAX_FILE_BYTES), f"{prefix}tokenizer.model")
    config = json.loads(found["tokenizer_config.json"].read(MAX_FILE_BYTES))
    template = found.get("chat_template.jinja")
    if template is not None:
        config["chat_template"] = template.read(MAX_FILE_BYTES).decode()
    return SentencePieceTokenizer.from_hf(content, config)


def _sentencepiece(files: Mapping[str, Region], settings: Mapping[str, Any]) -> Tokenizer:
    value = settings.get("model") or settings.get("tokenizer_model")
    name, content = _artifact(files, "tokenizer.model", value)
    return SentencePieceTokenizer.from_nemo(_checked_sentencepiece(content, name), settings)


def _megatron(files: Mapping[str, Region], settings: Mapping[str, Any]) -> Tokenizer:
    if settings.get("type") == "GPTSentencePieceTokenizer":
        return _sentencepiece(files, {**settings, "sentencepiece_legacy": True})
    merge_value = settings.get("merge_file") or settings.get("merges_file")
    if not merge_value:
        raise SourceError(
            f"The checkpoint's tokenizer is megatron's {settings.get('type')!r}; only "
            f"GPT2BPETokenizer and GPTSentencePieceTokenizer are read. {EMBED_ONE}"
        )
    _, vocab = _artifact(files, "tokenizer.vocab_file", settings.get("vocab_file"))
    _, merges = _artifact(files, "tokenizer.merge_file", merge_value)
    return load_gpt2(vocab, merges, settings)


def _huggingface(files: Mapping[str, Region], settings: Mapping[str, Any]) -> Tokenizer:
    del files  # its type is a name on a hub or a folder of the machine that saved it
    raise SourceError(
        f"The checkpoint names the Hugging Face tokenizer {settings.get('type')!r} but does not hold "
        f"its files, and nothing is fetched. {EMBED_ONE}"
    )


_BY_LIBRARY = {
    "sentencepiece": _sentencepiece,
    "megatron": _megatron,
    "huggingface": _huggingface,
}


def _artifact(files: Mapping[str, Region], key: str, value: object) -> tuple[str, bytes]:
    """Return name and content of the member that a ``nemo:`` value of the config names."""
    if not isinstance(value, str) or not value:
        raise SourceError(
            f"The checkpoint's config has no {key}, so its tokenizer is unknown. {EMBED_ONE}"
        )
    name = value.removeprefix("nemo:")
    if name in {".", ".."} or re.search(r"[/\\:\0]", name):
        raise SourceError(
            f"{key} in the checkpoint's config is {value!r}. Only a file inside the checkpoint is read, "
            f"so it must be a bare file name. {EMBED_ONE}"
        )
    if name not in files:
        raise SourceError(
            f"{key} in the checkpoint's config names {name!r}, which is not among its files "
            f"({', '.join(sorted(files)) or 'there are none'}). {EMBED_ONE}"
        )
    return name, files[name].read(MAX_FILE_BYTES)


def _checked_sentencepiece(content: bytes, name: str) -> bytes:
    """``.model`` may also be tiktoken's text of base64 tokens and ranks: say so, do not guess."""
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content):
        raise SourceError(
            f"{name} is a tiktoken file (base64 tokens and ranks), not a SentencePiece model, and "
            f"tiktoken is not read yet. {EMBED_ONE}"
        )
    return content


def _no_tokenizer(files: Mapping[str, Region], settings: Mapping[str, Any]) -> str:
    library = settings.get("library")
    held = ", ".join(sorted(files)) or "none"
    kind = f"a tokenizer of library {library!r}, which is not read" if library else "no tokenizer"
    return f"The checkpoint has {kind} (tokenizer files: {held}). {EMBED_ONE}"
