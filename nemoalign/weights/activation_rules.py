"""Activations of config.json and model_config.yaml: which of them are the tanh form of gelu."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import Fields


@dataclass(frozen=True)
class Gelu:
    """An activation that may be a gelu, of which both sides know an exact one and a tanh form.

    ``values`` maps Hugging Face's names to NeMo's ``activation`` and to whether it is the tanh form;
    the first of equals is the one written.
    """

    hf: str
    values: Mapping[str, tuple[str, bool]]
    default: str

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return activation and openai_gelu, with the fused kernel off: it is always the tanh form."""
        found = hf.get(self.hf) or self.default
        if found not in self.values:
            raise ContentError(
                f'config.json has {self.hf} "{found}", which cannot be written as a .nemo of this '
                f"family; it knows {', '.join(self.values)}."
            )
        name, is_tanh = self.values[found]
        return {"activation": name, "openai_gelu": is_tanh, "bias_activation_fusion": False}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return Hugging Face's name of what the archive computes."""
        wanted = (arch.activation.lower().removeprefix("fast-"), arch.gelu_is_tanh)
        for found, (name, is_tanh) in self.values.items():
            if (name.removeprefix("fast-"), is_tanh) == wanted:
                return {self.hf: found}
        kind = "tanh" if arch.gelu_is_tanh else "exact"
        raise ContentError(
            f"model_config.yaml has activation {arch.activation} ({kind}), for which this family of "
            "Hugging Face has no name."
        )
