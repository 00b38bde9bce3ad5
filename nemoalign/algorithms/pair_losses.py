"""Losses of preference pairs, each a formula over the log-ratios of a chosen and a rejected answer.

Sources: DPO (arXiv 2305.18290, eq. 7), IPO (2310.12036, eq. 17; over tokens as its authors corrected
it), cDPO and robust DPO (2403.00409), RPO (NeMo-Aligner ``megatron_gpt_dpo_model.py``), SLiC hinge
(2305.10425), EXO (2402.00856), NCA (2402.05369), BCO (2404.04656), SPPO (2405.00675), AOT
(2406.05882), APO (2408.06266), DiscoPOP (2406.08414), SimPO (2405.14734), ORPO (2403.07691), CPO
(2401.08417), TRL's ``sft``. Names are NeMo-Aligner's and TRL's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from nemoalign.algorithms.pairs import PairOptions, Pairs

PairLoss = Callable[[Pairs, PairOptions], Tensor]


def _margin(pairs: Pairs, options: PairOptions) -> Tensor:
    chosen, rejected = pairs.scores(options)
    return chosen - rejected


def _averaged_margin(pairs: Pairs, options: PairOptions) -> Tensor:
    chosen, rejected = pairs.scores(options)
    if options.average:
        return chosen - rejected
    return chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens


def _smoothed(x: Tensor, options: PairOptions) -> Tensor:
    wrong = options.label_smoothing
    return -(1 - wrong) * logsigmoid(x) - wrong * logsigmoid(-x)


def dpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return -log sigma(beta margin); with smoothing cDPO's."""
    return _smoothed(options.beta * _margin(pairs, options), options)


def sigmoid_norm(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return DPO over log-ratios a token."""
    return _smoothed(options.beta * _averaged_margin(pairs, options), options)


def robust(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return DPO unbiased under flipped labels."""
    x, wrong = options.beta * _margin(pairs, options), options.label_smoothing
    return (-(1 - wrong) * logsigmoid(x) + wrong * logsigmoid(-x)) / (1 - 2 * wrong)


def hinge(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return relu(1 - beta margin)."""
    return relu(1 - options.beta * _margin(pairs, options))


def ipo(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the squared distance of the margin from 1 / (2 beta), over tokens."""
    return (_averaged_margin(pairs, options) - 0.5 / options.beta).square()


def ipo_sum(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return IPO on summed log-ratios, as NeMo-Aligner has it without averaging."""
    return (_margin(pairs, options) - 0.5 / options.beta).square()


def exo_pair(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the reverse KL from the smoothed label; needs smoothing above 0."""
    x, wrong = options.beta * _margin(pairs, options), torch.tensor(options.label_smoothing)
    right = x.sigmoid() * (logsigmoid(x) - torch.log1p(-wrong))
    return right + (-x).sigmoid() * (logsigmoid(-x) - torch.log(wrong))


def nca_pair(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return noise contrastive alignment of a pair."""
    chosen, rejected = (options.beta * score for score in pairs.scores(options))
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return binary classification of both sides."""
    chosen, rejected = (options.beta * score for score in pairs.scores(options))
    return -logsigmoid(chosen) - logsigmoid(-rejected)


def sppo_hard(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return self-play's squared distances from half a win and half a loss."""
    chosen, rejected = pairs.scores(options)
    return (chosen - 0.5 / options.beta).square() + (rejected + 0.5 / options.beta).square()


def apo_zero(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return anchored preference: chosen up, rejected down."""
    chosen, rejected = (options.beta * score for score in pairs.scores(options))
    return 1 - chosen.sigmoid() + rejected.sigmoid()


def apo_down(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return anchored preference: both down, rejected further."""
    chosen, rejected = (options.beta * score for score in pairs.scores(options))
    return chosen.sigmoid() + 1 - (chosen - rejected).sigmoid()


def discopop(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the log-ratio modulated loss that a search over programs found."""
    x = options.beta * _margin(pairs, options)
    blend = (x / options.discopop_tau).sigmoid()
    return -logsigmoid(x) * (1 - blend) + torch.exp(-x) * blend


def aot(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return DPO of policy and reference ratios that stand at the same rank."""
    assert pairs.reference_at_rank is not None, "at_ranks comes first"
    x = options.beta * (pairs.chosen - pairs.rejected - pairs.reference_at_rank)
    return _smoothed(x, options)


def aot_unpaired(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return DPO of chosen and rejected scores that stand at the same rank.

    A term has two pairs in it; each pair carries its chosen side's value and the gradient of both of
    its sides, so that sums over pairs are exact however pairs are dealt out.
    """
    assert pairs.rejected_at_rank is not None, "at_ranks comes first"
    assert pairs.chosen_at_rank is not None, "at_ranks comes first"
    chosen, rejected = pairs.scores(options)
    mine = _smoothed(options.beta * (chosen - pairs.rejected_at_rank), options)
    theirs = _smoothed(options.beta * (pairs.chosen_at_rank - rejected), options)
    return mine + theirs - theirs.detach()


def _gap(pairs: Pairs, options: PairOptions) -> Tensor:
    chosen, rejected = pairs.rewards()
    return options.reward_scale * (chosen - rejected)


def rpo_sq(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the squared distance of beta margin and the rewards' gap."""
    return (options.beta * _margin(pairs, options) - _gap(pairs, options)).square()


def _bernoulli_kl(of: Tensor, to: Tensor) -> Tensor:
    """Return KL(Bernoulli(sigma(of)) || Bernoulli(sigma(to)))."""
    up = of.sigmoid() * (logsigmoid(of) - logsigmoid(to))
    return up + (-of).sigmoid() * (logsigmoid(-of) - logsigmoid(-to))


def rpo_bwd_kl(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the KL from the rewards' preference to the policy's."""
    return _bernoulli_kl(_gap(pairs, options), options.beta * _margin(pairs, options))


def rpo_fwd_kl(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the KL from the policy's preference to the rewards'."""
    return _bernoulli_kl(options.beta * _margin(pairs, options), _gap(pairs, options))


def simpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return DPO over the policy's own log-probs a token, with a target margin."""
    chosen, rejected = pairs.averages()
    return _smoothed(options.beta * (chosen - rejected) - options.simpo_gamma, options)


def cpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return DPO with a uniform reference; its NLL term is ``--sft-weight``."""
    return _smoothed(options.beta * (pairs.chosen - pairs.rejected), options)


def orpo(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return beta times the log odds ratio's loss; its NLL term is ``--sft-weight``."""
    chosen, rejected = pairs.averages()
    odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -options.beta * logsigmoid(odds)


def sft(pairs: Pairs, options: PairOptions) -> Tensor:
    """Return the chosen answer's negative log-prob, so scaled that the mean over pairs is over tokens."""
    del options
    assert pairs.mean_chosen_tokens is not None, "the global batch's are counted first"
    return -pairs.chosen / pairs.mean_chosen_tokens


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x < 0, accurate at both ends."""
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


PAIR_LOSSES: Mapping[str, PairLoss] = {
    "dpo": dpo,
    "ipo": ipo,
    "ipo_sum": ipo_sum,
    "rpo_sq": rpo_sq,
    "rpo_bwd_kl": rpo_bwd_kl,
    "rpo_fwd_kl": rpo_fwd_kl,
    "hinge": hinge,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
    "sigmoid_norm": sigmoid_norm,
    "simpo": simpo,
    "orpo": orpo,
    "cpo": cpo,
    "sft": sft,
}
"""By the names of ``config.preference``."""

RANKED = ("aot", "aot_unpaired")
"""Losses whose terms couple pairs of the global batch."""
