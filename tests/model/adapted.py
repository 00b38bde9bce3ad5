"""A tiny llama with adapters beside its linear layers, fresh or as if they were trained."""

import numpy as np

from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights, local_tensors
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny

RANK = 6
ALL = LoraSettings(adapter_dim=RANK, alpha=9.0, target_modules=("all",))
ADAPTERS = {
    "self_attention.linear_qkv": "self_attention.adapter_layer.lora_kqv_adapter",
    "self_attention.linear_proj": "self_attention.adapter_layer.lora_dense_attention_adapter",
    "mlp.linear_fc1": "mlp.adapter_layer.lora_hto4h_adapter",
    "mlp.linear_fc2": "mlp.adapter_layer.lora_4htoh_adapter",
}
ONE = ParallelLayout(1)


def trained_adapters(arch, arrays) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    made = {}
    for layer in range(arch.num_layers):
        for base, adapter in ADAPTERS.items():
            out_size, in_size = arrays[f"decoder.layers.{layer}.{base}.weight"].shape
            prefix = f"decoder.layers.{layer}.{adapter}"
            made[f"{prefix}.linear_in.weight"] = draw.normal(0, 0.2, (RANK, in_size))
            made[f"{prefix}.linear_out.weight"] = draw.normal(0, 0.1, (out_size, RANK))
    return {name: array.astype(np.float32) for name, array in made.items()}


def pairs(arch):
    for layer in range(arch.num_layers):
        for base, adapter in ADAPTERS.items():
            prefix = f"decoder.layers.{layer}."
            yield (
                f"{prefix}{base}.weight",
                f"{prefix}{adapter}.linear_in.weight",
                f"{prefix}{adapter}.linear_out.weight",
            )


def built(layout, lora, arch, arrays, seed=1):
    chunks = build_model(
        arch,
        tiny.VOCAB,
        layout,
        precision="fp32",
        settings=ModelSettings(seed=seed),
        lora=lora,
    )
    load_weights(chunks, tiny.Store(arrays), arch, layout, tiny.VOCAB)
    return chunks


def tiny_arrays():
    model = tiny.llama()
    arch = tiny.architecture(model.config)
    return arch, tiny.weights(model, arch)


def fresh_adapters(layout, lora, arch, arrays):
    with start(layout, seed=1):
        chunks = built(layout, lora, arch, arrays)
        return {
            t.name: (t.split, t.parameter.detach().numpy())
            for t in local_tensors(chunks, layout)
            if t.parameter.requires_grad and not t.is_copy
        }
