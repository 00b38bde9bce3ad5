"""Fine-tune with transformers and torch alone: one side of ``sft_speed.py``, and the control for its losses.

The shortest honest loop: rows in file order, padded to the longest of their micro-batch, loss on the
answer only, divided once by the target tokens of the global batch; AdamW, constant learning rate,
gradients clipped at 1. LoRA sits on all seven linear layers of a block. Prints one JSON object:
tokens and seconds of every step, the training losses, and the held-out loss before and after.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rows import Row, pad, read_rows
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Run the side described on the command line."""
    options = side_parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1234)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device)
    if options.lora:
        add_lora(model, options.lora)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    result = {"val_before": held_out(model, options, tokenizer)}
    result |= fit(model, read_rows(options.train, tokenizer), options)
    result["val_after"] = held_out(model, options, tokenizer)
    print(json.dumps(result))


def side_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return the flags that every side of the comparison takes."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--train", type=Path, required=True, help="JSONL of messages")
    parser.add_argument(
        "--val", type=Path, help="JSONL of messages; without it nothing is held out"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gbs", type=int, default=8, help="rows in one optimizer step")
    parser.add_argument("--mbs", type=int, default=1, help="rows in one forward")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains all weights")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser


class LoraLinear(nn.Module):
    """A frozen linear layer plus ``B A x``; alpha equals the rank, so the scale is one."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        dtype, device = linear.weight.dtype, linear.weight.device
        self.a = nn.Parameter(torch.empty(rank, linear.in_features, dtype=dtype, device=device))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=dtype, device=device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the adapted layer's output."""
        return self.linear(inputs) + functional.linear(functional.linear(inputs, self.a), self.b)


def add_lora(model: nn.Module, rank: int) -> None:
    """Freeze ``model`` and adapt every linear layer of its blocks."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name in TARGETS:
            if isinstance(linear := getattr(module, name, None), nn.Linear):
                setattr(module, name, LoraLinear(linear, rank))


def fit(model: nn.Module, rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """Train and return the losses, real tokens and seconds of every step.

    The optimizer keeps float32 copies of bfloat16 parameters, as every mixed-precision trainer does.
    """
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masters = [parameter.detach().float().clone().requires_grad_() for parameter in trained]
    optimizer = torch.optim.AdamW(
        masters, lr=options.lr, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01
    )
    losses, tokens, seconds = [], [], []
    for step in range(options.steps):
        started = time.perf_counter()
        batch = [rows[i % len(rows)] for i in range(step * options.gbs, (step + 1) * options.gbs)]
        count = sum(row.targets for row in batch)
        total = 0.0
        for part in micro_batches(batch, options.mbs):
            loss = summed_loss(model, part) / count
            loss.backward()
            total += loss.item()
        for master, parameter in zip(masters, trained, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(trained, masters)
        losses.append(total)
        tokens.append(sum(len(row.tokens) for row in batch))
        seconds.append(time.perf_counter() - started)
    return {"losses": losses, "tokens": tokens, "seconds": seconds}


def held_out(model: nn.Module, options: argparse.Namespace, tokenizer: Any) -> float | None:
    """Return the mean loss of the held-out rows, where there are any."""
    return None if options.val is None else validate(model, read_rows(options.val, tokenizer))


def validate(model: nn.Module, rows: list[Row]) -> float:
    """Return the mean loss of the target tokens of ``rows``, in nats."""
    model.eval()
    with torch.inference_mode():
        total = sum(summed_loss(model, part).item() for part in micro_batches(rows, 1))
    return total / sum(row.targets for row in rows)


def micro_batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    """Yield ``rows`` in order, ``size`` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def summed_loss(model: nn.Module, rows: list[Row]) -> Tensor:
    """Return the summed cross-entropy of the target tokens of a micro-batch."""
    tokens, labels, mask = (part.to(model.device) for part in pad(rows))
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits  # [b, s, v]
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), reduction="sum"
    )


if __name__ == "__main__":
    main()
