"""The only place that knows there is no CUDA: what makes megatron-core run on a CPU with gloo.

megatron-core calls ``torch.cuda`` and writes ``device="cuda"`` throughout. On a machine without CUDA
its modules, and nobody else's, get their own view of torch in which both mean the CPU
(``cpu_view.py``). Nothing here is active when CUDA is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch

from nemoalign.errors import ResourceError
from nemoalign.parallel.cpu_view import install_view

MEGATRON_VERSION = "0.16.1"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_RANDOM = "megatron.core.tensor_parallel.random"
_MOE_UTILS = "megatron.core.transformer.moe.moe_utils"
_DISPATCHER = "megatron.core.transformer.moe.token_dispatcher"
PATCHED_SYMBOLS = (
    ("megatron.core.jit", "disable_jit_fuser"),
    (_RANDOM, "_get_cuda_rng_state"),
    (_RANDOM, "_set_cuda_rng_state"),
    (_RANDOM, "_CUDA_RNG_STATE_TRACKER"),
    (_RANDOM, "_CUDA_RNG_STATE_TRACKER_INITIALIZED"),
    (_RANDOM, "CudaRNGStatesTracker"),
    (_MOE_UTILS, "maybe_move_tensor_to_cpu"),
    (_DISPATCHER, "maybe_move_tensor_to_cpu"),
)
"""Everything below replaces one of these; a megatron-core without one of them is refused."""


@dataclass(frozen=True)
class Backend:
    """The device this process computes on, and how it talks to the others."""

    name: Literal["cpu", "cuda"]
    device: torch.device
    comm: Literal["gloo", "nccl"]
    can_compile: bool = False
    """True where torch.compile has a C compiler to work with."""

    def optimizer_scope(self) -> AbstractContextManager[None]:
        """Return the scope in which to build megatron-core's optimizer and to call its ``step``.

        Its optimizers and gradient clipping compare the *names* of tensor types with
        ``torch.cuda.FloatTensor``; inside this scope CPU tensors answer with those names.
        """
        return _cuda_type_names() if self.name == "cpu" else nullcontext()


@functools.cache
def select_backend() -> Backend:
    """Return CUDA when it is there, else the CPU made fit for megatron-core.

    Best called before anything imports megatron-core: then its fused functions are never compiled.

    Raises:
        ResourceError: when megatron-core is another version than the one this layer was made for.
    """
    _quieten()
    check_environment()
    # megatron-core orders collectives before kernels by this, and warns when it is not set.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if torch.cuda.is_available():
        _bind_missing_names()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        can_compile = any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))
        return Backend("cuda", torch.device("cuda", local_rank), "nccl", can_compile)
    _install()
    _bind_missing_names()
    return Backend("cpu", torch.device("cpu"), "gloo")


def check_environment() -> None:
    """Raise ResourceError unless megatron-core is the tested version and its checkpoints can be written."""
    found = version("megatron-core")
    if found != MEGATRON_VERSION:
        raise ResourceError(
            f"megatron-core {found} is installed, but the CPU layer and the checkpoint shims are made "
            f"for {MEGATRON_VERSION}. Type: pip install megatron-core=={MEGATRON_VERSION}"
        )
    if importlib.util.find_spec("psutil") is None:
        raise ResourceError(
            "psutil is not installed; without it megatron-core's checkpoint writer dies and its parent "
            "waits for ever. Type: pip install psutil"
        )


def _quieten() -> None:
    """Silence what megatron-core says about packages and optimizers nobody needs here."""
    for message in (
        ".*Apex (is|are) not installed",
        "The following imports from `dynamic_context.py`",
        "`torch.jit.script",
        "full scope is deprecated",
        "WARNING: there is no optimizer on RANK",
        "`torch.distributed.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)


def _bind_missing_names() -> None:
    """Bind a name megatron-core leaves unbound, on any device, without Transformer Engine."""
    moe_utils = importlib.import_module(_MOE_UTILS)
    if not hasattr(moe_utils, "te_general_gemm"):
        vars(moe_utils)["te_general_gemm"] = None


def _install() -> None:
    """Give megatron-core the CPU view of torch and replace the symbols that need more than that."""
    _keep_freed_memory()
    install_view()
    check_symbols(PATCHED_SYMBOLS)
    random = importlib.import_module(_RANDOM)
    vars(random).update(
        _get_cuda_rng_state=_get_rng_state,
        _set_cuda_rng_state=_set_rng_state,
        _CUDA_RNG_STATE_TRACKER=_cpu_rng_tracker(random.CudaRNGStatesTracker),
        _CUDA_RNG_STATE_TRACKER_INITIALIZED=True,
    )
    for name in (_MOE_UTILS, _DISPATCHER):
        vars(importlib.import_module(name))["maybe_move_tensor_to_cpu"] = _move_to_cpu
    # Tied embeddings over pipeline stages and broadcast_data call it; here it is where it belongs.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self


def _keep_freed_memory() -> None:
    """Let the C library reuse freed tensors of any size instead of returning their pages.

    Else every large activation is mapped, zeroed page by page and unmapped again in each step, which
    takes up to a fifth of it. The peak stays what it was. Only glibc knows these settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def check_symbols(symbols: Sequence[tuple[str, str]]) -> None:
    """Raise ResourceError naming the first ``(module, name)`` of megatron-core that is gone."""
    for module, name in symbols:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ResourceError(
                f"{module} cannot be imported ({error}); megatron-core is incomplete. Type: "
                f"pip install --force-reinstall megatron-core=={MEGATRON_VERSION}"
            ) from error
        if not hasattr(sys.modules[module], name):
            raise ResourceError(
                f"{module}.{name}, which the CPU layer replaces, is gone. megatron-core was changed; "
                f"type: pip install --force-reinstall megatron-core=={MEGATRON_VERSION}"
            )


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)


def _cpu_rng_tracker(base: type) -> Any:
    """Return megatron-core's tracker of named random streams, over the CPU's generator."""

    class CpuRngTracker(base):
        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            """Draw from stream ``name`` inside, and go on with the outer stream after."""
            outer_state, outer_name = torch.get_rng_state(), self._current_state_name
            if outer_name != "default-rng":
                self.states_[outer_name] = outer_state
            torch.set_rng_state(self.states_[name])
            self._current_state_name = name
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                # A stream forked inside itself goes on where the inner one stopped.
                torch.set_rng_state(self.states_.get(outer_name, outer_state))
                self._current_state_name = outer_name

    return CpuRngTracker()


@contextlib.contextmanager
def _cuda_type_names() -> Iterator[None]:
    """Let ``Tensor.type()`` answer with the name the tensor would have on CUDA."""
    original = torch.Tensor.type

    def cuda_name(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is not None:
            return original(self, dtype, *args, **kwargs)
        return original(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = cuda_name
    try:
        yield
    finally:
        torch.Tensor.type = original


def _move_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Return split sizes in the form the dispatcher asks for; megatron-core's does so only on CUDA."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor
