import math

import pytest
import torch

from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.metrics import reduce_means
from tests.model import tiny
from tests.train import bench

ONE = ParallelLayout(1)


def _losses_and_norms(layout, lora, micro_batches):
    """Runs on each rank; returns three steps and a validation mean."""
    place = layout.coordinates(torch.distributed.get_rank() if layout.world_size > 1 else 0)
    with bench.learner(bench.Setup(layout, lora=lora)) as learner:
        mine = micro_batches[place.dp :: layout.dp]
        steps = [learner.step(mine, 1e-2) for _ in range(3)]
        parts = learner.evaluate(mine)
        validation = reduce_means(parts, ("loss",), learner.backend.device)["loss"]
    return [(s.metrics["loss"], s.grad_norm) for s in steps], validation


@pytest.mark.dist
@pytest.mark.parametrize("lora", [None, LoraSettings(adapter_dim=4, target_modules=("all",))])
@pytest.mark.parametrize(
    "layout",
    [ParallelLayout(2, tp=2), ParallelLayout(2, pp=2), ParallelLayout(2)],
    ids=["tp2", "pp2", "dp2"],
)
def test_steps_do_not_depend_on_the_layout(two_ranks, layout, lora) -> None:
    micro_batches = bench.batches(4)
    steps, validation = _losses_and_norms(ONE, lora, micro_batches)
    assert steps[2][0] < steps[0][0]
    for found in two_ranks.run(_losses_and_norms, layout, lora, micro_batches):
        for ours, expected in zip(found[0], steps, strict=True):
            assert ours == pytest.approx(expected, rel=2e-6)
        assert found[1] == pytest.approx(validation, rel=2e-6)


def test_the_loss_is_the_mean_over_all_target_tokens_not_over_micro_batches() -> None:
    micro_batches = bench.batches(3)
    assert len({int((b.labels >= 0).sum()) for b in micro_batches}) > 1
    model = tiny.llama()
    total = count = 0.0
    for batch in micro_batches:
        logprobs = tiny.label_logprobs(model(batch.tokens).logits, batch.labels)
        total, count = total - logprobs.sum().item(), count + (batch.labels >= 0).sum().item()
    with bench.learner(bench.Setup(ONE)) as learner:
        assert learner.step(micro_batches, 1e-3).metrics["loss"] == pytest.approx(
            total / count, rel=1e-6
        )


def test_clipping_limits_the_update_but_the_true_norm_is_reported() -> None:
    def norm_and_weight(clip):
        with bench.learner(bench.Setup(ONE, grad_clip=clip)) as learner:
            result = learner.step(bench.batches(), 1e-3)
            state = learner.optimizer.chained_optimizers[0].optimizer.state
            momentum = torch.cat([s["exp_avg"].flatten() for s in state.values()]).norm().item()
        return result.grad_norm, momentum

    unclipped, moved = norm_and_weight(0.0)
    clipped, moved_less = norm_and_weight(unclipped / 4)
    assert unclipped == pytest.approx(clipped, rel=1e-6)
    assert moved_less == pytest.approx(moved / 4, rel=1e-4)


def test_a_loss_that_is_no_number_is_not_applied() -> None:
    with bench.learner(bench.Setup(ONE)) as learner:
        weight = learner.modules[0].decoder.final_layernorm.weight
        before = [p.detach().clone() for p in learner.modules[0].parameters()]
        with torch.no_grad():
            kept = weight[0].item()
            weight[0] = math.nan
        result = learner.step(bench.batches(), 1e-3)
        with torch.no_grad():
            weight[0] = kept
        after = list(learner.modules[0].parameters())
    assert not result.applied
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_lora_trains_only_adapters() -> None:
    lora = LoraSettings(adapter_dim=4)
    with bench.learner(bench.Setup(ONE, lora=lora)) as learner:
        width = 64 + (4 + 2 * 2) * 16
        assert learner.trained_parameters() == 2 * 4 * width


def test_norms_are_not_decayed_and_matrices_are() -> None:
    with bench.learner(bench.Setup(ONE)) as learner:
        learner.step(bench.batches(), 1e-3)
        decay = {
            id(parameter): group["weight_decay"]
            for group in learner.optimizer.param_groups
            for parameter in group["params"]
        }
        for parameter in learner.modules[0].parameters():
            assert decay[id(parameter)] == (0.01 if parameter.dim() > 1 else 0.0)
