"""One step of reinforcement learning: write, score, look back, estimate, learn. Read ``step`` top to bottom.

To the training loop it is a learner like any other; what a step learns from, it writes itself. Formulas are
PPO's (arXiv 1707.06347) as NeMo-Aligner's ``algorithms/ppo.py`` orders them, in one process group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from nemoalign.algorithms.ppo import (
    ADVANTAGES,
    LEARNED,
    OLD,
    REFERENCE,
    RETURNS,
    VALUED,
    VALUES_OLD,
)
from nemoalign.errors import VerificationError
from nemoalign.rollouts.answers import Rollout
from nemoalign.rollouts.batching import Batching, minibatches
from nemoalign.rollouts.estimates import estimate, learned
from nemoalign.rollouts.measures import Measures, joined
from nemoalign.rollouts.passes import Passes
from nemoalign.rollouts.roles import Needed
from nemoalign.rollouts.scoring import score
from nemoalign.rollouts.told import told
from nemoalign.train.stopping import Cut
from nemoalign.train.trainee import StepResult

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from torch import Tensor

    from nemoalign.config.ppo import PpoSettings
    from nemoalign.data.collate import Batch
    from nemoalign.data.prompt_rows import Question
    from nemoalign.model.sampling import Sampling
    from nemoalign.parallel.device import Backend
    from nemoalign.rollouts.roles import Roles
    from nemoalign.rollouts.writing import Writing
    from nemoalign.train.metrics import Mean
    from nemoalign.train.questions import Questions
    from nemoalign.train.trainee import Agree

MEASURED = 1 << 40
"""The number of the first draw of a measurement, far from those of training."""
EXACT = 1e-3
"""How far the first ratios of a rollout may be from 1 before something is wrong."""


class PpoTrainee:
    """A policy that learns from its own answers, with whatever judges them."""

    def __init__(
        self,
        roles: Roles,
        settings: PpoSettings,
        writing: Writing,
        sampling: Sampling,
        batching: Batching,
        *,
        update_size: int,
    ) -> None:
        """Take what learns and judges.

        Args:
            roles: policy, reference, critic and scorers.
            settings: ``model.ppo``.
            writing: how answers are written.
            sampling: how their tokens are drawn; its seed is the run's.
            batching: how rows are shared out.
            update_size: answers in one update.
        """
        self.roles, self.own, self.writing = roles, settings, writing
        self.sampling, self.batching, self.update_size = sampling, batching, update_size
        self.warn: Callable[[str], None] = _unheard
        """Takes what went wrong where answers were judged."""
        self.algorithm = Measures(settings, [scorer.name for scorer in roles.scorers])
        self._agree: Agree | None = None
        self._seconds: dict[str, float] = {}

    @property
    def backend(self) -> Backend:
        """Where it computes."""
        return self.roles.policy.backend

    @property
    def modules(self) -> list[GPTModel]:
        """This rank's parts of the policy."""
        return self.roles.policy.modules

    def listen(self, agree: Agree) -> None:
        """Take what tells, amid writing, whether somebody asked to stop."""
        self._agree = agree

    def close(self) -> None:
        """End the processes that compute reward functions."""
        for scorer in self.roles.scorers:
            scorer.close()

    def step(self, micro_batches: Sequence[Questions], lr: float) -> StepResult:
        """Write one rollout and learn from it. Collective.

        Raises:
            Cut: on every rank, when somebody asked to stop while answers were written.
            VerificationError: when the policy that learns is not the one that wrote.
        """
        (asked,) = micro_batches
        self._seconds = {}
        first = asked.consumed * self.own.answers
        rollout = self._written(asked.questions, self.own.answers, first)
        order = self._order(len(rollout.answers), asked.consumed, 0)
        shares = [self._shares(rollout, rows) for rows in order]
        passes = self._passes(rollout, [share for some in shares for share in some])
        self._judge(passes)
        with self._timed("look_back"):
            self.roles.look_back(passes)
        estimate(rollout, self.own)
        found = self._learned(rollout, asked.consumed, lr)
        metrics = {**self.algorithm.of_rollout(rollout), **found.metrics}
        mine = rollout.answers[self.batching.dp_rank :: self.batching.dp_size]
        tokens = sum(len(one.question.prompt.ids) + len(one.ids) for one in mine)
        rows = told(rollout, self.own.rollouts_kept, self.writing.tokenizer)
        extra = dict(self._seconds)
        return replace(found, metrics=metrics, extra=extra, tokens=tokens, rollouts=rows)

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Questions]) -> list[dict[str, Mean]]:
        """Return how one answer to each question does, on the rank that speaks for all. Collective."""
        (asked,) = micro_batches
        rollout = self._written(asked.questions, 1, MEASURED + asked.consumed)
        rows = list(range(len(rollout.answers)))
        self._judge(self._passes(rollout, self._shares(rollout, rows)))
        self.roles.have(policy=Needed.ALL, critic=Needed.ALL)
        return self.algorithm.parts(rollout)

    def _written(self, questions: Sequence[Question], each: int, first: int) -> Rollout:
        self.roles.have(policy=Needed.WEIGHTS, critic=Needed.NOTHING)
        with self._timed("write"):
            answers = self.writing.write(
                self.modules, questions, each, first, self.sampling, self._go_on
            )
        return Rollout(answers)

    def _judge(self, passes: Passes) -> None:
        self.roles.have(policy=Needed.NOTHING, critic=Needed.WEIGHTS)
        with self._timed("score"):
            score(passes.rollout, passes, self.roles.scorers, self.own.unfinished_penalty)
        for scorer in self.roles.scorers:
            for text in scorer.warnings():
                self.warn(text)

    def _go_on(self, is_writing: bool) -> bool:
        """Return whether any replica has answers to continue; asked now and then while they are written.

        Raises:
            Cut: on every rank, when somebody asked to stop.
        """
        assert self._agree is not None, "the loop lets it listen"
        at_work, asked = self._agree(is_writing)
        if asked.stop:
            self.roles.have(policy=Needed.ALL, critic=Needed.ALL)
            raise Cut(asked)
        return at_work > 0

    def _learned(self, rollout: Rollout, consumed: int, lr: float) -> StepResult:
        """Update the policy, then the critic, as often as the rollout is passed over."""
        own, policy, critic = self.own, self.roles.policy, self.roles.critic
        orders = [
            rows
            for epoch in range(own.ppo_epochs)
            for rows in self._order(len(rollout.answers), consumed, epoch)
        ]
        fields, counts = self._fields(rollout), learned(rollout, own)
        done: list[StepResult] = []
        if consumed // own.prompts >= own.critic_warmup_steps:
            self.roles.have(policy=Needed.ALL, critic=Needed.NOTHING)
            with self._timed("learn"):
                for rows in orders:
                    if counts[rows].any():
                        done.append(policy.step(self._batches(rollout, rows, fields), lr))
                        self._check_first(done)
        valued: list[StepResult] = []
        if critic is not None:
            self.roles.have(policy=Needed.NOTHING, critic=Needed.ALL)
            with self._timed("learn_values"):
                pace = own.critic_lr * (
                    lr / self.roles.highest_lr if self.roles.highest_lr else 1.0
                )
                valued = [
                    critic.step(self._batches(rollout, rows, fields), pace)
                    for rows in orders
                    if rollout.rewarded[rows].any()
                ]
        self.roles.have(policy=Needed.ALL, critic=Needed.ALL)  # as they are saved
        return joined(done, valued)

    def _check_first(self, done: Sequence[StepResult]) -> None:
        """Insist that the first update of a rollout meets the policy that looked back at it."""
        if len(done) > 1 or self.roles.drops_out or not done[0].applied:
            return
        off = done[0].metrics["ratio_deviation"]
        if not off <= EXACT:
            raise VerificationError(
                f"The first ratios of a rollout are {off:.2g} away from 1: what learns is not what wrote. "
                "Nothing of this step is saved. Please report it, with the command that was typed."
            )

    def _fields(self, rollout: Rollout) -> dict[str, Tensor]:
        """Return the numbers of answer tokens that learning needs."""
        assert rollout.advantages is not None, "estimated before"
        mask = rollout.mask * rollout.rewarded[:, None]
        found = {ADVANTAGES: rollout.advantages, LEARNED: learned(rollout, self.own), VALUED: mask}
        others = {
            OLD: rollout.logprobs,
            REFERENCE: rollout.reference,
            RETURNS: rollout.returns,
            VALUES_OLD: rollout.values,
        }
        return {**found, **{name: v for name, v in others.items() if v is not None}}

    def _batches(
        self, rollout: Rollout, rows: Sequence[int], fields: dict[str, Tensor]
    ) -> list[Batch]:
        if self.own.share_trunk:
            fields = {**fields, VALUED: fields[VALUED] * self._value_weight(fields, rows)}
        return [
            self.batching.answers(rollout, share, fields) for share in self._shares(rollout, rows)
        ]

    def _value_weight(self, fields: dict[str, Tensor], rows: Sequence[int]) -> float:
        """Return what a value's loss counts where the learner divides by what the policy's is a mean over."""
        counted = fields[LEARNED][rows]
        if self.own.loss_average != "tokens":
            counted = counted.amax(-1)
        return self.own.value_loss_weight * float(counted.sum() / fields[VALUED][rows].sum())

    def _order(self, count: int, consumed: int, epoch: int) -> list[list[int]]:
        return minibatches(count, self.update_size, self.sampling.seed, consumed, epoch)

    def _shares(self, rollout: Rollout, rows: Sequence[int]) -> list[list[int]]:
        lengths = [len(a.question.prompt.ids) + len(a.ids) - 1 for a in rollout.answers]
        return self.batching.shares(rows, lengths)

    def _passes(self, rollout: Rollout, shares: Sequence[Sequence[int]]) -> Passes:
        return Passes(rollout, self.batching, shares, self.backend.device)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        key = f"seconds_{phase}"
        self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - started


def _unheard(text: str) -> None:
    """Take a warning before there is a loop that keeps books."""
    del text
