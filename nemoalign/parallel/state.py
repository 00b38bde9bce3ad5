"""megatron-core's process groups and random streams, from start to teardown."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
from torch._C._distributed_c10d import HashStore

from nemoalign.errors import ConfigError
from nemoalign.parallel.device import Backend, select_backend
from nemoalign.parallel.layout import ParallelLayout

RANK_ORDER = "tp-cp-ep-dp-pp"
TIMEOUT_MINUTES = 30
STAGE_SEED_STEP = 100
"""Stages draw from streams this far apart, as NeMo seeds them."""


@contextlib.contextmanager
def start(layout: ParallelLayout, *, seed: int) -> Iterator[Backend]:
    """Open the process groups of ``layout``, seed every stream, and close them at the end.

    Collective: every rank of the world calls it. A default process group that is open already is
    used and left open. A world of one opens no network port.

    Raises:
        ConfigError: when the environment's WORLD_SIZE is not the layout's.
    """
    backend = select_backend()
    owns_world = not torch.distributed.is_initialized()
    if owns_world:
        _open_world(layout, backend)
    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tp,
            pipeline_model_parallel_size=layout.pp,
            virtual_pipeline_model_parallel_size=layout.vp,
            context_parallel_size=layout.cp,
            expert_model_parallel_size=layout.ep,
            order=RANK_ORDER,
            distributed_timeout_minutes=TIMEOUT_MINUTES,
        )
        seed_streams(layout, seed)
        yield backend
    finally:
        parallel_state.destroy_model_parallel()
        # megatron-core keeps what routers log for as many layers as the first model had.
        get_moe_layer_wise_logging_tracker().clear()
        if owns_world:
            torch.distributed.destroy_process_group()


def seed_streams(layout: ParallelLayout, seed: int) -> None:
    """Seed torch and megatron-core's streams; tp ranks share the default one, stages do not."""
    stage = layout.coordinates(torch.distributed.get_rank()).pp
    stage_seed = seed + STAGE_SEED_STEP * stage
    torch.manual_seed(stage_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(stage_seed)


def model_parallel_stream() -> AbstractContextManager[None]:
    """Return the scope in which random numbers differ between tp ranks and agree between dp ranks."""
    tracker = tensor_parallel.get_cuda_rng_tracker()
    assert tracker is not None, "start() seeds the streams"
    return tracker.fork()


def pipeline_options(layout: ParallelLayout) -> dict[str, Any]:
    """Return the communication fields of megatron-core's config that this layout needs.

    With two interleaved stages the previous rank is the next one, and batched sends pair in the
    wrong order: wrong numbers without an error. Separate sends are right for any number of stages.
    """
    interleaved = layout.vp is not None
    return {
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        "variable_seq_lengths": layout.pp > 1,
    }


def _open_world(layout: ParallelLayout, backend: Backend) -> None:
    if backend.name == "cuda":
        torch.cuda.set_device(backend.device)
    timeout = timedelta(minutes=TIMEOUT_MINUTES)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != layout.world_size:
        raise ConfigError(
            f"{world_size} ranks were started (WORLD_SIZE), but the layout is made for "
            f"{layout.world_size}; start as many ranks as tp x pp x cp x dp."
        )
    if world_size == 1:
        torch.distributed.init_process_group(
            backend.comm, store=HashStore(), rank=0, world_size=1, timeout=timeout
        )
        return
    if os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost", "::1"):
        # Else gloo looks this machine's name up, which fails where no resolver knows it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(backend.comm, timeout=timeout)
