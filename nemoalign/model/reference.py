"""What a policy is compared with: the model in training, computing what it computed before its first step.

Which of three ways is taken, ``choose_reference`` says: with a fresh adapter the adapters are switched
off, and only what learns beside them is kept, as a reward model's head; else the start's values of every parameter that learns are kept, on the device or,
where they would take more than ``DEVICE_SHARE`` of its free memory, in the host's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from nemoalign.model.lora import adapters_disabled
from nemoalign.weights.names import is_adapter

DEVICE_SHARE = 0.25
"""Of a GPU's free memory, before optimizer states exist."""


class Reference(Protocol):
    """A policy that does not learn."""

    @property
    def is_start(self) -> bool:
        """True when the policy begins here, so that both must agree before the first step."""
        ...

    def describe(self) -> str:
        """Return what it is and what memory it takes."""
        ...

    def in_place(self) -> contextlib.AbstractContextManager[None]:
        """Let the model compute what the reference computes; without gradients."""
        ...


class AdaptersOff:
    """The base model below adapters that began by adding nothing, and a copy of what learns beside them."""

    def __init__(self, chunks: Sequence[nn.Module], *, is_start: bool = True) -> None:
        self.is_start = is_start
        self.chunks = chunks
        self.others = _Copied(_learning(chunks, adapters=False))

    def describe(self) -> str:
        """Return what it is and what memory it takes."""
        if not self.others.kept:
            return "the model without its adapters, no memory of its own"
        return (
            "the model without its adapters, and a copy of what learns beside them, "
            f"{_megabytes(self.others.kept)} MB a rank"
        )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Switch the adapters off, and point what learns beside them at its copy."""
        with adapters_disabled(self.chunks), self.others.in_place(), torch.no_grad():
            yield


class Copies:
    """Values of the parameters that learn, on their device; they take the parameters' place."""

    def __init__(self, chunks: Sequence[nn.Module], *, is_start: bool) -> None:
        self.is_start = is_start
        self.copied = _Copied(_learning(chunks))

    def describe(self) -> str:
        """Return what it is and what memory it takes."""
        return f"a copy beside the model, {_megabytes(self.copied.kept)} MB a rank"

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Point every parameter at its copy."""
        with self.copied.in_place(), torch.no_grad():
            yield


class _Copied:
    """Parameters and copies of what they were, which they can point at."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.kept = [p.detach().clone() for p in parameters]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        now = [p.data for p in self.parameters]
        try:
            for parameter, copy in zip(self.parameters, self.kept, strict=True):
                parameter.data = copy
            yield
        finally:
            for parameter, data in zip(self.parameters, now, strict=True):
                parameter.data = data


class HostCopies:
    """The same in the host's memory: values change places, so the device holds one model."""

    def __init__(self, chunks: Sequence[nn.Module], *, is_start: bool) -> None:
        self.is_start = is_start
        self.parameters = _learning(chunks)
        self.kept = [_on_host(p) for p in self.parameters]

    def describe(self) -> str:
        """Return what it is and what memory it takes."""
        return f"a copy in the host's memory, {_megabytes(self.kept)} MB a rank, swapped in"

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange every parameter's values with its copy's, and back."""
        self._exchange()
        try:
            with torch.no_grad():
                yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for number, parameter in enumerate(self.parameters):
            now = _on_host(parameter)
            parameter.copy_(self.kept[number])
            self.kept[number] = now


def choose_reference(
    chunks: Sequence[nn.Module], *, has_fresh_adapters: bool, on_host: bool | None, is_start: bool
) -> Reference:
    """Return the reference that ``chunks`` are at this moment.

    Args:
        chunks: this rank's part of the model, loaded.
        has_fresh_adapters: they add nothing yet, so that without them it is the reference; what learns
            beside them is copied.
        on_host: where copies lie; None takes the host where the device would be crowded.
        is_start: the policy begins here too.
    """
    if has_fresh_adapters:
        return AdaptersOff(chunks)
    if on_host is None:
        on_host = _crowds_device(_learning(chunks))
    return (HostCopies if on_host else Copies)(chunks, is_start=is_start)


def _crowds_device(parameters: Sequence[nn.Parameter]) -> bool:
    if not parameters or parameters[0].device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(parameters[0].device)
    return sum(p.numel() * p.element_size() for p in parameters) > DEVICE_SHARE * free


def _learning(chunks: Sequence[nn.Module], *, adapters: bool = True) -> list[nn.Parameter]:
    named = [pair for chunk in chunks for pair in chunk.named_parameters()]
    return [p for name, p in named if p.requires_grad and (adapters or not is_adapter(name))]


def _on_host(parameter: nn.Parameter) -> Tensor:
    """Return a copy in memory that a GPU reads and writes without the host's help."""
    pinned = parameter.device.type == "cuda"
    copy = torch.empty_like(parameter, device="cpu", pin_memory=pinned)
    return copy.copy_(parameter.detach())


def _megabytes(tensors: Sequence[Tensor]) -> str:
    return f"{sum(t.numel() * t.element_size() for t in tensors) / 1e6:,.1f}"
