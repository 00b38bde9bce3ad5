"""Sizes that GPT-2 and its kin spell in their own way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemoalign.config.architecture import Architecture
from nemoalign.weights.config_rules import Field, Fields


@dataclass(frozen=True)
class LearnedPositions:
    """The number of learned positions: rows of a table, so both sides must have exactly as many."""

    hf: str

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return both NeMo fields with the same length."""
        length = Field("", self.hf).to_nemo(hf)[""]
        return {"encoder_seq_length": length, "max_position_embeddings": length}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the rows of the table."""
        return {self.hf: arch.encoder_seq_length}


@dataclass(frozen=True)
class FeedForward:
    """The width of the MLP, which config.json may leave out: four times the hidden size."""

    hf: str
    hidden: str

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return ffn_hidden_size."""
        return {"ffn_hidden_size": hf.get(self.hf) or 4 * hf[self.hidden]}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the width, null for four times the hidden size."""
        width = arch.ffn_hidden_size
        return {self.hf: None if width == 4 * arch.hidden_size else width}
