"""Numbers of a rollout against plain sums; updates as one step; when a person is warned."""

import math
from dataclasses import replace

import pytest
import torch

from nemoalign.config.ppo import PpoSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.rollouts.estimates import estimate
from nemoalign.rollouts.measures import Measures, joined
from nemoalign.train.metrics import reduce_means
from nemoalign.train.trainee import StepResult
from tests.rollouts import made


def rewarded(own: PpoSettings, **parts):
    rollout = made.rollout([2, 4, 1, 3], prompts=(3, 5), parts=parts)
    rollout.answers = [replace(a, finished=n != 1) for n, a in enumerate(rollout.answers)]
    rollout.rewards = torch.tensor([1.0, 0.0, math.nan, 3.0])
    rollout.logprobs, rollout.reference = made.numbers(rollout, 1), made.numbers(rollout, 2)
    rollout.values = made.numbers(rollout, 3) if own.has_critic else None
    estimate(rollout, own)
    return rollout


def test_a_rollout_is_told_in_means_over_answers_and_over_tokens() -> None:
    own = PpoSettings(kl_estimator="k1")
    rollout = rewarded(own)
    found = Measures(own, ["rm"]).of_rollout(rollout)
    known = torch.tensor([1.0, 0.0, 3.0])
    gone = (rollout.logprobs - rollout.reference)[rollout.mask > 0]
    expected = {
        "reward": 4 / 3,
        "reward_std": known.std(correction=0).item(),
        "unrewarded": 1,
        "prompt_tokens": 4,
        "response_tokens": 2.5,
        "finished": 0.75,
        "kl": gone.mean().item(),
        "kl_of_answers": gone.sum().item() / 4,
    }
    for name in ("advantages", "returns", "values"):
        seen = getattr(rollout, name)[rollout.mask > 0]
        expected[f"{name}_mean"] = seen.mean().item()
        expected[f"{name}_std"] = seen.std(correction=0).item()
    assert found.pop("explained_variance") <= 1
    assert found == pytest.approx(expected, abs=1e-6)


def test_without_a_critic_there_are_no_values_and_a_distance_in_the_loss_is_told_there() -> None:
    own = PpoSettings(advantage="grpo", group=4)
    found = Measures(own, ["rm"]).of_rollout(rewarded(own))
    assert not {"kl", "values_mean", "returns_mean", "explained_variance"} & found.keys()


def test_several_sources_have_means_of_their_own() -> None:
    parts = {"rm": torch.tensor([1.0, 2.0, 3.0, 6.0]), "f": torch.tensor([1.0, math.nan, 0, 0])}
    own = PpoSettings(advantage="reinforce")
    measures = Measures(own, list(parts))
    found = measures.of_rollout(rewarded(own, **parts))
    assert (found["reward/rm"], found["reward/f"]) == pytest.approx((3.0, 1 / 3))
    assert {"reward/rm", "reward/f"} <= set(measures.metric_names)
    assert measures.report(found) == found


@pytest.mark.filterwarnings("error")
def test_a_rollout_nobody_could_reward_is_told_without_failing() -> None:
    own = PpoSettings()
    rollout = rewarded(own)
    rollout.rewards = torch.full((4,), math.nan)
    estimate(rollout, own)
    found = Measures(own, ["f"]).of_rollout(rollout)
    assert found["unrewarded"] == 4
    assert math.isnan(found["reward"])
    assert found["advantages_std"] == 0


def _measured(layout, sources) -> dict[str, float]:
    """Runs on each rank; the same rollout is known on all of them."""
    own = PpoSettings()
    measures = Measures(own, sources)
    parts = {name: torch.tensor([1.0, math.nan, 0, 2]) for name in sources}
    with start(layout, seed=1) as backend:
        found = measures.parts(rewarded(own, **parts))
        return reduce_means(found, measures.metric_names, backend.device)


@pytest.mark.dist
def test_a_measurement_counts_every_answer_once_whatever_the_layout(two_ranks) -> None:
    expected = {"reward": 4 / 3, "finished": 0.75, "response_tokens": 2.5}
    assert _measured(ParallelLayout(1), ["rm"]) == pytest.approx(expected)
    expected |= {"reward/rm": 1.0, "reward/f": 1.0}
    for layout in (ParallelLayout(2), ParallelLayout(2, tp=2), ParallelLayout(2, pp=2)):
        for found in two_ranks.run(_measured, layout, ["rm", "f"]):
            assert found == pytest.approx(expected), layout


def step(loss, norm, deviation=0.1, *, applied=True) -> StepResult:
    metrics = {"loss": loss, "ratio_deviation": deviation}
    return StepResult(metrics, norm, applied, compute_seconds=1.0)


def test_updates_are_one_step_of_means_with_the_first_ones_ratios() -> None:
    found = joined([step(1.0, 2.0, 0.0), step(3.0, 4.0)], [step(0.5, 1.0), step(1.5, 2.0)])
    assert found.metrics == {
        "loss": 2.0,
        "ratio_deviation": 0.0,
        "critic_loss": 1.0,
        "critic_grad_norm": 1.5,
    }
    assert (found.grad_norm, found.updates, found.applied) == (3.0, 2, True)
    assert found.compute_seconds == 4.0
    assert not joined([step(1.0, 2.0)], [step(1.0, math.nan, applied=False)]).applied


def test_a_step_of_the_critic_alone_or_of_nothing_is_a_step() -> None:
    alone = joined([], [step(0.5, 1.0)])
    assert alone.metrics == {"loss": 0.0, "critic_loss": 0.5, "critic_grad_norm": 1.0}
    assert (alone.updates, alone.grad_norm, alone.applied) == (0, 0.0, True)
    nothing = joined([], [])
    assert (nothing.metrics, nothing.applied) == ({"loss": 0.0}, True)


def test_the_first_update_proves_that_what_learns_is_what_wrote() -> None:
    measures = Measures(PpoSettings(), ["rm"])
    said = measures.check_start({"loss": 0.1, "ratio_deviation": 2e-7})
    assert said is not None
    assert "ratios 1, off by 2.0e-07" in said
    assert measures.check_start({"loss": 0.0}) is None


@pytest.mark.parametrize(
    ("changes", "metrics", "says"),
    [
        ({}, {}, None),
        ({}, {"finished": 0.4}, "only 40% of the answers end within --max-new-tokens 9"),
        ({"unfinished": "learn"}, {"finished": 0.4}, None),
        ({}, {"reward_std": 0.0}, "every answer of this step has the same reward"),
        ({}, {"reward": math.nan}, "no answer of this step has a reward"),
    ],
)
def test_a_rollout_that_teaches_little_is_a_warning(changes, metrics, says) -> None:
    measures = Measures(PpoSettings(max_new_tokens=9, **changes), ["rm"])
    found = measures.watch({"reward": 0.5, "finished": 1.0, "reward_std": 0.5, **metrics})
    assert found is None if says is None else found is not None and says in found
