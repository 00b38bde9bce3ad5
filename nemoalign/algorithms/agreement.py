"""The proof before the first step: a policy that is its own reference agrees with it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from nemoalign.errors import VerificationError

TOLERANCE = 1e-3
"""Of a mean reward, in units of beta nats; both sides run the same kernels on the same rows."""


def check_agreement(metrics: Mapping[str, float], expected_loss: float | None) -> str:
    """Return in words that the rewards of the first step are 0 and its loss is what it must be.

    Args:
        metrics: of the first step, before it changed anything.
        expected_loss: the loss where policy and reference agree; None where rows decide it.

    Raises:
        VerificationError: when a reward is not 0, or the loss another one.
    """
    rewards = [metrics[name] for name in ("rewards_chosen", "rewards_rejected")]
    off = max((abs(reward) for reward in rewards if not math.isnan(reward)), default=0.0)
    if off > TOLERANCE:
        raise VerificationError(
            f"Before the first step policy and reference are the same model, but their rewards differ "
            f"by {off:.3g} on average. Nothing was saved. This is a defect: please report it with the "
            "run's config.yaml."
        )
    loss = metrics["preference_loss"] if "preference_loss" in metrics else metrics["loss"]
    if expected_loss is None:
        return f"step 0: policy and reference agree (rewards within {off:.1g} of 0)"
    if abs(loss - expected_loss) > TOLERANCE * max(1.0, abs(expected_loss)):
        raise VerificationError(
            f"Before the first step the loss must be {expected_loss:.6g}, where policy and reference "
            f"agree, but it is {loss:.6g}. Nothing was saved. This is a defect: please report it with "
            "the run's config.yaml."
        )
    return (
        f"step 0: policy and reference agree (rewards within {off:.1g} of 0), and the loss is "
        f"{loss:.6g}, as its formula gives there"
    )
