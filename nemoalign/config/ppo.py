"""What ``ppo`` has for itself: ``model.ppo``. NeMo-Aligner's own places for these keys are known too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.config.fields import setting
from nemoalign.config.rollouts import RolloutSettings
from nemoalign.errors import ConfigError

ADVANTAGES = "Advantages"
LOSS = "Loss"
CRITIC = "Critic"

GROUPS = {"gae": 1, "reinforce": 1, "rloo": 4, "grpo": 8}
"""Answers to a prompt unless ``--group`` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class PpoSettings(RolloutSettings):
    """Reinforcement learning from answers the policy writes itself."""

    advantage: Literal["gae", "reinforce", "rloo", "grpo"] = setting(
        "gae",
        "What a reward is measured by: gae, a critic's values (PPO); reinforce, the mean of the rollout; "
        "rloo, the mean of the prompt's other answers; grpo, mean and spread of all the prompt's answers.",
        flag="--advantage",
        panel=ADVANTAGES,
    )
    group: int | None = setting(
        None,
        "Answers to each prompt; rloo and grpo compare them.",
        flag="--group",
        at_least=1,
        shown="1; rloo 4, grpo 8",
        panel=ADVANTAGES,
    )
    discount_factor: float = setting(
        1.0,
        "gae, reinforce: what a reward is still worth one token before it.",
        flag="--gamma",
        above=0,
        at_most=1,
        panel=ADVANTAGES,
    )
    gae_lambda: float = setting(
        0.95,
        "gae: 1 trusts the rewards that came, 0 the critic's next value.",
        flag="--gae-lambda",
        at_least=0,
        at_most=1,
        panel=ADVANTAGES,
    )
    normalize_advantages: bool | None = setting(
        None,
        "Give the advantages of a rollout's tokens mean 0 and variance 1.",
        shown="on for gae and reinforce",
    )
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "group", "grpo: whose spread advantages are divided by; none is Dr. GRPO."
    )
    leave_one_out: bool = setting(
        False, "grpo: an answer's own reward stays out of mean and spread (NeMo-RL)."
    )
    drop_even_groups: bool = setting(
        False, "rloo, grpo: learn nothing from prompts whose answers are all worth the same (DAPO)."
    )
    initial_policy_kl_penalty: float = setting(
        0.01,
        "How strongly the policy is held to its start: weight of the KL between them; 0 is not at all.",
        flag="--kl",
        at_least=0,
        panel=ADVANTAGES,
    )
    kl_in: Literal["reward", "loss"] | None = setting(
        None,
        "Whether --kl lowers rewards, or is part of the loss.",
        flag="--kl-in",
        choices={"reward": "reward", "loss": "loss"},
        shown="reward; grpo loss",
        panel=ADVANTAGES,
    )
    kl_estimator: Literal["k1", "abs", "k2", "k3"] | None = setting(
        None,
        "How a token's KL is estimated from d, its log-prob less the start's: k1 is d, abs |d| (NeMo-"
        "Aligner's), k2 d^2 / 2, k3 exp(-d) - 1 + d.",
        flag="--kl-estimator",
        choices={"k1": "k1", "abs": "abs", "k2": "k2", "k3": "k3"},
        shown="abs; in the loss k3",
        panel=ADVANTAGES,
    )
    reference_on_host: bool | None = setting(
        None,
        "Keep copies of models that do not learn in the host's memory; null keeps them on the device "
        "unless that is crowded.",
    )

    ppo_epochs: int = setting(
        1, "Times that a rollout is learned from.", flag="--ppo-epochs", at_least=1, panel=LOSS
    )
    ratio_eps: float = setting(
        0.2,
        "Share by which a rollout may change a token's probability before the token stops counting.",
        flag="--clip",
        above=0,
        panel=LOSS,
    )
    ratio_eps_high: float | None = setting(
        None, "The same upwards (DAPO's clip-higher).", above=0, shown="as --clip"
    )
    ratio_clip_c: float | None = setting(
        None, "Largest loss of a bad token, in advantages (dual clip).", above=1, shown="none"
    )
    policy_loss: Literal["ppo", "gspo", "cispo", "reinforce"] = setting(
        "ppo",
        "What --clip is about: ppo, every token; gspo, whole answers; cispo, the weight of a token, which "
        "goes on counting; reinforce, nothing.",
        flag="--loss",
        panel=LOSS,
    )
    loss_average: Literal["tokens", "answers", "max_tokens"] = setting(
        "tokens",
        "Mean over all tokens; over answers of theirs; or answers' sums over --max-new-tokens "
        "(Dr. GRPO).",
    )
    entropy_bonus: float = setting(
        0.0,
        "Reward for staying undecided: weight of the policy's entropy in the loss.",
        flag="--entropy",
        at_least=0,
        panel=LOSS,
    )
    unfinished: Literal["mask", "learn"] = setting(
        "mask",
        "Learn from answers that --max-new-tokens cut off, or leave them out (mask); a critic learns from "
        "all.",
        flag="--unfinished",
        panel=LOSS,
    )

    critic_path: Path | None = setting(
        None,
        "What the critic starts from; a model without a reward head gets a new one.",
        flag="--critic",
        metavar="SRC",
        path_kind="any",
        shown="the first reward model, else --ckpt",
        panel=CRITIC,
    )
    share_trunk: bool = setting(
        False,
        "Let the critic be a head on the policy, not a model of its own.",
        flag="--share-trunk",
        panel=CRITIC,
    )
    critic_lr: float = setting(
        9e-6,
        "The critic's learning rate.",
        flag="--critic-lr",
        at_least=0,
        shown="9e-06, ten times for LoRA",
        panel=CRITIC,
    )
    critic_warmup_steps: int = setting(
        0,
        "Steps at the start in which only the critic learns.",
        flag="--critic-warmup",
        at_least=0,
        panel=CRITIC,
    )
    loss_clip_val: float = setting(
        0.2,
        "How far a rollout may move a value before its token stops counting; 0 is off.",
        flag="--value-clip",
        at_least=0,
        panel=CRITIC,
    )
    value_loss_weight: float = setting(
        0.1, "--share-trunk: weight of the values' loss beside the policy's.", at_least=0
    )
    offload: bool | None = setting(
        None,
        "Keep what the phase does not need in the host's memory.",
        shown="where a GPU would be crowded",
    )

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        super().__post_init__()
        if self.num_rollout_samples % self.answers:
            raise ConfigError(
                f"--rollouts {self.num_rollout_samples} is no multiple of --group {self.answers}. "
                f"Use --rollouts {-(-self.num_rollout_samples // self.answers) * self.answers}."
            )
        if self.advantage in ("rloo", "grpo") and self.answers < 2:
            raise ConfigError(
                f"--advantage {self.advantage} compares the answers to a prompt, and --group is 1. "
                f"Use --group {GROUPS[self.advantage]}."
            )
        critic = [
            flag
            for flag, given in (
                ("--critic", self.critic_path),
                ("--share-trunk", self.share_trunk),
                ("--critic-warmup", self.critic_warmup_steps),
            )
            if given
        ]
        if critic and not self.has_critic:
            raise ConfigError(
                f"{critic[0]} has no effect: --advantage {self.advantage} has no critic. "
                "Leave it out, or use --advantage gae."
            )
        if self.share_trunk and (self.critic_path or self.critic_warmup_steps):
            raise ConfigError(
                "--share-trunk makes the critic a head on the policy, which starts and learns with it. "
                "Leave --critic and --critic-warmup out."
            )

    @property
    def answers(self) -> int:
        """Answers to each prompt of a step."""
        return self.group or GROUPS[self.advantage]

    @property
    def prompts(self) -> int:
        """Prompts of a step."""
        return self.num_rollout_samples // self.answers

    @property
    def has_critic(self) -> bool:
        """True when values are learned beside the policy."""
        return self.advantage == "gae"

    @property
    def kl_place(self) -> str:
        """``reward`` or ``loss``: where the distance to the reference is counted."""
        return self.kl_in or ("loss" if self.advantage == "grpo" else "reward")

    @property
    def kl_kind(self) -> str:
        """How a token's distance to the reference is estimated."""
        return self.kl_estimator or ("k3" if self.kl_place == "loss" else "abs")

    @property
    def whitens(self) -> bool:
        """True when advantages get mean 0 and variance 1."""
        if self.normalize_advantages is not None:
            return self.normalize_advantages
        return self.advantage in ("gae", "reinforce")
