"""What a run leaves when it is done: its archive, the other forms it was asked for, the summary."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.sources.nemo import CONFIG_NAME
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.log import speaking_rank
from nemoalign.run.assemble import archive_prefix, run_directory
from nemoalign.train.agreement import Attempt
from nemoalign.train.rotation import find_last

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.log import Reporter
    from nemoalign.run.prepare import Prepared
    from nemoalign.train.loop import Trainer

REPLACING = WriteOptions(overwrite=True)


def finish(
    merged: Merged,
    made: Prepared,
    trainer: Trainer,
    summary: dict[str, Any],
    reporter: Reporter,
) -> dict[str, Any]:
    """Turn the last checkpoint into what the run leaves, on rank 0; return the summary. Collective.

    Raises:
        ResourceError: on every rank, when the disk had no room for it.
    """
    prefix = archive_prefix(merged)
    archive = prefix.with_name(f"{prefix.name}.nemo")
    if trainer.settings.max_steps > 0:
        summary["archive"] = str(archive)
    last = find_last(run_directory(merged.config) / "checkpoints")
    others = {} if last is None else _others(last, prefix)
    summary |= {f"{home.name}_archive": str(other) for home, other in others.items()}
    empty = made.inputs.empty_rows()
    if empty:
        text = f"{empty:,} rows had no answer token left and trained nothing."
        summary["warnings"].append(text)
        reporter.warn(text)
    attempt = Attempt()
    if speaking_rank():
        if last is not None:
            attempt.run(partial(_write, merged, last, archive, reporter))
        for home, other in others.items():
            attempt.run(partial(convert, home, other, REPLACING, reporter=reporter))
        assert trainer.records is not None, "rank 0 keeps the records"
        attempt.run(partial(trainer.records.finish, summary))
    attempt.agree()
    return summary


def _others(checkpoint: Path, prefix: Path) -> dict[Path, Path]:
    """Return the models a checkpoint holds beside its own, as a critic, with their archives' names."""
    homes = sorted(config.parent for config in checkpoint.glob(f"*/{CONFIG_NAME}"))
    return {home: prefix.with_name(f"{prefix.name}_{home.name}.nemo") for home in homes}


def _write(merged: Merged, last: Path, archive: Path, reporter: Reporter) -> None:
    convert(last, archive, REPLACING, reporter=reporter)
    peft = merged.config.model.peft
    if peft.peft_scheme == "none":
        return
    alone, whole = (archive.with_name(f"{archive.stem}-{form}") for form in ("peft", "merged"))
    if peft.save_peft:
        export(archive, alone, REPLACING, adapter_only=True, reporter=reporter)
    if peft.save_merged:
        export(archive, whole, REPLACING, reporter=reporter)
    else:
        typed = shlex.join(["nemoalign", "export", str(archive), "--merge", "-o", str(whole)])
        reporter.say(f"the adapter alone is saved; to merge it into its model: {typed}")
