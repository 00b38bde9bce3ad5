"""One step of reinforcement learning: what it learns from, in what order, and when it refuses or is cut."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from nemoalign.config.ppo import PpoSettings
from nemoalign.errors import VerificationError
from nemoalign.model.generate import PASSES
from nemoalign.model.sampling import Sampling
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.rollouts.answers import Rollout
from nemoalign.rollouts.roles import Roles
from nemoalign.rollouts.trainee import PpoTrainee
from nemoalign.rollouts.writing import Writing
from nemoalign.train.metrics import reduce_means
from nemoalign.train.questions import Questions
from nemoalign.train.stopping import Asked, Cut
from tests.rollouts import made, stage
from tests.rollouts.test_writing import Spelled

REWARDS = [1.0, 0.0, 0.5, -1.0, 2.0, 0.0, 1.0, 0.25]
OWN = PpoSettings(
    num_rollout_samples=8,
    max_new_tokens=6,
    unfinished="learn",
    ppo_epochs=2,
    critic_lr=3e-3,
    initial_policy_kl_penalty=0.05,
)


def asked(consumed: int = 0, count: int = 8) -> list[Questions]:
    prompts = [made.question(range(3 + n, 6 + 2 * n), n) for n in range(count)]
    return [Questions(tuple(prompts), consumed)]


def agree(is_writing: bool) -> tuple[float, Asked]:
    told = torch.tensor([float(is_writing)])
    torch.distributed.all_reduce(told)
    return told.item(), Asked()


def trainee_of(
    roles: Roles, layout: ParallelLayout = stage.ONE, *, packs: bool = True
) -> PpoTrainee:
    own = roles.settings
    made_of = PpoTrainee(
        roles,
        own,
        Writing(Spelled(), own.max_new_tokens, own.stop, slots=5),
        Sampling(1.0, seed=7),
        stage.batching_of(layout, packs=packs),
        update_size=4,
    )
    made_of.listen(agree)
    return made_of


def weights(learner) -> list[torch.Tensor]:
    return [p.detach().clone() for chunk in learner.modules for p in chunk.parameters()]


def same(before: list[torch.Tensor], learner) -> bool:
    return all(torch.equal(x, y) for x, y in zip(before, weights(learner), strict=True))


def _steps(layout: ParallelLayout, own: PpoSettings, packs: bool = True):
    """Runs on each rank: two steps, and a measurement."""
    with stage.roles(layout, own, [stage.Fixed(REWARDS)]) as roles:
        trainee = trainee_of(roles, layout, packs=packs)
        count = own.prompts
        steps = [trainee.step(asked(count * n, count), 1e-2) for n in range(2)]
        parts = trainee.evaluate(asked(count=3))
        measured = reduce_means(parts, trainee.algorithm.metric_names, trainee.backend.device)
    return [{**step.metrics, "grad_norm": step.grad_norm} for step in steps], measured


@pytest.mark.dist
@pytest.mark.parametrize(
    "changes",
    [{}, {"share_trunk": True, "loss_average": "answers"}, {"advantage": "grpo", "group": 2}],
    ids=["a critic", "a value head", "groups"],
)
def test_steps_are_the_same_in_every_layout_packed_or_not(changes, two_ranks) -> None:
    own = replace(OWN, **changes)
    expected, measured = _steps(stage.ONE, own)
    assert expected[0]["ratio_deviation"] == 0
    assert expected[1]["kl"] > 0
    found = [_steps(stage.ONE, own, packs=False)]
    for layout in stage.LAYOUTS.values():
        found += two_ranks.run(_steps, layout, own)
    for steps, means in found:
        for ours, theirs in zip(steps, expected, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        assert means == pytest.approx(measured)


@dataclass
class Seen(stage.Fixed):
    """Shows every rollout it scores."""

    kept: list[Rollout] = field(default_factory=list)

    def score(self, passes):
        self.kept.append(passes.rollout)
        return super().score(passes)


def test_a_rollout_is_passed_over_as_often_as_asked_with_all_that_learning_needs() -> None:
    kept: list[Rollout] = []
    with stage.roles(stage.ONE, OWN, [Seen(REWARDS, kept=kept)]) as roles:
        trainee = trainee_of(roles)
        result = trainee.step(asked(16), 1e-2)
        assert roles.policy.updates == roles.critic.updates == 4
    assert (result.updates, result.applied) == (4, True)
    (rollout,) = kept
    assert len(result.rollouts) == min(OWN.rollouts_kept, len(rollout.answers))
    assert rollout.rewards.tolist() == REWARDS
    for name in ("logprobs", "reference", "values", "advantages", "returns", "kl"):
        assert getattr(rollout, name).shape == rollout.mask.shape, name
    assert result.tokens == sum(len(answer.tokens) for answer in rollout.answers)
    phases = {"write", "score", "look_back", "learn", "learn_values"}
    assert result.extra.keys() == {f"seconds_{phase}" for phase in phases}
    assert result.metrics["reward"] == pytest.approx(sum(REWARDS) / 8)


class High(stage.Fixed):
    """Tokens from 300 on are good."""

    def score(self, passes):
        rows = passes.rollout.answers
        return torch.tensor([sum(token >= 300 for token in row.ids) / len(row.ids) for row in rows])


@pytest.mark.parametrize("changes", [{"advantage": "reinforce"}, {"share_trunk": True}])
def test_rewards_are_learned(changes) -> None:
    own = replace(OWN, initial_policy_kl_penalty=0.0, num_rollout_samples=32, group=4, **changes)
    with stage.roles(stage.ONE, own, [High([])]) as roles:
        trainee = trainee_of(roles)
        found = [trainee.step(asked(8 * n), 1e-2).metrics for n in range(5)]
    assert found[-1]["reward"] > 0.3 + found[0]["reward"]
    assert all(metrics["ratio_deviation"] == 0 for metrics in found)


def test_answers_depend_on_what_was_asked_before_and_on_nothing_else() -> None:
    kept: list[Rollout] = []
    own = replace(OWN, group=2, num_rollout_samples=16)
    with stage.roles(stage.ONE, own, [Seen(REWARDS * 2, kept=kept)]) as roles:
        trainee = trainee_of(roles)
        for consumed in (0, 8, 0):
            trainee.step(asked(consumed), 0.0)
        trainee.evaluate(asked())
    first, second, again, measured = ([answer.ids for answer in one.answers] for one in kept)
    assert first == again
    assert len({*first, *second, *measured}) == 16 + 16 + 8


def test_passes_over_a_rollout_take_its_answers_in_different_orders() -> None:
    with stage.roles(stage.ONE, replace(OWN, critic_warmup_steps=9), [Seen(REWARDS)]) as roles:
        shown: list[tuple] = []
        trainee, learn = trainee_of(roles), roles.critic.step

        def watched(batches, lr):
            shown.append(tuple(sorted(float(b.fields["returns"].sum()) for b in batches)))
            return learn(batches, lr)

        roles.critic.step = watched
        trainee.step(asked(), 1e-2)
    assert len(shown) == len(set(shown)) == 4
    assert sum(shown[0]) + sum(shown[1]) == pytest.approx(sum(shown[2]) + sum(shown[3]), abs=1e-4)


def test_the_critic_learns_from_answers_that_do_not_end_too() -> None:
    with stage.roles(stage.ONE, replace(OWN, unfinished="mask"), [stage.Fixed(REWARDS)]) as roles:
        result = trainee_of(roles).step(asked(), 1e-2)
        assert (roles.policy.updates, roles.critic.updates) == (0, 4)
    assert (result.metrics["finished"], result.updates) == (0.0, 0)


def test_a_value_heads_weight_is_no_matter_of_how_the_policy_is_averaged() -> None:
    norms = {}
    for average in ("tokens", "answers", "max_tokens"):
        own = replace(
            OWN, share_trunk=True, loss_average=average, value_loss_weight=1e4, ppo_epochs=1
        )
        with stage.roles(stage.ONE, own, [stage.Fixed(REWARDS)]) as roles:
            norms[average] = trainee_of(roles).step(asked(), 0.0).grad_norm
    assert norms == pytest.approx(dict.fromkeys(norms, norms["tokens"]), rel=1e-3)


def test_the_critic_learns_alone_for_as_long_as_asked() -> None:
    own = replace(OWN, critic_warmup_steps=1)
    with stage.roles(stage.ONE, own, [stage.Fixed(REWARDS)]) as roles:
        trainee, before, values = trainee_of(roles), weights(roles.policy), weights(roles.critic)
        first = trainee.step(asked(0), 1e-2)
        assert same(before, roles.policy)
        assert not same(values, roles.critic)
        assert (first.metrics["loss"], first.updates) == (0.0, 0)
        assert trainee.algorithm.check_start(first.metrics) is None
        second = trainee.step(asked(8), 1e-2)
        assert not same(before, roles.policy)
        assert second.metrics["ratio_deviation"] == 0


def test_the_critics_rate_keeps_its_proportion_to_the_policys() -> None:
    with stage.roles(stage.ONE, OWN, [stage.Fixed(REWARDS)]) as roles:
        trainee_of(roles).step(asked(), roles.highest_lr / 2)
        rates = [group["lr"] for group in roles.critic.optimizer.param_groups]
    assert rates == pytest.approx([OWN.critic_lr / 2] * len(rates))


def test_answers_nobody_could_reward_are_passed_over() -> None:
    with stage.roles(stage.ONE, OWN, [stage.Fixed([math.nan] * 8)]) as roles:
        trainee = trainee_of(roles)
        before = weights(roles.policy), weights(roles.critic)
        result = trainee.step(asked(), 1e-2)
        assert same(before[0], roles.policy)
        assert same(before[1], roles.critic)
    assert (result.updates, result.applied, result.metrics["unrewarded"]) == (0, True, 8)
    assert math.isnan(result.metrics["reward"])
    with stage.roles(stage.ONE, OWN, [stage.Fixed([*REWARDS[:7], math.nan])]) as roles:
        result = trainee_of(roles).step(asked(), 1e-2)
    assert (result.updates, result.metrics["unrewarded"]) == (4, 1)
    assert math.isfinite(result.metrics["loss"])


class Shifted(Roles):
    """Roles that remember the policy wrongly."""

    def look_back(self, passes) -> None:
        super().look_back(passes)
        passes.rollout.logprobs += 0.01


def test_a_policy_that_is_not_the_one_that_wrote_is_refused_before_anything_is_learned() -> None:
    with stage.roles(stage.ONE, OWN, [stage.Fixed(REWARDS)]) as roles:
        trainee = trainee_of(Shifted(**vars(roles)))
        with pytest.raises(VerificationError, match=r"are 0\.01 away from 1.*Nothing of this step"):
            trainee.step(asked(), 1e-2)
    with stage.roles(stage.ONE, OWN, [stage.Fixed(REWARDS)], dropout=0.1) as roles:
        assert trainee_of(Shifted(**vars(roles))).step(asked(), 1e-2).applied


@dataclass
class Troubled(stage.Fixed):
    """Says what went wrong, until it is closed."""

    is_closed: bool = False

    def warnings(self):
        return ["it went wrong", "in two ways"]

    def close(self) -> None:
        self.is_closed = True


def test_what_went_wrong_where_answers_were_judged_is_told_and_the_end_reaches_who_judges() -> None:
    source, told = Troubled(REWARDS), []
    with stage.roles(stage.ONE, OWN, [source]) as roles:
        trainee = trainee_of(roles)
        trainee.warn = told.append
        trainee.step(asked(), 1e-2)
        assert told == ["it went wrong", "in two ways"]
        assert not source.is_closed
        trainee.close()
        assert source.is_closed


def test_a_wish_to_stop_cuts_writing_short_and_nothing_was_learned() -> None:
    calls = []

    def stop(is_writing: bool) -> tuple[float, Asked]:
        calls.append(is_writing)
        return 1.0, Asked(stop=len(calls) > 1)

    own = replace(OWN, max_new_tokens=5 * PASSES)
    with stage.roles(stage.ONE, own, [stage.Fixed(REWARDS)]) as roles:
        trainee = trainee_of(roles)
        trainee.listen(stop)
        before = weights(roles.policy)
        for work in (trainee.step, lambda rows, _: trainee.evaluate(rows)):
            calls.clear()
            with pytest.raises(Cut):
                work(asked(), 1e-2)
            assert calls == [True, True]
        assert same(before, roles.policy)


def test_a_measurement_writes_one_answer_to_each_and_changes_nothing() -> None:
    own = replace(OWN, advantage="grpo", group=4)
    with stage.roles(stage.ONE, own, [stage.Fixed(REWARDS)]) as roles:
        trainee, before = trainee_of(roles), weights(roles.policy)
        (first,), (again,) = (trainee.evaluate(asked(count=3)) for _ in range(2))
        assert same(before, roles.policy)
    assert (first["reward"].total.item(), first["reward"].count.item()) == (1.5, 3)
    assert first["response_tokens"].total == again["response_tokens"].total
    assert first.keys() == set(trainee.algorithm.metric_names)
