"""The shapes a Falcon layer comes in: NeMo's ``megatron_falcon_gpt`` and Hugging Face's four switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemoalign.config.architecture import FALCON, Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import Fields

_NO_BIAS = (
    "has biases and computes attention and MLP side by side, where NeMo's Falcon layer leaves the "
    "biases away and Hugging Face's does not; neither form can represent the other."
)


@dataclass(frozen=True)
class FalconShape:
    """Query groups, and whether attention and MLP run side by side, with one norm or two.

    Two norms are NeMo's ``new_decoder_architecture``; one shared norm its ``parallel_attention``, with
    any number of query groups, for which Hugging Face has several names.
    """

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return the layer's name, its two switches and the query groups.

        Raises:
            ContentError: for a layer that NeMo's Falcon does not have.
        """
        heads = int(hf["num_attention_heads"])
        is_new = bool(hf.get("new_decoder_architecture", False))
        is_parallel = bool(hf.get("parallel_attn", True))
        norms = hf.get("num_ln_in_parallel_attn") or (2 if is_new else 1)
        known_norms = (1, 2) if is_new else (1,)
        if (is_new and not is_parallel) or norms not in known_norms:
            raise ContentError(
                f"config.json has new_decoder_architecture {is_new}, parallel_attn {is_parallel} and "
                f"num_ln_in_parallel_attn {norms}, which is no Falcon of NeMo's."
            )
        if is_parallel and hf.get("bias"):
            raise ContentError(f"config.json {_NO_BIAS}")
        groups = heads
        if is_new:
            groups = hf.get("num_kv_heads") or heads
        elif hf.get("multi_query", True):
            groups = 1
        return {
            "name": FALCON,
            "num_query_groups": groups,
            "mcore_customization_config": {
                "new_decoder_architecture": is_new and norms == 2,
                "parallel_attention": is_parallel,
            },
        }

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return Hugging Face's switches for the same computation.

        Raises:
            ContentError: for a layer that Hugging Face's Falcon does not have.
        """
        has_two_norms = arch.new_decoder_architecture
        is_parallel = arch.parallel_attention or has_two_norms
        groups, heads = arch.query_groups, arch.num_attention_heads
        is_new = has_two_norms or groups not in (1, heads)
        if is_new and not is_parallel:
            raise ContentError(
                f"model_config.yaml has {groups} query groups in a Falcon whose MLP follows attention, "
                "which Hugging Face does not have."
            )
        if is_parallel and arch.bias:
            raise ContentError(f"model_config.yaml {_NO_BIAS}")
        return {
            "new_decoder_architecture": is_new,
            "parallel_attn": is_parallel,
            "multi_query": is_new or groups == 1,
            "num_kv_heads": groups,
            "num_ln_in_parallel_attn": (2 if has_two_norms else 1) if is_new else None,
        }
