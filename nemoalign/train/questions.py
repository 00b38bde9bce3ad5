"""Which prompts a step asks: all of them, on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemoalign.data.prompt_rows import PromptDataset, Question
from nemoalign.train.feed import Feed

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Questions:
    """The prompts of one step, and how many were asked before them."""

    questions: tuple[Question, ...]
    consumed: int


class QuestionFeed(Feed):
    """Prompts in the sampler's order; ranks share them out when they answer."""

    def step(self, consumed_samples: int) -> list[Any]:
        """Return the prompts that follow ``consumed_samples``."""
        return [self._asked(self.sampler.batch(consumed_samples), consumed_samples)]

    def once(self) -> Iterator[list[Any]]:
        """Yield every prompt once, in file order."""
        for batch in self.sampler.once():
            yield [self._asked(batch, int(batch[0]))]

    def _asked(self, batch: np.ndarray, consumed: int) -> Questions:
        rows = self.rows
        assert isinstance(rows, PromptDataset), "what ppo learns from are prompts"
        return Questions(tuple(rows.question(int(row)) for row in batch), consumed)
