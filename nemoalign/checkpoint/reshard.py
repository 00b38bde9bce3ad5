"""``nemoalign reshard``: any source to a ``.nemo`` for other numbers of ranks, names as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.sources.stores import JoinedStore
from nemoalign.checkpoint.targets.cut import Cut, ReshardOptions, cut_for
from nemoalign.checkpoint.targets.nemo import write_nemo
from nemoalign.checkpoint.targets.optimizer import optimizer_of
from nemoalign.checkpoint.targets.ranks import write_ranks
from nemoalign.checkpoint.targets.shards import all_tensors
from nemoalign.checkpoint.targets.writing import WriteOptions, check_target
from nemoalign.checkpoint.vit.commands import reshard_vit
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ConfigError, ContentError
from nemoalign.log import Reporter
from nemoalign.weights.spelling import Spelling, layers_of, spelling_of


def reshard(
    source: Path | str, target: Path | str, options: ReshardOptions, *, reporter: Reporter
) -> dict[str, Any]:
    """Write a checkpoint for other numbers of ranks and return the report kept beside it.

    Raises:
        ConfigError: when the model cannot be cut so; the sizes that work are named.
        SourceError, ContentError, ConflictError, VerificationError: as the exit codes say; nothing
            is left under the target's name then.
    """
    target = Path(target)
    writing = WriteOptions(verify=options.verify, overwrite=options.overwrite)
    opened = open_checkpoint(source)
    check_target(target, opened.path, writing)
    reporter.say(opened.describe())
    for warning in opened.warnings:
        reporter.warn(warning)
    if isinstance(opened, VitSource):
        if options.with_optimizer:
            raise ContentError(f"{opened.path} is a ViT, whose optimizer is not carried along.")
        return reshard_vit(opened, target, options, reporter)
    cut = cut_for(opened, tp=options.tp, pp=options.pp, ep=options.ep, vp=options.vp)
    everything = replace(opened, weights=all_tensors(opened))
    if _format(opened, options) == "dist":
        optimizer = optimizer_of(opened) if options.with_optimizer else None
        return write_nemo(everything, target, writing, reporter, cut, optimizer)
    _check_ranks(cut, options)
    return write_ranks(everything, target, cut, _spelling(opened), reporter, options.verify)


def _format(source: Source, options: ReshardOptions) -> str:
    """Return the form to write; an adapter alone is always ranks, since NeMo reads no other."""
    if options.format != "auto":
        return options.format
    if options.with_optimizer:
        return "dist"
    if source.is_adapter_only or isinstance(source.weights, JoinedStore):
        return "ranks"
    return "dist"


def _spelling(source: Source) -> Spelling:
    """Return the names of a source's ranks, or those that NeMo builds for its configuration."""
    store = all_tensors(source)
    if isinstance(store, JoinedStore):
        return spelling_of(store.keys)
    return Spelling(layers_of(source.arch, fused=bool(source.config.get("transformer_engine"))))


def _check_ranks(cut: Cut, options: ReshardOptions) -> None:
    """Refuse what rank files have no room for."""
    if options.with_optimizer:
        raise ConfigError(
            "--with-optimizer does not go with --format ranks: rank files of a .nemo hold weights "
            "alone. Use --format dist."
        )
    if cut.vp is not None:
        raise ConfigError(
            f"--vp {cut.vp} does not go with --format ranks: NeMo keeps the chunks of an interleaved "
            "pipeline apart in .ckpt files only, and reads no .nemo of them. Use --format dist, "
            "which every pipeline reads, or leave --vp away."
        )
    if cut.ep > 1:
        raise ConfigError(
            f"--ep {cut.ep} does not go with --format ranks: NeMo's directories are named by tensor "
            "and pipeline rank (tp_rank_00_pp_rank_000), so experts of different ranks would "
            "overwrite each other. Use --format dist, which any --ep reads, or leave --ep away."
        )
