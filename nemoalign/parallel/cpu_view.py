"""megatron-core's own view of torch on a machine without CUDA, where every device is the CPU.

A hook on ``sys.meta_path`` gives the view to each megatron-core module right after it executes, because
several are imported late. No other module sees it: user code, transformers and torch keep torch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch


def install_view() -> None:
    """Give the view to every megatron-core module, loaded already or later."""
    sys.meta_path.insert(0, _ViewHook())
    for name, module in list(sys.modules.items()):
        if _is_megatron(name):
            _give_view(module)


class _ViewHook:
    """Hands the view to each megatron-core module as soon as it has executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary spec with one more thing to do after execution."""
        if not _is_megatron(name):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_give_view(module: ModuleType) -> None:
                execute(module)
                _give_view(module)

            vars(spec.loader)["exec_module"] = execute_and_give_view
        return spec


def _is_megatron(module_name: str) -> bool:
    return module_name == "megatron.core" or module_name.startswith("megatron.core.")


def _give_view(module: ModuleType) -> None:
    names = vars(module)
    if names.get("torch") is torch:
        names["torch"] = _TORCH_VIEW
    if module.__name__ == "megatron.core.jit":
        # jit_fuser is torch.compile: it would start a C++ compiler for every activation function.
        names["disable_jit_fuser"]()
    _unwrap_compiled(names)


def _unwrap_compiled(names: dict[str, Any]) -> None:
    """Put back the plain functions where megatron-core was imported before this layer."""
    for name, value in list(names.items()):
        if (plain := _uncompiled(value)) is not None:
            names[name] = plain
        elif isinstance(value, type) and _is_megatron(value.__module__):
            for attribute, member in list(vars(value).items()):
                if (plain := _uncompiled(member)) is not None:
                    setattr(value, attribute, plain)


def _uncompiled(value: Any) -> Any:
    """Return the function that torch.compile wrapped, or None."""
    # By __dict__: megatron-core mocks absent packages, and a mock has every attribute.
    return getattr(value, "__dict__", {}).get("_torchdynamo_orig_callable")


class _View(ModuleType):
    """A module that forwards to another, except for what was set on it."""

    def __init__(self, target: ModuleType, **replaced: Any) -> None:
        super().__init__(target.__name__)
        vars(self).update(replaced)
        vars(self)["_target"] = target

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_target"], name)


class _NoStream:
    """A CUDA stream or event where everything is already done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name in ("query", "elapsed_time"):
            return lambda *args: 0.0 if name == "elapsed_time" else True
        if name == "record_event":
            return lambda *args: _NoStream()
        if name in ("record", "wait", "synchronize", "wait_event", "wait_stream"):
            return lambda *args: None
        raise AttributeError(name)


def _nothing(*args: Any, **kwargs: Any) -> None: ...


def _on_cpu(create: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return ``create`` with ``device="cuda"`` meaning the CPU."""

    @functools.wraps(create)
    def created(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and "cuda" in str(device):
            kwargs["device"] = "cpu"
        return create(*args, **kwargs)

    return created


_CREATORS = (
    "tensor",
    "as_tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "eye",
    "linspace",
    "rand",
    "randn",
    "randint",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
)

_CUDA_VIEW = _View(
    torch.cuda,
    current_device=lambda: torch.device("cpu"),
    set_device=_nothing,
    synchronize=_nothing,
    empty_cache=_nothing,
    manual_seed=torch.default_generator.manual_seed,
    get_rng_state=lambda *args: torch.get_rng_state(),
    Stream=_NoStream,
    Event=_NoStream,
    stream=lambda *args: nullcontext(),
    current_stream=_NoStream,
    default_stream=_NoStream,
)
_TORCH_VIEW = _View(
    torch, cuda=_CUDA_VIEW, **{name: _on_cpu(getattr(torch, name)) for name in _CREATORS}
)
