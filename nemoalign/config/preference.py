"""What preference algorithms have for themselves: ``model.dpo`` and ``model.kto``, with NeMo-Aligner's keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nemoalign.config.fields import AlgorithmSettings, setting
from nemoalign.errors import ConfigError

PANEL = "Loss"

PAIR_LOSSES = (
    "dpo", "ipo", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl", "hinge", "robust", "exo_pair", "nca_pair",
    "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop",
    "sigmoid_norm", "simpo", "orpo", "cpo", "ipo_sum", "sft",
)  # fmt: skip
"""NeMo-Aligner's and TRL's names; ``ipo_sum`` is NeMo-Aligner's ipo of log-probs that are summed."""
WITHOUT_REFERENCE = ("simpo", "orpo", "cpo", "sft")
"""Losses that look at the policy alone."""
WITH_DIVERGENCE = (
    "dpo", "ipo", "ipo_sum", "rpo_sq", "rpo_bwd_kl", "rpo_fwd_kl", "hinge", "robust", "exo_pair",
    "discopop", "sigmoid_norm",
)  # fmt: skip
"""Losses of the difference of two log-ratios, in which another divergence's unknown constant cancels."""


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
    reference_cache: bool = setting(
        False,
        "Compute the reference's log-probs once, before training, keep them on disk and train with one model.",
        flag="--ref-cache",
        panel=PANEL,
    )
    reference_on_host: bool | None = setting(
        None,
        "Keep a reference's copy in the host's memory; null keeps it on the device unless that is crowded.",
    )


@dataclass(frozen=True, kw_only=True)
class DpoSettings(PreferenceSettings):
    """Direct preference optimization."""

    rows: ClassVar[Literal["pairs"]] = "pairs"

    preference_loss: str = setting(
        "dpo",
        f"Loss, or several with weights (dpo:0.8,bco_pair:0.2): {', '.join(PAIR_LOSSES[:-1])}.",
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
    preference_average_log_probs: bool | None = setting(
        None,
        "Divide log-ratios by the answer's tokens; null does it for ipo alone, false is NeMo's sum.",
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

    use_weighting: bool = setting(
        False, "Weigh every pair by how likely the policy itself would write it (WPO)."
    )

    def __post_init__(self) -> None:
        """Refuse losses that are unknown, or that the other settings make meaningless."""
        super().__post_init__()
        names = [name for name, _ in self.losses]
        if "exo_pair" in names and not self.label_smoothing:
            raise ConfigError(
                "--loss exo_pair takes the logarithm of --label-smoothing, which is 0. "
                "Use --label-smoothing 1e-3, as TRL does."
            )
        if self.use_weighting and {"aot", "aot_unpaired"} & set(names):
            raise ConfigError(
                "model.dpo.use_weighting weighs pairs, and the aot losses have none: they compare ranks. "
                "Leave one of the two out."
            )
        for flag, given in (("--ref", self.reference_path), ("--ref-cache", self.reference_cache)):
            if given and all(name in WITHOUT_REFERENCE for name in names):
                raise ConfigError(
                    f"{flag} has no effect: --loss {self.preference_loss} looks at the policy alone and has "
                    "no reference. Leave one of the two out."
                )
        fixed = [name for name in names if name not in WITH_DIVERGENCE]
        if fixed and self.f_divergence != "reverse_kl":
            raise ConfigError(
                f"model.dpo.f_divergence is {self.f_divergence}, which --loss {fixed[0]} cannot take: it "
                f"does not look at the difference of two log-ratios. Leave it out, or use one of "
                f"{', '.join(WITH_DIVERGENCE)}."
            )
        if not self.preference_loss_weight and not self.sft_loss_weight:
            raise ConfigError(
                "model.dpo.preference_loss_weight and --sft-weight are both 0, so nothing would be "
                "learned. Set one of them to 1."
            )

    @property
    def losses(self) -> list[tuple[str, float]]:
        """Names and weights of the losses; ipo of summed log-ratios is ``ipo_sum``."""
        sums = self.preference_average_log_probs is False
        return [
            ("ipo_sum" if sums and name == "ipo" else name, weight)
            for name, weight in parse_losses(self.preference_loss)
        ]


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
    preference_average_log_probs: bool = setting(
        False, "Divide log-ratios by the answer's tokens, also those of the KL."
    )
    kl_estimate: Literal["global_batch", "micro_batch"] = setting(
        "global_batch", "Rows the KL is a mean over; micro_batch is NeMo-Aligner's."
    )
    mismatched_answer: Literal["next", "previous"] = setting(
        "next",
        "Whose answer a mismatched row takes; previous is TRL's. A row that asks the same is passed over.",
    )


def parse_losses(text: str) -> list[tuple[str, float]]:
    """Return names and weights of ``dpo`` or ``dpo:0.8,bco_pair:0.2``.

    Raises:
        ConfigError: for a name that is no loss, or a weight that is no number.
    """
    found: list[tuple[str, float]] = []
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in PAIR_LOSSES:
            raise ConfigError(f"--loss {name} is not known. Use {', '.join(PAIR_LOSSES)}.")
        try:
            found.append((name, float(weight or 1)))
        except ValueError as error:
            raise ConfigError(
                f"--loss {part} has a weight that is no number. Write {name}:0.5"
            ) from error
        if not (math.isfinite(found[-1][1]) and found[-1][1] >= 0):
            raise ConfigError(
                f"--loss {part} has a weight below 0 or without bound. Write {name}:0.5"
            )
    return found
