"""Every model of a reinforcement run, built and filled; which of them share memory, and what that takes.

Policy and reference are one model: a fresh adapter is switched off, else the start's values are kept beside
it or on the host. A critic that starts from a reward model is, in the same way, one with it. Any further
reward model is a model of its own, which learns nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.algorithms.ppo import Critic
from nemoalign.log import speaking_rank
from nemoalign.model.lora_settings import lora_settings
from nemoalign.model.reference import Reference, choose_reference
from nemoalign.model.reward_head import RewardHead
from nemoalign.parallel.measure import GIB
from nemoalign.rollouts.functions import RewardFunction
from nemoalign.rollouts.roles import Roles, resident_gib
from nemoalign.rollouts.scoring import FunctionScorer, ModelScorer, Scorer
from nemoalign.run.built import built_model
from nemoalign.run.judges import Judge, fresh_critic, read_judge
from nemoalign.run.policies import fill, has_fresh_adapters
from nemoalign.train.learner import Learner
from nemoalign.train.offload import Offload

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.schema import RunConfig
    from nemoalign.config.values import RewardSource
    from nemoalign.log import Reporter
    from nemoalign.parallel.device import Backend
    from nemoalign.run.prepare import Prepared

DEVICE_SHARE = 0.5
"""Of a GPU's memory, which activations, keys and values need too."""


class Casting:
    """Makes the roles of a run around its policy."""

    def __init__(
        self, config: RunConfig, made: Prepared, backend: Backend, reporter: Reporter
    ) -> None:
        self.config, self.made, self.backend, self.reporter = config, made, backend, reporter
        self.own: Any = config.model.algorithm
        self.critic: Learner | None = None
        self.critic_judge: Judge | None = None
        """What the critic started from, where it is a model of its own."""
        self._critic_path: Path | None = None

    def cast(self, policy: Learner) -> Roles:
        """Return all roles, the policy loaded already. Collective."""
        own = self.own
        reference = self._reference(policy) if own.initial_policy_kl_penalty else None
        critic, start = self._critic()
        scorers = [self._scorer(source, start) for source in own.reward]
        updates = own.ppo_epochs * (own.num_rollout_samples // self.config.model.global_batch_size)
        in_reward = reference is not None and own.kl_place == "reward"
        return Roles(
            policy=policy,
            reference=reference,
            critic=critic,
            scorers=scorers,
            highest_lr=self.config.model.optim.lr,
            settings=own,
            looks_back=updates > 1 or in_reward,
            offloads=self._offloads(policy, critic),
        )

    def _offloads(self, policy: Learner, critic: Learner | None) -> dict[str, Offload]:
        """Return what takes turns on the device: where asked for, or where a GPU would be crowded."""
        learners = {"policy": policy, **({} if critic is None else {"critic": critic})}
        wanted = self.own.offload
        if wanted is None:
            wanted = self.backend.name == "cuda" and _crowds(list(learners.values()))
        if wanted:
            self.reporter.say(
                f"{' and '.join(learners)} take turns on the device, host memory between"
            )
        return {name: Offload(one) for name, one in learners.items()} if wanted else {}

    def _reference(self, policy: Learner) -> Reference:
        found = choose_reference(
            policy.modules,
            has_fresh_adapters=has_fresh_adapters(self.config),
            on_host=self.own.reference_on_host,
            is_start=True,
        )
        self.reporter.say(f"reference policy: {found.describe()}")
        return found

    def _critic(self) -> tuple[Learner | None, Reference | None]:
        """Return the critic, and what it was before it learned where that gives rewards."""
        own = self.own
        if not own.has_critic or own.share_trunk:
            return None, None
        models = [source.path for source in own.reward if source.path is not None]
        path = self._critic_path = own.critic_path or next(iter(models), None)
        judge = (
            fresh_critic(self.made)
            if path is None
            else read_judge(path, self.made, may_be_new=path == own.critic_path)
        )
        self.critic_judge = judge
        chunks = self._built(judge, learns=True)
        start = None
        if path in models and not judge.is_new:
            lora = lora_settings(self.config.model.peft)
            start = choose_reference(
                chunks,
                has_fresh_adapters=lora is not None and lora.row_init_method == "zero",
                on_host=own.reference_on_host,
                is_start=True,
            )
        shared = "" if start is None else f"; as a reward model it is {start.describe()}"
        self.reporter.say(f"critic: {judge.describe()}{shared}")
        optim = replace(self.config.model.optim, lr=own.critic_lr)
        clip = self.config.trainer.loop.gradient_clip_val
        self.critic = Learner(chunks, Critic(own), self.backend, optim, grad_clip=clip)
        return self.critic, start

    def _built(self, judge: Judge, *, learns: bool) -> list[GPTModel]:
        """Return a judge's model, filled."""
        lora = lora_settings(self.config.model.peft) if learns else None
        chunks = built_model(self.config, judge.made, lora)
        fill(chunks, judge.source.weights, judge.made)
        for chunk in chunks:
            if judge.is_new and isinstance(chunk.rm_head, RewardHead):
                torch.nn.init.zeros_(chunk.rm_head.weight)
            if not learns:
                chunk.requires_grad_(False)
        return chunks

    def _scorer(self, source: RewardSource, start: Reference | None) -> Scorer:
        """Return what computes one source of rewards; the critic itself where it began as that."""
        if source.path is None:
            function = None
            if speaking_rank():
                workers = self.own.reward_workers or min(8, os.cpu_count() or 1)
                function = RewardFunction(source, workers=workers, seconds=self.own.reward_seconds)
            return FunctionScorer(source.name, source.weight, function, self._text)
        judge = self.critic_judge
        # What a person names may be a directory that holds the checkpoint.
        if start is not None and source.path == self._critic_path:
            assert self.critic is not None, "it was made before"
            assert judge is not None, "the critic started from it"
            return ModelScorer(
                source.name, source.weight, self.critic.modules, judge.averages, start.in_place
            )
        judge = read_judge(source.path, self.made)
        self.reporter.say(f"reward model: {judge.describe()}, weight {source.weight:g}")
        chunks = self._built(judge, learns=False)
        return ModelScorer(source.name, source.weight, chunks, judge.averages)

    def _text(self, ids: Sequence[int]) -> str:
        return self.made.tokenizer.decode(list(ids))


def _crowds(learners: Sequence[Learner]) -> bool:
    """True when weights, gradients and optimizers take more than half of the GPU together."""
    device = learners[0].backend.device
    return (
        sum(map(resident_gib, learners)) * GIB > DEVICE_SHARE * torch.cuda.mem_get_info(device)[1]
    )
