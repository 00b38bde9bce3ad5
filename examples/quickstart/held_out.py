"""Say by how much the loss on held-out rows fell; fail if too little, or if a row was not held out.

Usage: held_out.py METRICS.jsonl TRAIN.jsonl VAL.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fetch import prompt_hash

LEAST_FALL = 0.05
"""Nats per token."""


def main(metrics: Path, train: Path, val: Path) -> None:
    """Print the two losses and their difference; stop with an error unless it is real and large enough."""
    seen, held_out = row_hashes(train), row_hashes(val)
    if shared := seen & held_out:
        sys.exit(
            f"{len(shared)} of the rows of {val} are also in {train}, so they are not held out."
        )
    losses = validation_losses(metrics)
    if len(losses) < 2:
        sys.exit(
            f"{metrics} has {len(losses)} validation losses, and two are needed: before and after."
        )
    before, after = losses[min(losses)], losses[max(losses)]
    print(
        f"Held-out loss: {before:.4f} before, {after:.4f} after {max(losses)} steps: it fell by "
        f"{before - after:.4f} nats per token ({len(held_out)} rows, none of the {len(seen)} training rows)."
    )
    if not before - after >= LEAST_FALL:
        sys.exit(f"That is less than the {LEAST_FALL} this example promises.")


def row_hashes(path: Path) -> set[str]:
    """Return the hashes of the questions of a file of messages."""
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {prompt_hash(row["messages"][0]["content"]) for row in rows}


def validation_losses(metrics: Path) -> dict[int, float]:
    """Return the validation loss of each step; of a repeated step the last line counts."""
    lines = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["val_loss"] for line in lines if line["split"] == "val"}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
