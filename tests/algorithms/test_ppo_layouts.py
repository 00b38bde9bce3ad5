"""Policy and critic learn the same from the same rows: packed or padded, averaged as said, on any ranks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from nemoalign.algorithms.ppo import (
    ADVANTAGES,
    LEARNED,
    OLD,
    REFERENCE,
    RETURNS,
    VALUED,
    VALUES_OLD,
    Critic,
    Policy,
)
from nemoalign.config.ppo import PpoSettings
from nemoalign.data.collate import Batch, collate, collate_pack
from nemoalign.parallel.layout import ParallelLayout
from tests.algorithms.test_documents import EOS, samples
from tests.model import tiny
from tests.train import bench

NO_KL = {"initial_policy_kl_penalty": 0.0}

KINDS = [
    {"policy_loss": kind, "loss_average": average}
    for kind in ("ppo", "gspo", "cispo", "reinforce")
    for average in ("tokens", "answers", "max_tokens")
]


def numbers_of(batch: Batch, seed: int, *, learns: list[bool]) -> dict[str, torch.Tensor]:
    """Numbers of every label, the same for a label wherever it lies; a row of ``learns`` is learned."""
    known, draw = batch.labels >= 0, torch.Generator().manual_seed(seed)
    counts = [int(sample.loss_mask[1:].sum()) for sample in samples()]
    drawn = torch.randn(6, int(known.sum()), generator=draw, dtype=torch.float64)
    whole = dict(zip(("now", "entropy", OLD, REFERENCE, ADVANTAGES, RETURNS), drawn, strict=True))
    whole[VALUES_OLD] = whole[OLD]
    whole[LEARNED] = torch.tensor(learns, dtype=torch.float64).repeat_interleave(
        torch.tensor(counts)
    )
    whole[VALUED] = torch.ones(int(known.sum()), dtype=torch.float64)
    made = {}
    for name, values in whole.items():
        # What is no answer's token must not count, whatever a model says there.
        made[name] = torch.full(
            batch.labels.shape, 7.0 if name in ("now", "entropy") else 0.0
        ).double()
        made[name][known] = values
    return made


def learned_from(own: PpoSettings, join, seed: int, learns: list[bool], algorithm=Policy):
    """Loss, gradient at the labels and metrics of the same rows, laid out by ``join``."""
    batch = join(samples(), eos_id=EOS)
    numbers = numbers_of(batch, seed, learns=learns)
    now = numbers.pop("now").requires_grad_()
    output = torch.stack([now, numbers.pop("entropy")], -1) if algorithm is Policy else now
    result = algorithm(own).loss(output, replace(batch, fields=numbers))
    (gradient,) = torch.autograd.grad(result.loss_sum, now)
    assert gradient[batch.labels < 0].abs().sum() == 0
    metrics = {k: (m.total.item(), m.count.item()) for k, m in result.metrics.items()}
    return result.loss_sum, result.weight, gradient[batch.labels >= 0], metrics


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: " ".join(kind.values()))
@settings(max_examples=15)
@given(st.integers(0, 2**31), st.tuples(*[st.booleans()] * 3))
def test_packed_and_padded_rows_teach_the_same(kind, seed, learns) -> None:
    own = PpoSettings(
        **kind, max_new_tokens=9, kl_in="loss", initial_policy_kl_penalty=0.3, entropy_bonus=0.1
    )
    padded = learned_from(own, collate, seed, list(learns))
    packed = learned_from(own, collate_pack, seed, list(learns))
    for ours, theirs in zip(packed[:3], padded[:3], strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-9)
    for name, (total, count) in padded[3].items():
        assert packed[3][name] == pytest.approx((total, count)), name


def test_the_critic_learns_the_same_from_packed_and_padded_rows() -> None:
    padded, packed = (
        learned_from(PpoSettings(), join, 3, [True] * 3, Critic) for join in (collate, collate_pack)
    )
    for ours, theirs in zip(packed[:3], padded[:3], strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-9)


@given(st.integers(0, 2**31), st.tuples(*[st.booleans()] * 3))
def test_averages_are_means_of_learned_tokens_of_answers_or_by_the_longest_answer(
    seed, learns
) -> None:
    batch = collate(samples(), eos_id=EOS)
    numbers = numbers_of(batch, seed, learns=list(learns))
    now, entropies = numbers.pop("now"), numbers.pop("entropy")
    losses = -numbers[ADVANTAGES] * now
    kept = [losses[row][mask > 0] for row, mask in enumerate(numbers[LEARNED])]
    kept = [row for row in kept if len(row)]
    expected = {
        "tokens": (sum(row.sum() for row in kept), sum(map(len, kept))),
        "answers": (sum(row.mean() for row in kept), len(kept)),
        "max_tokens": (sum(row.sum() for row in kept) / 9, len(kept)),
    }
    for average, (total, count) in expected.items():
        own = PpoSettings(policy_loss="reinforce", loss_average=average, max_new_tokens=9, **NO_KL)
        result = Policy(own).loss(torch.stack([now, entropies], -1), replace(batch, fields=numbers))
        assert result.loss_sum.item() == pytest.approx(float(total)), average
        assert result.weight.item() == count, average


def with_numbers(batches: list[Batch]) -> list[Batch]:
    made = []
    for number, batch in enumerate(batches):
        draw, shape = torch.Generator().manual_seed(number), batch.labels.shape
        drawn = {
            name: torch.randn(shape, generator=draw) for name in (ADVANTAGES, RETURNS, VALUES_OLD)
        }
        mask = (batch.labels >= 0).float()
        made.append(replace(batch, fields={**drawn, LEARNED: mask, VALUED: mask}))
    return made


def test_a_step_has_the_log_probs_and_entropies_of_transformers() -> None:
    batches = with_numbers(bench.batches(2))
    total = count = entropy = 0.0
    for batch in batches:
        with torch.no_grad():
            chances = tiny.llama()(batch.tokens).logits.log_softmax(-1)
        mask = batch.fields[LEARNED]
        total += float(-(batch.fields[ADVANTAGES] * mask).sum())
        entropy += float((-(chances.exp() * chances).sum(-1) * mask).sum())
        count += float(mask.sum())
    policy = Policy(PpoSettings(entropy_bonus=0.5, **NO_KL))
    with bench.learner(bench.Setup(ParallelLayout(1), algorithm=policy)) as learner:
        found = learner.step(batches, 1e-3).metrics
    assert found["entropy"] == pytest.approx(entropy / count, rel=1e-5)
    assert found["loss"] == pytest.approx(total / count - 0.5 * entropy / count, rel=1e-5)
    assert found["ratio_deviation"] == 0


def _two_steps(layout, algorithm, micro_batches):
    """Runs on each rank; returns metrics and norms of two steps."""
    place = layout.coordinates(torch.distributed.get_rank() if layout.world_size > 1 else 0)
    heads = int(isinstance(algorithm, Critic))
    setup = bench.Setup(layout, algorithm=algorithm, num_attributes=heads)
    with bench.learner(setup) as learner:
        steps = [learner.step(micro_batches[place.dp :: layout.dp], 1e-2) for _ in range(2)]
    return [{**step.metrics, "grad_norm": step.grad_norm} for step in steps]


@pytest.mark.dist
@pytest.mark.parametrize("kind", [Policy, Critic])
def test_steps_do_not_depend_on_the_layout(kind, two_ranks) -> None:
    algorithm = kind(PpoSettings(loss_average="answers", entropy_bonus=0.1, **NO_KL))
    micro_batches = with_numbers(bench.batches(4))
    expected = _two_steps(ParallelLayout(1), algorithm, micro_batches)
    for layout in (ParallelLayout(2, tp=2), ParallelLayout(2, pp=2), ParallelLayout(2)):
        for found in two_ranks.run(_two_steps, layout, algorithm, micro_batches):
            for ours, theirs in zip(found, expected, strict=True):
                assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-6), layout
