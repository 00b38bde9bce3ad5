"""What preference algorithms have for themselves: ``model.dpo`` and ``model.kto``, with NeMo-Aligner's keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nemoalign.config.fields import AlgorithmSettings, setting

PANEL = "Loss"


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(AlgorithmSettings):
    """Shared by every algorithm that stays near a reference policy."""

    ref_policy_kl_penalty: float = setting(
        0.1,
        "How strongly the policy is held to its reference (beta).",
        flag="--beta",
        above=0,
        panel=PANEL,
    )
    reference_path: Path | None = setting(
        None,
        "Another checkpoint as the reference policy.",
        flag="--ref",
        metavar="SRC",
        path_kind="any",
        shown="the start of the run",
        panel=PANEL,
    )


@dataclass(frozen=True, kw_only=True)
class DpoSettings(PreferenceSettings):
    """Direct preference optimization."""

    rows: ClassVar[Literal["pairs"]] = "pairs"

    preference_loss: str = setting(
        "dpo",
        "Loss, or several with weights (dpo:0.8,bco_pair:0.2): dpo, ipo, rpo_sq, rpo_bwd_kl, rpo_fwd_kl, "
        "hinge, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, "
        "discopop, sigmoid_norm, simpo, orpo, cpo.",
        flag="--loss",
        metavar="NAME",
        panel=PANEL,
    )
    label_smoothing: float = setting(
        0.0,
        "Chance that a preference is wrong (cDPO, robust, exo_pair).",
        flag="--label-smoothing",
        at_least=0,
        below=0.5,
        panel=PANEL,
    )
    sft_loss_weight: float = setting(
        0.0,
        "Weight of the better answer's own loss.",
        flag="--sft-weight",
        at_least=0,
        panel=PANEL,
    )
    preference_loss_weight: float = setting(1.0, "Weight of the preference loss.", at_least=0)
    preference_average_log_probs: bool = setting(
        False, "Divide log-ratios by the answer's tokens; for ipo, false is NeMo's sum."
    )
    sft_average_log_probs: bool = setting(
        True, "Divide the better answer's own loss by its tokens."
    )
    gt_reward_scale: float = setting(1.0, "RPO: what the rows' rewards are multiplied by.")
    default_chosen_reward: float = setting(1.0, "RPO: reward of a better answer without one.")
    default_rejected_reward: float = setting(0.0, "RPO: reward of a worse answer without one.")
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        setting("reverse_kl", "Divergence that holds the policy to its reference.")
    )
    f_alpha: float = setting(0.5, "Of the alpha divergence.", above=0, below=1)
    discopop_tau: float = setting(0.05, "Temperature of discopop's blend.", above=0)
    simpo_gamma: float = setting(0.5, "Margin that simpo asks for.", at_least=0)


@dataclass(frozen=True, kw_only=True)
class KtoSettings(PreferenceSettings):
    """Kahneman-Tversky optimization."""

    rows: ClassVar[Literal["labels"]] = "labels"

    preference_loss: Literal["kto", "apo_zero_unpaired"] = setting(
        "kto", "Loss of single answers.", flag="--loss", panel=PANEL
    )
    desirable_loss_weight: float = setting(
        1.0, "Weight of wanted answers.", flag="--desirable-weight", at_least=0, panel=PANEL
    )
    undesirable_loss_weight: float = setting(
        1.0, "Weight of unwanted answers.", flag="--undesirable-weight", at_least=0, panel=PANEL
    )
    kl_estimate: Literal["global_batch", "micro_batch"] = setting(
        "global_batch", "Rows the KL is a mean over; micro_batch is NeMo-Aligner's."
    )
    mismatched_answer: Literal["next", "previous"] = setting(
        "next",
        "Whose answer a mismatched row takes; previous is TRL's. A row that asks the same is passed over.",
    )
