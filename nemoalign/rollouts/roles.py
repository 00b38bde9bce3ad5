"""Who takes part in a step: what learns, what it is compared with, and what judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING

import torch

from nemoalign.model.forward import forward_logprobs, forward_values
from nemoalign.parallel.measure import GIB

if TYPE_CHECKING:
    from torch import nn

    from nemoalign.config.architecture import Architecture
    from nemoalign.config.ppo import PpoSettings
    from nemoalign.model.reference import Reference
    from nemoalign.parallel.layout import ParallelLayout
    from nemoalign.rollouts.passes import Passes
    from nemoalign.rollouts.scoring import Scorer
    from nemoalign.train.learner import Learner
    from nemoalign.train.offload import Offload


class Needed(IntEnum):
    """How much of a learner a phase needs on the device."""

    NOTHING = 0
    WEIGHTS = 1
    ALL = 2


@dataclass(frozen=True)
class Roles:
    """All models of a run on this rank; which of them share memory was decided when they were made."""

    policy: Learner
    reference: Reference | None
    """What the policy's distance is measured to; None where that is not asked for."""
    critic: Learner | None
    """A learner of its own; None without values, or where they are a head of the policy."""
    scorers: Sequence[Scorer]
    highest_lr: float
    """The policy's; the critic's rate keeps its proportion to it."""
    settings: PpoSettings
    looks_back: bool
    """The log-probs of the policy that wrote are computed before it learns."""
    offloads: Mapping[str, Offload] = field(default_factory=dict[str, "Offload"])
    """``policy`` and ``critic``, where what a phase does not need lies in the host's memory."""

    def have(self, *, policy: Needed, critic: Needed) -> None:
        """Have on the device what the next phase needs of each, and only that."""
        for name, needed in (("policy", policy), ("critic", critic)):
            if name in self.offloads:
                self.offloads[name].hold(
                    weights=needed > Needed.NOTHING, learning=needed is Needed.ALL
                )

    @property
    def drops_out(self) -> bool:
        """True when a forward pass of learning is not one of looking back."""
        config = self.policy.model_config
        return config.hidden_dropout > 0 or config.attention_dropout > 0

    def memory(self, slots: int, arch: Architecture, layout: ParallelLayout) -> list[str]:
        """Return what each role takes of this rank's memory, a sentence each."""
        learners = {"policy": self.policy, "critic": self.critic}
        lines = [
            f"memory of a rank: {name} {_weights(one.modules):,.2f} GiB and {_learning(one):,.2f} to learn"
            for name, one in learners.items()
            if one is not None
        ]
        groups = max(1, arch.query_groups // layout.tp)
        layers = -(-arch.num_layers // layout.pp)
        itemsize = 2 if self.policy.model_config.params_dtype is torch.bfloat16 else 4
        numbers = 2 * slots * arch.encoder_seq_length * layers * groups * arch.head_dim
        return [
            *lines,
            f"memory of a rank: at most {numbers * itemsize / GIB:,.2f} GiB for the keys and values of {slots} answers",
        ]

    def look_back(self, passes: Passes) -> None:
        """Let policy, reference and critic say what they think of every token. Collective."""
        rollout, chunks = passes.rollout, self.policy.chunks
        self.have(policy=Needed.WEIGHTS, critic=Needed.NOTHING)
        if self.settings.share_trunk and self.settings.has_critic:
            both = passes.of_tokens(chunks, partial(forward_logprobs, with_values=True))
            rollout.logprobs, rollout.values = both.unbind(-1)
        elif self.looks_back:
            rollout.logprobs = passes.of_tokens(chunks, forward_logprobs)
        if self.reference is not None:
            with self.reference.in_place():
                rollout.reference = passes.of_tokens(chunks, forward_logprobs)
        if self.critic is not None:
            self.have(policy=Needed.NOTHING, critic=Needed.WEIGHTS)
            rollout.values = passes.of_tokens(self.critic.chunks, forward_values)


def _weights(chunks: Sequence[nn.Module]) -> float:
    """Return GiB of weights."""
    return sum(p.numel() * p.element_size() for chunk in chunks for p in chunk.parameters()) / GIB


def _learning(learner: Learner) -> float:
    """Return GiB of gradients, fp32 masters of bf16 weights, and Adam's two moments.

    With a distributed optimizer masters and moments are shared out, and it is less.
    """
    masters = 4 if learner.model_config.params_dtype is torch.bfloat16 else 0
    return learner.trained_parameters() * (4 + masters + 8) / GIB


def resident_gib(learner: Learner) -> float:
    """Return GiB that a learner has on its device between steps."""
    return _weights(learner.modules) + _learning(learner)
