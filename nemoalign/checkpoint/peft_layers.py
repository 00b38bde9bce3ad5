"""Which Hugging Face modules each of NeMo's LoRA adapters belongs to, for any family.

It follows from the family's weight rules: the modules whose weights make the adapted weight. A fused
weight is a stack of rows, so an adapter of it is one A for all parts and a B whose rows are shared
out; NeMo's canonical variant, like PEFT, has an A and a B for each part.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemoalign.checkpoint.adapter import FUSED, UNFUSED
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.ops import Op
from nemoalign.weights.rules import Family, tensor_plans

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

    @property
    def target(self) -> str:
        """NeMo's word for such a layer."""
        return TARGETS[self.weight.split(".")[-2]]


def lora_layers(
    family: Family, arch: Architecture, shapes: dict[str, tuple[int, ...]]
) -> list[LoraLayer]:
    """Return every weight that NeMo's LoRA can adapt; ``shapes`` are the model's, by canonical name.

    Raises:
        ContentError: when the family's weights cannot be shared out by rows.
    """
    fused = {weight: name for name, weight in FUSED.items()}
    unfused = {weight: (name, parts) for name, (weight, parts, _) in UNFUSED.items()}
    layers: list[LoraLayer] = []
    for plan in tensor_plans(family, arch):
        layer, _, weight = plan.name.removeprefix("decoder.layers.").partition(".")
        if weight not in fused or not layer.isdigit():
            continue
        whole = shapes[plan.name]
        parts = plan.op.hf_shapes(whole, arch, 0)
        if any(shape[1:] != whole[1:] for shape in parts):
            raise ContentError(
                f"Family {family.name} keeps {plan.hf_names[0]} turned round, and adapters of such "
                "weights are not converted. Merge the adapter instead: leave --adapter-only away."
            )
        name, words = unfused.get(weight, ("", ()))
        several = len(plan.hf_names) > 1
        prefix = f"decoder.layers.{layer}."
        layers.append(
            LoraLayer(
                weight=plan.name,
                adapter=prefix + fused[weight],
                parts=tuple(f"{prefix}{name}.{word}" for word in words) if several else (),
                modules=tuple(hf.removesuffix(".weight") for hf in plan.hf_names),
                rows=tuple(shape[0] for shape in parts),
                columns=whole[1],
                op=plan.op,
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
