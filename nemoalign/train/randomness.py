"""The random streams of every rank, kept beside a checkpoint so that dropout goes on where it was."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

FOLDER = "random"


def save_streams(directory: Path) -> None:
    """Write this rank's streams below ``directory``; every rank writes a file of its own."""
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    state: dict[str, Any] = {"place": _place(), "torch": _text(torch.get_rng_state())}
    if torch.cuda.is_available():
        state["cuda"] = _text(torch.cuda.get_rng_state())
    state["tracker"] = {name: _text(one) for name, one in _tracker().get_states().items()}
    (folder / _name()).write_text(json.dumps(state), encoding="utf-8")


def restore_streams(directory: Path) -> bool:
    """Set this rank's streams to those below ``directory``; False when they are another layout's."""
    file = directory / FOLDER / _name()
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if state.get("place") != _place():
        return False
    torch.set_rng_state(_tensor(state["torch"]))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(_tensor(state["cuda"]))
    _tracker().set_states({name: _tensor(one) for name, one in state["tracker"].items()})
    return True


def _name() -> str:
    return f"rank-{torch.distributed.get_rank():05d}.json"


def _place() -> list[int]:
    """Return what makes two ranks the same: sizes of the layout and this rank's place in it."""
    return [
        torch.distributed.get_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_pipeline_model_parallel_world_size(),
        torch.distributed.get_rank(),
    ]


def _tracker() -> Any:
    return tensor_parallel.get_cuda_rng_tracker()


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
