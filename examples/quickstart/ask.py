"""Ask an exported model one question, in plain transformers.

Usage: ask.py DIRECTORY QUESTION
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


def main(directory: str, question: str) -> None:
    """Print the model's most likely answer."""
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    # float32 holds every bfloat16 exactly, and most CPUs have no bfloat16 instructions.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    turns = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**inputs, max_new_tokens=80, do_sample=False)
    print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
