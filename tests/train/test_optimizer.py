import pytest
import torch
from megatron.core import parallel_state
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from nemoalign.config.schema import OptimConfig
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.sharded import sharded_state
from tests.train import bench

TWO = ParallelLayout(2)


def _three_steps(optim, precision="fp32", lora=None):
    """Runs on each of two replicas; returns steps, kinds of optimizer and bytes of its state."""
    with bench.learner(
        bench.Setup(TWO, precision=precision, lora=lora, layers=4, optim=optim)
    ) as learner:
        mine = bench.batches(4)[parallel_state.get_data_parallel_rank() :: 2]
        steps = [learner.step(mine, 1e-2) for _ in range(3)]
        (one,) = learner.optimizer.chained_optimizers
        masters = [p for group in one.optimizer.param_groups for p in group["params"]]
        assert {p.dtype for p in masters} == {torch.float32}
        state = [t for s in one.optimizer.state.values() for t in s.values()] + masters
        held = sum(t.numel() * t.element_size() for t in state)
        return [(s.metrics["loss"], s.grad_norm) for s in steps], type(one), held


@pytest.mark.dist
@pytest.mark.parametrize(("precision", "close"), [("fp32", 1e-6), ("bf16", 2e-3)])
def test_the_distributed_optimizer_takes_the_same_steps_with_half_the_state(
    two_ranks, precision, close
) -> None:
    plain = two_ranks.run(_three_steps, {"use_distributed_optimizer": False}, precision)[0]
    for optim in ({}, {"overlap_grad_sync": True}):
        for steps, kind, held in two_ranks.run(_three_steps, optim, precision):
            assert kind is DistributedOptimizer
            for ours, expected in zip(steps, plain[0], strict=True):
                assert ours == pytest.approx(expected, rel=close)
            assert held < 0.55 * plain[2]
    assert plain[1] is not DistributedOptimizer


@pytest.mark.dist
def test_adapters_keep_their_small_state_whole_unless_asked(two_ranks) -> None:
    lora = LoraSettings(adapter_dim=4)
    whole = two_ranks.run(_three_steps, {}, "bf16", lora)[0]
    shared = two_ranks.run(_three_steps, {"name": "distributed_fused_adam"}, "bf16", lora)[0]
    assert (whole[1] is DistributedOptimizer, shared[1] is DistributedOptimizer) == (False, True)
    assert shared[0] == [pytest.approx(step, rel=2e-3) for step in whole[0]]


def _saved(precision):
    """Returns moments by weight, as rank 0 saves them, of a bf16 model whose head is in fp32."""
    setup = bench.Setup(TWO, precision=precision, num_attributes=2)
    with bench.learner(setup) as learner:
        (one,) = learner.optimizer.chained_optimizers
        assert isinstance(one, DistributedOptimizer)
        for parameter in learner.modules[0].parameters():
            if parameter.requires_grad:
                parameter.main_grad.copy_(torch.sin(parameter.data))
        with learner.backend.optimizer_scope():
            learner.optimizer.step()
        state = sharded_state(learner, adapters_only=False).get("optimizer", {})
        tensors = [t for slots in state.get(0, {}).values() for t in slots.values()]
        return {t.key: t.data.float().numpy() for t in tensors}


@pytest.mark.dist
def test_a_head_in_fp32_beside_bf16_weights_keeps_its_own_moments(two_ranks) -> None:
    saved = two_ranks.run(_saved, "bf16")[0]
    expected = two_ranks.run(_saved, "fp32")[0]
    for name in ("rm_head.weight", "decoder.final_layernorm.weight"):
        key = f"optimizer.state.exp_avg.model.{name}"
        assert abs(expected[key]).max() > 0
        assert saved[key] == pytest.approx(
            expected[key], abs=0.02 * float(abs(expected[key]).max())
        )
    assert "optimizer.state.fp32_param.model.rm_head.weight" not in saved
    assert "optimizer.state.fp32_param.model.decoder.final_layernorm.weight" in saved


@pytest.mark.parametrize(
    ("name", "switch", "expected"),
    [
        ("adamw", None, None),
        ("fused_adam", None, None),
        ("distributed_fused_adam", None, True),
        ("mcore_distributed_optim", None, True),
        ("mcore_distributed_optim", False, False),
        ("adamw", True, True),
    ],
)
def test_nemos_names_say_whether_the_state_is_shared_out(name, switch, expected) -> None:
    assert OptimConfig(name=name, use_distributed_optimizer=switch).distributes is expected


def test_one_replica_has_nobody_to_share_with() -> None:
    setup = bench.Setup(ParallelLayout(1), optim={"use_distributed_optimizer": True})
    with bench.learner(setup) as learner:
        (one,) = learner.optimizer.chained_optimizers
        assert not isinstance(one, DistributedOptimizer)
