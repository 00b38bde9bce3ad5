"""What the commands that move weights do with a ViT instead of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.checkpoint.vit.forms import second_generation
from nemoalign.checkpoint.vit.hf_target import write_vit_hf
from nemoalign.checkpoint.vit.nemo_target import write_vit_nemo
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ConfigError
from nemoalign.log import Reporter

if TYPE_CHECKING:
    from nemoalign.checkpoint.targets.cut import ReshardOptions


def export_vit(
    source: VitSource,
    target: Path,
    options: WriteOptions,
    reporter: Reporter,
    adapter: Path | str | None = None,
) -> dict[str, Any]:
    """Write a ViT as a Hugging Face directory; raises as ``write_vit_hf`` does."""
    _refuse_flags({"--tokenizer": options.tokenizer, "--adapter": adapter})
    _warn(source, reporter)
    return write_vit_hf(source, target, options, reporter)


def convert_vit(
    source: VitSource,
    target: Path,
    options: WriteOptions,
    reporter: Reporter,
    to: str,
    base: Path | str | None = None,
) -> dict[str, Any]:
    """Write a ViT as a ``.nemo`` or a Hugging Face directory.

    A ``.nemo`` keeps the source's generation, the first for Hugging Face's, bit for bit; ``nemo2``
    asks for the second one, which NeMo 2.0 and later read.
    """
    _refuse_flags({"--tokenizer": options.tokenizer, "--base": base})
    _warn(source, reporter)
    if to == "hf" or (to == "auto" and target.suffix != ".nemo"):
        return write_vit_hf(source, target, options, reporter)
    if to == "nemo2":
        form = second_generation(source)
        for note in form.notes:
            reporter.warn(note)
        return write_vit_nemo(form.source, target, options, reporter, notes=form.notes)
    if source.arch.generation == 1:
        reporter.say("Written as NeMo 1.23 reads it; --to nemo2 is for NeMo 2.0 and later.")
    return write_vit_nemo(source, target, options, reporter)


def reshard_vit(
    source: VitSource, target: Path, options: ReshardOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write a ViT for other tensor-parallel ranks; it has no other axis and no other form.

    Raises:
        ConfigError: for any other axis or form, and for a size that does not divide.
    """
    flags = {"--pp": options.pp, "--ep": options.ep, "--vp": options.vp or 1}
    for flag, size in flags.items():
        if size != 1:
            raise ConfigError(
                f"{flag} is {size}, but NeMo cuts a ViT for tensor-parallel ranks only. Leave "
                f"{flag} away."
            )
    if options.format == "dist":
        raise ConfigError(
            "--format is dist, but NeMo keeps a ViT in a file for every rank only. Leave it away."
        )
    writing = WriteOptions(verify=options.verify, overwrite=options.overwrite)
    return write_vit_nemo(source, target, writing, reporter, tp=options.tp)


def _refuse_flags(given: dict[str, Any]) -> None:
    flags = [flag for flag, value in given.items() if value is not None]
    if flags:
        raise ConfigError(f"A ViT has neither tokenizer nor adapter. Leave {flags[0]} away.")


def _warn(source: VitSource, reporter: Reporter) -> None:
    for warning in source.warnings:
        reporter.warn(warning)
