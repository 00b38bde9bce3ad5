"""Sources of rewards, and bounds of how answers are drawn."""

import pytest

from nemoalign.config.rollouts import RolloutSettings
from nemoalign.config.values import RewardSource
from nemoalign.errors import ConfigError


def test_a_source_of_rewards_is_named_once() -> None:
    twice = tuple(RewardSource.parse(text) for text in ("a:f:0.5", "b:f", "a:f"))
    with pytest.raises(ConfigError, match=r"--reward a:f is given twice.*the sum of the weights"):
        RolloutSettings(reward=twice)
    assert RolloutSettings(reward=twice[:2]).reward == twice[:2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": 0.0}, "above 0"),
        ({"top_p": 1.5}, "at most 1"),
        ({"num_rollout_samples": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"reward_seconds": 0.0}, "above 0"),
        ({"slots": 0}, "at least 1"),
    ],
)
def test_what_draws_nothing_is_refused(settings, says) -> None:
    with pytest.raises(ConfigError, match=says):
        RolloutSettings(**settings)


def test_draws_are_the_models_own_unless_something_else_is_said() -> None:
    """The defaults draw from the model itself, which is what learning assumes."""
    own = RolloutSettings()
    assert (own.temperature, own.top_k, own.top_p, own.stop) == (1.0, 0, 1.0, ())
    assert own.rows == "prompts"
