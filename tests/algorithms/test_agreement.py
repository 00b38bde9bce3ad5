"""What the first step proves, and what it says when it is off."""

import math

import pytest

from nemoalign.algorithms.agreement import check_agreement
from nemoalign.errors import VerificationError

FINE = {"loss": 0.9, "preference_loss": 0.6931472, "rewards_chosen": 0.0, "rewards_rejected": 1e-6}


def test_it_says_what_it_saw() -> None:
    assert "the loss is 0.693147" in check_agreement(FINE, math.log(2))
    assert (
        check_agreement(FINE, None)
        == "step 0: policy and reference agree (rewards within 1e-06 of 0)"
    )


def test_a_step_without_rows_of_one_kind_is_judged_by_the_other() -> None:
    assert "agree" in check_agreement({"loss": 0.5, "rewards_chosen": math.nan, "rewards_rejected": 0.0}, 0.5)  # fmt: skip


def test_rewards_and_losses_that_are_off_are_exit_6() -> None:
    with pytest.raises(VerificationError, match=r"rewards differ by 0\.2") as off:
        check_agreement(FINE | {"rewards_chosen": -0.2}, None)
    assert off.value.exit_code == 6
    with pytest.raises(VerificationError, match=r"must be 0\.5, .* but it is 0\.693147"):
        check_agreement(FINE, 0.5)
