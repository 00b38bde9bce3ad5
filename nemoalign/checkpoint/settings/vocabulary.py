"""How many tokens a model really has: padding rows of an embedding depend on its layout and mean nothing.

Tokenizer files are counted as data here; nothing loads a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemoalign.archive.files import Region
from nemoalign.checkpoint.settings.protobuf import message_fields
from nemoalign.checkpoint.settings.values import section, whole_number
from nemoalign.errors import ContentError, SourceError

MAX_FILE_BYTES = 256 << 20
NO_TOKENIZER = (
    "{where} does not hold its tokenizer, so the size of its vocabulary is unknown: all {rows} rows "
    "of the embedding are kept. Embed one with: nemoalign convert {where} -o NEW.nemo --tokenizer "
    "HF_DIR"
)


@dataclass(frozen=True)
class SentencePieces:
    """What a SentencePiece model file says of its vocabulary; an id is -1 where there is none."""

    pieces: tuple[str, ...]
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1


def real_vocabulary(
    config: Mapping[str, Any], hf_config: Mapping[str, Any] | None, files: Mapping[str, Region]
) -> int | None:
    """Return the size of the real vocabulary, or None when nothing in the checkpoint tells.

    The original config.json comes first, then what we or the person recorded, then the tokenizer.

    Raises:
        ContentError: when a recorded size is no size.
    """
    for holder, name, where in (
        (hf_config or {}, "vocab_size", "config.json"),
        (section(config, "nemoalign"), "vocab_size", "model_config.yaml"),
        (config, "override_vocab_size", "model_config.yaml"),
    ):
        found = whole_number(holder, name, where)
        if found is not None:
            return found
    return tokenizer_size(section(config, "tokenizer"), files)


def checked_vocabulary(found: int | None, rows: int, where: str) -> tuple[int, str | None]:
    """Return the vocabulary's size and, when it had to be taken from the rows, a warning.

    Raises:
        ContentError: when the embedding has fewer rows than the vocabulary.
    """
    if found is None:
        return rows, NO_TOKENIZER.format(where=where, rows=rows)
    if found > rows:
        raise ContentError(
            f"{where} has a vocabulary of {found} tokens but only {rows} rows in its embedding. "
            "The tokenizer or configuration belongs to another model."
        )
    return found, None


def tokenizer_size(settings: Mapping[str, Any], files: Mapping[str, Region]) -> int | None:
    """Return the number of ids of the tokenizer a ``tokenizer`` section names, or None."""
    if "hf/tokenizer.json" in files:
        return fast_tokenizer_size(files["hf/tokenizer.json"].read(MAX_FILE_BYTES))
    library = settings.get("library")
    sentencepiece = (
        library == "sentencepiece" or settings.get("type") == "GPTSentencePieceTokenizer"
    )
    if sentencepiece:
        region = _artifact(settings.get("model") or settings.get("tokenizer_model"), files)
        model = read_sentencepiece(region.read(MAX_FILE_BYTES)) if region else None
        return None if model is None else _with_special_tokens(model.pieces, settings)
    if library == "megatron":
        region = _artifact(settings.get("vocab_file"), files)
        return None if region is None else _with_special_tokens(_vocabulary(region), settings)
    return None


def _vocabulary(region: Region) -> Mapping[str, Any]:
    try:
        vocabulary = json.loads(region.read(MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{region.path}: the tokenizer's vocabulary is damaged: {error}"
        ) from error
    if not isinstance(vocabulary, dict):
        raise SourceError(f"{region.path}: the tokenizer's vocabulary is no JSON object.")
    return vocabulary


def fast_tokenizer_size(content: bytes) -> int | None:
    """Return one more than the highest id of a tokenizer.json, or None when it has no vocabulary."""
    try:
        tokenizer = json.loads(content)
        vocab = tokenizer["model"]["vocab"]
        ids = [len(vocab) - 1] if isinstance(vocab, list) else list(vocab.values())
        ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
        return max(ids) + 1
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def read_sentencepiece(content: bytes) -> SentencePieces | None:
    """Return the vocabulary of a SentencePiece model, or None when ``content`` is none."""
    pieces: list[str] = []
    ids: dict[int, int] = {}
    try:
        for number, value in message_fields(content):
            if number == 1 and isinstance(value, bytes):
                pieces.append(dict(message_fields(value))[1].decode())
            elif number == 2 and isinstance(value, bytes):
                ids = {
                    field: _signed(n) for field, n in message_fields(value) if isinstance(n, int)
                }
    except (KeyError, IndexError, ValueError, AttributeError):
        return None
    if not pieces:
        return None
    # Field numbers of TrainerSpec in sentencepiece_model.proto.
    unk, bos, eos, pad = (ids.get(f, d) for f, d in ((40, 0), (41, 1), (42, 2), (43, -1)))
    return SentencePieces(tuple(pieces), unk, bos, eos, pad)


def _artifact(value: Any, files: Mapping[str, Region]) -> Region | None:
    return files.get(value.removeprefix("nemo:")) if isinstance(value, str) else None


def _with_special_tokens(known: Any, settings: Mapping[str, Any]) -> int:
    """NeMo appends special tokens past the vocabulary unless they are in it already."""
    return len(known) + len(set(added_tokens(settings)) - set(known))


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens a ``tokenizer`` section names by their part: ``eos_token`` and the like."""
    named = section(settings, "special_tokens").items()
    return {str(name): str(value) for name, value in named if value}


def added_tokens(settings: Mapping[str, Any]) -> list[str]:
    """Return every special token a ``tokenizer`` section adds, in the order NeMo numbers them."""
    lists = (settings.get(name) for name in ("special_tokens", "additional_special_tokens"))
    listed = [value for values in lists if isinstance(values, list) for value in values]
    return [*special_tokens(settings).values(), *(str(value) for value in listed if value)]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
