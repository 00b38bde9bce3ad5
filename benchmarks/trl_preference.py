"""Train with TRL's DPOTrainer or KTOTrainer: one side of ``preference_speed.py``, in the environment of requirements.txt.

It gets the rendered text of the same rows in the same order, with the same optimizer settings, no
recompute, and PEFT's LoRA on all seven linear layers, switched off for the reference. With ``--precompute`` TRL takes the
reference's log-probs of all rows before it trains, as its documentation advises. (``padding_free`` does nothing in TRL 1.16.)
Prints one JSON object: tokens the trainer fed and seconds of every step, losses, seconds of the reference before training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from plain_transformers import side_parser
from preference_rows import read_rendered
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl_common import Clock, in_steps, load_model, lora, losses, shared_settings

KINDS: dict[str, tuple[Any, Any]] = {
    "dpo": (DPOConfig, DPOTrainer),
    "kto": (KTOConfig, KTOTrainer),
}


def main() -> None:
    """Run the side described on the command line."""
    parser = side_parser(__doc__)
    parser.add_argument("--kind", choices=tuple(KINDS), required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--precompute", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, trainer_class = timed(*KINDS[options.kind])
    rows = read_rendered(options.train)
    used = [rows[i % len(rows)] for i in range(options.steps * options.gbs)]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            load_model(options),
            args=config(
                **shared_settings(options, folder),
                **in_steps(options),
                beta=options.beta,
                max_length=options.seq_len,
                precompute_ref_log_probs=options.precompute,
            ),
            train_dataset=Dataset.from_list([row.record() for row in used]),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            peft_config=lora(options),
            callbacks=[clock],
        )
        fed = fed_tokens(trainer, options)
        trainer.train()
    print(
        json.dumps(
            {
                "losses": losses(trainer),
                "tokens": fed,
                "seconds": clock.seconds,
                "reference_seconds": trainer_class.reference_seconds,
            }
        )
    )


def timed(config: Any, trainer_class: Any) -> tuple[Any, Any]:
    """Return both, the trainer noting how long it took the reference's log-probs before training."""

    class Timed(trainer_class):
        reference_seconds = 0.0

        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            started = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments)
            type(self).reference_seconds += time.perf_counter() - started
            return found

    return config, Timed


def fed_tokens(trainer: Any, options: argparse.Namespace) -> list[int]:
    """Return the real tokens of the answers of every step, as the trainer's own collator feeds them."""
    rows = list(trainer.train_dataset)
    steps = [rows[start : start + options.gbs] for start in range(0, len(rows), options.gbs)]
    return [int(trainer.data_collator(step)["attention_mask"].sum()) for step in steps]


if __name__ == "__main__":
    main()
