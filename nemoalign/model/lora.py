"""LoRA on megatron-core's GPTModel: y = base(x) + (alpha / dim) * B(A(x)) beside every targeted linear.

Names are NeMo's (``self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight``), so checkpoints are too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import nn

from nemoalign.model.layers import refuse_adapter
from nemoalign.model.lora_settings import LINEARS, LoraSettings
from nemoalign.model.low_rank import Adapter, AdapterLayer


def add_adapters(model: GPTModel, lora: LoraSettings, *, seed: int) -> None:
    """Freeze ``model`` and put an adapter beside every targeted linear layer of its decoder.

    A starts from ``seed``, the layer and the target alone, so it is the same in every layout; B is 0.
    """
    model.requires_grad_(False)
    targets, chosen = lora.targets(), lora.layers(model.config.num_layers)
    layers: Any = model.decoder.layers
    for layer in layers:
        if layer.layer_number not in chosen:
            continue
        for index, name in enumerate(LINEARS):
            if name not in targets:
                continue
            target = LINEARS[name]
            parent = getattr(layer, target.parent)
            refuse_adapter(name, getattr(parent, target.name, None))
            generator = torch.Generator().manual_seed(
                (seed * 1_000_003 + layer.layer_number) * len(LINEARS) + index
            )
            adapter = Adapter(getattr(parent, target.name), lora, generator)
            if not hasattr(parent, "adapter_layer"):
                parent.adapter_layer = AdapterLayer(model.config)
            parent.adapter_layer.add_module(target.adapter, adapter)


def set_adapters(chunks: Sequence[nn.Module], enabled: bool) -> None:
    """Switch every adapter on or off; off, the model computes what its frozen base computes."""
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, Adapter):
                module.enabled = enabled


@contextlib.contextmanager
def adapters_disabled(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Switch the adapters off inside, for a pass of the reference policy."""
    set_adapters(chunks, False)
    try:
        yield
    finally:
        set_adapters(chunks, True)
