"""The reference is the model as it was, whatever was learned since, and leaves no trace."""

import pytest
import torch

from nemoalign.model.forward import forward_values
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
    ("on_host", "kind", "words"),
    [
        (None, Copies, "a copy beside the model, 0.1 MB"),
        (True, HostCopies, "a copy in the host's memory, 0.1 MB"),
        (False, Copies, "beside the model"),
    ],
)
def test_the_way_is_chosen_and_told_with_its_memory(on_host, kind, words) -> None:
    layer = torch.nn.Linear(128, 199, bias=False)  # 101,888 bytes
    found = choose_reference([layer], has_fresh_adapters=False, on_host=on_host, is_start=True)
    assert type(found) is kind
    assert words in found.describe()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_below_adapters_a_critics_head_is_what_it_was_too(precision) -> None:
    setup = bench.Setup(
        ParallelLayout(1), precision=precision, lora=LORA, num_attributes=1,
        algorithm=bench.Critic(),
    )  # fmt: skip
    batches = bench.batches(2)
    with bench.learner(setup) as learner:
        reference = choose_reference(
            learner.modules, has_fresh_adapters=True, on_host=None, is_start=True
        )
        assert type(reference) is AdaptersOff
        assert "a copy of what learns beside them, 0.0 MB a rank" in reference.describe()
        (model,) = learner.modules

        def values() -> torch.Tensor:
            with torch.no_grad():
                return forward_values(model.eval(), batches[0])

        head = model.rm_head.weight
        at_start, untrained = values(), head.detach().clone()
        for _ in range(2):
            learner.step(batches, 1e-2)
        learned, trained = values(), head.detach().clone()
        assert not torch.equal(trained, untrained)
        with reference.in_place():
            assert torch.equal(values(), at_start)
            assert torch.equal(head, untrained)
        assert torch.equal(values(), learned)
        # What learns goes on where it was: in the optimizer's hands, not in the copy.
        learner.step(batches, 1e-2)
        assert not torch.equal(head, trained)
        with reference.in_place():
            assert torch.equal(values(), at_start)


def test_without_a_head_nothing_is_kept_below_fresh_adapters() -> None:
    with bench.learner(bench.Setup(ParallelLayout(1), lora=LORA)) as learner:
        found = choose_reference(
            learner.modules, has_fresh_adapters=True, on_host=None, is_start=True
        )
        assert "no memory of its own" in found.describe()


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
