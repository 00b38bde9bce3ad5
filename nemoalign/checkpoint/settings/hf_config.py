"""Write Hugging Face's config.json and tokenizer files for a model that was kept as a ``.nemo``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nemoalign.checkpoint.settings.reward import check_classifier, classifier_fields, lost_bias
from nemoalign.checkpoint.settings.sentencepiece_json import tokenizer_json
from nemoalign.checkpoint.settings.values import read_architecture, section, text
from nemoalign.checkpoint.settings.vocabulary import (
    MAX_FILE_BYTES,
    SentencePieces,
    added_tokens,
    read_sentencepiece,
    special_tokens,
)
from nemoalign.checkpoint.sources.nemo import HF_FOLDER
from nemoalign.checkpoint.sources.source import EMBEDDING, Source
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ContentError, NemoAlignError
from nemoalign.families.registry import nearest_family
from nemoalign.weights.config_rules import hf_fields, nemo_fields

CONFIG = "config.json"


def hf_files(source: Source, options: WriteOptions) -> tuple[dict[str, bytes], list[str]]:
    """Return every file of the Hugging Face directory but the weights, and what should be said.

    What an archive kept of its original model is written back as it was. config.json is made anew
    where there is no original or the model has changed since.

    Raises:
        ContentError: when Hugging Face has no counterpart for the model.
    """
    kept = {
        name.removeprefix(HF_FOLDER): region.read(MAX_FILE_BYTES)
        for name, region in source.files.items()
        if name.startswith(HF_FOLDER)
    }
    bias = lost_bias(source)
    notes = [bias] if bias else []
    written = options.written_dtype(source.weights.tensors[EMBEDDING].dtype)
    config, note = _config(source, written)
    if config is not None:
        kept[CONFIG] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    if note:
        notes.append(note)
    if not any(name.startswith(("tokenizer", "vocab")) for name in kept):
        kept |= _tokenizer(source)
    return kept, notes


def check_exportable(source: Source) -> None:
    """Refuse a model of a family that Hugging Face does not have; exit 4 with what differs."""
    check_classifier(source)
    if source.family.hf_architectures:
        return
    family, differences = nearest_family(source.arch)
    raise ContentError(
        f"{source.path} is a GPT that no Hugging Face family known here can represent: the nearest, "
        f"{family.name}, differs in {', '.join(differences)}. It can be inspected, trained and "
        "converted to .nemo."
    )


def _config(source: Source, dtype: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return the config.json to write (None: the original as it is) and what to say about it."""
    fields = hf_fields(source.family.config, source.arch) | {"vocab_size": source.vocab_size}
    if source.arch.num_attributes:
        fields.pop("tie_word_embeddings", None)  # a classifier has nothing to tie
    original = source.hf_config
    if original is None:
        return _new_config(source, fields, dtype), None
    changed = _changed_fields(source, fields) | classifier_fields(source)
    recorded = text(section(source.config, "nemoalign"), "original_dtype")
    was = recorded or source.weights.tensors[EMBEDDING].dtype
    if dtype != was:
        changed["torch_dtype"] = dtype
    if not changed:
        return None, None
    names = [name for name in changed if name != "torch_dtype"]
    note = f"config.json differs from the original model's in {', '.join(names)}: the archive's "
    return respelled(original, changed), note + "configuration decided." if names else None


def _changed_fields(source: Source, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields in which the archive's model is another one than the original config.json."""
    original = source.hf_config or {}
    family = source.family
    fixed = {name: allowed[0] for name, allowed in family.fixed.items()}
    try:
        arch = read_architecture(fixed | nemo_fields(family.config, original), CONFIG)
    except NemoAlignError:
        return dict(fields)
    before = hf_fields(family.config, arch) | {"vocab_size": original.get("vocab_size")}
    return {name: value for name, value in fields.items() if before[name] != value}


def _new_config(source: Source, fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config.json in transformers 4's spelling, which version 5 reads as well."""
    return {
        "architectures": list(source.family.hf_architectures[:1]),
        "model_type": source.family.hf_model_type,
        **fields,
        **_special_ids(source),
        "torch_dtype": dtype,
        "use_cache": True,
        **classifier_fields(source),
    }


def respelled(original: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``original`` with some fields changed, in the spelling of the version that wrote it."""
    config = dict(original)
    rest = dict(changed)
    if "torch_dtype" in rest and "dtype" in config:
        config["dtype"] = rest.pop("torch_dtype")
    if config.get("rope_parameters") is not None and {"rope_theta", "rope_scaling"} & rest.keys():
        old = dict(config["rope_parameters"])
        theta = rest.pop("rope_theta", old.get("rope_theta"))
        scaling = rest.pop("rope_scaling", {n: v for n, v in old.items() if n != "rope_theta"})
        config["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    return config | rest


def _special_ids(source: Source) -> dict[str, int | None]:
    """Return the ids of the tokens that begin and end a text, which NeMo does not record."""
    region = _sentencepiece_file(source)
    model = read_sentencepiece(region) if region is not None else None
    if model is None:
        return {"bos_token_id": None, "eos_token_id": None}
    ids = {"bos_token_id": model.bos_id, "eos_token_id": model.eos_id}
    return {name: value if value >= 0 else None for name, value in ids.items()}


def _sentencepiece_file(source: Source) -> bytes | None:
    settings = section(source.config, "tokenizer")
    value = text(settings, "model") or text(settings, "tokenizer_model") or ""
    region = source.files.get(value.removeprefix("nemo:"))
    return None if region is None else region.read(MAX_FILE_BYTES)


def _tokenizer(source: Source) -> dict[str, bytes]:
    """Return the tokenizer of a NeMo archive as a Hugging Face directory holds one."""
    content = _sentencepiece_file(source)
    model = read_sentencepiece(content) if content is not None else None
    settings = section(source.config, "tokenizer")
    if content is not None and model is not None:
        return _sentencepiece_files(content, model, settings)
    names = {"vocab.json": "vocab_file", "merges.txt": "merge_file"}
    members = {n: (text(settings, key) or "").removeprefix("nemo:") for n, key in names.items()}
    found = {name: source.files.get(member) for name, member in members.items()}
    files = {n: region.read(MAX_FILE_BYTES) for n, region in found.items() if region is not None}
    if len(files) == len(names):
        config = {"tokenizer_class": "GPT2Tokenizer", **special_tokens(settings)}
        return files | {"tokenizer_config.json": _json(config)}
    return {}


def _sentencepiece_files(
    content: bytes, model: SentencePieces, settings: Mapping[str, Any]
) -> dict[str, bytes]:
    """Return the model and, where it has that form, tokenizer.json, which needs no library to read."""
    names = special_tokens(settings)
    for name, token_id in (
        ("unk_token", model.unk_id),
        ("bos_token", model.bos_id),
        ("eos_token", model.eos_id),
        ("pad_token", model.pad_id),
    ):
        if 0 <= token_id < len(model.pieces):
            names.setdefault(name, model.pieces[token_id])
    tree = tokenizer_json(content, added_tokens(settings), names.get("bos_token"))
    if tree is None:
        config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True}
        return {"tokenizer.model": content, "tokenizer_config.json": _json(config | names)}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | names
    return {
        "tokenizer.model": content,
        "tokenizer.json": json.dumps(tree, ensure_ascii=False).encode(),
        "tokenizer_config.json": _json(config),
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
