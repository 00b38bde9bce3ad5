"""Pair losses against the numbers of NeMo-Aligner's and TRL's own functions, values and gradients."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.algorithms.pair_losses import (
    PAIR_LOSSES,
    RANKED,
)
from nemoalign.algorithms.pairs import PairOptions, Pairs
from nemoalign.algorithms.ranks import ranked_partners
from nemoalign.config import preference

VECTORS = Path(__file__).parents[1] / "fixtures/vectors"
TRL = json.loads((VECTORS / "dpo_trl.json").read_text())
NEMO = json.loads((VECTORS / "dpo_nemo_aligner.json").read_text())
OF_TRL = {"sigmoid": "dpo"}
OF_NEMO = {"ipo": "ipo_sum"}
"""NeMo-Aligner's ipo sums where ours averages; with its averaging on, the two are one."""


def split(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def ranked(pairs: Pairs, options: PairOptions) -> Pairs:
    chosen, rejected = (score.detach() for score in pairs.scores(options))
    policy = (pairs.chosen - pairs.rejected).detach()
    reference = pairs.chosen_reference - pairs.rejected_reference
    return replace(
        pairs,
        reference_at_rank=ranked_partners(policy, reference),
        rejected_at_rank=ranked_partners(chosen, rejected),
        chosen_at_rank=ranked_partners(rejected, chosen),
    )


def of_trl(logits: torch.Tensor) -> Pairs:
    ids, mask = torch.tensor(TRL["input_ids"])[:, 1:], torch.tensor(TRL["completion_mask"])[:, 1:]
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    references = torch.tensor(TRL["ref_chosen_logps"]), torch.tensor(TRL["ref_rejected_logps"])
    tokens = split(mask.sum(1).float())
    mean_tokens = tokens[0].mean().expand(len(tokens[0]))
    return Pairs(
        *split((logprobs * mask).sum(1)), *references, *tokens, mean_chosen_tokens=mean_tokens
    )


@pytest.mark.parametrize(
    "case",
    [case for case in TRL["cases"] if not case["use_weighting"]],
    ids=lambda case: f"{case['loss_type']}-{case['f_divergence_type']}-{case['beta']}",
)
def test_trl_names_have_trls_values_and_gradients(case) -> None:
    logits = torch.tensor(TRL["logits"], requires_grad=True)
    options = PairOptions(
        beta=case["beta"],
        label_smoothing=case["label_smoothing"],
        divergence=case["f_divergence_type"],
        alpha=case["f_alpha_divergence_coef"],
        discopop_tau=case["discopop_tau"],
    )
    name = OF_TRL.get(case["loss_type"], case["loss_type"])
    losses = PAIR_LOSSES[name](ranked(of_trl(logits), options), options)
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(case["loss"], abs=2e-4, rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.abs().sum().item() == pytest.approx(case["grad_abs_sum"], abs=2e-4, rel=1e-5)


@pytest.mark.parametrize(
    "case",
    NEMO["cases"],
    ids=lambda c: f"{c['preference_loss']}-{c['beta']}-{c['gt_reward_scale']}",
)
def test_nemo_aligners_names_have_its_values_and_gradients(case) -> None:
    policy = torch.tensor(NEMO["pi_logprobs"], requires_grad=True)
    mask = torch.tensor(NEMO["labels"]) > -1
    reference = torch.tensor(NEMO["ref_logprobs"])
    pairs = Pairs(
        *split((policy * mask).sum(1)), *split((reference * mask).sum(1)), *split(mask.sum(1)),
        *split(torch.tensor(NEMO["gt_rewards"])),
    )  # fmt: skip
    options = PairOptions(
        beta=case["beta"], average=case["average_log_probs"], reward_scale=case["gt_reward_scale"]
    )
    losses = PAIR_LOSSES[OF_NEMO.get(case["preference_loss"], case["preference_loss"])](
        pairs, options
    )
    losses.mean().backward()
    assert losses.mean().item() == pytest.approx(case["loss"], abs=2e-6)
    assert policy.grad is not None
    assert policy.grad.sum(1).tolist() == pytest.approx(case["grad_row_sums"], abs=2e-6)


def made(values) -> Pairs:
    chosen, rejected, chosen_reference, rejected_reference = torch.tensor(values).T
    count = torch.full_like(chosen, 3.0)
    return Pairs(
        *(chosen, rejected, chosen_reference, rejected_reference, count, count, count, count - 1),
        mean_chosen_tokens=count,
    )


NEGATIVE = st.floats(-30, -0.015625, width=32)
ROWS = st.lists(st.tuples(NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE), min_size=1, max_size=6)


@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - set(RANKED)))
@given(values=ROWS)
def test_a_pairs_loss_depends_on_no_other_pair_and_is_finite(name, values) -> None:
    options = PairOptions(label_smoothing=0.1)
    whole = PAIR_LOSSES[name](made(values), options)
    alone = torch.cat([PAIR_LOSSES[name](made([row]), options) for row in values])
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(whole, alone)


@given(values=ROWS)
def test_references_count_only_where_a_loss_has_one(values) -> None:
    pairs, options = made(values), PairOptions()
    moved = replace(pairs, chosen_reference=pairs.chosen_reference - 1)
    for name in preference.WITHOUT_REFERENCE:
        loss = PAIR_LOSSES[name]
        torch.testing.assert_close(loss(pairs, options), loss(moved, options))
    assert not torch.equal(PAIR_LOSSES["dpo"](pairs, options), PAIR_LOSSES["dpo"](moved, options))


@pytest.mark.parametrize("name", RANKED)
def test_ranked_terms_dealt_out_to_ranks_sum_to_the_whole_with_its_gradient(name) -> None:
    draws = torch.Generator().manual_seed(3)
    start = torch.randn(6, 4, generator=draws)
    options = PairOptions(beta=0.5)

    def pairs_of(values: torch.Tensor) -> Pairs:
        count = torch.ones(len(values))
        return Pairs(*values.T, count, count)

    whole = start.clone().requires_grad_()
    if name == "aot":
        sorted_ratio = (whole[:, 0] - whole[:, 1]).sort().values
        expected = sorted_ratio - (whole[:, 2] - whole[:, 3]).sort().values.detach()
    else:
        chosen, rejected = whole[:, 0] - whole[:, 2], whole[:, 1] - whole[:, 3]
        expected = chosen.sort().values - rejected.sort().values
    torch.nn.functional.softplus(-0.5 * expected).sum().backward()

    dealt = start.clone().requires_grad_()
    known = ranked(pairs_of(start), options)
    total = torch.zeros(())
    for share in (slice(0, 2), slice(2, 6)):
        mine = replace(
            pairs_of(dealt[share]),
            **{key: getattr(known, key)[share] for key in vars(known) if key.endswith("_at_rank")},
        )
        total = total + PAIR_LOSSES[name](mine, options).sum()
    total.backward()
    assert whole.grad is not None
    assert dealt.grad is not None
    torch.testing.assert_close(dealt.grad[:, :2], whole.grad[:, :2])


def test_equal_policy_and_reference_give_the_known_constants() -> None:
    pairs, options = made([(-3.0, -5.0, -3.0, -5.0)]), PairOptions(beta=0.1)
    expected = {
        "dpo": 0.6931472, "ipo": 25.0, "hinge": 1.0, "bco_pair": 2 * 0.6931472,
        "apo_zero": 1.0, "apo_down": 1.0, "sppo_hard": 50.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert PAIR_LOSSES[name](pairs, options).item() == pytest.approx(value)


def test_every_loss_that_may_be_asked_for_has_its_formula() -> None:
    assert set(PAIR_LOSSES) == set(preference.PAIR_LOSSES)
