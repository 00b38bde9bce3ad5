"""Reward model losses against the numbers of NeMo-Aligner's own functions."""

import json
from pathlib import Path

import pytest
import torch

from nemoalign.algorithms.reward_losses import bradley_terry, graded_bradley_terry, regression

VECTORS = json.loads((Path(__file__).parents[1] / "fixtures/vectors/reward_model.json").read_text())


def test_pairs_are_nemo_aligners_and_margin_and_centering_are_trls_formulas() -> None:
    outputs = torch.tensor(VECTORS["outputs"])[:, 0]
    chosen, rejected = outputs[:4], outputs[4:]
    losses = bradley_terry(chosen, rejected)
    assert losses.tolist() == pytest.approx(VECTORS["per_pair_loss"], abs=2e-6)
    assert (chosen > rejected).float().mean().item() == VECTORS["acc"]
    margin = torch.tensor([1.0, 2.0, 0.0, 0.5])
    expected = (
        torch.nn.functional.softplus(margin - (chosen - rejected)) + 0.01 * (chosen + rejected) ** 2
    )
    torch.testing.assert_close(bradley_terry(chosen, rejected, margin, 0.01), expected)


def test_regression_leaves_missing_labels_out() -> None:
    case = VECTORS["regression"]
    errors, known = regression(
        torch.tensor(case["pred"]), torch.tensor(case["labels"]), case["mask_val"]
    )
    assert (errors.sum() / known.sum()).item() == pytest.approx(case["loss"], abs=2e-6)


@pytest.mark.parametrize(
    "case", VECTORS["bt"]["cases"], ids=lambda case: f"{case['loss_func']} {case['label']}"
)
def test_strengths_are_nemo_aligners(case) -> None:
    first, second = torch.tensor(VECTORS["bt"]["outputs"])[:, 4]
    loss = graded_bradley_terry(
        first[None], second[None], torch.tensor([case["label"]]), case["loss_func"]
    )
    assert loss.item() == pytest.approx(case["loss"], abs=2e-6)
