"""Trained adapters to go on from, laid over the base weights they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nemoalign.archive.dtypes import Array
from nemoalign.archive.store import Index, TensorInfo, TensorStore
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ConfigError, ContentError
from nemoalign.model.lora_settings import LINEARS, SELECTION, LoraSettings
from nemoalign.weights.names import is_reward_head


class WithAdapters:
    """A base model's tensors and an adapter's, in one store."""

    def __init__(self, base: TensorStore, adapter: TensorStore) -> None:
        self._stores = (base, adapter)
        self.tensors: Mapping[str, TensorInfo] = {**base.tensors, **adapter.tensors}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor of whichever of the two holds it."""
        base, adapter = self._stores
        return (adapter if name in adapter.tensors else base).read(name, index)


def with_adapters(
    base: TensorStore, path: Path, lora: LoraSettings, num_layers: int
) -> WithAdapters:
    """Return ``base`` together with the adapter at ``path``, which ``lora`` must describe.

    Raises:
        ContentError: when there is no adapter at ``path``.
        ConfigError: when its rank, scale, targets or layers are others than this run's.
    """
    adapter = open_source(path).adapter
    if adapter is None:
        raise ContentError(
            f"--adapter {path} holds no LoRA adapter; it is a whole model. Give it as --ckpt."
        )
    if adapter.dim != lora.adapter_dim:
        raise ConfigError(
            f"--adapter {path} has rank {adapter.dim} and --lora is {lora.adapter_dim}. "
            f"Use --lora {adapter.dim}."
        )
    if adapter.scale != lora.scale:
        raise ConfigError(
            f"--adapter {path} was trained with alpha {adapter.alpha:g} at rank {adapter.dim}, and this "
            f"run scales by {lora.scale:g}. Use --lora-alpha {adapter.alpha:g}."
        )
    _check_places(path, adapter.weights, lora, num_layers)
    return WithAdapters(base, adapter.weights)


def _check_places(path: Path, weights: TensorStore, lora: LoraSettings, num_layers: int) -> None:
    """Refuse an adapter of other linear layers than this run trains: some would be dropped or new."""
    parts = [name.split(".") for name in weights.tensors if not is_reward_head(name)]
    modules = {part[5] for part in parts}
    unknown = modules - {linear.adapter for linear in LINEARS.values()}
    if unknown:
        raise ConfigError(
            f"--adapter {path} has NeMo's canonical variant ({min(unknown)}), which is not trained here. "
            f"Merge it and train the result: nemoalign export {path} --merge -o merged"
        )
    targets = [word for word, linear in LINEARS.items() if linear.adapter in modules]
    if tuple(targets) != lora.targets():
        raise ConfigError(
            f"--adapter {path} adapts {', '.join(targets)}, and this run {', '.join(lora.targets())}. "
            f"Use --lora-targets {','.join(targets)}."
        )
    layers = tuple(sorted({int(part[2]) + 1 for part in parts}))
    if layers != lora.layers(num_layers):
        raise ConfigError(
            f"--adapter {path} adapts layers {', '.join(map(str, layers))} of {num_layers}. "
            f"Use --set {SELECTION}={','.join(map(str, layers))}."
        )
