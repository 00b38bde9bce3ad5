"""Open a NeMo archive, packed or unpacked: configuration, tokenizer files and weights by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemoalign.archive.files import Container, Region
from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.settings.adapter import read_adapter
from nemoalign.checkpoint.settings.reward import with_head
from nemoalign.checkpoint.settings.values import read_architecture, section
from nemoalign.checkpoint.settings.vocabulary import checked_vocabulary, real_vocabulary
from nemoalign.checkpoint.sources.canonical import check_tensors
from nemoalign.checkpoint.sources.layouts import open_weights
from nemoalign.checkpoint.sources.ranks import Weights
from nemoalign.checkpoint.sources.source import EMBEDDING, POSITIONS, Source
from nemoalign.checkpoint.sources.stores import PlacedStore, UnionStore
from nemoalign.checkpoint.sources.upgrade import upgraded_config
from nemoalign.config.architecture import Architecture
from nemoalign.config.checkpoint_yaml import parse_checkpoint_config
from nemoalign.config.interpolation import Interpolation
from nemoalign.errors import ContentError, SourceError
from nemoalign.families.registry import family_for_nemo
from nemoalign.weights.names import is_reward_head

CONFIG_NAME = "model_config.yaml"
HF_FOLDER = "hf/"
MANIFEST_NAME = "nemoalign_manifest.json"

MAX_CONFIG_BYTES = 4 << 20
_HASHED = re.compile(r"[0-9a-f]{32}_")
_TOKENIZER_FILES = {
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
}


@dataclass(frozen=True)
class Settings:
    """A model_config.yaml, or what stands for it: as stored, and with interpolations resolved."""

    where: str
    stored: dict[str, Any]
    resolved: dict[str, Any]

    def upgraded(self) -> Settings:
        """Return the settings of a model from before megatron-core in megatron-core's words."""
        stored, resolved = (upgraded_config(c, self.where) for c in (self.stored, self.resolved))
        return Settings(self.where, stored, resolved)

    def architecture(self) -> Architecture:
        """Return what they say of the architecture."""
        return read_architecture(self.resolved, self.where)


def open_nemo(container: Container, kind: str, folder: Path | None = None) -> Source:
    """Return the checkpoint inside a NeMo archive or unpacked directory.

    Raises:
        SourceError: when parts are missing or damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    settings = Settings(f"{container.path}: {CONFIG_NAME}", *read_configs(container))
    files = tokenizer_files(container, settings.resolved)
    source = assemble(
        container.path, kind, settings, lambda arch: open_weights(container, arch), files
    )
    return replace(source, folder=folder)


def assemble(
    path: Path,
    kind: str,
    settings: Settings,
    weights_of: Callable[[Architecture], Weights],
    files: Mapping[str, Region],
) -> Source:
    """Return a checkpoint of NeMo from its settings, its weights and its tokenizer's files.

    Raises:
        SourceError: when parts are missing or damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    _refuse_other_models(settings.resolved, str(path))
    weights = _head_with_adapter(weights_of(settings.architecture()))
    legacy_config = settings.stored if weights.is_legacy else None
    if weights.is_legacy:
        settings = settings.upgraded()
    tensors = {**weights.adapter.tensors, **weights.model.tensors}
    arch = with_head(settings.architecture(), tensors, settings.resolved, str(path))
    table = _table_length(weights.model.tensors, arch)
    arch = replace(arch, **table)
    config = settings.resolved | table
    hf_config = _hf_config(files, str(path))
    vocab_size, warnings = _check(weights, arch, config, hf_config, files, str(path))
    return Source(
        path=path,
        kind=kind,
        layout=weights.described,
        config=config,
        stored_config=settings.stored | table,
        arch=arch,
        family=family_for_nemo(config, hf_config),
        vocab_size=vocab_size,
        weights=weights.model,
        files=files,
        hf_config=hf_config,
        adapter=read_adapter(weights.adapter, config, arch, str(path)),
        copies=weights.copies,
        optimizer=weights.optimizer,
        warnings=warnings,
        legacy_config=legacy_config,
    )


def _head_with_adapter(weights: Weights) -> Weights:
    """Return the weights with a reward head among the adapters it was trained with."""
    names = weights.model.tensors
    if not weights.adapter.tensors or not all(map(is_reward_head, names)):
        return weights
    together = UnionStore(weights.adapter, weights.model)
    return replace(weights, adapter=together, model=PlacedStore({}))


def _table_length(tensors: Mapping[str, TensorInfo], arch: Architecture) -> dict[str, int]:
    """Return the sequence length where learned positions were sized by the other of NeMo's two fields."""
    table = tensors.get(POSITIONS)
    rows = arch.max_position_embeddings
    if table is None or table.shape != (rows, arch.hidden_size):
        return {}
    return {"encoder_seq_length": rows} if rows != arch.encoder_seq_length else {}


def read_configs(container: Container) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return model_config.yaml as stored and with its interpolations resolved."""
    where = f"{container.path}: {CONFIG_NAME}"
    if CONFIG_NAME not in container.members:
        held = ", ".join(sorted(container.members)[:5]) or "nothing"
        raise SourceError(
            f"{container.path} holds no {CONFIG_NAME}, so it is no NeMo checkpoint. It holds {held}."
        )
    text = container.members[CONFIG_NAME].read(MAX_CONFIG_BYTES).decode("utf-8", "replace")
    stored = parse_checkpoint_config(text, where)
    config = Interpolation(stored).resolved()
    if "num_layers" not in config and isinstance(config.get("model"), dict):
        return stored["model"], config["model"]
    return stored, config


def _refuse_other_models(config: Mapping[str, Any], where: str) -> None:
    """``target`` is a label, never an import; it serves for a better sentence."""
    target = str(config.get("target") or "").rpartition(".")[2]
    if target and "num_attention_heads" not in config:
        raise ContentError(f"{where} is a {target}, not a GPT language model; it is not supported.")
    if re.search(r"Vit|CLIP|T5|Bert|Retro|Mamba", target, re.IGNORECASE):
        raise ContentError(f"{where} is a {target}; only GPT language models are supported yet.")


def _check(
    weights: Weights,
    arch: Architecture,
    config: Mapping[str, Any],
    hf_config: Mapping[str, Any] | None,
    files: Mapping[str, Region],
    where: str,
) -> tuple[int, tuple[str, ...]]:
    """Return the vocabulary's size and warnings, after comparing tensors with the configuration."""
    found = real_vocabulary(config, hf_config, files)
    if weights.adapter.tensors and not weights.model.tensors:
        return found or 0, ()
    check_tensors(weights.model.tensors, arch, where)
    rows = weights.model.tensors[EMBEDDING].shape[0]
    vocab_size, warning = checked_vocabulary(found, rows, where)
    warnings = [warning] if warning else []
    if arch.num_moe_experts and arch.moe_router_pre_softmax:
        warnings.append(
            f"{where} weighs experts without renormalising (moe_router_pre_softmax: true), as NeMo's "
            "own converter writes Mixtral although it was not trained so. It is read as written; for "
            "the original model, and in Hugging Face, it is false."
        )
    if arch.scale_positional_embedding and arch.seq_len_interpolation_factor not in (None, 1.0):
        warnings.append(
            f"{where} scales its rotary positions twice (scale_positional_embedding and "
            f"seq_len_interpolation_factor {arch.seq_len_interpolation_factor:g}), as NeMo's own "
            "converter writes Llama 3.1. It is read as written; for the original model set "
            "seq_len_interpolation_factor to null."
        )
    if arch.window_size is not None and not section(config, "nemoalign"):
        before = arch.window_size[0]
        warnings.append(
            f"{where} has window_size [{before}, 0]: a query sees {before + 1} positions. NeMo's own "
            "converters write the original model's window there, which is one position more than "
            f"that saw. It is read as written; for the original model set it to [{before - 1}, 0]."
        )
    return vocab_size, tuple(warnings)


def tokenizer_files(container: Container, config: Mapping[str, Any]) -> dict[str, Region]:
    """Return the tokenizer's files and those of the original Hugging Face model, by member name."""
    values = section(config, "tokenizer").values()
    named = {value.removeprefix("nemo:") for value in values if isinstance(value, str)}
    return {
        name: region
        for name, region in container.members.items()
        if name.startswith(HF_FOLDER)
        or ("/" not in name and (name in named | _TOKENIZER_FILES or _HASHED.match(name)))
    }


def _hf_config(files: Mapping[str, Region], where: str) -> dict[str, Any] | None:
    name = f"{HF_FOLDER}config.json"
    if name not in files:
        return None
    return read_json_object(files[name], f"{where}: {name}")


def read_json_object(region: Region, where: str) -> dict[str, Any]:
    """Return a small JSON file that must hold an object; SourceError otherwise."""
    try:
        content = json.loads(region.read(MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not valid JSON ({error}). Fetch the model again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"{where} holds no JSON object. Fetch the model again.")
    return content
