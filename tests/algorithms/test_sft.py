import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.algorithms.sft import Sft
from nemoalign.config.algorithms import SftSettings

VECTORS = json.loads((Path(__file__).parents[1] / "fixtures/vectors/sft.json").read_text())


def _loss(logprobs: torch.Tensor, labels: torch.Tensor):
    return Sft(None).loss(logprobs, SimpleNamespace(labels=labels))


def test_sums_and_counts_give_the_global_token_mean_of_the_oracle() -> None:
    case = VECTORS["loss"]
    losses = torch.tensor(case["token_losses"], dtype=torch.float64)  # [micro-batch, b, s]
    labels = torch.where(torch.tensor(case["masks"]) > 0, 1, -100)
    outputs = [_loss(-part, label) for part, label in zip(losses, labels, strict=True)]
    total = sum(output.loss_sum for output in outputs)
    weight = sum(output.weight for output in outputs)
    assert (total / weight).item() == pytest.approx(case["global_token_mean"], abs=2e-6)


def test_means_of_micro_batches_give_nemos_loss() -> None:
    case = VECTORS["loss"]
    losses = torch.tensor(case["token_losses"], dtype=torch.float64)
    labels = torch.where(torch.tensor(case["masks"]) > 0, 1, -100)
    sft = Sft(SftSettings(loss_average="micro_batches"))
    outputs = [
        sft.loss(-part, SimpleNamespace(labels=label))
        for part, label in zip(losses, labels, strict=True)
    ]
    means = [output.loss_sum.item() for output in outputs]
    assert means == pytest.approx(case["microbatch_losses"], abs=2e-6)
    total = sum(means) / sum(output.weight.item() for output in outputs)
    assert total == pytest.approx(case["nemo_step_loss"], abs=2e-6)
    parts = [output.metrics["loss"] for output in outputs]
    assert sum(p.total for p in parts) / sum(p.count for p in parts) == pytest.approx(total)
    nothing = sft.loss(torch.zeros(1, 4), SimpleNamespace(labels=torch.full((1, 4), -100)))
    assert (nothing.loss_sum.item(), nothing.weight.item()) == (0, 0)


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_cutting_a_batch_changes_neither_sum_nor_weight(cut, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(6, 8, generator=draw, dtype=torch.float64)
    labels = torch.randint(-1, 3, (6, 8), generator=draw)
    whole = _loss(logprobs, labels)
    parts = [_loss(logprobs[:cut], labels[:cut]), _loss(logprobs[cut:], labels[cut:])]
    assert sum(p.loss_sum for p in parts).item() == pytest.approx(whole.loss_sum.item())
    assert sum(p.weight for p in parts) == whole.weight


def test_a_micro_batch_without_targets_adds_nothing() -> None:
    output = _loss(torch.zeros(1, 4, requires_grad=True), torch.full((1, 4), -100))
    output.loss_sum.backward()
    assert output.loss_sum.item() == 0
    assert output.weight.item() == 0
