"""The schedule is megatron-core's own, whoever drives micro-batches through it."""

import torch
from megatron.core.models.gpt import GPTModel

from nemoalign.model import schedule as module
from nemoalign.model.forward import forward_logits
from nemoalign.parallel.layout import ParallelLayout
from tests.train import bench


def test_the_model_is_megatron_cores_and_so_is_the_schedule(monkeypatch) -> None:
    called = []
    real = module.get_forward_backward_func

    def watched():
        called.append(real())
        return called[-1]

    monkeypatch.setattr(module, "get_forward_backward_func", watched)
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner:
        assert all(isinstance(chunk, GPTModel) for chunk in learner.modules)
        learner.step(bench.batches(), 1e-3)
    assert called[0].__module__ == "megatron.core.pipeline_parallel.schedules"


def test_micro_batches_go_in_and_come_out_in_order() -> None:
    def forward_step(iterator, model):
        batch = next(iterator)
        return forward_logits(model, batch), lambda output, **_: (batch.tokens, output.shape[:2])

    batches = bench.batches(3)
    with bench.learner(bench.Setup(ParallelLayout(1))) as learner, torch.no_grad():
        found = module.schedule(
            learner.modules, batches, forward_step, forward_only=True, collect_non_loss_data=True
        )
    assert [shape for _, shape in found] == [batch.tokens.shape for batch in batches]
    assert all(torch.equal(seen, b.tokens) for (seen, _), b in zip(found, batches, strict=True))
