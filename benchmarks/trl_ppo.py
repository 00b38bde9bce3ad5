"""Train with TRL's GRPOTrainer or RLOOTrainer: one side of ``ppo_speed.py``, in the environment of requirements.txt.

It gets the same questions in the same order and writes as many answers of as many tokens to each, all of a step
together with Transformers' own generation. No recompute; PEFT's LoRA on all seven linear layers, switched off for the
reference, which a beta that is not 0 asks for. Prints one JSON object: of every step its seconds, those of writing
and those of looking back (reference, old log-probs, rewards), its tokens, loss and mean reward.
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
from ppo_work import read_questions, vowels
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_common import Clock, in_steps, load_model, lora, shared_settings

KINDS: dict[str, tuple[Any, Any]] = {
    "grpo": (GRPOConfig, GRPOTrainer),
    "rloo": (RLOOConfig, RLOOTrainer),
}


def main() -> None:
    """Run the side described on the command line."""
    parser = side_parser(__doc__)
    parser.add_argument("--kind", choices=tuple(KINDS), required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--beta", type=float, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config, trainer_class = KINDS[options.kind]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = timed(trainer_class)(
            load_model(options),
            reward_funcs=share_of_vowels,
            args=config(
                **shared_settings(options, folder), **in_steps(options), **sampled(options)
            ),
            train_dataset=Dataset.from_list([{"prompt": m} for m in read_questions(options.train)]),
            processing_class=AutoTokenizer.from_pretrained(options.model),
            peft_config=lora(options),
            callbacks=[clock],
        )
        trainer.train()
    logged = [line for line in trainer.state.log_history if "reward" in line]
    print(
        json.dumps(
            {
                "seconds": clock.seconds,
                "write_seconds": trainer.write_seconds,
                "look_back_seconds": trainer.look_back_seconds,
                "tokens": logged[-1]["num_tokens"],
                "new_tokens": [line["completions/mean_length"] for line in logged],
                "losses": [line["loss"] for line in logged],
                "rewards": [line["reward"] for line in logged],
            }
        )
    )


def sampled(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is special about learning from one's own answers."""
    return {
        "num_generations": options.group,
        "max_completion_length": options.new_tokens,
        "generation_kwargs": {"min_new_tokens": options.new_tokens},
        "temperature": 1.0,
        "beta": options.beta,
        "shuffle_dataset": False,
    }


def share_of_vowels(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Return the rewards of some answers, as TRL asks for them."""
    texts = [turns[0]["content"] for turns in completions]
    return [vowels("", text) for text in texts]


def timed(trainer_class: Any) -> Any:
    """Return the trainer, noting how long every step took it to write answers and to look back at them."""

    class Timed(trainer_class):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.write_seconds: list[float] = []
            self.look_back_seconds: list[float] = []
            super().__init__(*arguments, **options)

        def _generate(self, *arguments: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate(*arguments)
            self.write_seconds.append(time.perf_counter() - started)
            return found

        def _generate_and_score_completions(self, *arguments: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate_and_score_completions(*arguments)
            both = time.perf_counter() - started
            self.look_back_seconds.append(both - self.write_seconds[-1])
            return found

    return Timed


if __name__ == "__main__":
    main()
