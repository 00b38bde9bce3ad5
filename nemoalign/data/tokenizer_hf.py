"""Hugging Face tokenizers, loaded by transformers from a private copy of exactly their files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from nemoalign.data.encoding import Encoding, fingerprint, is_space_sensitive
from nemoalign.data.rendering import Messages, render
from nemoalign.errors import SourceError

_CONFIGS = ("tokenizer_config.json", "config.json")


class HfTokenizer:
    """A fast tokenizer of transformers; its own special tokens are never added."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # tokenizer.json may carry the padding and truncation of whoever saved it.
        self._backend.no_padding()
        self._backend.no_truncation()
        self.vocab_size = len(tokenizer)
        self.eos_id: int = _eos_of(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.space_sensitive = is_space_sensitive(tokenizer.tokenize)
        self._templates: Any = tokenizer.chat_template
        added = tokenizer.added_tokens_decoder.values()
        self.special_tokens = tuple(token.content for token in added if token.special)
        self.fingerprint = fingerprint(
            [transformers.__version__, tokenizers.__version__],
            self._backend.to_str().encode(),
            self._templates,
            tokenizer.special_tokens_map,
        )

    @property
    def chat_template(self) -> str | None:
        """The template for conversations without tools."""
        return self._template(None)

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of many texts."""
        return [
            e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def encode_spans(self, texts: Sequence[str]) -> list[Encoding]:
        """Return ids with the characters they came from."""
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [Encoding(e.ids, e.offsets) for e in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelled out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def render_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool,
        tools: Messages | None = None,
    ) -> str:
        """Return a conversation as the chat template writes it."""
        return render(
            self._template(tools),
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables=self._tokenizer.special_tokens_map,
        )[0]

    def render_marked(
        self, messages: Messages, *, tools: Messages | None = None
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the conversation and the template's generation blocks."""
        return render(
            self._template(tools),
            messages,
            add_generation_prompt=False,
            tools=tools,
            variables=self._tokenizer.special_tokens_map,
            marked=True,
        )

    def _template(self, tools: Messages | None) -> str | None:
        """Some models have two templates, one of them for conversations with tools."""
        if isinstance(self._templates, Mapping):
            wanted = "tool_use" if tools and "tool_use" in self._templates else "default"
            return self._templates.get(wanted)
        return self._templates


def load_hf(contents: Mapping[str, bytes], settings: Mapping[str, Any]) -> HfTokenizer:
    """Return the tokenizer that transformers makes of these files, offline and running no code.

    Raises:
        SourceError: when the files are damaged or need Python code that came with the model.
    """
    with tempfile.TemporaryDirectory(prefix="nemoalign-tokenizer-") as directory:
        for name, content in contents.items():
            plain = _without_code(content, name) if name in _CONFIGS else content
            (Path(directory) / name).write_bytes(plain)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            )
        # tokenizers raises bare Exception, transformers whatever its reader stumbled on.
        except Exception as error:
            raise SourceError(_damaged(sorted(contents), error)) from error
    return _finished(tokenizer, settings)


def load_gpt2(vocab: bytes, merges: bytes, settings: Mapping[str, Any]) -> HfTokenizer:
    """Return GPT-2's byte BPE from its vocabulary and merges, as megatron's GPT2BPETokenizer reads it."""
    with tempfile.TemporaryDirectory(prefix="nemoalign-tokenizer-") as directory:
        (Path(directory) / "vocab.json").write_bytes(vocab)
        (Path(directory) / "merges.txt").write_bytes(merges)
        try:
            tokenizer = GPT2Tokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise SourceError(_damaged(["vocab_file", "merge_file"], error)) from error
    return _finished(tokenizer, settings)


def _without_code(content: bytes, name: str) -> bytes:
    """Drop what points to Python code or to other files; the rest decides how text is cut."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{name} is not JSON ({error}). Fetch the model's tokenizer again."
        ) from error
    if not isinstance(config, dict):
        raise SourceError(f"{name} is not a JSON object. Fetch the model's tokenizer again.")
    kept = {k: v for k, v in config.items() if k != "auto_map" and not k.endswith("_file")}
    return json.dumps(kept).encode()


def _finished(tokenizer: Any, settings: Mapping[str, Any]) -> HfTokenizer:
    """Add what NeMo's tokenizer section adds, and wrap."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SourceError(
            f"The checkpoint's tokenizer is a {type(tokenizer).__name__}, which has no tokenizer.json "
            "form. Embed one that has: nemoalign convert MODEL -o NEW.nemo --tokenizer HF_DIR"
        )
    named = settings.get("special_tokens")
    if isinstance(named, Mapping):
        tokenizer.add_special_tokens({str(k): str(v) for k, v in named.items() if v})
    more = settings.get("additional_special_tokens")
    if more:
        tokenizer.add_tokens([str(token) for token in more], special_tokens=True)
    template = settings.get("chat_template")
    if isinstance(template, str) and template:
        tokenizer.chat_template = template
    return HfTokenizer(tokenizer)


def _eos_of(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise SourceError(
            "The checkpoint's tokenizer has no end-of-sequence token, which ends every answer and fills "
            "short rows. Name one as eos_token in tokenizer_config.json and convert again."
        )
    return int(tokenizer.eos_token_id)


def _damaged(names: Sequence[str], error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"The tokenizer files {', '.join(names)} cannot be loaded ({reason}). "
        "Embed a working one: nemoalign convert MODEL -o NEW.nemo --tokenizer HF_DIR"
    )
