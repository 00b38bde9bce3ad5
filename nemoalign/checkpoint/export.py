"""``nemoalign export``: any source to a Hugging Face directory, its LoRA adapter merged or alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoalign.checkpoint.open import open_checkpoint, open_source
from nemoalign.checkpoint.proof import refuse_logits, with_proof
from nemoalign.checkpoint.settings.adapter import MergedStore, find_base
from nemoalign.checkpoint.settings.reward import with_trained_head
from nemoalign.checkpoint.settings.tokenizer import with_tokenizer
from nemoalign.checkpoint.settings.values import section, text
from nemoalign.checkpoint.sources.source import AdapterInfo, Source
from nemoalign.checkpoint.targets.hf import write_hf
from nemoalign.checkpoint.targets.peft import write_peft
from nemoalign.checkpoint.targets.writing import WriteOptions, check_target
from nemoalign.checkpoint.vit.commands import export_vit
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ContentError, SourceError
from nemoalign.log import Reporter


def export(
    source: Path | str,
    target: Path | str,
    options: WriteOptions | None = None,
    *,
    adapter: Path | str | None = None,
    adapter_only: bool = False,
    reporter: Reporter,
) -> dict[str, Any]:
    """Write a checkpoint as a Hugging Face directory and return the report kept in it.

    ``adapter`` is a LoRA adapter, a ``.nemo`` or a PEFT directory, to merge into the source. A source
    that is itself an adapter is merged into the base it was trained on. With ``adapter_only`` the
    adapter is written, as PEFT keeps it, and not the model.

    Raises:
        SourceError, ContentError, ConflictError, VerificationError: as the exit codes say; nothing
            is left under the target's name then.
    """
    options = options or WriteOptions()
    target = Path(target)
    opened = open_checkpoint(source)
    check_target(target, opened.path, options)
    reporter.say(opened.describe())
    if isinstance(opened, VitSource):
        refuse_logits(options, "a ViT")
        return export_vit(opened, target, options, reporter, "" if adapter_only else adapter)
    given = None if adapter is None else open_source(adapter, opened)
    if adapter_only:
        refuse_logits(options, "an adapter alone")
        return write_peft(given or opened, target, options, reporter)
    merged = with_adapter(opened, given, target)
    if merged.adapter is not None:
        rank, scale = merged.adapter.dim, merged.adapter.scale
        reporter.say(f"Merging the adapter of rank {rank}, scale {scale:g}, into {merged.path}.")
    merged = with_tokenizer(merged, options.tokenizer)
    for warning in merged.warnings:
        reporter.warn(warning)
    sides = {"path": str(source), "adapter": None if adapter is None else str(adapter)}
    options = with_proof(options, merged, sides, reporter)
    return write_hf(merged, target, options, reporter)


def with_adapter(source: Source, adapter: Source | None, target: Path) -> Source:
    """Return ``source`` with an adapter merged: the one given, its own, or itself into its base.

    Raises:
        SourceError: when an adapter's base is not to be found.
        ContentError: when the two do not belong together.
    """
    if adapter is not None:
        if adapter.adapter is None:
            raise ContentError(
                f"{adapter.path} holds no LoRA adapter; it is a whole model. Leave --adapter away."
            )
        if source.is_adapter_only:
            raise ContentError(f"{source.path} is an adapter itself; give its base model as SRC.")
        return _merged(source, adapter.adapter, adapter)
    if source.is_adapter_only:
        base = _base_of(source, target)
        assert source.adapter is not None
        return _merged(base, source.adapter, source)
    if source.adapter is not None:
        return _merged(source, source.adapter, source)
    return source


def _merged(base: Source, adapter: AdapterInfo, told_by: Source) -> Source:
    """Return ``base`` with merged weights and what the fine-tuning recorded: its prompt template."""
    base = with_trained_head(base, told_by)
    told: dict[str, Any] = (
        {"data": told_by.stored_config["data"]} if told_by.stored_config.get("data") else {}
    )
    trained_with = text(section(told_by.stored_config, "tokenizer"), "chat_template")
    if trained_with is not None:
        known = section(base.stored_config, "tokenizer")
        told["tokenizer"] = {**known, "chat_template": trained_with}
    if base.stored_config.get("peft"):
        told["peft"] = base.stored_config["peft"] | {"peft_scheme": "none"}
    return replace(
        base,
        weights=MergedStore(base.weights, adapter, base.arch),
        config=base.config | told,
        stored_config=base.stored_config | told,
        adapter=adapter,
    )


def _base_of(source: Source, target: Path) -> Source:
    """Return the base model an adapter records: its path as it is, then beside the adapter."""
    recorded = source.adapter.base if source.adapter else None
    path = find_base(recorded, source.path)
    if path is not None:
        # An adapter trained on top of another one starts from what that one made.
        return with_adapter(open_source(path), None, target)
    found = f'its base "{recorded}" is not there' if recorded else "it does not say of which base"
    raise SourceError(
        f"{source.path} is a LoRA adapter, and {found}. Name the base: "
        f"nemoalign export BASE --adapter {source.path} -o {target}"
    )
