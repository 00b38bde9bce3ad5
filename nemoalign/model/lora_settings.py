"""What is asked of LoRA: which linear layers get adapters, how wide, how they start; the words are NeMo's."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from nemoalign.config.peft import LORA_TARGETS, Peft
from nemoalign.errors import ConfigError
from nemoalign.parallel.layout import ParallelLayout

SELECTION = "model.peft.lora_tuning.layer_selection"
InitMethod = Literal["xavier", "kaiming", "normal", "zero"]


@dataclass(frozen=True)
class Linear:
    """A linear layer that may get an adapter: where it stands, and NeMo's name for its adapter."""

    parent: str
    name: str
    adapter: str


LINEARS = {
    "attention_qkv": Linear("self_attention", "linear_qkv", "lora_kqv_adapter"),
    "attention_dense": Linear("self_attention", "linear_proj", "lora_dense_attention_adapter"),
    "mlp_fc1": Linear("mlp", "linear_fc1", "lora_hto4h_adapter"),
    "mlp_fc2": Linear("mlp", "linear_fc2", "lora_4htoh_adapter"),
}
_GROUPS = {
    "attention": ("attention_qkv", "attention_dense"),
    "mlp": ("mlp_fc1", "mlp_fc2"),
    "all": tuple(LINEARS),
}


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """NeMo's ``peft.lora_tuning``; ``alpha`` None means alpha = dim, that is scale 1."""

    adapter_dim: int = 32
    alpha: float | None = None
    adapter_dropout: float = 0.0
    dropout_position: Literal["pre", "post"] = "post"
    target_modules: tuple[str, ...] = ("attention_qkv",)
    column_init_method: InitMethod = "xavier"
    row_init_method: InitMethod = "zero"
    layer_selection: tuple[int, ...] | None = None

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.adapter_dim

    def targets(self) -> tuple[str, ...]:
        """Return the targeted linears, groups resolved, each once.

        Raises:
            ConfigError: for a word that names no target, or a width below 1.
        """
        if self.adapter_dim < 1:
            raise ConfigError(f"--lora is {self.adapter_dim}; the adapter's width is at least 1.")
        for word in self.target_modules:
            if word not in LORA_TARGETS:
                raise ConfigError(
                    f"--lora-targets names {word!r}; the targets are {', '.join(LORA_TARGETS)}."
                )
        wanted = {name for word in self.target_modules for name in _GROUPS.get(word, (word,))}
        return tuple(name for name in LINEARS if name in wanted)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers that get adapters, counted from 1.

        Raises:
            ConfigError: for a layer that the model does not have.
        """
        if self.layer_selection is None:
            return tuple(range(1, num_layers + 1))
        chosen = tuple(sorted(set(self.layer_selection)))
        if not chosen or chosen[-1] > num_layers or chosen[0] < 1:
            raise ConfigError(
                f"{SELECTION} is {list(self.layer_selection)}; this model has layers 1 to {num_layers}."
            )
        return chosen

    def check_stages(self, layout: ParallelLayout, num_layers: int) -> None:
        """Refuse a selection that leaves a pipeline stage nothing to train.

        Raises:
            ConfigError: naming the layers of that stage.
        """
        chosen = self.layers(num_layers)
        for stage, chunk in itertools.product(range(layout.pp), range(layout.vp or 1)):
            held = layout.layers_of(stage, num_layers, chunk)
            if not any(layer - 1 in held for layer in chosen):
                raise ConfigError(
                    f"{SELECTION} is {list(chosen)}, which leaves no adapter on the pipeline stage of "
                    f"layers {held.start + 1} to {held.stop}. Use --pp 1, or select one of them."
                )


def lora_settings(peft: Peft) -> LoraSettings | None:
    """Return the adapters that a run's ``model.peft`` asks for, or None when it trains weights."""
    if peft.peft_scheme == "none":
        return None
    tuning = peft.lora_tuning
    return LoraSettings(
        adapter_dim=tuning.adapter_dim,
        alpha=tuning.alpha,
        adapter_dropout=tuning.adapter_dropout,
        dropout_position=tuning.dropout_position,
        target_modules=tuning.target_modules,
        column_init_method=tuning.column_init_method,
        row_init_method=tuning.row_init_method,
        layer_selection=tuning.layer_selection,
    )
