"""Open a NeMo 2 directory: ``weights/`` as torch_dist, and ``context/`` for what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoalign.archive.dist import FORMAT_NAME
from nemoalign.archive.files import Container, Region
from nemoalign.checkpoint.settings.nemo2_config import check_stated, nemo2_fields, nemo_fields
from nemoalign.checkpoint.settings.nemo_config import PRECISIONS, tokenizer_section, with_settings
from nemoalign.checkpoint.settings.values import read_architecture, section, text
from nemoalign.checkpoint.sources.hf import KEPT_FILES
from nemoalign.checkpoint.sources.layouts import dist_weights
from nemoalign.checkpoint.sources.nemo import (
    CONFIG_NAME,
    HF_FOLDER,
    Settings,
    assemble,
    read_configs,
    tokenizer_files,
)
from nemoalign.checkpoint.sources.nemo2_context import (
    CONTEXT_FOLDER,
    IO_NAME,
    TARGET,
    YAML_NAME,
    read_model_tree,
    short_name,
)
from nemoalign.checkpoint.sources.source import EMBEDDING, Source
from nemoalign.errors import ContentError

WEIGHTS_FOLDER = "weights"
TOKENIZER_FOLDER = "nemo_tokenizer"
"""Where NeMo 2's importers put the tokenizer of a Hugging Face model."""

_ONLY_THERE = ("override_vocab_size", "apply_embedding_scaling")
"""What NeMo 2 has to be told where no tokenizer tells it, and what its class says."""


def is_nemo2(folder: Path) -> bool:
    """True for a directory that NeMo 2 wrote; its first releases had no ``context/``."""
    weights = (folder / WEIGHTS_FOLDER / FORMAT_NAME).is_file()
    if (folder / WEIGHTS_FOLDER).is_dir() and (folder / CONTEXT_FOLDER).is_dir():
        return True
    return (weights or (folder / FORMAT_NAME).is_file()) and (folder / IO_NAME).is_file()


def open_nemo2(container: Container, folder: Path | None = None) -> Source:
    """Return the checkpoint in a NeMo 2 directory; what its context names is never imported.

    Raises:
        SourceError: when parts are missing or damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    where = str(container.path)
    context = _inside(container, CONTEXT_FOLDER, IO_NAME)
    tree, file = read_model_tree(context)
    if file == IO_NAME:
        check_stated(tree, f"{where}: {CONTEXT_FOLDER}/{file}")
    fields = nemo_fields(tree, f"{where}: {CONTEXT_FOLDER}/{file}")
    arch = read_architecture(fields, f"{where}: {CONTEXT_FOLDER}/{file}")
    weights = dist_weights(_inside(container, WEIGHTS_FOLDER, FORMAT_NAME), arch)
    tokenizer, files = _tokenizer(context, section(tree, "tokenizer"))
    if CONFIG_NAME in context.members:
        settings = _kept(context, fields)
        files |= tokenizer_files(context, settings.resolved)
    else:
        stored = with_settings(fields, tokenizer) | fields
        stored["precision"] = PRECISIONS.get(weights.model.tensors[EMBEDDING].dtype, 32)
        resolved = {**stored, "target": str(tree.get(TARGET)), "nemo_version": None}
        settings = Settings(f"{where}: {CONTEXT_FOLDER}/{file}", stored, resolved)
    source = assemble(container.path, "nemo2", settings, lambda _: weights, files)
    return replace(source, folder=folder)


def _inside(container: Container, name: str, needed: str) -> Container:
    """Return a folder of the checkpoint, or the checkpoint where it has none."""
    inside = container.under(name)
    return container if not inside.members and needed in container.members else inside


def _kept(context: Container, fields: Mapping[str, Any]) -> Settings:
    """Return the model_config.yaml a conversion of ours kept, which must say what NeMo 2 reads."""
    where = f"{context.path}: {CONTEXT_FOLDER}/{CONFIG_NAME}"
    settings = Settings(where, *read_configs(context))
    described = nemo2_fields(settings.resolved, settings.architecture(), where)
    kept = read_architecture(nemo_fields({"config": described}, where), where)
    read = read_architecture(fields, where)
    for name in (field.name for field in dataclass_fields(read)):
        ours, theirs = getattr(kept, name), getattr(read, name)
        if ours != theirs and name not in _ONLY_THERE:
            raise ContentError(
                f"{where} means {name} {ours!r:.60}, but {YAML_NAME} beside it {theirs!r:.60}. NeMo 2 "
                f"goes by the latter; remove {CONFIG_NAME} if that is right."
            )
    return settings


def _tokenizer(
    context: Container, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Region]]:
    """Return the ``tokenizer`` section and files; a path in the settings is a name among members."""
    value = settings.get("pretrained_model_name")
    name = str((value.get("attr") if isinstance(value, Mapping) else value) or "")
    inside = context.under(name.removeprefix("./") or TOKENIZER_FOLDER).members
    files = {f"{HF_FOLDER}{n}": inside[n] for n in KEPT_FILES if n in inside}
    artifact = (text(settings, "model_path") or "").rpartition("/")[2]
    if artifact in context.members:
        named = {"library": "sentencepiece", "type": None, "model": f"nemo:{artifact}"}
        named["use_fast"] = False
        files[artifact] = context.members[artifact]
        return tokenizer_section(None, None, {}, "") | named, files
    if not settings:
        return {"library": None, "type": None}, files
    return tokenizer_section(None, None, {}, name or short_name(settings)), files
