"""Which Hugging Face modules each of NeMo's LoRA adapters belongs to, for any family.

It follows from the family's weight rules: the modules whose weights make the adapted weight. A fused
weight is a stack of rows, so an adapter of it is one A for all parts and a B whose rows are shared
out; NeMo's canonical variant, like PEFT, has an A and a B for each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemoalign.archive.dtypes import Array
from nemoalign.checkpoint.settings.adapter import FUSED, UNFUSED
from nemoalign.config.architecture import Architecture
from nemoalign.weights.ops import Op
from nemoalign.weights.rules import Family, tensor_plans
from nemoalign.weights.tensors import expected_shapes

PREFIX = "base_model.model."
"""What PEFT puts before the name of a module of the model it wraps."""

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

TARGETS = {
    "linear_qkv": "attention_qkv",
    "linear_proj": "attention_dense",
    "linear_fc1": "mlp_fc1",
    "linear_fc2": "mlp_fc2",
}
"""NeMo's ``target_modules`` by the module they name."""


@dataclass(frozen=True, kw_only=True)
class LoraLayer:
    """One weight that can be adapted: its canonical name, and the modules it is made of."""

    weight: str
    adapter: str
    """Canonical name of the adapter of the whole weight, without ``.linear_in.weight``."""
    parts: tuple[str, ...]
    """The same for the adapter of each part, in the canonical variant; empty where there is one."""
    modules: tuple[str, ...]
    """Hugging Face's names, such as ``model.layers.0.self_attn.q_proj``."""
    rows: tuple[int, ...]
    """Rows of each module's weight."""
    columns: int
    op: Op
    is_turned: bool
    """True for GPT-2's ``Conv1D``, whose weights are the other way round; adapters of it are not."""

    @property
    def target(self) -> str:
        """NeMo's word for such a layer."""
        return TARGETS[self.weight.split(".")[-2]]

    def share_out(self, rows: Array, arch: Architecture) -> tuple[Array, ...]:
        """Return the rows of each module inside the B of the whole weight. Inverse of ``fuse``."""
        return self._turned(self.op.to_hf(rows, arch, 0))

    def fuse(self, parts: Sequence[Array], arch: Architecture) -> Array:
        """Return the B of the whole weight made of those of its modules."""
        return self.op.to_megatron(self._turned(parts), arch)

    def _turned(self, parts: Sequence[Array]) -> tuple[Array, ...]:
        return tuple(np.ascontiguousarray(part.T) if self.is_turned else part for part in parts)


def lora_layers(family: Family, arch: Architecture) -> list[LoraLayer]:
    """Return every weight that NeMo's LoRA can adapt.

    Raises:
        ContentError: when Hugging Face has no such family.
    """
    fused = {weight: name for name, weight in FUSED.items()}
    unfused = {weight: (name, parts) for name, (weight, parts, _) in UNFUSED.items()}
    shapes = expected_shapes(arch, 1)
    layers: list[LoraLayer] = []
    for plan in tensor_plans(family, arch):
        layer, _, weight = plan.name.removeprefix("decoder.layers.").partition(".")
        if weight not in fused or not layer.isdigit():
            continue
        rows, columns = shapes[plan.name]
        probe = plan.op.hf_shapes((rows, rows + 1), arch, 0)  # no square, so that turning shows
        is_turned = probe[0][1] != rows + 1
        name, words = unfused.get(weight, ("", ()))
        prefix = f"decoder.layers.{layer}."
        layers.append(
            LoraLayer(
                weight=plan.name,
                adapter=prefix + fused[weight],
                parts=tuple(f"{prefix}{name}.{word}" for word in words)
                if len(plan.hf_names) > 1
                else (),
                modules=tuple(hf.removesuffix(".weight") for hf in plan.hf_names),
                rows=tuple(shape[is_turned] for shape in probe),
                columns=columns,
                op=plan.op,
                is_turned=is_turned,
            )
        )
    return layers


def short_targets(layers: list[LoraLayer], adapted: set[str]) -> list[str]:
    """Return the words that name the ``adapted`` modules and no other, as PEFT matches them.

    PEFT takes a word for the end of a module's name: ``q_proj`` stands for that of every layer.
    Where some layers differ from others, the words are whole names.
    """
    others = {module for layer in layers for module in layer.modules} - adapted
    words: list[str] = []
    for module in sorted(adapted):
        parts = module.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        fitting = (
            end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)
        )
        words.append(next(fitting, module))
    return list(dict.fromkeys(words))
