"""Open a Hugging Face model directory as if it were a ``.nemo``: same names, same configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoalign.archive.files import Container, Region
from nemoalign.archive.store import TensorStore
from nemoalign.archive.torch_weights import open_hf_weights
from nemoalign.checkpoint.settings.nemo_config import PRECISIONS, nemo_config, tokenizer_section
from nemoalign.checkpoint.settings.reward import classifier_outputs, reward_settings
from nemoalign.checkpoint.settings.values import read_architecture, whole_number
from nemoalign.checkpoint.settings.vocabulary import (
    MAX_FILE_BYTES,
    fast_tokenizer_size,
    read_sentencepiece,
)
from nemoalign.checkpoint.sources.nemo import HF_FOLDER, read_json_object
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.sources.stores import MappedStore, Place, PlacedStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.families.registry import family_for_hf
from nemoalign.weights.rules import Family, TensorPlan, tensor_plans
from nemoalign.weights.tensors import expected_shapes

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a tokenizer consists of in a Hugging Face directory."""

KEPT_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
"""Files of a Hugging Face model that an archive keeps as they are."""


def open_hf(container: Container, folder: Path | None = None) -> Source:
    """Return the Hugging Face model in a directory.

    Raises:
        ContentError: when no family knows it, or config.json and tensors disagree.
    """
    where = str(container.path)
    hf_config = read_json_object(container.member("config.json"), f"{where}: config.json")
    family = family_for_hf(hf_config)
    vocab_size = whole_number(hf_config, "vocab_size", "config.json")
    if vocab_size is None:
        raise ContentError(f"{where}: config.json has no vocab_size.")
    files = kept_files(container)
    saved = open_hf_weights(container)
    store = _with_prefix(saved, family)
    outputs = classifier_outputs(hf_config, store.tensors, where)
    config = _config(family, hf_config, files, container.path.resolve().name)
    config |= reward_settings(outputs)
    arch = replace(read_architecture(config, f"{where}: config.json"), num_attributes=outputs)
    shapes = expected_shapes(arch, arch.padded_vocab_size(vocab_size))
    plans = tensor_plans(family, arch)
    copies = _check_tensors(store, plans, shapes, arch, family, vocab_size)
    weights = MappedStore(store, plans, arch, shapes)
    main_dtype = weights.tensors[EMBEDDING].dtype
    config["precision"] = PRECISIONS.get(main_dtype, 32)
    config["nemoalign"]["original_dtype"] = main_dtype
    return Source(
        path=container.path,
        kind="hf",
        layout=saved.layout,
        config=config,
        stored_config=config,
        arch=arch,
        family=family,
        vocab_size=vocab_size,
        weights=weights,
        files=files,
        hf_config=hf_config,
        copies=copies,
        folder=folder,
    )


def _with_prefix(store: TensorStore, family: Family) -> TensorStore:
    """Return the tensors of a model that was saved without its head under the names it has with it."""
    prefix = family.hf_prefix
    if any(name.startswith(prefix) for name in store.tensors):
        return store
    heads = _head_names(family)
    names = {name if name in heads else prefix + name: name for name in store.tensors}
    return PlacedStore({full: Place(store, name) for full, name in names.items()})


def kept_files(container: Container) -> dict[str, Region]:
    """Return the files an archive keeps: the originals under ``hf/``, and NeMo's tokenizer artifact."""
    files = {f"{HF_FOLDER}{n}": container.members[n] for n in KEPT_FILES if n in container.members}
    if "tokenizer.model" in container.members:
        region = container.members["tokenizer.model"]
        digest = hashlib.sha256(region.read(MAX_FILE_BYTES)).hexdigest()[:32]
        files[f"{digest}_tokenizer.model"] = region
    return files


def registered_tokenizer(
    hf_config: Mapping[str, Any], files: dict[str, Region], name: str
) -> tuple[dict[str, Any], int | None]:
    """Return the ``tokenizer`` section for the kept ``files`` and the tokenizer's size if known.

    A ``.model`` file that NeMo cannot use is taken out of ``files`` (it stays under ``hf/``).
    """
    artifact = next((n for n in files if n.endswith("_tokenizer.model")), None)
    model = read_sentencepiece(files[artifact].read(MAX_FILE_BYTES)) if artifact else None
    section = tokenizer_section(model, artifact, hf_config, name)
    if artifact and section["model"] is None:
        del files[artifact]
    tokens = len(model.pieces) if model and section["model"] else None
    fast = files.get(f"{HF_FOLDER}tokenizer.json")
    if tokens is None and fast is not None:
        tokens = fast_tokenizer_size(fast.read(MAX_FILE_BYTES))
    return section, tokens


def _config(
    family: Family, hf_config: Mapping[str, Any], files: dict[str, Region], name: str
) -> dict[str, Any]:
    section, tokens = registered_tokenizer(hf_config, files, name)
    return nemo_config(family, hf_config, section, tokens)


def _check_tensors(
    store: TensorStore,
    plans: list[TensorPlan],
    shapes: Mapping[str, tuple[int, ...]],
    arch: Architecture,
    family: Family,
    vocab_size: int,
) -> TensorStore:
    """Compare names and shapes; return the tensors that repeat another one, under its name."""
    expected: dict[str, tuple[int, ...]] = {}
    for plan in plans:
        parts = plan.op.hf_shapes(shapes[plan.name], arch, vocab_size)
        expected.update(zip(plan.hf_names, parts, strict=True))
    copies = _tied_copies(store, plans, family, arch)
    unused = [n for n in store.tensors if n not in expected and not _ignored(n, family, copies)]
    missing = [name for name in expected if name not in store.tensors]
    if missing:
        raise ContentError(
            f'The model lacks "{missing[0]}", which its config.json asks for '
            f"({len(missing)} of {len(expected)} tensors are missing). Fetch it again."
        )
    if unused:
        raise ContentError(
            f'The model holds "{unused[0]}" and {len(unused) - 1} more tensors that no rule of '
            f"family {family.name} uses, so it is another model than its config.json says."
        )
    for name, shape in expected.items():
        if store.tensors[name].shape != shape:
            raise ShapeError(
                f'"{name}" has shape {list(store.tensors[name].shape)}, but config.json asks for '
                f"{list(shape)}. One of the two belongs to another model."
            )
    return PlacedStore({EMBEDDING: Place(store, copies[0])} if copies else {})


def _tied_copies(
    store: TensorStore, plans: list[TensorPlan], family: Family, arch: Architecture
) -> list[str]:
    """Return the head's name where a tied model saved it all the same."""
    if HEAD in {plan.name for plan in plans} or not arch.share_embeddings_and_output_weights:
        return []
    return [name for name in _head_names(family) if name in store.tensors]


def _head_names(family: Family) -> list[str]:
    """Return what the output layer is called."""
    return [name for rule in family.weights if rule.megatron == HEAD for name in rule.hf_names]


def _ignored(name: str, family: Family, copies: list[str]) -> bool:
    """True for buffers that old exports saved, whichever their layer."""
    words = name.split(".")
    pattern = ".".join("{i}" if word.isdigit() else word for word in words)
    return name in copies or pattern in family.ignored_hf
