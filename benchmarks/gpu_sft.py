"""The same SFT on CUDA: its loss curve against the CPU's, then speed and MFU of a 1B llama shape.

curve: the real model, LoRA, the same rows and command, once on the CPU in fp32 and once on CUDA in
bf16; fails when a step's losses differ by more than --tolerance.
speed: full fine-tuning in bf16 of random weights in Llama-3.2-1B's shape, rows of --seq-len tokens,
beside a plain transformers loop on the same card, in turn, medians. MFU counts six operations for every
weight of a matrix and token, plus causal attention, over the card's dense bf16 peak.
One command, on a machine with an NVIDIA GPU and the quickstart's downloads: python benchmarks/gpu_sft.py
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from random_llama import random_llama
from sft_speed import nemoalign_side, peer_side
from side_by_side import CACHE, WORK, in_turn, median, publish, ratio, table

PEAK_TFLOPS = {
    "H200": 989,
    "H100": 989,
    "H800": 989,
    "A100": 312,
    "L40S": 362,
    "B200": 2250,
    "4090": 165,
}
PLAIN = "plain transformers"
OURS = "nemoalign sft"


def main() -> None:
    """Run the parts asked for; publish gpu_curve and gpu_speed."""
    options = parser().parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("This benchmark needs an NVIDIA GPU, and torch sees none.")
    if options.part in ("curve", "both"):
        curve(options)
    if options.part in ("speed", "both"):
        speed(options, torch.cuda.get_device_name())


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("--part", choices=("curve", "speed", "both"), default="both")
    made.add_argument("--tolerance", type=float, default=0.02, help="share of the loss (curve)")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--layers", type=int, default=16, help="16 is the 1B shape (speed)")
    made.add_argument("--seq-len", type=int, default=2048, help="tokens of a row (speed)")
    made.add_argument("--gbs", type=int, default=16, help="rows in one step (speed)")
    made.add_argument("--mbs", type=int, default=4, help="nemoalign's rows in one forward (speed)")
    made.add_argument(
        "--peer-mbs", type=int, default=4, help="the peer's rows in one forward (speed)"
    )
    made.add_argument("--rounds", type=int, default=3, help="(speed)")
    made.add_argument(
        "--peak-tflops", type=float, help="the card's dense bf16 peak; known for common cards"
    )
    return made


def curve(options: argparse.Namespace) -> None:
    """Compare the losses of CPU and CUDA step by step."""
    shared = {
        "model": CACHE / "SmolLM2-135M-Instruct",
        "train": CACHE / "train.jsonl",
        "val": CACHE / "val.jsonl",
        "steps": options.steps,
        "gbs": 8,
        "mbs": 1,
        "lr": "1e-3",
        "lora": 16,
        "threads": 8,
    }
    places = {"CPU, fp32": ("cpu", "fp32"), "CUDA, bf16": ("cuda", "bf16")}
    results = {
        name: nemoalign_side(argparse.Namespace(**shared, device=device, precision=precision))
        for name, (device, precision) in places.items()
    }
    cpu, cuda = (result["losses"] for result in results.values())
    apart = [abs(a - b) / a for a, b in zip(cpu, cuda, strict=True)]
    rows = [
        [str(step), f"{a:.4f}", f"{b:.4f}", f"{share:.2%}"]
        for step, (a, b, share) in enumerate(zip(cpu, cuda, apart, strict=True), 1)
    ]
    markdown = table(["step", *places, "apart"], rows)
    publish("gpu_curve", {"rounds": results, "largest_difference": max(apart)}, markdown)
    if max(apart) > options.tolerance:
        sys.exit(
            f"The curves are up to {max(apart):.2%} apart; --tolerance is {options.tolerance:.2%}."
        )


def speed(options: argparse.Namespace, card: str) -> None:
    """Measure tokens per second and MFU of full fine-tuning."""
    model = random_llama(options.layers, vocab_size=128256)
    train, val = long_rows(options.seq_len, options.gbs * options.steps)
    setting = argparse.Namespace(
        model=model,
        train=train,
        val=val,
        lora=0,
        lr="1e-5",
        precision="bf16",
        device="cuda",
        threads=8,
        **{name: getattr(options, name) for name in ("steps", "gbs", "mbs", "peer_mbs")},
    )
    sides = {
        OURS: partial(nemoalign_side, setting),
        PLAIN: partial(peer_side, setting, sys.executable, "plain_transformers.py"),
    }
    results = in_turn(sides, options.rounds)
    peak = options.peak_tflops or known_peak(card)
    flops = flops_per_token(json.loads((model / "config.json").read_text()), options.seq_len)
    rows = []
    for name, rounds in results.items():
        tokens = median(rounds, "tokens_per_second")
        mfu = f"{tokens * flops / (peak * 1e12):.1%}" if peak else "peak unknown"
        losses = f"{rounds[0]['losses'][0]:.3f} / {rounds[0]['losses'][-1]:.3f}"
        rows.append([name, f"{tokens:,.0f}", mfu, losses])
    rows[0].append(f"{ratio(results[OURS], results[PLAIN], 'tokens_per_second'):.2f} x")
    rows[1].append("")
    markdown = table(["side", "tokens/s", "MFU", "loss 1st / last step", "ours is"], rows)
    content = {"card": card, "peak_tflops": peak, "flops_per_token": flops, "rounds": results}
    publish(
        "gpu_speed",
        content,
        f"{model.name} on {card}, rows of {options.seq_len} tokens:\n\n{markdown}",
    )


def long_rows(length: int, count: int) -> tuple[Path, Path]:
    """Return files of ``count`` and of 2 rows of nearly ``length`` tokens, from the quickstart's text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CACHE / "SmolLM2-135M-Instruct")
    rows = [
        json.loads(line)["messages"] for line in (CACHE / "train.jsonl").read_text().splitlines()
    ]
    text = "\n".join(turn["content"] for turns in rows for turn in turns)
    tokens = tokenizer(text)["input_ids"]
    room = length - 64  # the template's own words
    files = (WORK / f"rows-{length}.jsonl", WORK / f"rows-{length}-val.jsonl")
    WORK.mkdir(parents=True, exist_ok=True)
    for path, number in zip(files, (count, 2), strict=True):
        lines = []
        for row in range(number):
            start = row * 97 % (len(tokens) - room)
            answer = tokenizer.decode(tokens[start : start + room])
            turns = [
                {"role": "user", "content": "Go on."},
                {"role": "assistant", "content": answer},
            ]
            lines.append(json.dumps({"messages": turns}))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def known_peak(card: str) -> float | None:
    """Return the dense bf16 peak in Tflop/s of a card by its name."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)


def flops_per_token(config: dict[str, Any], length: int) -> float:
    """Return the operations of forward and backward for one token of a row of ``length``."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    attention = 2 * hidden * hidden * (1 + groups / heads)
    matrices = layers * (attention + 3 * hidden * config["intermediate_size"])
    matrices += config["vocab_size"] * hidden  # the output layer; the embedding is a look-up
    causal = 2 * 2 * layers * hidden * length / 2  # scores and values, half of them masked
    return 6 * matrices + 3 * causal


if __name__ == "__main__":
    main()
