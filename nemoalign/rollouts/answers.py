"""Answers that a policy wrote to prompts, and everything that is found out about them.

All of it lies in the host's memory, the same on every rank, so that what is learned next does not depend
on which replica wrote an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from nemoalign.data.prompt_rows import Question


@dataclass(frozen=True)
class Answer:
    """What follows one prompt, up to and with the token that ends it."""

    question: Question
    group: int
    """The number of its prompt in the rollout."""
    ids: tuple[int, ...]
    text: str
    """Without what ends it."""
    finished: bool
    """It ended by itself; not by its length."""

    @property
    def tokens(self) -> np.ndarray:
        """Prompt and answer, [s]."""
        return np.array([*self.question.prompt.ids, *self.ids], np.int32)


@dataclass
class Rollout:
    """All answers of a step. Numbers of tokens are padded on the right, [answers, longest], fp32."""

    answers: Sequence[Answer]
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    """What each answer is worth, [answers]; NaN where nobody could say."""
    parts: dict[str, Tensor] = field(default_factory=dict[str, "Tensor"])
    """What each source of rewards said, before weights."""
    logprobs: Tensor | None = None
    reference: Tensor | None = None
    values: Tensor | None = None
    kl: Tensor | None = None
    """Of each token to the reference, as ``--kl-estimator`` has it."""
    advantages: Tensor | None = None
    returns: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Tokens of each answer, [answers]."""
        return torch.tensor([len(answer.ids) for answer in self.answers])

    @property
    def mask(self) -> Tensor:
        """1 where a token is, [answers, longest]."""
        lengths = self.lengths
        return (torch.arange(int(lengths.max())) < lengths[:, None]).float()

    @property
    def groups(self) -> Tensor:
        """The number of each answer's prompt, [answers]."""
        return torch.tensor([answer.group for answer in self.answers])

    @property
    def finished(self) -> Tensor:
        """True for answers that ended by themselves, [answers]."""
        return torch.tensor([answer.finished for answer in self.answers])

    @property
    def rewarded(self) -> Tensor:
        """True for answers that have a reward, [answers]."""
        return ~self.rewards.isnan()

    def padded(self, rows: Sequence[Tensor]) -> Tensor:
        """Return numbers of the tokens of each answer as one tensor, 0 behind each."""
        return torch.nn.utils.rnn.pad_sequence([row.float() for row in rows], batch_first=True)


def decoded(
    decode: Callable[[list[int]], str],
    ids: Sequence[int],
    stop_ids: frozenset[int],
    stops: Sequence[str],
) -> tuple[str, bool]:
    """Return the text of an answer without what ends it, and whether anything does."""
    ended = bool(ids) and ids[-1] in stop_ids
    text = decode(list(ids[:-1] if ended else ids))
    places = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, ended)
