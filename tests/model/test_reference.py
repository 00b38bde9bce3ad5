"""The reference is the model as it was, whatever was learned since, and leaves no trace."""

import pytest
import torch

from nemoalign.model.lora_settings import LoraSettings
from nemoalign.model.reference import AdaptersOff, Copies, HostCopies, choose_reference
from nemoalign.parallel.layout import ParallelLayout
from tests.train import bench

ALL, LORA = None, LoraSettings(adapter_dim=2)


@pytest.mark.parametrize(
    ("kind", "lora", "precision"),
    [
        (Copies, ALL, "fp32"),
        (Copies, ALL, "bf16"),
        (Copies, LORA, "fp32"),
        (HostCopies, ALL, "bf16"),
        (HostCopies, LORA, "fp32"),
        (AdaptersOff, LORA, "fp32"),
        (AdaptersOff, LORA, "bf16"),
    ],
)
def test_it_computes_what_the_start_computed(kind, lora, precision) -> None:
    batches = bench.batches(2)
    setup = bench.Setup(ParallelLayout(1), precision=precision, lora=lora)
    with bench.learner(setup) as learner:
        reference = kind(learner.modules, is_start=True)

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


@pytest.mark.parametrize(
    ("fresh", "on_host", "kind", "words"),
    [
        (True, None, AdaptersOff, "no memory of its own"),
        (False, None, Copies, "a copy beside the model, 0.1 MB"),
        (False, True, HostCopies, "a copy in the host's memory, 0.1 MB"),
        (False, False, Copies, "beside the model"),
    ],
)
def test_the_way_is_chosen_and_told_with_its_memory(fresh, on_host, kind, words) -> None:
    layer = torch.nn.Linear(128, 199, bias=False)  # 101,888 bytes
    found = choose_reference([layer], has_fresh_adapters=fresh, on_host=on_host, is_start=True)
    assert type(found) is kind
    assert words in found.describe()


@pytest.mark.parametrize("kind", [Copies, HostCopies])
def test_an_error_inside_puts_the_policy_back(kind) -> None:
    layer = torch.nn.Linear(2, 2)
    reference = kind([layer], is_start=True)
    with torch.no_grad():
        layer.weight.add_(1)
    learned = layer.weight.detach().clone()
    with pytest.raises(KeyError), reference.in_place():
        raise KeyError
    assert torch.equal(layer.weight, learned)
