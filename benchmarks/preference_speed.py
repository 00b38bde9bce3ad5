"""Answers per second and peak memory of ``nemoalign dpo`` and ``nemoalign kto`` beside TRL's trainers.

All sides train the same model on the same real rows in the same order: those of the fetched pairs or labelled
answers whose texts fit into --seq-len tokens, with the same dtype, threads, optimizer settings and LoRA layers, without
recompute. Tokens are real ones, padding is not counted. The sides run in turn; figures are
medians, the first step of a run is left out as warm-up. What a side does before its first step is in its own
column: start, loading, rows, and with a cache (or TRL's precompute_ref_log_probs) the reference's pass over all rows.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from preference_rows import Rendered, mismatched_tokens, prepare, read_rendered, step_tokens
from side_by_side import CACHE, WORK, in_turn, median, publish, ratio, table
from training_sides import check_model, check_same_work, costs, peer, train, training_parser

FILES = {"dpo": "pairs.jsonl", "kto": "feedback.jsonl"}
OURS = {
    "plain": ["--no-packing"],
    "packed": ["--packing"],
    "cached": ["--packing", "--ref-cache"],
}
TRL = {"trl": [], "trl-precomputed": ["--precompute"]}

Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure the lines asked for and publish preference_speed_NAME.json and .md."""
    options = parser().parse_args()
    check_model(options)
    source = options.rows or CACHE / FILES[options.kind]
    if not source.exists():
        sys.exit(f"{source} is not there: run python examples/quickstart/fetch.py --preferences.")
    raw, rendered = prepare(options.kind, source, options.model, options.seq_len, WORK)
    rows = read_rendered(rendered)
    used = [rows[i % len(rows)] for i in range(options.steps * options.gbs)]
    results = in_turn(sides(options, raw, rendered, used), options.rounds)
    check_same_work(results)
    setting = {name: str(value) for name, value in vars(options).items()}
    content = {"setting": setting, "rows": len(rows), "rounds": results}
    publish(f"preference_speed_{options.name}", content, markdown(results, options, len(rows)))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = training_parser(__doc__)
    made.add_argument("kind", choices=tuple(FILES))
    made.add_argument("--rows", type=Path, help="default: the fetched file of that kind")
    made.add_argument("--seq-len", type=int, default=512)
    made.add_argument("--beta", default="0.1")
    made.add_argument("--steps", type=int, default=4, help="optimizer steps of one run")
    made.add_argument("--gbs", type=int, default=8, help="rows (pairs, answers) in one step")
    made.add_argument("--mbs", type=int, help="rows in one forward (2 pairs, 4 answers)")
    made.add_argument(
        "--lines",
        default="plain,packed,cached,trl,trl-precomputed",
        help=f"what is measured: {', '.join([*OURS, *TRL])}, and those of --line",
    )
    made.add_argument(
        "--line",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="one more line of ours: nemoalign with these flags",
    )
    return made


def sides(
    options: argparse.Namespace, raw: Path, rendered: Path, used: list[Rendered]
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the lines by name, in the order asked for."""
    options.mbs = options.mbs or {"dpo": 2, "kto": 4}[options.kind]
    own = OURS | {n: shlex.split(f) for n, _, f in (text.partition("=") for text in options.line)}
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in [*options.lines.split(","), *(text.partition("=")[0] for text in options.line)]:
        if name in own:
            found[f"nemoalign, {name}"] = partial(ours, options, raw, used, own[name])
        elif name not in TRL:
            sys.exit(f"--lines {name} is not known. Use {', '.join([*own, *TRL])}.")
        elif not options.peer_python:
            sys.exit("TRL needs --peer-python: make its environment with make bench first.")
        else:
            found[name.replace("trl", "TRL")] = partial(theirs, options, rendered, used, TRL[name])
    return found


def ours(
    options: argparse.Namespace, raw: Path, used: list[Rendered], flags: list[str]
) -> dict[str, Any]:
    """Train with nemoalign and return its figures."""
    amount = ["--max-steps", options.steps, "--gbs", options.gbs, "--mbs", options.mbs]
    same = ["--seq-len", options.seq_len, "--beta", options.beta]
    same += ["-s", "model.optim.weight_decay=0.01"]
    if options.kind == "kto":
        same += ["-s", "model.kto.mismatched_answer=previous"]
    trained = train(options, options.kind, "--data", raw, *amount, *same, *flags)
    tokens = step_tokens(used, options.gbs)
    # A step's own speed is over the tokens of its answers, so it gives back the step's seconds.
    lines = zip(tokens, trained.steps, strict=True)
    seconds = [count / line["tokens_per_second"] for count, line in lines]
    figures = speeds(options, used, seconds, options.gbs)
    return figures | {
        "losses": [line["loss"] for line in trained.steps],
        "all_tokens": trained.tokens,
        "before_seconds": trained.finished.seconds - sum(seconds),
        "reference_seconds": reference_seconds(trained.finished.stderr),
        **costs(trained.finished),
    }


def reference_seconds(talk: str) -> float:
    """Return how long nemoalign says that it computed the reference's log-probs before training."""
    found = re.search(r"answers computed in ([\d.]+) s", talk)
    return float(found[1]) if found else 0.0


def theirs(
    options: argparse.Namespace, rendered: Path, used: list[Rendered], flags: list[str]
) -> dict[str, Any]:
    """Train with TRL and return its figures."""
    amount = ["--steps", options.steps, "--gbs", options.gbs, "--mbs", options.mbs]
    same = ["--kind", options.kind, "--seq-len", options.seq_len, "--beta", options.beta]
    python = options.peer_python
    given = ["--train", rendered, *amount, *same, *flags]
    finished, said = peer(options, python, "trl_preference.py", *given)
    return speeds(options, used, said["seconds"], options.mbs) | {
        "losses": said["losses"],
        "all_tokens": sum(said["tokens"]),
        "before_seconds": finished.seconds - sum(said["seconds"]),
        "reference_seconds": said["reference_seconds"],
        **costs(finished),
    }


def speeds(
    options: argparse.Namespace, used: list[Rendered], seconds: list[float], group: int
) -> dict[str, Any]:
    """Return rows and tokens per second after the first step; ``group`` answers are mismatched at a time."""
    counted = used[options.gbs :] if options.steps > 1 else used
    total = sum(seconds[1:]) if options.steps > 1 else seconds[0]
    tokens = sum(step_tokens(counted, options.gbs))
    extra = mismatched_tokens(counted, group, options.seq_len) if options.kind == "kto" else 0
    return {
        "rows_per_second": len(counted) / total,
        "tokens_per_second": tokens / total,
        "fed_tokens_per_second": (tokens + extra) / total,
    }


def markdown(results: Results, options: argparse.Namespace, count: int) -> str:
    """Return the table for the README."""
    what = {"dpo": "pairs", "kto": "answers"}[options.kind]
    weights = f"LoRA {options.lora}" if options.lora else "full weights"
    title = (
        f"nemoalign {options.kind}, {options.model.name}, {weights}, sequence {options.seq_len}, {options.precision}, "
        f"{options.threads} threads on {options.device}, {options.steps} steps of {options.gbs} {what} "
        f"({options.mbs} at a time), the {count} rows that fit, {options.rounds} rounds in turn:"
    )
    peers = [name for name in results if name.startswith("TRL")]
    tokens = "tokens/s (with KL rows)" if options.kind == "kto" else "tokens/s"
    head = ["line", f"{what}/s", tokens, *(f"x {name}" for name in peers)]
    head += ["peak RSS", "before the first step", "loss 1st / last step"]
    return f"{title}\n\n{table(head, [line(results, name, peers) for name in results])}"


def line(results: Results, name: str, peers: list[str]) -> list[str]:
    """Return one line of the table."""
    mine = results[name]
    tokens = f"{median(mine, 'tokens_per_second'):.0f}"
    if (fed := median(mine, "fed_tokens_per_second")) != median(mine, "tokens_per_second"):
        tokens += f" ({fed:.0f})"
    return [
        name,
        f"{median(mine, 'rows_per_second'):.3f}",
        tokens,
        *(f"{ratio(mine, results[peer], 'rows_per_second'):.2f}" for peer in peers),
        f"{median(mine, 'peak_rss_bytes') / 2**30:.2f} GiB",
        before(mine),
        f"{mine[0]['losses'][0]:.4f} / {mine[0]['losses'][-1]:.4f}",
    ]


def before(mine: list[dict[str, Any]]) -> str:
    """Return the seconds before training, with the reference's where the side tells them."""
    told = f"{median(mine, 'before_seconds'):.0f} s"
    reference = mine[0].get("reference_seconds")
    return (
        f"{told}, of it reference {median(mine, 'reference_seconds'):.0f} s" if reference else told
    )


if __name__ == "__main__":
    main()
