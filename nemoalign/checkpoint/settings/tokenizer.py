"""Give a checkpoint the tokenizer of another place: ``--tokenizer``."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from nemoalign.archive.files import Region, open_container
from nemoalign.checkpoint.settings.vocabulary import (
    MAX_FILE_BYTES,
    checked_vocabulary,
    real_vocabulary,
)
from nemoalign.checkpoint.sources.hf import TOKENIZER_FILES, registered_tokenizer
from nemoalign.checkpoint.sources.nemo import HF_FOLDER
from nemoalign.checkpoint.sources.source import EMBEDDING, Source
from nemoalign.errors import SourceError


def with_tokenizer(source: Source, path: Path | None) -> Source:
    """Return ``source`` with the tokenizer at ``path``: a model's folder or a SentencePiece file.

    The size of the vocabulary follows the tokenizer where nothing else tells it.

    Raises:
        SourceError: when there is no tokenizer.
        ContentError: when it has more tokens than the embedding has rows.
    """
    if path is None:
        return source
    found = _tokenizer_files(path)
    kept = {
        n: r for n, r in source.files.items() if n in (_kept("config"), _kept("generation_config"))
    }
    files = kept | found
    vocab = {"vocab_size": source.weights.tensors[EMBEDDING].shape[0]}
    section, _ = registered_tokenizer(source.hf_config or vocab, files, path.resolve().name)
    if path.is_file():
        artifact = next(name for name in found if not name.startswith(HF_FOLDER))
        files |= found
        section |= {"library": "sentencepiece", "type": None, "model": f"nemo:{artifact}"}
    config = source.config | {"tokenizer": section}
    stored = source.stored_config | {"tokenizer": section}
    rows = source.weights.tensors[EMBEDDING].shape[0]
    size = real_vocabulary(config, source.hf_config, files)
    vocab_size, warning = checked_vocabulary(size, rows, str(source.path))
    return replace(
        source,
        config=config,
        stored_config=stored,
        files=files,
        vocab_size=vocab_size,
        warnings=(warning,) if warning else (),
    )


def _tokenizer_files(path: Path) -> dict[str, Region]:
    if not path.exists():
        raise SourceError(f"--tokenizer {path} does not exist.")
    if path.is_file():
        region = Region(path, 0, path.stat().st_size)
        return {_artifact_name(region): region, f"{HF_FOLDER}tokenizer.model": region}
    members = open_container(path).members
    files = {f"{HF_FOLDER}{n}": members[n] for n in TOKENIZER_FILES if n in members}
    if not files:
        raise SourceError(
            f"--tokenizer {path} holds none of {', '.join(TOKENIZER_FILES[:3])}. Give the folder of "
            "a Hugging Face model or a SentencePiece .model file."
        )
    if "tokenizer.model" in members:
        files[_artifact_name(members["tokenizer.model"])] = members["tokenizer.model"]
    return files


def _artifact_name(region: Region) -> str:
    digest = hashlib.sha256(region.read(MAX_FILE_BYTES)).hexdigest()[:32]
    return f"{digest}_tokenizer.model"


def _kept(name: str) -> str:
    return f"{HF_FOLDER}{name}.json"
