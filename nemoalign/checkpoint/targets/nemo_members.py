"""What every ``.nemo`` holds beside its weights: settings for its layout, and the tokenizer's files."""

from __future__ import annotations

from typing import Any

from nemoalign.archive.sink import Sink
from nemoalign.checkpoint.settings.nemo_config import PRECISIONS, provenance
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES, real_vocabulary
from nemoalign.checkpoint.sources.nemo import CONFIG_NAME
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.cut import WHOLE, Cut
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config


def settings_for(
    source: Source, options: WriteOptions, cut: Cut = WHOLE, *, legacy: bool = False
) -> dict[str, Any]:
    """Return model_config.yaml: the source's own, unknown fields included, for the layout ``cut``.

    ``legacy`` describes NeMo's own GPT from before megatron-core, as the source was.
    """
    main = source.dtypes[0]
    written = options.written_dtype(main)
    config: dict[str, Any] = {**source.stored_config, "mcore_gpt": True}
    if legacy:
        assert source.legacy_config is not None, "legacy names come from a legacy source"
        config = dict(source.legacy_config)
    config |= cut.settings(config)
    if written != main or "precision" not in config:
        config["precision"] = PRECISIONS.get(written, 32)
    known = real_vocabulary(source.config, source.hf_config, source.files)
    if source.arch.override_vocab_size is not None and source.vocab_size:
        config["override_vocab_size"] = source.arch.padded_vocab_size(source.vocab_size, cut.tp)
    ours = provenance(source.family, known) | {"dtype": written}
    return config | {"nemoalign": (config.get("nemoalign") or {}) | ours}


def write_members(sink: Sink, source: Source, config: dict[str, Any]) -> None:
    """Write model_config.yaml and the source's files."""
    sink.add_bytes(CONFIG_NAME, dump_checkpoint_config(config).encode())
    if any("/" in name for name in source.files):
        sink.add_directory("hf")
    for name, region in source.files.items():
        sink.add_bytes(name, region.read(MAX_FILE_BYTES))
