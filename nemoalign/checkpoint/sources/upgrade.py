"""A model_config.yaml of NeMo's own GPT, said in the words of megatron-core's.

Only what the two understand differently is changed; what megatron-core cannot compute is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemoalign.errors import ContentError

_NEEDED: Mapping[str, tuple[Any, ...]] = {
    "transformer_block_type": ("pre_ln",),
    "position_embedding_type": ("learned_absolute", "rope", "none"),
    "attention_type": ("multihead",),
    "normalize_attention_scores": (True,),
    "headscale": (False,),
    "megatron_legacy": (False,),
}
"""Settings that only one value, the default, leaves a model that megatron-core has too."""


def upgraded_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the configuration under which megatron-core computes what NeMo's own GPT did.

    Raises:
        ContentError: when it asks for something that megatron-core's GPT does not have.
    """
    for name, allowed in _NEEDED.items():
        if config.get(name) not in (None, *allowed):
            raise ContentError(
                f"{where} has {name} {config[name]!r:.60}, which NeMo's own GPT from before "
                "megatron-core computes and megatron-core's does not; its names are not upgraded."
            )
    changed: dict[str, Any] = {"mcore_gpt": True}
    if config.get("normalization") == "low_precision_layernorm":
        changed["normalization"] = "layernorm"
    if "bias_gelu_fusion" in config and "bias_activation_fusion" not in config:
        changed["bias_activation_fusion"] = config["bias_gelu_fusion"]
    learned = config.get("position_embedding_type") in (None, "learned_absolute")
    if learned and config.get("max_position_embeddings") is not None:
        # megatron-core sizes learned positions by this, NeMo's own GPT by the other.
        changed["encoder_seq_length"] = config["max_position_embeddings"]
    return {**config, **changed}
