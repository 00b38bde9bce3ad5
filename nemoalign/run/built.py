"""A run's models as they are built on this rank."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nemoalign.model.build import ModelSettings, build_model
from nemoalign.run.reward import learns_bias

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.architecture import Architecture
    from nemoalign.config.schema import RunConfig
    from nemoalign.model.lora_settings import LoraSettings
    from nemoalign.run.prepare import Prepared


def built_model(config: RunConfig, made: Prepared, lora: LoraSettings | None) -> list[GPTModel]:
    """Build this rank's part of the model."""
    return build_model(
        trained_architecture(config, made.arch),
        made.source.vocab_size,
        made.layout,
        precision=config.trainer.precision,
        settings=ModelSettings(
            hidden_dropout=config.model.hidden_dropout,
            attention_dropout=config.model.attention_dropout,
            recompute=config.model.activations_checkpoint_granularity or "none",
            seed=config.model.seed,
            softmax_over_padding=config.model.softmax_over_padding,
            reward_bias_learns=learns_bias(config),
            value_head=getattr(config.model.algorithm, "share_trunk", False)
            and not made.arch.num_attributes,
        ),
        lora=lora,
    )


def trained_architecture(config: RunConfig, arch: Architecture) -> Architecture:
    """Return what is built: without router losses where a run's own loss is no mean over tokens.

    A router's loss is a sum over tokens, and the learner divides all gradients by one count.
    """
    if config.model.algorithm.counts_tokens:
        return arch
    return replace(arch, moe_aux_loss_coeff=0.0, moe_z_loss_coeff=None)
