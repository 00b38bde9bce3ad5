"""The commands that move weights from one form to another: convert and export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nemoalign.cli import flags
from nemoalign.cli.spec import CommandSpec, Positional, Talk
from nemoalign.config.fields import own_settings, setting

if TYPE_CHECKING:
    from nemoalign.checkpoint.targets.writing import WriteOptions
    from nemoalign.log import Reporter

PANEL = "Checkpoints"
OUTPUT = "Input and output"
TARGET = "What is written"

SOURCE = Positional(
    name="source",
    metavar="SRC",
    help="A .nemo file, an unpacked one, a Hugging Face directory or a run; which it is, its content "
    "tells.",
    path_kind="any",
)


@dataclass(frozen=True, kw_only=True)
class OutputFlags(Talk):
    """What every command shares that writes a checkpoint."""

    out: Path = setting(
        None,
        "What to write.",
        flag="--out",
        short="-o",
        metavar="DST",
        path_kind="any",
        shown=flags.REQUIRED,
        panel=OUTPUT,
    )
    overwrite: bool = setting(
        False, "Replace DST when it exists.", flag="--overwrite", panel=OUTPUT
    )
    dry_run: bool = setting(
        False,
        "Say what would be written, with memory and time, and write nothing.",
        flag="--dry-run",
        short="-n",
        panel=OUTPUT,
    )
    verify: Literal["none", "hash", "logits"] = setting(
        "hash",
        "Read the output back and compare every tensor; logits also runs both sides.",
        flag="--verify",
        panel=TARGET,
    )


@dataclass(frozen=True, kw_only=True)
class WriteFlags(OutputFlags):
    """What convert and export share."""

    dtype: Literal["keep", "fp32", "bf16", "fp16"] = setting(
        "keep", "Element type of the weights.", flag="--dtype", panel=TARGET
    )
    tokenizer: Path | None = setting(
        None,
        "Tokenizer to embed, a file or a Hugging Face directory.",
        flag="--tokenizer",
        path_kind="any",
        shown="the source's",
        panel=TARGET,
    )

    def options(self) -> WriteOptions:
        """Return the flags as the checkpoint room takes them."""
        from nemoalign.checkpoint.targets.writing import WriteOptions

        return WriteOptions(
            dtype=self.dtype,
            verify=self.verify,
            overwrite=self.overwrite,
            tokenizer=self.tokenizer,
        )


@dataclass(frozen=True, kw_only=True)
class ConvertFlags(WriteFlags):
    """Flags of convert."""

    to: Literal["auto", "nemo", "nemo2", "hf"] = setting(
        "auto",
        "Form of DST.",
        flag="--to",
        shown="auto, .nemo if DST ends so, else Hugging Face",
        panel=TARGET,
    )
    base: Path | None = setting(
        None,
        "Base model of a PEFT adapter.",
        flag="--base",
        path_kind="any",
        shown="the one it records",
        panel=OUTPUT,
    )


@dataclass(frozen=True, kw_only=True)
class ExportFlags(WriteFlags):
    """Flags of export."""

    to: Literal["hf"] = setting("hf", "Form of DST.", flag="--to", panel=TARGET)
    adapter: Path | None = setting(
        None,
        "LoRA adapter, a .nemo or a PEFT directory.",
        flag="--adapter",
        path_kind="any",
        shown="the source's own",
        panel=TARGET,
    )
    merge: bool = setting(
        True,
        "Merge the adapter into the weights, or write it alone, as PEFT keeps it.",
        flag="--merge/--adapter-only",
        shown="merge",
        panel=TARGET,
    )


def convert(typed: Mapping[str, Any]) -> None:
    """Convert a checkpoint to a .nemo file or a Hugging Face directory."""
    known = flags.read(ConvertFlags, typed)

    from nemoalign.checkpoint.convert import convert as convert_checkpoint

    def write(reporter: Reporter) -> dict[str, Any]:
        return convert_checkpoint(
            typed["source"],
            known.out,
            known.options(),
            to=known.to,
            base=known.base,
            reporter=reporter,
        )

    write_or_plan(typed["source"], known, write)


def export(typed: Mapping[str, Any]) -> None:
    """Write a checkpoint as a Hugging Face directory, adapters merged or alone."""
    known = flags.read(ExportFlags, typed)

    from nemoalign.checkpoint.export import export as export_checkpoint

    def write(reporter: Reporter) -> dict[str, Any]:
        return export_checkpoint(
            typed["source"],
            known.out,
            known.options(),
            adapter=known.adapter,
            adapter_only=not known.merge,
            reporter=reporter,
        )

    write_or_plan(typed["source"], known, write)


def write_or_plan(
    source: str, known: OutputFlags, write: Callable[[Reporter], dict[str, Any]]
) -> None:
    """Write a checkpoint and show the report, or with --dry-run what it would be."""
    from nemoalign.cli import show

    reporter = show.make_reporter(quiet=known.quiet)
    if not known.dry_run:
        show_written(write(reporter), known)
        return

    from nemoalign.checkpoint.plan import plan

    found = plan(Path(source), known.out, write, reporter, verify=known.verify)
    if known.json:
        show.document(found)
        return
    amounts = {
        name: show.amount_of(found[f"{name}_bytes"], "bytes") for name in ("disk_free", "memory")
    }
    size = show.amount_of(found["bytes"], "bytes")
    show.emit(
        f"{known.out} would take {size} (free: {amounts['disk_free']}), at most "
        f"{amounts['memory']} of memory and about {found['seconds']:.1f} s. Nothing was written."
    )


def show_written(report: Mapping[str, Any], known: OutputFlags) -> None:
    """Show a conversion report on stdout: one line, or with --json all of it."""
    from nemoalign.cli import show

    if known.json:
        show.document(report)
        return
    size = show.amount_of(report["bytes"], "bytes")
    checked = "not verified" if known.verify == "none" else f"verified by {known.verify}"
    show.emit(
        f"{known.out}: {size}, {len(report['tensors'])} tensors, {checked}, "
        f"{report['seconds']:.1f} s"
    )


COMMANDS = (
    CommandSpec(
        name="convert",
        summary="Turn any checkpoint into a .nemo file of today's form, or a Hugging Face directory.",
        panel=PANEL,
        example="SmolLM2-135M-Instruct/ -o m.nemo",
        positional=SOURCE,
        entries=own_settings(ConvertFlags),
        run=convert,
    ),
    CommandSpec(
        name="export",
        summary="Write any checkpoint as a Hugging Face directory that transformers loads.",
        panel=PANEL,
        example="run/ -o hf/ --merge",
        more_examples=("adapter.nemo -o peft/ --adapter-only",),
        positional=SOURCE,
        entries=own_settings(ExportFlags),
        run=export,
    ),
)
