"""The command that rewrites a checkpoint for other numbers of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nemoalign.cli import flags
from nemoalign.cli.checkpoint import PANEL, SOURCE, TARGET, OutputFlags, write_or_plan
from nemoalign.cli.spec import CommandSpec
from nemoalign.config.fields import own_settings, setting

if TYPE_CHECKING:
    from nemoalign.log import Reporter

LAYOUT = "Layout"


@dataclass(frozen=True, kw_only=True)
class ReshardFlags(OutputFlags):
    """Flags of reshard."""

    tp: int = setting(
        None, "Tensor-parallel ranks.", flag="--tp", shown=flags.REQUIRED, at_least=1, panel=LAYOUT
    )
    pp: int = setting(1, "Pipeline stages.", flag="--pp", at_least=1, panel=LAYOUT)
    ep: int = setting(1, "Expert-parallel ranks.", flag="--ep", at_least=1, panel=LAYOUT)
    vp: int | None = setting(
        None, "Model chunks a stage.", flag="--vp", at_least=1, shown="none", panel=LAYOUT
    )
    verify: Literal["none", "hash"] = setting(
        "hash", "Read the output back and compare every tensor.", flag="--verify", panel=TARGET
    )
    format: Literal["auto", "dist", "ranks"] = setting(
        "auto",
        "One directory that any number of ranks reads, or a file per rank.",
        flag="--format",
        shown="the source's",
        panel=TARGET,
    )
    with_optimizer: bool = setting(
        False,
        "Carry the optimizer's state of a training checkpoint along.",
        flag="--with-optimizer",
        panel=TARGET,
    )


def reshard(typed: Mapping[str, Any]) -> None:
    """Rewrite a checkpoint for other tensor and pipeline parallel sizes."""
    known = flags.read(ReshardFlags, typed)

    from nemoalign.checkpoint.reshard import reshard as reshard_checkpoint
    from nemoalign.checkpoint.targets.cut import ReshardOptions

    options = ReshardOptions(
        tp=known.tp,
        pp=known.pp,
        ep=known.ep,
        vp=known.vp,
        format=known.format,
        with_optimizer=known.with_optimizer,
        verify=known.verify,
        overwrite=known.overwrite,
    )

    def write(reporter: Reporter) -> dict[str, Any]:
        return reshard_checkpoint(typed["source"], known.out, options, reporter=reporter)

    write_or_plan(typed["source"], known, write)


COMMANDS = (
    CommandSpec(
        name="reshard",
        summary="Rewrite a checkpoint for other numbers of tensor and pipeline parallel ranks.",
        panel=PANEL,
        example="m.nemo -o tp8.nemo --tp 8 --format ranks",
        positional=SOURCE,
        entries=own_settings(ReshardFlags),
        run=reshard,
    ),
)
