"""``nemoalign convert``: any source to a ``.nemo`` in today's form, or to a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import open_checkpoint, open_source
from nemoalign.checkpoint.proof import refuse_logits, with_proof
from nemoalign.checkpoint.settings.tokenizer import with_tokenizer
from nemoalign.checkpoint.targets.adapter import write_adapter
from nemoalign.checkpoint.targets.hf import write_hf
from nemoalign.checkpoint.targets.nemo import write_nemo
from nemoalign.checkpoint.targets.nemo2 import write_nemo2
from nemoalign.checkpoint.targets.writing import WriteOptions, check_target
from nemoalign.checkpoint.vit.commands import convert_vit
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ConfigError
from nemoalign.log import Reporter

TARGETS = ("auto", "nemo", "nemo2", "hf")
"""What ``--to`` takes; ``auto`` goes by the suffix of the target."""


def convert(
    source: Path | str,
    target: Path | str,
    options: WriteOptions | None = None,
    *,
    to: str = "auto",
    base: Path | str | None = None,
    reporter: Reporter,
) -> dict[str, Any]:
    """Convert a checkpoint and return the report that is also written to ``conversion.json``.

    ``base`` is the model a PEFT adapter was trained on, when it is not where the adapter says.

    Raises:
        SourceError, ContentError, ConflictError, VerificationError: as the exit codes say; nothing
            is left under the target's name then.
    """
    options = options or WriteOptions()
    if to not in TARGETS:
        raise ConfigError(f"--to is {to}; use one of {', '.join(TARGETS)}.")
    target = Path(target)
    opened = open_checkpoint(source, None if base is None else open_source(base))
    check_target(target, opened.path, options)
    reporter.say(opened.describe())
    if isinstance(opened, VitSource):
        refuse_logits(options, "a ViT")
        return convert_vit(opened, target, options, reporter, to, base)
    opened = with_tokenizer(opened, options.tokenizer)
    for warning in opened.warnings:
        reporter.warn(warning)
    write_as_nemo = to == "nemo" or (to == "auto" and target.suffix == ".nemo")
    if write_as_nemo and opened.is_adapter_only:
        refuse_logits(options, "an adapter alone")
        return write_adapter(opened, target, options, reporter)
    merged = with_adapter(opened, None, target)
    sides = {"path": str(source), "base": None if base is None else str(base)}
    options = with_proof(options, merged, sides, reporter)
    write = write_nemo if write_as_nemo else write_nemo2 if to == "nemo2" else write_hf
    return write(merged, target, options, reporter)
