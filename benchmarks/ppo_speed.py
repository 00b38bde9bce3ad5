"""Answers per second, whole reinforcement steps of ``nemoalign ppo`` beside TRL's GRPOTrainer or RLOOTrainer.

A step writes --rollouts answers, rewards them, looks back at them with the reference, and learns from all of them in one
update. Both sides get the same questions in the same order, the same cheap reward, dtype, threads, optimizer settings and
LoRA layers, without recompute. Every answer has exactly --new-tokens tokens (its end is forbidden before and cut after),
so that the work is the same whatever is drawn. The sides run in turn; figures are medians, the first step of a run is
left out as warm-up. Seconds of a step are split as both sides say: writing, looking back (with RLOO the old log-probs
too) with rewards, learning.

TRL's settings are the fastest of those tried on CPU cores, see TRIED.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ppo_work import write_questions
from side_by_side import WORK, in_turn, median, publish, ratio, table
from training_sides import check_model, check_same_work, costs, peer, train, training_parser

TRIED = (
    "per_device_train_batch_size 4, 8 and 16 take the same time within 3%, with 2.8, 4.2 and 7.6 GiB; "
    "cache_implementation static takes the same time; use_transformers_continuous_batching writes 1.5 times slower and "
    "leaves min_new_tokens aside. Off: gradient_checkpointing, which recomputes, and bf16 (4 tokens/s in sft_speed.py)."
)
"""What was tried of TRL 1.16 with SmolLM2-135M in fp32, 32 answers of 64 tokens, seconds of the processor."""

HERE = Path(__file__).parent
KINDS = {"grpo": ["--kl-in", "loss", "--kl-estimator", "k3"], "rloo": ["--kl-estimator", "k1"]}
"""How TRL counts the distance to the reference."""
PHASES = ("write", "look_back", "learn")

Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure the lines asked for and publish ppo_speed_NAME.json and .md."""
    options = parser().parse_args()
    check_model(options)
    asked = options.steps * options.rollouts // options.group
    questions = write_questions(WORK / f"questions-{asked}.jsonl", asked)
    results = in_turn(sides(options, questions), options.rounds)
    check_same_work(results)
    setting = {name: str(value) for name, value in vars(options).items()}
    content = {"setting": setting, "tried": TRIED, "rounds": results}
    publish(f"ppo_speed_{options.name}", content, markdown(results, options))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = training_parser(__doc__)
    made.add_argument("kind", choices=tuple(KINDS))
    made.add_argument("--steps", type=int, default=3, help="steps of one run, the first untimed")
    made.add_argument("--rollouts", type=int, default=32, help="answers in one step")
    made.add_argument("--group", type=int, default=8, help="answers to one question")
    made.add_argument("--new-tokens", type=int, default=64, help="tokens of every answer")
    made.add_argument("--beta", default="0.04")
    made.add_argument("--mbs", type=int, default=8, help="rows of --seq-len tokens in one pack")
    made.add_argument("--seq-len", type=int, default=128)
    made.add_argument("--peer-mbs", type=int, default=8, help="rows in one forward of TRL")
    made.add_argument(
        "--line",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="one more line of ours: nemoalign with these flags",
    )
    return made


def sides(options: argparse.Namespace, questions: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the lines by name."""
    own = {"": "", **{n: flags for n, _, flags in (text.partition("=") for text in options.line)}}
    found: dict[str, Callable[[], dict[str, Any]]] = {
        f"nemoalign{f', {name}' if name else ''}": partial(
            ours, options, questions, shlex.split(flags)
        )
        for name, flags in own.items()
    }
    if options.peer_python:
        found["TRL"] = partial(theirs, options, questions)
    else:
        print("TRL is left out: make its environment with make bench first.", file=sys.stderr)
    return found


def ours(options: argparse.Namespace, questions: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Train with nemoalign and return its figures."""
    amount = ["--max-steps", options.steps, "--rollouts", options.rollouts]
    amount += ["--gbs", options.rollouts, "--group", options.group, "--mbs", options.mbs]
    texts = ["--seq-len", options.seq_len, "--max-new-tokens", options.new_tokens]
    texts += ["--min-new-tokens", options.new_tokens, "--unfinished", "learn", "--no-shuffle"]
    same = ["--advantage", options.kind, "--kl", options.beta, *KINDS[options.kind]]
    same += ["-s", "model.optim.weight_decay=0.01", "--val-every", 0, "--save-every", 0]
    judge = ["--reward", f"{HERE / 'ppo_work.py'}:vowels"]
    given = ["--data", questions, *amount, *texts, *same, *judge]
    trained = train(options, "ppo", *given, *flags)
    steps = [in_phases(line, options.rollouts) for line in trained.steps]
    return figures(options, steps, [line["response_tokens"] for line in trained.steps]) | {
        "losses": [line["loss"] for line in trained.steps],
        "rewards": [line["reward"] for line in trained.steps],
        "all_tokens": trained.tokens,
        "before_seconds": trained.finished.seconds - sum(sum(step.values()) for step in steps),
        **costs(trained.finished),
    }


def in_phases(line: dict[str, Any], rollouts: int) -> dict[str, float]:
    """Return the seconds of a step of ours; what is not of another phase, its books too, is learning."""
    tokens = rollouts * (line["prompt_tokens"] + line["response_tokens"])
    whole = tokens / line["tokens_per_second"]
    write = line["seconds_write"]
    look_back = line["seconds_score"] + line["seconds_look_back"]
    return {"write": write, "look_back": look_back, "learn": whole - write - look_back}


def theirs(options: argparse.Namespace, questions: Path) -> dict[str, Any]:
    """Train with TRL and return its figures."""
    amount = ["--steps", options.steps, "--gbs", options.rollouts, "--mbs", options.peer_mbs]
    same = ["--kind", options.kind, "--group", options.group, "--beta", options.beta]
    given = ["--train", questions, *amount, *same, "--new-tokens", options.new_tokens]
    finished, said = peer(options, options.peer_python, "trl_ppo.py", *given)
    spent = zip(said["seconds"], said["write_seconds"], said["look_back_seconds"], strict=True)
    steps = [
        {"write": write, "look_back": look_back, "learn": whole - write - look_back}
        for whole, write, look_back in spent
    ]
    return figures(options, steps, said["new_tokens"]) | {
        "losses": said["losses"],
        "rewards": said["rewards"],
        "all_tokens": int(said["tokens"]),
        "before_seconds": finished.seconds - sum(said["seconds"]),
        **costs(finished),
    }


def figures(
    options: argparse.Namespace, steps: Sequence[dict[str, float]], new_tokens: Sequence[float]
) -> dict[str, Any]:
    """Return speeds and seconds of the steps after the first; stop where an answer has another length."""
    if set(new_tokens) != {float(options.new_tokens)}:
        sys.exit(f"Answers have {new_tokens} tokens, and {options.new_tokens} were asked for.")
    timed = steps[1:] or steps
    answers = len(timed) * options.rollouts
    total = sum(sum(step.values()) for step in timed)
    return {
        "answers_per_second": answers / total,
        "new_tokens_per_second": answers * options.new_tokens / total,
        **{f"{phase}_seconds": statistics.mean(s[phase] for s in timed) for phase in PHASES},
        "steps": list(steps),
    }


def markdown(results: Results, options: argparse.Namespace) -> str:
    """Return the table for the README."""
    weights = f"LoRA {options.lora}" if options.lora else "full weights"
    title = (
        f"nemoalign ppo --advantage {options.kind}, {options.model.name}, {weights}, {options.precision}, "
        f"{options.threads} threads on {options.device}, {options.steps} steps of {options.rollouts} answers of "
        f"{options.new_tokens} tokens, {options.group} to a question, {options.rounds} rounds in turn:"
    )
    head = ["line", "answers/s", "new tokens/s", "x TRL"]
    head += [
        "write",
        "look back",
        "learn",
        "peak RSS",
        "before the first step",
        "reward 1st / last",
    ]
    return f"{title}\n\n{table(head, [line(results, name) for name in results])}"


def line(results: Results, name: str) -> list[str]:
    """Return one line of the table; beside seconds of a phase, how many times faster than TRL's it is."""
    mine, others = results[name], results.get("TRL")
    is_ours = others is not None and name != "TRL"
    phases: list[str] = []
    for phase in PHASES:
        key = f"{phase}_seconds"
        faster = f" ({1 / ratio(mine, others, key):.2f} x)" if is_ours else ""
        phases.append(f"{median(mine, key):.1f} s{faster}")
    return [
        name,
        f"{median(mine, 'answers_per_second'):.3f}",
        f"{median(mine, 'new_tokens_per_second'):.1f}",
        f"{ratio(mine, others, 'answers_per_second'):.2f}" if is_ours else "",
        *phases,
        f"{median(mine, 'peak_rss_bytes') / 2**30:.2f} GiB",
        f"{median(mine, 'before_seconds'):.0f} s",
        f"{mine[0]['rewards'][0]:.3f} / {mine[0]['rewards'][-1]:.3f}",
    ]


if __name__ == "__main__":
    main()
