"""``nemoalign inspect``: what a checkpoint is, from its headers, index and configuration alone."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemoalign.archive.files import Container, Region, open_container
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.settings.chat_template import (
    ChatTemplate,
    chat_template,
    held_template,
)
from nemoalign.checkpoint.settings.reward import described_head
from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.settings.vocabulary import tokenizer_size
from nemoalign.checkpoint.sources.nemo import HF_FOLDER, read_json_object
from nemoalign.checkpoint.sources.source import EMBEDDING, KINDS, Source
from nemoalign.checkpoint.targets.writing import prompt_template
from nemoalign.checkpoint.vit.inspect import inspect_vit
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ConfigError, ContentError

PROGRESS_NAME = "progress.json"
_NAMED_VALUE = re.compile(r"([A-Za-z_]+)=(-?[\d.]+(?:e[+-]?\d+)?)")
_LARGE_TOKENIZER = 8 << 20
"""A tokenizer.json above this takes longer to count than inspect may; the model's size is shown."""


def inspect(path: Path | str) -> dict[str, Any]:
    """Return everything a person may want to know of a checkpoint; no weights are read.

    Raises:
        SourceError, ContentError: when it is no checkpoint, damaged or contradicts itself.
    """
    return inspect_source(open_checkpoint(path))


def inspect_source(source: Source | VitSource) -> dict[str, Any]:
    """Return what ``inspect`` returns, for a checkpoint that is open already."""
    if isinstance(source, VitSource):
        return inspect_vit(source) | {"size_bytes": _size_bytes(source.path)}
    config = source.config
    template = chat_template(config, source.files, str(source.path))
    return {
        "path": str(source.path),
        "found_in": None if source.folder is None else str(source.folder),
        "what": source.describe(),
        "kind": KINDS[source.kind],
        "family": source.family.name,
        "hf_architecture": next(iter(source.family.hf_architectures), None),
        "sizes": _sizes(source),
        "parameters": source.parameters(),
        "layout": source.layout,
        "saved_with": {
            "tp": config.get("tensor_model_parallel_size", 1),
            "pp": config.get("pipeline_model_parallel_size", 1),
        },
        "dtypes": list(source.dtypes),
        "precision": config.get("precision"),
        "size_bytes": _size_bytes(source.path, source.container),
        "tokenizer": _tokenizer(source),
        "template_from": template.origin if template else None,
        "prompt_template": prompt_template(config),
        "chat_prompt_tokens": dict(section(config, "data", "chat_prompt_tokens")) or None,
        "chat_template": held_template(source.files, str(source.path)),
        "training": _training(source),
        "adapter": _adapter(source),
        "reward_head": described_head(source),
        "warnings": list(source.warnings),
    }


def template_of(source: Source | VitSource) -> ChatTemplate:
    """Return the template a prompt must be put into, as ``--template`` prints it.

    Raises:
        ContentError: when the checkpoint records none.
    """
    found = chat_template(source.config, source.files, str(source.path))
    if found is None:
        raise ContentError(
            f"{source.path} records no prompt template: neither data.train_ds.prompt_template, nor "
            "data.chat_prompt_tokens, nor a chat template of its tokenizer."
        )
    return found


def list_tensors(source: Source | VitSource, pattern: str = "*") -> list[dict[str, Any]]:
    """Return name, shape and dtype of every tensor whose canonical name matches a glob.

    Raises:
        ConfigError: when no name matches.
    """
    stores = [source.weights] + ([source.adapter.weights] if source.adapter else [])
    rows = [
        {"name": name, "shape": list(info.shape), "dtype": info.dtype, "bytes": info.size_bytes}
        for store in stores
        for name, info in store.tensors.items()
        if fnmatch.fnmatchcase(name, pattern)
    ]
    if not rows:
        some = ", ".join([name for store in stores for name in store.tensors][:3])
        raise ConfigError(f'No tensor of {source.path} matches "{pattern}". Some names: {some}.')
    return rows


def find_value(source: Source | VitSource, key: str) -> Any:
    """Return the value of a dotted key (``optim.sched.min_lr``, ``betas.0``) of model_config.yaml.

    Raises:
        ConfigError: when there is no such key; the nearest one is named.
    """
    value: Any = source.config
    for word in key.split("."):
        if isinstance(value, list) and word.isdigit() and int(word) < len(value):
            value = value[int(word)]
        elif isinstance(value, dict) and word in value:
            value = value[word]
        else:
            near = difflib.get_close_matches(key, list(_keys(source.config)), n=1, cutoff=0.3)
            hint = f" Nearest: {near[0]}." if near else ""
            raise ConfigError(f'{source.path} has no "{key}" in its configuration.{hint}')
    return value


def _keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _sizes(source: Source) -> dict[str, Any]:
    arch = source.arch
    embedding = source.weights.tensors.get(EMBEDDING)
    experts = arch.num_moe_experts
    return {
        "layers": arch.num_layers,
        "hidden": arch.hidden_size,
        "heads": arch.num_attention_heads,
        "query_groups": arch.query_groups,
        "head_dim": arch.head_dim,
        "ffn": arch.ffn_hidden_size,
        **({"experts": arch.num_moe_experts, "top_k": arch.moe_router_topk} if experts else {}),
        "vocab": source.vocab_size,
        "vocab_padded": None if embedding is None else embedding.shape[0],
        "sequence_length": arch.encoder_seq_length,
        "positions": arch.position_embedding_type,
        "rope": _rope(source) if arch.position_embedding_type == "rope" else None,
        "normalization": arch.normalization,
        "activation": arch.activation,
        "tied_embeddings": arch.share_embeddings_and_output_weights,
    }


def _rope(source: Source) -> dict[str, Any]:
    arch = source.arch
    rope: dict[str, Any] = {"base": arch.rotary_base}
    if arch.rotary_percentage != 1.0:
        rope["percentage"] = arch.rotary_percentage
    if arch.seq_len_interpolation_factor not in (None, 1.0):
        rope["linear_factor"] = arch.seq_len_interpolation_factor
    if arch.scale_positional_embedding:
        names = ("scale_factor", "low_freq_factor", "high_freq_factor", "old_context_len")
        rope["llama3"] = {name: getattr(arch, name) for name in names}
    return rope


def _size_bytes(path: Path, container: Container | None = None) -> int:
    if container is None and not path.is_dir():
        return path.stat().st_size if path.is_file() else 0  # whoever reads an address knows
    members = (container or open_container(path)).members
    return sum(region.size for region in members.values())


def _tokenizer(source: Source) -> dict[str, Any]:
    settings = section(source.config, "tokenizer")
    files = sorted(name for name in source.files if not name.endswith("config.json"))
    files += sorted(n for n in source.files if n.endswith("tokenizer_config.json"))
    fast = source.files.get(f"{HF_FOLDER}tokenizer.json")
    countable = fast is None or fast.size <= _LARGE_TOKENIZER
    return {
        "library": settings.get("library"),
        "type": settings.get("type"),
        "files": files,
        "vocab": tokenizer_size(settings, source.files) if countable else None,
    }


def _training(source: Source) -> dict[str, Any]:
    config = source.config
    trained = config.get("restore_from_path") or section(config, "data", "train_ds")
    optim = section(config, "optim") if trained else {}  # else a template's, never used
    told = {
        "target": config.get("target"),
        "nemo_version": config.get("nemo_version"),
        "restored_from": config.get("restore_from_path"),
        "optimizer": {n: optim[n] for n in ("name", "lr", "weight_decay") if n in optim},
        "nemoalign": config.get("nemoalign"),
        "checkpoint": _progress(source.path) or _from_name(source.path),
    }
    return {name: value for name, value in told.items() if value}


def _progress(path: Path) -> dict[str, Any]:
    """Return what a checkpoint of ours records of its run, but not the state of its samplers."""
    file = path / PROGRESS_NAME
    if not file.is_file():
        return {}
    recorded = read_json_object(Region(file, 0, file.stat().st_size), str(file))
    plain = (int, float, str, bool)
    return {name: value for name, value in recorded.items() if isinstance(value, plain)}


def _from_name(path: Path) -> dict[str, Any]:
    """Return what a training checkpoint's name says: step, consumed_samples, epoch, metrics."""
    stem = path.name.removesuffix(".ckpt").removesuffix(".nemo")
    return {name: json.loads(_number(text)) for name, text in _NAMED_VALUE.findall(stem)}


def _number(text: str) -> str:
    whole, dot, fraction = text.rstrip(".").partition(".")
    return whole if not dot or not fraction.strip("0") else f"{whole}.{fraction}"


def _adapter(source: Source) -> dict[str, Any] | None:
    adapter = source.adapter
    if adapter is None:
        return None
    return {
        "scheme": "lora",
        "rank": adapter.dim,
        "alpha": adapter.alpha,
        "targets": list(adapter.targets),
        "base": adapter.base,
        "tensors": len(adapter.weights.tensors),
    }
