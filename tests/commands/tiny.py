"""A tiny real llama (vocabulary 519, so that padding differs between layouts) and rows to train it on."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.ranks import command_here, command_on_ranks

VOCAB_SIZE = 519
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANIMALS = ["cat", "dog", "owl", "horse", "whale", "mouse", "eagle", "frog"]
SOUNDS = ["a meow", "a bark", "a hoot", "a neigh", "a song", "a squeak", "a cry", "a croak"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = [row for pair in rows(400, seed=99) for row in pair.values()]
    words = [f"word{i} {i * 37} thing{i * i}" for i in range(400)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text + words, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHATML
    return fast


def rows(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        i = draw.randrange(len(ANIMALS))
        times = draw.randrange(1, 9)
        made.append(
            {
                "input": f"What does the {ANIMALS[i]} say {times} times?",
                "output": " and ".join([SOUNDS[i]] * draw.randrange(1, 4)) + f", {times} times.",
            }
        )
    return made


def write_rows(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def as_messages(row: dict[str, str]) -> dict:
    return {
        "messages": [
            {"role": "user", "content": row["input"]},
            {"role": "assistant", "content": row["output"]},
        ]
    }


def make_llama(directory: Path, *, tied: bool = False, **changes) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        # transformers never trains the input row of its padding token, so it must not be a used one.
        pad_token_id=0,
        **changes,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_classifier(directory: Path, *, labels: int = 1) -> Path:
    """The same llama with a head of so many scores in place of its output layer."""
    make_llama(directory)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(directory, num_labels=labels)
    LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


def command(
    *arguments: object, cwd: Path | None = None, env: dict | None = None
) -> subprocess.CompletedProcess:
    """Run the real command and return what it printed; the caller looks at its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "nemoalign", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        timeout=300,
        check=False,
    )


def ok(*arguments: object, **options) -> str:
    """Run the real command, insist on exit code 0 and return its standard output."""
    result = command(*arguments, **options)
    assert result.returncode == 0, (
        f"nemoalign {' '.join(map(str, arguments))}\n{result.stderr[-4000:]}"
    )
    return result.stdout


def quickly(*arguments: object, talk: bool = False, code: int = 0) -> str:
    """Run the command in this process, insist on ``code`` and return what it printed.

    With ``talk`` that is what it said on the way, not its result. Two ranks are those of the session, and
    need ``-o``; a command that must not get as far as that runs here. A process of its own spends seconds on
    imports; where the process or the start of ranks is what is tested, use ``ok``.
    """
    typed = [str(argument) for argument in arguments]
    ranks = 1 if code else ranks_of(typed)
    assert ranks in (1, 2), "the session has two ranks"
    ended, out, said = command_here(typed) if ranks == 1 else command_on_ranks(typed)
    assert ended == code, f"nemoalign {' '.join(typed)}\n{said[-4000:]}"
    return said if talk else out


def ranks_of(typed: Sequence[object]) -> int:
    """Return how many ranks a command line starts."""
    if "--dry-run" in typed:
        return 1
    given = dict(itertools.pairwise(typed))
    if "--devices" in given:
        return int(given["--devices"])
    return int(given.get("--tp", 1)) * int(given.get("--pp", 1))


def read_metrics(run: Path, split: str = "train") -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["split"] == split]
