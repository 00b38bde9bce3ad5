"""The policy writes answers: every replica its share, all ranks get all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.core import parallel_state

from nemoalign.model.generate import Request, generate
from nemoalign.rollouts.answers import Answer, decoded
from nemoalign.rollouts.gathering import gathered

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.data.prompt_rows import Question
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.model.sampling import Sampling

_TAIL = 16
"""Tokens beyond the letters of a stopping text in which it must have come."""


@dataclass(frozen=True)
class Writing:
    """How answers are written."""

    tokenizer: Tokenizer
    max_new_tokens: int
    stops: tuple[str, ...]
    slots: int

    def write(
        self,
        chunks: Sequence[GPTModel],
        questions: Sequence[Question],
        each: int,
        first: int,
        sampling: Sampling,
        go_on: Callable[[bool], bool],
    ) -> list[Answer]:
        """Return ``each`` answers to every question, neighbours in the list. Collective.

        Answer ``i`` is drawn as number ``first + i`` whatever the layout. ``go_on`` is ``generate``'s.
        """
        count = len(questions) * each
        rank = parallel_state.get_data_parallel_rank()
        share = range(rank, count, parallel_state.get_data_parallel_world_size())
        requests = [self._request(questions[i // each], first + i) for i in share]
        written = generate(chunks, requests, go_on=go_on, sampling=sampling, slots=self.slots)
        found = gathered(dict(zip(share, written, strict=True)))
        return [self._answer(questions[i // each], i // each, found[i]) for i in range(count)]

    def _request(self, question: Question, number: int) -> Request:
        prompt = question.prompt
        ended = self._has_ended if self.stops else None
        return Request(prompt.ids, prompt.stop_ids, self.max_new_tokens, number, ended)

    def _has_ended(self, ids: Sequence[int]) -> bool:
        tail = max(map(len, self.stops)) + _TAIL
        text = self.tokenizer.decode(list(ids[-tail:]))
        return any(stop in text for stop in self.stops)

    def _answer(self, question: Question, group: int, ids: Sequence[int]) -> Answer:
        stop_ids = question.prompt.stop_ids
        text, finished = decoded(self.tokenizer.decode, ids, stop_ids, self.stops)
        return Answer(question, group, tuple(ids), text, finished)
