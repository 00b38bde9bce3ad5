"""Models that judge answers: reward models as they lie in checkpoints, and what critics start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import Source, open_source
from nemoalign.checkpoint.settings.reward import (
    Standardization,
    attribute_weights,
    reward_standardization,
)
from nemoalign.data.tokenizer import build_tokenizer
from nemoalign.errors import ConfigError, ContentError
from nemoalign.model.reward_head import folded_head, with_reward_head

if TYPE_CHECKING:
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.run.prepare import Prepared

PROBES = ("The quick brown fox, 1234567890!", "naïve Größe: 你好 \N{ROCKET}\n\tx = y**2")
"""Texts that tokenizers of different models split differently."""


@dataclass(frozen=True)
class Judge:
    """A model whose head gives one number."""

    made: Prepared
    """The run's, with this model's tensors and architecture."""
    averages: bool
    """It judges the mean over an answer's tokens instead of its last one."""
    is_new: bool = False
    """Its head has not learned anything yet; it is filled with zeros."""

    @property
    def source(self) -> Source:
        """The checkpoint it is read from."""
        return self.made.source

    def describe(self) -> str:
        """Return where it comes from."""
        return f"{self.source.path}{', with a new head' if self.is_new else ''}"


def read_judge(path: Path, made: Prepared, *, may_be_new: bool = False) -> Judge:
    """Return the reward model of a checkpoint, several outputs and their scale folded into one.

    With ``may_be_new`` it may be a model without a head.

    Raises:
        ContentError: when it has none, or splits text otherwise than the policy.
        ConfigError: when the layout does not fit it.
    """
    source = with_adapter(open_source(path), None, Path("OUT"))
    outputs = source.arch.num_attributes
    if not outputs and not may_be_new:
        raise ContentError(
            f"{path} has no reward head, so it gives no rewards. Train a reward model with nemoalign rm, or "
            "give a function: --reward MODULE:FUNCTION"
        )
    _check_tokenizer(source, made.tokenizer)
    if not outputs:
        return _new(source, made)
    scale = reward_standardization(source.config, str(path)) or Standardization(0.0, 1.0)
    weights = folded_head(
        source.weights,
        attribute_weights=attribute_weights(source.config, str(path)),
        mean=scale.mean,
        std=scale.std,
    )
    return Judge(
        _of(replace(source, weights=weights), made),
        averages=bool(source.config.get("use_avg_pool")),
    )


def fresh_critic(made: Prepared) -> Judge:
    """Return the policy's own checkpoint as a critic that knows nothing yet."""
    return _new(made.source, made)


def _new(source: Source, made: Prepared) -> Judge:
    arch = replace(source.arch, num_attributes=1, share_embeddings_and_output_weights=False)
    weights = with_reward_head(source.weights, arch, seed=0)
    return Judge(_of(replace(source, weights=weights), made), averages=False, is_new=True)


def _of(source: Source, made: Prepared) -> Prepared:
    arch = replace(source.arch, num_attributes=1, share_embeddings_and_output_weights=False)
    longest = made.arch.encoder_seq_length
    if arch.position_embedding_type == "learned_absolute" and arch.encoder_seq_length < longest:
        raise ConfigError(
            f"{source.path} learned {arch.encoder_seq_length} positions, and --seq-len is {longest}. Use "
            f"--seq-len {arch.encoder_seq_length} or less."
        )
    made.layout.check(arch)
    return replace(made, source=replace(source, arch=arch), arch=arch)


def _check_tokenizer(source: Source, ours: Tokenizer) -> None:
    """Refuse a model that would read other words than the policy writes."""
    theirs = build_tokenizer(source.files, source.config.get("tokenizer") or {})
    if any(theirs.encode(text) != ours.encode(text) for text in PROBES):
        raise ContentError(
            f"{source.path} splits text into other tokens than the policy does, so it cannot read its "
            "answers. Use a reward model that was trained from a model with the policy's tokenizer."
        )
