"""KTO against the numbers of NeMo-Aligner and TRL, and what its estimate of the KL is."""

import json
from pathlib import Path

import pytest
import torch

from nemoalign.algorithms.label_losses import (
    LabelOptions,
    apo_zero_unpaired,
    kl_estimate,
    kto,
)

KTO = json.loads((Path(__file__).parents[1] / "fixtures/vectors/kto.json").read_text())


@pytest.mark.parametrize("number", range(len(KTO["cases"])))
def test_loss_and_gradients_are_nemo_aligners(number) -> None:
    case = KTO["cases"][number]
    policy = torch.tensor(KTO["pi_logprobs"], requires_grad=True)
    mask = torch.tensor(KTO["labels"]) > -1
    ratios = ((policy - torch.tensor(KTO["refs"][case["ref"]])) * mask).sum(1)
    if case["average_log_probs"]:
        ratios = ratios / mask.sum(1)
    matched, mismatched = ratios[:4], ratios[4:].detach()
    options = LabelOptions(case["beta"], case["desirable"], case["undesirable"])
    kl = kl_estimate(mismatched.sum(), torch.tensor(4))
    loss = kto(matched, torch.tensor(case["preferences"]) == 1, kl, options).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=2e-6)
    if case.get("trl_loss") is not None:
        assert loss.item() == pytest.approx(case["trl_loss"], abs=2e-6)
    assert policy.grad is not None
    assert policy.grad.sum(1).tolist() == pytest.approx(case["grad_row_sums"], abs=2e-6)


def test_the_mean_comes_before_the_clamp() -> None:
    two_ranks = torch.tensor([-3.0, 1.0])
    assert kl_estimate(two_ranks.sum(), torch.tensor(2)).item() == 0.0
    assert kl_estimate(torch.tensor(3.0), torch.tensor(2)).item() == 1.5
    assert kl_estimate(torch.tensor(0.0), torch.tensor(0)).item() == 0.0


def test_unpaired_apo_is_kto_without_a_kl() -> None:
    ratios, good = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([True, False, True])
    options = LabelOptions(0.3, 1.5, 0.5)
    expected = kto(ratios, good, torch.tensor(0.0), options)
    torch.testing.assert_close(apo_zero_unpaired(ratios, good, options), expected)
