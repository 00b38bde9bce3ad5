"""Generated tokens per second of nemoalign's engine beside transformers' ``generate``.

Both sides continue the same real prompts with the same weights, dtype and threads, greedily, with cached keys, in
one process, in turn. A row gets as many tokens as its real answer has ("mixed", at most --longest), or all get
--longest ("equal", where refilled slots gain nothing). Only the tokens asked for count. transformers' batch is padded
on the left and runs until its longest row ends, as it does for a user. Tokens must agree; a row that parts from the
other side's at a near tie is counted and shown, and more than a tenth of them stops the benchmark.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side import CACHE, in_turn, median, publish, ratio, table

OURS, THEIRS = "nemoalign", "transformers"
SHORTEST_PROMPT, LONGEST_PROMPT, SHORTEST = 8, 200, 16

Asked = list[tuple[list[int], int]]
"""Prompts, and how many tokens follow each."""


def main() -> None:
    """Measure every batch size and kind of row; publish generation_speed_NAME.json and .md."""
    options = parser().parse_args()
    if options.quick:
        options.batches, options.rounds, options.longest = [1, 8], 1, 32
    import torch

    torch.set_num_threads(options.threads)
    from generation_sides import opened

    rows = read(options)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with opened(options.model, options.precision) as sides:
        for batch in options.batches:
            for kind in ("mixed", "equal")[: min(batch, 2)]:
                asked = chosen(rows, batch, kind, options)
                calls = {
                    name: partial(measured, side, asked, batch) for name, side in sides.items()
                }
                results = in_turn(calls, options.rounds)
                check(results)
                found[f"{batch}, {kind}"] = results
    setting = {name: str(value) for name, value in vars(options).items()}
    content = {"setting": setting, "lines": found}
    publish(f"generation_speed_{options.name}", content, markdown(found, options))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--name", default="fp32", help="of the published files")
    made.add_argument("--model", type=Path, default=CACHE / "SmolLM2-135M-Instruct")
    made.add_argument("--rows", type=Path, default=CACHE / "train.jsonl")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], metavar="ROWS")
    made.add_argument("--longest", type=int, default=128, help="tokens of an answer at most")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--quick", action="store_true", help="a few rows once, to see that it runs")
    return made


def read(options: argparse.Namespace) -> Asked:
    """Return the file's prompts with the lengths of their answers."""
    from rows import read_rows
    from transformers import AutoTokenizer

    if not options.model.exists():
        sys.exit(f"{options.model} is not there: run python examples/quickstart/fetch.py.")
    rows = read_rows(options.rows, AutoTokenizer.from_pretrained(options.model))
    return [
        (row.tokens[: -row.targets], min(row.targets, options.longest))
        for row in rows
        if row.targets >= SHORTEST
        and SHORTEST_PROMPT <= len(row.tokens) - row.targets <= LONGEST_PROMPT
    ]


def chosen(rows: Asked, batch: int, kind: str, options: argparse.Namespace) -> Asked:
    """Return two batches of rows; of single rows one, which is long."""
    if batch == 1:
        return [(rows[0][0], options.longest)]
    asked = rows[: 2 * batch]
    return asked if kind == "mixed" else [(ids, options.longest) for ids, _ in asked[:batch]]


def measured(
    side: Callable[[Asked, int], list[list[int]]], asked: Asked, batch: int
) -> dict[str, Any]:
    """Return a side's tokens and its speed."""
    started, spent = time.perf_counter(), time.process_time()
    tokens = side(asked, batch)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - spent
    assert [len(row) for row in tokens] == [count for _, count in asked]
    total = sum(count for _, count in asked)
    speeds = {"tokens_per_second": total / seconds, "tokens_per_cpu_second": total / cpu_seconds}
    return {"tokens": tokens, "seconds": seconds, **speeds}


def check(results: dict[str, list[dict[str, Any]]]) -> None:
    """Stop when the sides do not say the same; leave only how many rows part in the results."""
    for ours, theirs in zip(results[OURS], results[THEIRS], strict=True):
        mine, others = ours.pop("tokens"), theirs.pop("tokens")
        ours["rows"] = len(mine)
        ours["rows_that_part"] = parted(mine, others)
        if ours["rows_that_part"] > max(1, len(mine) // 10):
            sys.exit(
                f"{ours['rows_that_part']} of {len(mine)} rows differ: speeds cannot be compared."
            )


def parted(mine: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """Return how many rows are not the same on both sides."""
    return sum(list(a) != list(b) for a, b in zip(mine, others, strict=True))


def markdown(found: dict[str, dict[str, list[dict[str, Any]]]], options: argparse.Namespace) -> str:
    """Return the table for the README."""
    title = (
        f"{options.model.name}, {options.precision}, {options.threads} threads, greedy, answers of at most "
        f"{options.longest} tokens, {options.rounds} rounds in turn:"
    )
    head = [
        "rows together",
        OURS,
        THEIRS,
        "ours is",
        "of the rounds",
        "by CPU time",
        "rows that part",
    ]
    lines = []
    for name, results in found.items():
        ours, theirs = results[OURS], results[THEIRS]
        ratios = [ratio([a], [b], "tokens_per_second") for a, b in zip(ours, theirs, strict=True)]
        speeds = [f"{median(side, 'tokens_per_second'):.1f} tokens/s" for side in (ours, theirs)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        by_cpu = f"{ratio(ours, theirs, 'tokens_per_cpu_second'):.2f} x"
        same = f"{ours[0]['rows_that_part']} of {ours[0]['rows']}"
        by_time = f"{ratio(ours, theirs, 'tokens_per_second'):.2f} x"
        lines.append([name, *speeds, by_time, spread, by_cpu, same])
    return f"{title}\n\n{table(head, lines)}"


if __name__ == "__main__":
    main()
