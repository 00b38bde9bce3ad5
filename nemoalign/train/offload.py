"""A learner's memory between its phases: what is not needed now lies in the host's.

As in megatron-core's ``offload_to_cpu`` of its buffers, the storage below tensors is emptied and filled
again, so every view stays what it is: parameters of buffers, gradients, an optimizer's share of fp32
weights. Its optimizer's own ``offload_to_cpu`` (0.16.1) is not used: it takes fp32 weights along, as a head's
in a bf16 model, which a pass without gradient needs, and copies through memory that is not pinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nemoalign.train.learner import Learner


class Offload:
    """Where one learner's tensors are: on its device, or in the host's memory.

    Nothing may compute with what is away, nor save it.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._weights = _Shelf(learner.backend.device)
        self._learning = _Shelf(learner.backend.device)
        self._gradients = _Emptied()

    def hold(self, *, weights: bool, learning: bool) -> None:
        """Have on the device what is asked for, and only that; what is there already stays.

        Gradients come back as zeros.

        Args:
            weights: the model's, those that learn and those that do not. A pass without gradient
                needs no more.
            learning: gradients, fp32 masters and the optimizer's moments.
        """
        if not learning:
            own = {_key(tensor): tensor for tensor in _state(self._learner)}
            for tensor in _weights(self._learner):  # an fp32 weight is its own master
                own.pop(_key(tensor), None)
            self._learning.away(list(own.values()))
            self._gradients.away(_gradients(self._learner))
        if not weights:
            self._weights.away(list(_weights(self._learner)))
        else:
            self._weights.back()
        if learning:
            self._learning.back()
            self._gradients.back()


class _Shelf:
    """Contents of storages in the host's memory, which is kept for the next time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[int, tuple[torch.UntypedStorage, Tensor]] = {}
        self._is_away = False

    def away(self, tensors: list[Tensor]) -> None:
        """Copy what lies below ``tensors`` to the host, and empty it."""
        if self._is_away:
            return
        self._is_away = True
        before, self._kept = self._kept, {}
        for storage in _storages(tensors, self._device):
            _, host = before.get(storage._cdata, (storage, None))
            if host is None or len(host) != storage.nbytes():
                host = torch.empty(
                    storage.nbytes(), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
                )
            host.copy_(_bytes(storage), non_blocking=True)
            self._kept[storage._cdata] = storage, host
        self._wait()  # before memory that is still being read is given to others
        for storage, _ in self._kept.values():
            storage.resize_(0)

    def back(self) -> None:
        """Fill what was emptied."""
        if not self._is_away:
            return
        self._is_away = False
        for storage, host in self._kept.values():
            storage.resize_(len(host))
            _bytes(storage).copy_(host, non_blocking=True)
        self._wait()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class _Emptied:
    """Storages whose contents are worth nothing between steps."""

    def __init__(self) -> None:
        self._sizes: list[tuple[torch.UntypedStorage, int]] = []

    def away(self, tensors: list[Tensor]) -> None:
        if not self._sizes:
            storages = [tensor.untyped_storage() for tensor in tensors]
            self._sizes = [(storage, storage.nbytes()) for storage in storages]
            for storage in storages:
                storage.resize_(0)

    def back(self) -> None:
        for storage, size in self._sizes:
            storage.resize_(size)
            _bytes(storage).zero_()
        self._sizes = []


def _weights(learner: Learner) -> Iterator[Tensor]:
    """Yield every parameter; those that learn may share the storage of a buffer."""
    for chunk in learner.modules:
        yield from (parameter.data for parameter in chunk.parameters())


def _gradients(learner: Learner) -> list[Tensor]:
    return [
        buffer.grad_data
        for chunk in learner.chunks
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
    ]


def _state(learner: Learner) -> Iterator[Tensor]:
    """Yield what the optimizer updates, and its state of it."""
    optimizers: list[Any] = [one.optimizer for one in learner.optimizer.chained_optimizers]
    for optimizer in filter(None, optimizers):
        for group in optimizer.param_groups:
            yield from (parameter.data for parameter in group["params"])
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def _storages(tensors: list[Tensor], device: torch.device) -> list[torch.UntypedStorage]:
    """Return the storages below ``tensors`` that lie on ``device``, each once."""
    found = {_key(tensor): tensor.untyped_storage() for tensor in tensors}
    return [one for one in found.values() if one.device.type == device.type and one.nbytes()]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """Return a tensor over the very bytes of ``storage``."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
