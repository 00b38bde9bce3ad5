"""What is known of a rollout in numbers, for the log, and for rows that are only measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from megatron.core import parallel_state

from nemoalign.rollouts.estimates import explained_variance
from nemoalign.train.metrics import Mean
from nemoalign.train.trainee import StepResult

if TYPE_CHECKING:
    from torch import Tensor

    from nemoalign.config.ppo import PpoSettings
    from nemoalign.rollouts.answers import Rollout

FEW = 0.5
"""Share of answers that end below which learning has little to go by."""


class Measures:
    """Means over the answers of a rollout; what the loop knows as an algorithm's metrics."""

    def __init__(self, settings: PpoSettings, sources: Sequence[str]) -> None:
        self.own = settings
        self.shown: tuple[str, ...] = ("reward", "response_tokens")
        self.sources = list(sources) if len(sources) > 1 else []
        self.metric_names: tuple[str, ...] = (
            "reward",
            "finished",
            "response_tokens",
            *map(_named, self.sources),
        )

    def of_rollout(self, rollout: Rollout) -> dict[str, float]:
        """Return the numbers of a rollout that was learned from; the same on every rank."""
        rewards = rollout.rewards[rollout.rewarded]
        found = {
            "reward": _mean(rewards),
            "reward_std": float(rewards.std(correction=0)) if len(rewards) else math.nan,
            **{_named(name): _mean(rollout.parts[name]) for name in self.sources},
            "unrewarded": float((~rollout.rewarded).sum()),
            "prompt_tokens": _mean([len(one.question.prompt.ids) for one in rollout.answers]),
            "response_tokens": _mean(rollout.lengths),
            "finished": _mean(rollout.finished),
        }
        mask = rollout.mask > 0
        if rollout.kl is not None and self.own.kl_place == "reward":
            found |= {
                "kl": float(rollout.kl[mask].mean()),
                "kl_of_answers": float(rollout.kl.sum(-1).mean()),
            }
        assert rollout.advantages is not None, "estimated before"
        found |= _spread("advantages", rollout.advantages[mask])
        if rollout.values is not None and rollout.returns is not None:
            found |= _spread("returns", rollout.returns[mask])
            found |= _spread("values", rollout.values[mask])
            found["explained_variance"] = explained_variance(rollout)
        return found

    def parts(self, rollout: Rollout) -> list[dict[str, Mean]]:
        """Return the same of rows that are only measured, on the one rank that speaks for all replicas."""
        if parallel_state.get_data_parallel_rank():
            return [{name: _part(torch.empty(0)) for name in self.metric_names}]
        found = {
            "reward": rollout.rewards[rollout.rewarded],
            "finished": rollout.finished,
            "response_tokens": rollout.lengths,
            **{_named(name): rollout.parts[name] for name in self.sources},
        }
        return [{name: _part(values) for name, values in found.items()}]

    def report(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the means as they are."""
        return dict(means)

    def check_start(self, metrics: Mapping[str, float]) -> str | None:
        """Return what the first update proves: that what learns is what wrote."""
        if "ratio_deviation" not in metrics:
            return None
        return (
            "proof before learning: the policy finds its own answers as likely as when it looked back "
            f"(ratios 1, off by {metrics['ratio_deviation']:.1e})"
        )

    def watch(self, metrics: Mapping[str, float]) -> str | None:
        """Return a warning where a rollout teaches little or nothing."""
        if math.isnan(metrics["reward"]):
            return "no answer of this step has a reward, so nothing was learned from it."
        if self.own.unfinished == "mask" and metrics["finished"] < FEW:
            return (
                f"only {metrics['finished']:.0%} of the answers end within --max-new-tokens "
                f"{self.own.max_new_tokens}, and the policy learns from no others. Raise it, or "
                "--unfinished learn."
            )
        if metrics["reward_std"] == 0:
            return "every answer of this step has the same reward, so there is nothing to learn from it."
        return None


def joined(done: Sequence[StepResult], valued: Sequence[StepResult]) -> StepResult:
    """Return the updates of policy and critic as one step: means over them, the first one's ratios."""
    metrics = {"loss": 0.0}
    if done:
        names = [name for name in done[0].metrics if name != "ratio_deviation"]
        metrics = {name: _mean([one.metrics[name] for one in done]) for name in names}
        metrics["ratio_deviation"] = done[0].metrics["ratio_deviation"]
    if valued:
        metrics["critic_loss"] = _mean([one.metrics["loss"] for one in valued])
        metrics["critic_grad_norm"] = _mean([one.grad_norm for one in valued])
    return StepResult(
        metrics,
        grad_norm=_mean([one.grad_norm for one in done]) if done else 0.0,
        applied=all(one.applied for one in (*done, *valued)),
        compute_seconds=sum(one.compute_seconds for one in (*done, *valued)),
        updates=len(done),
    )


def _named(source: str) -> str:
    return f"reward/{source}"


def _mean(values: Tensor | Sequence[float]) -> float:
    found = torch.as_tensor(values, dtype=torch.float64)
    found = found[~found.isnan()]
    return float(found.mean()) if len(found) else math.nan


def _spread(name: str, values: Tensor) -> dict[str, float]:
    return {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std(correction=0))}


def _part(values: Tensor) -> Mean:
    known = ~values.double().isnan()
    return Mean(values.double().nan_to_num(0.0).sum(), known.double().sum())
