"""Estimates of the KL against NeMo-RL's numbers, their means, and what each teaches."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nemoalign.algorithms.kl import kl_estimate, kl_loss

VECTORS = Path(__file__).parents[1] / "fixtures/vectors"
KL = json.loads((VECTORS / "grpo_nemo_rl.json").read_text())["kl"]
GAE = json.loads((VECTORS / "gae.json").read_text())
KINDS = ["k1", "abs", "k2", "k3"]
nats = st.floats(-15, 0, width=32)


@pytest.mark.parametrize("kind", list(KL["values"]))
@pytest.mark.parametrize("clamps", [(None, None), (20.0, 10.0)])
def test_estimates_are_nemo_rls(kind, clamps) -> None:
    logprobs, reference = torch.tensor(KL["logprobs"]), torch.tensor(KL["ref_logprobs"])
    limits = {"input_clamp": clamps[0], "output_clamp": clamps[1]}
    expected = torch.tensor(KL["values"][kind])
    for formula in (kl_estimate, kl_loss):
        found = formula(logprobs, reference, kind, **limits)
        assert_close(found, expected, rtol=0, atol=2e-6)


def test_the_absolute_difference_is_nemo_aligners() -> None:
    """Its rewards are -penalty KL wherever no score is."""
    logprobs, initial = (torch.tensor(GAE[name]) for name in ("logprobs", "init_logprobs"))
    for case in GAE["cases"]:
        if "rewards_with_kl" not in case:
            continue
        kind = "abs" if case["use_absolute_kl"] else "k1"
        found = -case["kl_penalty"] * kl_estimate(logprobs, initial, kind)
        expected = torch.tensor(case["rewards_with_kl"])
        for row, end in enumerate(GAE["response_lengths"]):
            expected[row, end - 2] -= GAE["rewards"][row]
        assert_close(found, expected, rtol=0, atol=2e-6)


def _everything(logits, reference, kind, formula):
    """The mean of an estimate over every token that could be drawn, weighted by its chance."""
    table, chances = logits.log_softmax(-1), logits.detach().softmax(-1)
    return (chances * formula(table, reference.log_softmax(-1), kind)).sum()


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_mean_and_its_gradient_are_the_divergences(kind) -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, dtype=torch.float64)
    table, other = logits.log_softmax(-1), reference.log_softmax(-1)
    divergence = (table.exp() * (table - other)).sum()
    (expected,) = torch.autograd.grad(divergence, logits)
    found = _everything(logits, reference, kind, kl_loss)
    assert_close(found, divergence)
    assert_close(torch.autograd.grad(found, logits)[0], expected)
    assert_close(_everything(logits, reference, kind, kl_estimate), divergence)


def test_the_estimates_own_derivatives_teach_other_things() -> None:
    torch.manual_seed(2)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(6, dtype=torch.float64)
    table, other = logits.log_softmax(-1), reference.log_softmax(-1)
    backward = (other.exp() * (other - table)).sum()
    expected = {
        "k1": torch.zeros(6, dtype=torch.float64),
        "k3": torch.autograd.grad(backward, logits, retain_graph=True)[0],
        "k2": torch.autograd.grad((table.exp() * (table - other)).sum(), logits)[0],
    }
    for kind, gradient in expected.items():
        mean = _everything(logits, reference, kind, kl_estimate)
        assert_close(torch.autograd.grad(mean, logits)[0], gradient)


@given(st.lists(st.tuples(nats, nats), min_size=1), st.sampled_from(KINDS))
def test_signs_zeros_and_one_value_for_both_formulas(pairs, kind) -> None:
    logprobs, reference = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    found = kl_estimate(logprobs, reference, kind)
    assert torch.equal(
        found, kl_loss(logprobs, reference, kind, input_clamp=None, output_clamp=None)
    )
    assert not kl_estimate(logprobs, logprobs, kind).any()
    if kind != "k1":
        assert (found >= -1e-15).all()
    if kind in ("abs", "k2"):
        assert torch.equal(found, kl_estimate(reference, logprobs, kind))


@given(st.lists(st.tuples(nats, nats), min_size=1))
def test_a_token_of_k3_teaches_its_log_ratio(pairs) -> None:
    logprobs, reference = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    logprobs = logprobs.clone().requires_grad_()
    loss = kl_loss(logprobs, reference, "k3", input_clamp=None, output_clamp=None)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert_close(gradient, (logprobs - reference).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_clamped_tokens_count_and_teach_nothing(kind) -> None:
    logprobs = torch.tensor([-30.0, -1.0, -0.5, -25.0], requires_grad=True)
    reference = torch.tensor([-1.0, -30.0, -1.0, -6.0])
    found = kl_loss(logprobs, reference, kind, input_clamp=20.0, output_clamp=10.0)
    assert found.detach().abs().tolist()[:2] == [10.0, 10.0]
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    assert (gradient != 0).tolist() == [False, False, True, False]
    wide = kl_loss(logprobs, reference, kind, input_clamp=20.0, output_clamp=None)
    assert (torch.autograd.grad(wide.sum(), logprobs)[0] != 0).tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert torch.equal(
        wide, kl_estimate(logprobs, reference, kind, input_clamp=20.0, output_clamp=None)
    )
