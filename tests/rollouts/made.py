"""Rollouts made by hand: random tokens, and numbers of them where a test needs some."""

import torch

from nemoalign.data.prompt_rows import Question
from nemoalign.data.prompts import Prompt
from nemoalign.rollouts.answers import Answer, Rollout
from tests.model.tiny import VOCAB

STOP = 2


def question(ids=(5, 6, 7), index=0, **record) -> Question:
    prompt = Prompt(tuple(ids), frozenset({STOP}), f"made.jsonl line {index + 1}")
    return Question(index, prompt, record)


def answer(ids, *, prompt=(5, 6, 7), group=0, finished=True, text="", **record) -> Answer:
    return Answer(question(prompt, group, **record), group, tuple(ids), text, finished)


def rollout(lengths, *, each=1, seed=0, prompts=(3,), **parts) -> Rollout:
    """Answers of so many tokens, ``each`` to a prompt, whose lengths are those of ``prompts`` in turn."""
    draw = torch.Generator().manual_seed(seed)
    answers = []
    for number, length in enumerate(lengths):
        group = number // each
        asked = torch.Generator().manual_seed(1000 * seed + group)
        ids = torch.randint(3, VOCAB, (prompts[group % len(prompts)],), generator=asked)
        said = torch.randint(3, VOCAB, (length,), generator=draw)
        answers.append(answer(said.tolist(), prompt=ids.tolist(), group=group))
    return Rollout(answers, **parts)


def numbers(of: Rollout, seed=0) -> torch.Tensor:
    """A random number of every answer token, [answers, longest]; 0 behind each."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(of.mask.shape, generator=draw) * of.mask
