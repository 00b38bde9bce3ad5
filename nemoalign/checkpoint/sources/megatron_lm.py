"""Open a checkpoint of Megatron-LM itself: torch_dist with bare keys, and ``args`` that say what it is.

A run keeps ``iter_0001000/`` folders and the number of the last one in a text file. The arguments are
an ``argparse.Namespace`` in ``common.pt``, read as data; they have megatron-core's names where those
exist, so they are read as NeMo 2's configuration is, after a few of their own are renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoalign.archive.dist import COMMON_NAME, FORMAT_NAME
from nemoalign.archive.files import Container
from nemoalign.archive.stand_ins import Record
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.settings.nemo2_config import nemo_fields
from nemoalign.checkpoint.settings.nemo_config import PRECISIONS, tokenizer_section, with_settings
from nemoalign.checkpoint.settings.values import read_architecture, text
from nemoalign.checkpoint.sources.layouts import dist_weights
from nemoalign.checkpoint.sources.nemo import Settings, assemble
from nemoalign.checkpoint.sources.nemo2_context import TARGET
from nemoalign.checkpoint.sources.source import EMBEDDING, Source
from nemoalign.errors import SourceError

TRACKER_NAME = "latest_checkpointed_iteration.txt"

_RENAMED = {
    "rotary_seq_len_interpolation_factor": "seq_len_interpolation_factor",
    "num_experts": "num_moe_experts",
    "apply_layernorm_1p": "layernorm_zero_centered_gamma",
    "norm_epsilon": "layernorm_epsilon",
    "swiglu": "gated_linear_unit",
}
"""Arguments that megatron-core has under another name."""

_FUNCTIONS = {
    "swiglu": "silu",
    "squared_relu": "squared_relu",
    "quick_geglu": "quick_gelu",
    "openai_gelu": "openai_gelu",
}
"""Switches that choose the activation; gelu without any."""

_ROPE_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "old_context_len": 8192}
"""What ``--use-rope-scaling`` fixes in megatron-core."""


def last_iteration(run: Path) -> Path | None:
    """Return the folder of the iteration that a Megatron-LM run last completed, or None.

    Raises:
        SourceError: when the run names one that is not there.
    """
    tracker = run / TRACKER_NAME
    if not tracker.is_file():
        return None
    with tracker.open("rb") as file:
        named = file.read(64).decode("ascii", "replace").strip()
    if named != "release" and not re.fullmatch(r"\d{1,12}", named):
        raise SourceError(f"{tracker} holds {named[:40]!r}, which is no iteration. Name a folder.")
    folder = run / (named if named == "release" else f"iter_{int(named):07d}")
    if not (folder / FORMAT_NAME).is_file():
        raise SourceError(
            f"{run} says that {folder.name} is its last checkpoint, but that is not there as a "
            f"distributed checkpoint ({FORMAT_NAME}). Name another iter_ folder."
        )
    return folder


def read_arguments(container: Container) -> dict[str, Any] | None:
    """Return the arguments that a Megatron-LM checkpoint records, None for any other checkpoint."""
    if FORMAT_NAME not in container.members or COMMON_NAME not in container.members:
        return None
    where = f"{container.path}: {COMMON_NAME}"
    match TorchFile(container.member(COMMON_NAME), where).tree:
        case {"args": Record(kind="Namespace", fields=fields)}:
            return {name: value for name, value in fields.items() if _is_plain(value)}
        case _:
            return None


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list | tuple)


def open_megatron_lm(
    container: Container, arguments: Mapping[str, Any], folder: Path | None = None
) -> Source:
    """Return the checkpoint of one iteration.

    Raises:
        SourceError: when parts are missing or damaged.
        ContentError: when tensors and arguments disagree or are not supported.
    """
    where = f"{container.path}: the arguments in {COMMON_NAME}"
    fields = nemo_fields({"config": megatron_config(arguments)}, where)
    weights = dist_weights(container, read_architecture(fields, where))
    name = text(arguments, "tokenizer_model") or ""
    stored = with_settings(fields, tokenizer_section(None, None, {}, name)) | fields
    stored["precision"] = PRECISIONS.get(weights.model.tensors[EMBEDDING].dtype, 32)
    sizes = {
        size: arguments[size]
        for size in ("tensor_model_parallel_size", "pipeline_model_parallel_size")
        if arguments.get(size)
    }
    resolved = {**stored, **sizes, "target": None, "nemo_version": None}
    settings = Settings(where, stored, resolved)
    source = assemble(container.path, "megatron-lm", settings, lambda _: weights, {})
    return replace(source, folder=folder)


def megatron_config(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return Megatron-LM's arguments in the words of megatron-core's configuration."""
    config = dict(arguments)
    config |= {new: arguments[old] for old, new in _RENAMED.items() if old in arguments}
    if not arguments.get("group_query_attention"):
        config["num_query_groups"] = None
    chosen = [name for switch, name in _FUNCTIONS.items() if arguments.get(switch)]
    config["activation_func"] = {TARGET: f"megatron.{chosen[0] if chosen else 'gelu'}"}
    if arguments.get("quick_geglu"):
        config["gated_linear_unit"] = True
    fusion = "bias_swiglu_fusion" if arguments.get("swiglu") else "bias_gelu_fusion"
    config["bias_activation_fusion"] = arguments.get(fusion, False)
    untied = arguments.get("untie_embeddings_and_output_weights", False)
    config["share_embeddings_and_output_weights"] = not untied
    if arguments.get("use_rotary_position_embeddings"):
        config["position_embedding_type"] = "rope"
    if config.get("position_embedding_type", "learned_absolute") == "learned_absolute":
        config["seq_length"] = arguments.get("max_position_embeddings")
    if arguments.get("use_rope_scaling"):
        config |= {"scale_factor": arguments.get("rope_scaling_factor", 8.0), **_ROPE_SCALING}
    # The arguments' own size is the tokenizer's or a guess, never the rows of the embedding.
    config["vocab_size"] = None
    return config
