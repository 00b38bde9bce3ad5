"""A pass without gradient drops nothing out and leaves the model as it was."""

import pytest
import torch

from nemoalign.algorithms.documents import of_documents
from nemoalign.model.forward import forward_logprobs
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.passes import collect
from tests.train import bench


@pytest.mark.parametrize("training", [True, False])
def test_outputs_come_in_order_from_a_model_at_rest(training) -> None:
    batches = bench.batches(3)
    modes = []

    def forward(model, batch):
        modes.append(model.training)
        return forward_logprobs(model, batch)

    with bench.learner(bench.Setup(ParallelLayout(1))) as learner, torch.no_grad():
        # Bare modules: no optimizer is asked for.
        learner.modules[0].train(training)
        device = learner.backend.device
        found = collect(learner.modules, batches, forward, of_documents, device)
        assert modes == [False] * 3
        assert learner.modules[0].training is training
        for batch, logprobs in zip(batches, found, strict=True):
            alone = of_documents(forward_logprobs(learner.modules[0], batch), batch)
            torch.testing.assert_close(logprobs, alone, atol=1e-5, rtol=0)
