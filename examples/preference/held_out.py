"""Print how a dpo or kto run judged rows it never learned from, and fail unless it got better at that.

Usage: held_out.py METRICS.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

WIDTH = 20
"""Characters of the longest bar."""

SHOWN = ("val_loss", "val_accuracy", "val_rewards_chosen", "val_rewards_rejected")


def main(metrics: Path) -> None:
    """Print the table of the run's validations; stop with an error unless the last margin is above the first."""
    lines = validations(metrics)
    if len(lines) < 2:
        sys.exit(f"{metrics} has {len(lines)} validations, and two are needed: before and after.")
    margins = {step: margin(line) for step, line in lines.items()}
    names = [name for name in SHOWN if all(name in line for line in lines.values())]
    head = ["step", *(name.removeprefix("val_").replace("_", " ") for name in names), "margin", ""]
    print("Held-out rows:\n")
    print(table(head, [row(step, lines[step], names, margins) for step in sorted(lines)]))
    first, last = margins[min(margins)], margins[max(margins)]
    print(f"\nThe margin of the held-out rows went from {first:.4f} to {last:.4f}.")
    if not last > first:
        sys.exit("It did not rise, as this example promises.")


def validations(metrics: Path) -> dict[int, dict[str, float]]:
    """Return the validation of each step; of a repeated step the last line counts."""
    lines = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return {line["step"]: line for line in lines if line["split"] == "val"}


def margin(line: dict[str, float]) -> float:
    """Return by how much wanted answers are rewarded above unwanted ones."""
    return line["val_rewards_chosen"] - line["val_rewards_rejected"]


def row(
    step: int, line: dict[str, float], names: list[str], margins: dict[int, float]
) -> list[str]:
    """Return one line of the table; the bar is the margin beside the largest."""
    most = max(max(margins.values()), 1e-9)
    bar = "█" * round(WIDTH * max(margins[step], 0) / most)
    return [str(step), *(f"{line[name]:.4f}" for name in names), f"{margins[step]:.4f}", bar]


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
