"""Going to the host's memory and back changes no bit of what is learned, and breaks no view."""

import itertools

import pytest
import torch

from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.offload import Offload
from tests.train import bench

ONE = ParallelLayout(1)
CRITIC = {"num_attributes": 1, "algorithm": bench.Critic()}
KINDS = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "bf16 critic with a head in fp32": {"precision": "bf16", **CRITIC},
    "lora": {"lora": LoraSettings(adapter_dim=2)},
}
LAYOUTS = {
    "dp2 distributed": (ParallelLayout(2), {"use_distributed_optimizer": True}),
    "dp2": (ParallelLayout(2), {"use_distributed_optimizer": False}),
    "tp2": (ParallelLayout(2, tp=2, sequence_parallel=True), {}),
    "pp2 vp2": (ParallelLayout(2, pp=2, vp=2), {}),
}


def curve(setup, offloads):
    """Norms of four steps, and the weights after them; away and back after each when asked."""
    norms = []
    with bench.learner(setup) as learner:
        offload = Offload(learner)
        for number in range(4):
            found = learner.step(bench.batches(seed=number), 1e-2)
            norms.append((found.grad_norm, found.metrics["loss"]))
            if offloads:
                offload.hold(weights=False, learning=False)
                assert not any(size_of(tensor) for tensor in tensors_of(learner))
                offload.hold(weights=True, learning=False)
                offload.hold(weights=True, learning=True)
        return norms, [p.detach().clone() for chunk in learner.modules for p in chunk.parameters()]


def tensors_of(learner):
    for chunk in learner.modules:
        yield from chunk.parameters()
    for chunk in learner.chunks:
        yield from (buffer.grad_data for buffer in chunk.buffers)
    for one in learner.optimizer.chained_optimizers:
        for group in one.optimizer.param_groups:
            yield from group["params"]
        for state in one.optimizer.state.values():
            yield from state.values()


def size_of(tensor):
    return tensor.untyped_storage().nbytes()


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_curve_is_the_same_to_the_last_bit(kind) -> None:
    setup = bench.Setup(ONE, **KINDS[kind])
    assert_same(curve(setup, True), curve(setup, False))


@pytest.mark.dist
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_so_it_is_in_every_layout(two_ranks, name, precision) -> None:
    layout, optim = LAYOUTS[name]
    setup = bench.Setup(layout, precision=precision, layers=4, optim=optim)
    here, there = (two_ranks.run(curve, setup, offloads) for offloads in (False, True))
    for expected, found in zip(here, there, strict=True):
        assert_same(found, expected)


def test_views_stay_views_and_gradients_come_back_as_zeros() -> None:
    with bench.learner(bench.Setup(ONE, precision="bf16")) as learner:
        learner.step(bench.batches(), 1e-2)
        storages = [tensor.untyped_storage()._cdata for tensor in tensors_of(learner)]
        offload = Offload(learner)
        offload.hold(weights=False, learning=False)
        offload.hold(weights=True, learning=True)
        assert [tensor.untyped_storage()._cdata for tensor in tensors_of(learner)] == storages
        (ddp,) = learner.chunks
        for parameter in learner.modules[0].parameters():
            assert not parameter.main_grad.any()
            parameter.main_grad.fill_(1.0)
        assert sum(buffer.grad_data.sum().item() for buffer in ddp.buffers) == (
            learner.trained_parameters()
        )


def test_a_pass_without_gradient_needs_the_weights_alone() -> None:
    setup = bench.Setup(ONE, precision="bf16")
    with bench.learner(setup) as learner:
        offload = Offload(learner)
        for _ in range(2):
            learner.step(bench.batches(), 1e-2)
            expected = losses(learner)
            offload.hold(weights=True, learning=False)
            assert losses(learner) == expected
            assert all(map(size_of, learner.modules[0].parameters()))
            assert not any(size_of(buffer.grad_data) for buffer in learner.chunks[0].buffers)
            offload.hold(weights=True, learning=True)


def test_asking_twice_is_asking_once_in_any_order() -> None:
    setup = bench.Setup(ONE)
    with bench.learner(setup) as learner:
        offload = Offload(learner)
        learner.step(bench.batches(), 1e-2)
        expected = losses(learner)
        for weights, learning in itertools.product([False, True], repeat=2):
            for _ in range(2):
                offload.hold(weights=weights, learning=learning)
                assert all(map(size_of, learner.modules[0].parameters())) == weights
        assert losses(learner) == expected


def test_what_learns_nothing_has_weights_alone() -> None:
    with bench.learner(bench.Setup(ONE, frozen=True)) as learner:
        expected = losses(learner)
        offload = Offload(learner)
        offload.hold(weights=False, learning=False)
        assert not any(map(size_of, learner.modules[0].parameters()))
        offload.hold(weights=True, learning=True)
        assert losses(learner) == expected


def losses(learner):
    return [part["loss"].total.item() for part in learner.evaluate(bench.batches())]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpus_memory_is_free_meanwhile() -> None:
    with bench.learner(bench.Setup(ONE, precision="bf16")) as learner:
        learner.step(bench.batches(), 1e-2)
        before = torch.cuda.memory_allocated()
        offload = Offload(learner)
        offload.hold(weights=False, learning=False)
        assert torch.cuda.memory_allocated() < 0.2 * before
        offload.hold(weights=True, learning=True)
        learner.step(bench.batches(), 1e-2)
