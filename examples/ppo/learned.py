"""Print what a ppo run's rewards were, sampled and held out, and fail unless held-out answers got better.

Usage: learned.py METRICS.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH = 20
"""Characters of the longest bar."""


def main(metrics: Path) -> None:
    """Print a line for each step; stop with an error unless the last validation is above the first."""
    sampled = by_step(metrics, "train")
    held_out = by_step(metrics, "val")
    if len(held_out) < 2:
        sys.exit(
            f"{metrics} has {len(held_out)} validations, and two are needed: before and after."
        )
    head = ["step", "reward of samples", "", "tokens", "ended", "held-out reward"]
    print(table(head, [row(step, sampled, held_out) for step in sorted({*sampled, *held_out})]))
    first, last = (held_out[step]["val_reward"] for step in (min(held_out), max(held_out)))
    print(f"\nThe reward of held-out prompts went from {first:.3f} to {last:.3f}.")
    if not last > first:
        sys.exit("It did not rise, as this example promises.")


def by_step(metrics: Path, split: str) -> dict[int, dict[str, float]]:
    """Return the lines of a split by step; of a repeated step the last line counts."""
    lines = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


def row(
    step: int, sampled: dict[int, dict[str, float]], held_out: dict[int, dict[str, float]]
) -> list[str]:
    """Return one line of the table."""
    own, other = sampled.get(step), held_out.get(step)
    shown = ["", "", "", ""]
    if own is not None:
        bar = "█" * round(WIDTH * own["reward"])
        shown = [
            f"{own['reward']:.3f}", bar, f"{own['response_tokens']:.1f}", f"{own['finished']:.0%}",
        ]  # fmt: skip
    return [str(step), *shown, "" if other is None else f"{other['val_reward']:.3f}"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
