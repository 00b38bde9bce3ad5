"""From a checkpoint's architecture to megatron-core's GPTModel on this rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.layers import (
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from nemoalign.config.architecture import Architecture
from nemoalign.model.gpt import LabelGPT
from nemoalign.model.lora import add_adapters
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.model.reward_head import RewardHead
from nemoalign.model.spec import (
    ModelSettings,
    Precision,
    decoder_spec,
    refuse_unsupported,
    transformer_config,
)
from nemoalign.parallel.cpu_bf16 import lacks_bf16_products, multiply_bf16_in_fp32
from nemoalign.parallel.device import select_backend
from nemoalign.parallel.layout import ParallelLayout

_PARALLEL_MODULES = (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding)


def build_model(
    arch: Architecture,
    vocab_size: int,
    layout: ParallelLayout,
    *,
    precision: Precision,
    settings: ModelSettings,
    lora: LoraSettings | None = None,
) -> list[GPTModel]:
    """Return this rank's model chunks: one, or ``layout.vp`` of them. Collective.

    Weights are uninitialised memory until ``load_weights``; adapters start as LoRA starts, a value
    head as zeros. With ``lora`` everything but adapters and head is frozen.

    Raises:
        ContentError: when a field of ``arch`` asks for what is not offered here.
        ConfigError: when ``layout`` cannot hold ``arch``.
    """
    layout.check(arch)
    refuse_unsupported(arch)
    backend = select_backend()
    if backend.name == "cpu" and precision == "bf16" and lacks_bf16_products():
        multiply_bf16_in_fp32()
    config = transformer_config(arch, layout, backend, precision, settings)
    if lora is not None:
        lora.check_stages(layout, arch.num_layers)
        # Else megatron-core's checkpoints stack the layers, and take none without an adapter.
        config.hetereogenous_dist_checkpoint = lora.layer_selection is not None
    chunks: list[GPTModel] = []
    for vp_rank in _vp_ranks(layout):
        chunk = _build_chunk(arch, vocab_size, layout, config, vp_rank)
        if settings.softmax_over_padding:
            chunk.softmax_size = arch.padded_vocab_size(vocab_size, layout.tp)
        chunk.to(device=backend.device, dtype=config.params_dtype)
        if lora is not None:
            add_adapters(chunk, lora, seed=settings.seed)
            if settings.recompute == "full":
                _let_gradients_in(chunk)
        if chunk.post_process:
            _add_heads(chunk, arch, settings, backend.device)
        chunks.append(chunk)
    return chunks


def _add_heads(
    chunk: LabelGPT, arch: Architecture, settings: ModelSettings, device: torch.device
) -> None:
    """Put a reward or value head on a last stage; beside a reward head the output layer learns nothing."""
    if arch.num_attributes:
        chunk.output_layer.requires_grad_(False)
        chunk.rm_head = RewardHead(arch.hidden_size, arch.num_attributes, device)
        chunk.rm_head.bias.requires_grad_(settings.reward_bias_learns)
    if settings.value_head:
        assert not arch.num_attributes, "values of a reward model come from its own head"
        chunk.value_head = RewardHead(arch.hidden_size, 1, device)


def _vp_ranks(layout: ParallelLayout) -> list[int | None]:
    return [None] if layout.vp is None else list(range(layout.vp))


def _build_chunk(
    arch: Architecture,
    vocab_size: int,
    layout: ParallelLayout,
    config: TransformerConfig,
    vp_rank: int | None,
) -> LabelGPT:
    layers = layout.layers_of(
        parallel_state.get_pipeline_model_parallel_rank(), arch.num_layers, vp_rank or 0
    )
    model = LabelGPT(
        config=config,
        transformer_layer_spec=decoder_spec(config, len(layers)),
        vocab_size=arch.padded_vocab_size(vocab_size, layout.tp),
        max_sequence_length=arch.encoder_seq_length,
        pre_process=layers.start == 0,
        post_process=layers.stop == arch.num_layers,
        share_embeddings_and_output_weights=arch.share_embeddings_and_output_weights,
        position_embedding_type=arch.position_embedding_type,
        rotary_percent=arch.rotary_percentage,
        rotary_base=arch.rotary_base,
        seq_len_interpolation_factor=arch.seq_len_interpolation_factor,
        vp_stage=vp_rank,
        real_vocab_size=vocab_size,
    )
    _mark_tensor_parallel(model)
    if arch.scale_positional_embedding and arch.position_embedding_type == "rope":
        _scale_rotary(model, arch)
    if arch.apply_embedding_scaling and model.pre_process:
        model.embedding.register_forward_hook(_embedding_scaler(arch.hidden_size))
    return model


def _mark_tensor_parallel(model: LabelGPT) -> None:
    """Tell megatron-core which parameters are shards; it does so itself only when it initialises.

    Without the marks, the gradient norm counts the shards of tp rank 0 alone.
    """
    gated: bool = model.config.gated_linear_unit
    for name, module in model.named_modules():
        if not isinstance(module, _PARALLEL_MODULES) or module.weight is None:
            continue
        dim = 1 if isinstance(module, RowParallelLinear) else 0
        # [gate; up] is cut in each half: two runs of rows.
        runs = 2 if gated and name.endswith("linear_fc1") else 1
        set_tensor_model_parallel_attributes(module.weight, True, dim, runs)


def _scale_rotary(model: LabelGPT, arch: Architecture) -> None:
    """Stretch the rotary frequencies as Llama 3.1 does; megatron-core's flag fixes three of four factors."""
    rotary: Any = model.rotary_pos_emb
    rotary.inv_freq = rotary._apply_scaling(
        rotary.inv_freq,
        factor=arch.scale_factor,
        low_freq_factor=arch.low_freq_factor,
        high_freq_factor=arch.high_freq_factor,
        original_max_position_embeddings=arch.old_context_len,
    )


def _embedding_scaler(hidden_size: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a forward hook that multiplies by sqrt(hidden size), rounded to the embedding's type."""

    def scale(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * torch.tensor(hidden_size**0.5, dtype=output.dtype, device=output.device)

    return scale


def _let_gradients_in(model: LabelGPT) -> None:
    """Make the embedding's output need a gradient although its weight is frozen.

    A recomputed layer returns a gradient only if one of its inputs needs one, so adapters in the
    first layers would otherwise never learn.
    """
    if model.pre_process:
        model.embedding.register_forward_hook(lambda module, args, output: output.requires_grad_())
