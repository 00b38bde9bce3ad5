"""The reference is the model as it was, whatever was learned since, and leaves no trace."""

import pytest
import torch

from nemoalign.model.lora_settings import LoraSettings
from nemoalign.model.reference import Reference
from nemoalign.parallel.layout import ParallelLayout
from tests.train import bench


@pytest.mark.parametrize("lora", [None, LoraSettings(adapter_dim=2)], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_computes_what_the_start_computed(lora, precision) -> None:
    batches = bench.batches(2)
    setup = bench.Setup(ParallelLayout(1), precision=precision, lora=lora)
    with bench.learner(setup) as learner:
        reference = Reference.of(learner.modules)

        def losses() -> list[float]:
            return [part["loss"].total.item() for part in learner.evaluate(batches)]

        at_start = losses()
        for _ in range(2):
            learner.step(batches, 1e-2)
        learned = losses()
        assert learned != at_start
        with reference.in_place():
            assert losses() == at_start
        assert losses() == learned
        trained = sum(p.numel() * p.element_size() for p in reference.parameters)
        assert reference.size == trained


def test_an_error_inside_puts_the_policy_back() -> None:
    layer = torch.nn.Linear(2, 2)
    reference = Reference.of([layer])
    with torch.no_grad():
        layer.weight.add_(1)
    learned = layer.weight.detach().clone()
    with pytest.raises(KeyError), reference.in_place():
        raise KeyError
    assert torch.equal(layer.weight, learned)
