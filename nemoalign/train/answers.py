"""What the model answers to fixed prompts at each validation, so that people can read how it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from megatron.core import parallel_state

from nemoalign.model.generate import Request, generate
from nemoalign.train.stopping import Asked

if TYPE_CHECKING:
    from nemoalign.data.prompts import Prompt
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.train.trainee import Agree, Trainee


SHOWN = 3


@dataclass(frozen=True)
class FixedPrompts:
    """Prompts of a run, and how long their answers may be."""

    prompts: Sequence[Prompt]
    tokenizer: Tokenizer
    max_new_tokens: int

    def answer(self, learner: Trainee, agree: Agree) -> tuple[list[dict[str, str]], Asked]:
        """Return prompts with their answers on every rank, and what was asked for meanwhile.

        Collective. Replicas share the prompts. ``agree`` returns how many replicas still write, and
        what any rank was asked for; a wish to stop ends it without answers.
        """
        rank = parallel_state.get_data_parallel_rank()
        share = range(rank, len(self.prompts), parallel_state.get_data_parallel_world_size())
        asked = Asked()

        def go_on(is_writing: bool) -> bool:
            nonlocal asked
            writing, now = agree(is_writing)
            asked = asked.joined(now)
            return writing > 0 and not asked.stop

        answers = generate(
            learner.modules,
            [
                Request(self.prompts[i].ids, self.prompts[i].stop_ids, self.max_new_tokens, i)
                for i in share
            ],
            go_on=go_on,
        )
        if asked.stop:
            return [], asked
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, dict(zip(share, answers, strict=True)))
        found = {number: ids for part in everywhere for number, ids in part.items()}
        return [self._spelled(i, found[i]) for i in sorted(found)], asked

    def _spelled(self, number: int, answer: Sequence[int]) -> dict[str, str]:
        prompt = self.prompts[number]
        words = answer[:-1] if answer and answer[-1] in prompt.stop_ids else answer
        return {
            "prompt": self.tokenizer.decode(list(prompt.ids)),
            "response": self.tokenizer.decode(list(words)),
        }


def shown(answers: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the first answers as lines to be read."""
    return [f"{one['prompt']!r} -> {one['response']!r}" for one in answers[:SHOWN]]
