"""What answers are worth: the weighted sum of what reward models and functions say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from nemoalign.log import speaking_rank
from nemoalign.rollouts.gathering import from_first

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemoalign.rollouts.answers import Rollout
    from nemoalign.rollouts.functions import RewardFunction
    from nemoalign.rollouts.passes import Passes


class Scorer(Protocol):
    """One source of rewards."""

    @property
    def name(self) -> str:
        """What metrics call it."""
        ...

    @property
    def weight(self) -> float:
        """What its rewards are multiplied by."""
        ...

    def score(self, passes: Passes) -> Tensor:
        """Return the reward of every answer, [answers], NaN where it knows none. Collective."""
        ...

    def warnings(self) -> Iterable[str]:
        """Yield what went wrong since the last call, each kind once."""
        ...

    def close(self) -> None:
        """End what works beside this process."""
        ...


@dataclass(frozen=True)
class ModelScorer:
    """A reward model, whose ``chunks`` may be those of the critic with other values in place."""

    name: str
    weight: float
    chunks: Sequence[nn.Module]
    averages: bool
    """It judges the mean over an answer's tokens instead of its last one."""
    in_place: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext

    def score(self, passes: Passes) -> Tensor:
        """Return the reward of every answer, [answers]. Collective."""
        with self.in_place():
            return passes.of_answers(self.chunks, averages=self.averages)

    def warnings(self) -> Iterable[str]:
        """Yield nothing: it knows every answer's worth."""
        return ()

    def close(self) -> None:
        """End nothing."""


class FunctionScorer:
    """A Python function, computed by worker processes of rank 0 alone."""

    def __init__(
        self,
        name: str,
        weight: float,
        function: RewardFunction | None,
        prompt_text: Callable[[Sequence[int]], str],
    ) -> None:
        self.name, self.weight = name, weight
        self._function = function
        self._prompt_text = prompt_text

    def score(self, passes: Passes) -> Tensor:
        """Return the reward of every answer, [answers], NaN where the function failed. Collective."""
        return torch.tensor(from_first(self._computed(passes.rollout)))

    def warnings(self) -> Iterable[str]:
        """Return what went wrong, each kind once."""
        return self._function.news() if self._function is not None else ()

    def close(self) -> None:
        """End the workers."""
        if self._function is not None:
            self._function.close()

    def _computed(self, rollout: Rollout) -> list[float] | None:
        if not speaking_rank():
            return None
        assert self._function is not None, "rank 0 has one"
        return self._function.score(
            [
                (
                    self._prompt_text(one.question.prompt.ids),
                    one.text,
                    one.question.record,
                    one.question.prompt.source,
                )
                for one in rollout.answers
            ]
        )


def score(
    rollout: Rollout, passes: Passes, scorers: Sequence[Scorer], unfinished_penalty: float | None
) -> None:
    """Give every answer its reward: the weighted sum; NaN where one of the sources knows none. Collective."""
    rollout.parts = {one.name: one.score(passes).float() for one in scorers}
    rewards = torch.stack([one.weight * rollout.parts[one.name] for one in scorers]).sum(0)
    if unfinished_penalty:
        rewards = rewards + unfinished_penalty * ~rollout.finished
    rollout.rewards = rewards
