"""How answers are sampled and what they are worth: the part of ``model.ppo`` that is no formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nemoalign.config.fields import AlgorithmSettings, setting
from nemoalign.config.values import RewardSource
from nemoalign.errors import ConfigError

REWARD = "Reward"
ROLLOUTS = "Rollouts"


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(AlgorithmSettings):
    """Shared by whatever learns from answers the policy writes itself."""

    rows: ClassVar[Literal["prompts"]] = "prompts"

    reward: tuple[RewardSource, ...] = setting(
        (),
        "What an answer is worth: a reward model, or a Python function of your own, my_module:score or "
        "file.py:score, called as score(prompt, response, and fields of the row by name); repeat it for a "
        "weighted sum.",
        flag="--reward",
        metavar="SRC[:WEIGHT]|MODULE:FUNCTION",
        panel=REWARD,
    )
    reward_seconds: float = setting(
        10.0,
        "Seconds a reward function may take for an answer; one that takes longer has no reward, and teaches "
        "nothing.",
        flag="--reward-timeout",
        above=0,
        panel=REWARD,
    )
    reward_workers: int | None = setting(
        None, "Processes that compute reward functions.", at_least=1, shown="one a core, at most 8"
    )
    unfinished_penalty: float | None = setting(
        None, "Added to the reward of an answer that does not end.", shown="none"
    )

    num_rollout_samples: int = setting(
        512,
        "Answers written in one step; its prompts are --rollouts / --group.",
        flag="--rollouts",
        at_least=1,
        panel=ROLLOUTS,
    )
    max_new_tokens: int | None = setting(
        None,
        "Longest answer, in tokens; a longer one is cut off there, unfinished.",
        flag="--max-new-tokens",
        at_least=1,
        shown="half of --seq-len",
        panel=ROLLOUTS,
    )
    min_new_tokens: int = setting(
        1,
        "Shortest answer, in tokens; before that it cannot end.",
        flag="--min-new-tokens",
        at_least=0,
        panel=ROLLOUTS,
    )
    temperature: float = setting(
        1.0,
        "Randomness of answers: 1 draws as the model gives it, less keeps to likely tokens. Learning takes "
        "answers for draws at 1.",
        flag="--temperature",
        above=0,
        panel=ROLLOUTS,
    )
    top_k: int = setting(
        0,
        "Draw from so many of the likeliest tokens; 0 is all.",
        flag="--top-k",
        at_least=0,
        panel=ROLLOUTS,
    )
    top_p: float = setting(
        1.0,
        "Draw from the likeliest tokens that together have this probability.",
        flag="--top-p",
        above=0,
        at_most=1,
        panel=ROLLOUTS,
    )
    stop: tuple[str, ...] = setting(
        (),
        "Text that ends an answer and is cut off it, beside the model's own end token; repeat it.",
        flag="--stop",
        metavar="TEXT",
        panel=ROLLOUTS,
    )
    slots: int = setting(32, "Answers that are written together.", at_least=1)
    num_val_samples: int | None = setting(
        None, "Prompts of --val that are answered.", at_least=1, shown="all"
    )
    rollouts_kept: int = setting(
        8, "Answers of a step that rollouts.jsonl keeps; 0 keeps none.", at_least=0
    )

    def __post_init__(self) -> None:
        """Refuse a source of rewards that is named twice: its two weights would be one number in the log."""
        super().__post_init__()
        names = [source.name for source in self.reward]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"--reward {twice} is given twice. Give it once, with the sum of the weights."
            )
