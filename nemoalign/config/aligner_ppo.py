"""What NeMo-Aligner's files for PPO's critic and for REINFORCE mean to ``ppo``, beyond their keys' names.

PPO there is two programs. The critic's file is one more ``--config`` here, of which only what is the
critic's own is taken: its rate of learning is not the policy's. REINFORCE there is a program too, and
here it is settings of the one command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from nemoalign.config.layers import Given, Layer

CRITIC = "critic_file."
"""Stands before keys of a critic's file that the run has for policy and critic together."""

_MARKS = (
    "trainer.ppo.port",
    "trainer.ppo.inference_micro_batch_size",
    "trainer.ppo.combine_rm_and_critic_server",
    "model.output_sequence",
)
"""Keys that only a critic's file has."""
_CLIP = "model.ppo.loss_clip_val"
_CRITICS: Mapping[str, str] = {"model.optim.lr": "model.ppo.critic_lr", _CLIP: _CLIP}
_SHARED = ("model.optim.*", "model.global_batch_size", "trainer.ppo.gradient_clip_val")
_JUDGES = (
    *("model.reward_standardization*", "model.regression*"),
    *("model.use_avg_pool", "model.force_head_dtype"),
)
"""What a reward model's own checkpoint decides; ``legacy`` knows what to say."""
_SAME = ("model.optim.name", "model.optim.sched.min_lr")
"""Adam is Adam, and the critic's rate ends at the same share of its highest as the policy's."""

_PROMPTS, _GROUP = "model.reinforce.num_rollout_samples", "model.ppo.group"
_REINFORCE: Mapping[str, Any] = {
    "model.ppo.advantage": "rloo",
    _GROUP: 4,
    "model.ppo.policy_loss": "reinforce",
}
"""``megatron_gpt_reinforce_actor.py``: no ratio. With micro-batches of one row, its default, answers that do
not end teach nothing, as is ours."""


@dataclass(frozen=True)
class Meant:
    """Layers as they are meant, the lowest first, and what is worth knowing about that."""

    layers: list[Layer]
    hints: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])


def as_meant(files: Sequence[Layer], others: Sequence[Layer]) -> Meant:
    """Return the layers of ``--config`` files, and those above them, as a run of ``ppo`` means them."""
    critics = [layer for layer in files if is_of_critic(layer)]
    layers = [_of_critic(layer) if is_of_critic(layer) else layer for layer in files]
    layers += others
    hints = [
        f"{_source(layer)} is a critic's file: its learning rate, value clip and checkpoint are the "
        "critic's; batches, schedule and machines are the policy's."
        for layer in critics
    ]
    source = _speaks_of_reinforce(layers)
    if source is None:
        return Meant(layers, hints)
    warning = (
        f"{source} is about NeMo-Aligner's REINFORCE, which here is --advantage rloo --loss reinforce unless "
        "you say otherwise. Its KL is the mean over an answer's tokens and ours their sum: the same --kl holds "
        "long answers much tighter."
    )
    return Meant([_reinforce(layers, source), *layers], hints, [warning])


def is_of_critic(layer: Layer) -> bool:
    """True for a file for NeMo-Aligner's critic, unless it has the actor's keys too."""
    is_actors = any(key.startswith("model.ppo.") and key != _CLIP for key in layer.values)
    return not is_actors and any(mark in layer.values for mark in _MARKS)


def _of_critic(layer: Layer) -> Layer:
    """Return what of a critic's file is this run's, and for comparison what the run has only once.

    The critic's start is the reward model too, unless the file says that another program serves it.
    """
    values = layer.values
    found = {ours: values[theirs] for theirs, ours in _CRITICS.items() if theirs in values}
    start = values.get("pretrained_checkpoint.restore_from_path")
    if start is not None and start.value is not None:
        found["model.ppo.critic_path"] = start
        combined = values.get("trainer.ppo.combine_rm_and_critic_server")
        if combined is None or combined.value:
            found["model.ppo.reward"] = start
    for key, given in values.items():
        if _is_one_of(key, _JUDGES):
            found[key] = given
        elif _is_one_of(key, _SHARED) and key not in (*_CRITICS, *_SAME):
            found[CRITIC + key] = given
    return Layer(found)


def _is_one_of(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _reinforce(layers: Sequence[Layer], source: str) -> Layer:
    """Return what NeMo-Aligner's REINFORCE does where its keys say nothing; of prompts it makes answers."""
    values = dict(_REINFORCE)
    if any(_PROMPTS in layer.values for layer in layers):
        values["model.ppo.num_rollout_samples"] = f"${{multiply:${{{_PROMPTS}}},${{{_GROUP}}}}}"
    source = f"NeMo-Aligner's REINFORCE, {source}"
    return Layer({key: Given(value, source) for key, value in values.items()})


def _speaks_of_reinforce(layers: Sequence[Layer]) -> str | None:
    """Return the first source with a key of NeMo-Aligner's REINFORCE."""
    givens = (given for layer in layers for given in layer.values.values())
    return next((given.source for given in givens if ".reinforce." in given.written), None)


def _source(layer: Layer) -> str:
    return next(given.source for given in layer.values.values())
