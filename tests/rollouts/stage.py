"""Tiny models in their roles, on one rank or many: what the tests of a step of learning stand on."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nemoalign.algorithms.ppo import Critic, Policy
from nemoalign.config.ppo import PpoSettings
from nemoalign.config.schema import OptimConfig
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights
from nemoalign.model.reference import choose_reference
from nemoalign.model.reward_head import with_reward_head
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.rollouts.answers import Rollout
from nemoalign.rollouts.batching import Batching
from nemoalign.rollouts.passes import Passes
from nemoalign.rollouts.roles import Roles
from nemoalign.train.learner import Learner
from tests.model import tiny

ONE = ParallelLayout(1)
LAYOUTS = {
    "tp2 sp": ParallelLayout(2, tp=2, sequence_parallel=True),
    "pp2": ParallelLayout(2, pp=2),
    "dp2": ParallelLayout(2),
}
PACKS = 48
EOS = 2


@dataclass
class Fixed:
    """A source of rewards that is a list."""

    values: Sequence[float]
    name: str = "fixed"
    weight: float = 1.0

    def score(self, passes: Passes) -> torch.Tensor:
        return torch.tensor(self.values)[: len(passes.rollout.answers)]

    def warnings(self) -> Sequence[str]:
        return ()

    def close(self) -> None: ...


def batching_of(layout: ParallelLayout, *, packs: bool = True) -> Batching:
    """How this rank lays rows out, two to a micro-batch or in small packs."""
    return Batching(
        dp_rank=layout.coordinates(torch.distributed.get_rank()).dp,
        dp_size=layout.dp,
        micro_batch_size=2,
        eos_id=EOS,
        pack_capacity=PACKS if packs else None,
        pad_to=layout.tp if layout.splits_sequence else 1,
    )


def passes_of(rollout: Rollout, batching: Batching) -> Passes:
    lengths = [len(answer.tokens) - 1 for answer in rollout.answers]
    shares = batching.shares(range(len(rollout.answers)), lengths)
    return Passes(rollout, batching, shares, torch.device("cpu"))


def model(layout: ParallelLayout, *, heads: int = 0, seed: int = 0, **changes: Any) -> list[Any]:
    """A tiny llama's part of this rank, with a reward head where there are ``heads``."""
    llama = tiny.llama(seed=seed)
    arch = tiny.architecture(llama.config, num_attributes=heads)
    store = tiny.Store(tiny.weights(llama, arch))
    if heads:
        store = with_reward_head(store, arch, seed=seed)
    settings = ModelSettings(reward_bias_learns=bool(heads), **changes)
    chunks = build_model(arch, tiny.VOCAB, layout, precision="fp32", settings=settings)
    load_weights(chunks, store, arch, layout, tiny.VOCAB)
    return chunks


@contextlib.contextmanager
def roles(
    layout: ParallelLayout, own: PpoSettings, scorers: Sequence[Any] = (), *, dropout: float = 0.0
) -> Iterator[Roles]:
    """Policy, reference and critic as the settings ask for them; the policy is the reference still."""
    optim = OptimConfig(lr=1e-2, weight_decay=0.0)
    with start(layout, seed=1) as backend:
        chunks = model(layout, hidden_dropout=dropout, value_head=own.share_trunk)
        policy = Learner(chunks, Policy(own), backend, optim, grad_clip=1.0)
        critic = None
        if own.has_critic and not own.share_trunk:
            slow = replace(optim, lr=own.critic_lr)
            heads = model(layout, heads=1, seed=3, hidden_dropout=dropout)
            critic = Learner(heads, Critic(own), backend, slow, grad_clip=1.0)
        reference = None
        if own.initial_policy_kl_penalty:
            reference = choose_reference(
                policy.modules, has_fresh_adapters=False, on_host=None, is_start=True
            )
        yield Roles(policy, reference, critic, scorers, optim.lr, own, looks_back=True)


def logprobs_of(rollout: Rollout, *, llama: Any = None) -> torch.Tensor:
    """The log-prob of every answer token by transformers, [answers, longest]."""
    llama, rows = llama or tiny.llama(), []
    for answer in rollout.answers:
        tokens = torch.from_numpy(answer.tokens).long()[None]
        with torch.no_grad():
            chances = llama(tokens).logits.log_softmax(-1)[0, :-1]
        chosen = chances.gather(-1, tokens[0, 1:, None])[:, 0]
        rows.append(chosen[-len(answer.ids) :])
    return rollout.padded(rows)


def hidden_of(rollout: Rollout, *, seed: int = 0) -> list[torch.Tensor]:
    """The hidden states that a head reads, of each answer with its prompt, [s, h]."""
    llama = tiny.llama(seed=seed)
    with torch.no_grad():
        return [
            llama.model(torch.from_numpy(answer.tokens).long()[None]).last_hidden_state[0]
            for answer in rollout.answers
        ]


def head_of(*, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the head that ``model`` gives."""
    llama = tiny.llama()
    arch = tiny.architecture(llama.config, num_attributes=1)
    store = with_reward_head(tiny.Store(tiny.weights(llama, arch)), arch, seed=seed)
    weight, bias = (store.read(f"rm_head.{name}").copy() for name in ("weight", "bias"))
    return torch.from_numpy(weight), torch.from_numpy(bias)
