"""The optimizer's state in a checkpoint: the same tensors whichever of megatron-core's optimizers wrote them.

Beside every trained weight stand its moments and, unless it is fp32 itself, its fp32 master, under
megatron-core's keys (``optimizer.state.exp_avg.<weight>``), so a run goes on in any layout, with the
distributed optimizer or without. The number of updates is the learner's own.

megatron-core's own loading (0.16.1) is not used, because torch's AdamW keeps a step for each parameter:
it wants the steps of an optimizer that has not taken one; it fails on a state that has a step (the
tensors on disk have none); and it leaves all parameters one step tensor, which the next update
advances once for every parameter, so that the bias correction of Adam is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "fp32_param"
_PREFIX = "optimizer.state"
_ON_FIRST_REPLICA = {"distrib_optim_fully_reshardable_mem_efficient": True}
"""Gather on one rank, not on all: the state of all replicas is twelve bytes a parameter."""


def sharded_optimizer(
    optimizer: Any, weights: Mapping[str, Any], *, is_loading: bool = False
) -> dict[int, Any]:
    """Return moments and masters as megatron-core's sharded tensors. Collective.

    ``weights`` is the model's sharded state, whose tensors are the parameters themselves.
    """
    state: dict[int, Any] = {}
    for number, one in enumerate(_parts(optimizer)):
        _prime(one)
        if isinstance(one, DistributedOptimizer):
            if gathered := _gathered(one, weights, is_loading):
                state[number] = gathered
        else:
            state[number] = {
                index: {
                    slot: make_sharded_optimizer_tensor(weight, tensor, f"{_PREFIX}.{slot}")
                    for slot, tensor in slots.items()
                }
                for index, (weight, slots) in enumerate(_slots(one, weights))
            }
    return state


def restore_optimizer(
    optimizer: Any, weights: Mapping[str, Any], loaded: Mapping[int, Any], updates: int
) -> None:
    """Take moments and masters from what ``sharded_optimizer`` asked for, once the weights are loaded."""
    for number, one in enumerate(_parts(optimizer)):
        if isinstance(one, DistributedOptimizer):
            _scatter(one, loaded[number])
        else:
            for index, (_, slots) in enumerate(_slots(one, weights)):
                for slot, tensor in slots.items():
                    tensor.copy_(loaded[number][index][slot])
        _set_step(one, updates)


def _parts(optimizer: Any) -> list[Any]:
    """Return the optimizers of dense weights and of experts, as far as this rank has any."""
    return [one for one in optimizer.chained_optimizers if one.optimizer is not None]


def _prime(one: Any) -> None:
    """Give every parameter the state it has after its first update, with moments of zero."""
    for parameter in _parameters(one):
        state = one.optimizer.state[parameter]
        for slot in MOMENTS:
            if slot not in state:
                state[slot] = torch.zeros_like(parameter.data)
    _set_step(one, None)


def _set_step(one: Any, updates: int | None) -> None:
    """Set the number of updates, or only where there is none yet; a tensor of its own each.

    Transformer Engine's and apex's Adam count in the group, torch's beside the moments.
    """
    for group in one.optimizer.param_groups:
        if not isinstance(one.optimizer, torch.optim.AdamW):
            group["step"] = group.get("step", 0) if updates is None else updates
            continue
        for parameter in group["params"]:
            state = one.optimizer.state[parameter]
            if updates is not None or "step" not in state:
                state["step"] = torch.tensor(float(updates or 0))


def _parameters(one: Any) -> Iterator[Any]:
    for group in one.optimizer.param_groups:
        yield from group["params"]


def _slots(one: Any, weights: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Yield each weight this optimizer updates, as sharded tensor, and its tensors by slot."""
    own = {id(parameter) for parameter in _parameters(one)}
    sharded, _ = extract_sharded_tensors_and_factories(dict(weights))
    for weight in nested_values(sharded):
        master = getattr(weight.data, "main_param", weight.data)
        if id(master) in own:
            slots = {slot: one.optimizer.state[master][slot] for slot in MOMENTS}
            yield weight, slots if master is weight.data else {MASTER: master.data, **slots}


def _gathered(
    one: DistributedOptimizer, weights: Mapping[str, Any], is_loading: bool
) -> dict[int, Any]:
    """Return whole tensors put together from all replicas; nothing on replicas but the first."""
    whole: Any = one.sharded_param_state_fully_reshardable(
        dict(weights), is_loading, _ON_FIRST_REPLICA
    )
    state: dict[int, Any] = {}
    if whole is None:
        return state
    for index, parameter in enumerate(_buffered(one)):
        tensors = dict(whole[index])
        master = tensors.pop("param")
        if parameter.dtype != torch.float32:
            key = master.key.replace(f"{_PREFIX}.param.", f"{_PREFIX}.{MASTER}.", 1)
            tensors[MASTER] = replace(master, key=key)
        state[index] = tensors
    return state


def _scatter(one: DistributedOptimizer, loaded: Mapping[int, Any]) -> None:
    """Let each replica take its share of the whole tensors."""
    for parameter in _parameters(one):
        one.optimizer.state[parameter].pop("step", None)
    whole = {
        index: {MASTER: parameter.data, **loaded[index]}
        for index, parameter in enumerate(_buffered(one))
    }
    one.load_parameter_state_from_fully_reshardable(whole)


def _buffered(one: DistributedOptimizer) -> Iterator[Any]:
    """Yield the parameters in the order in which megatron-core numbers their state."""
    for buffer in one.buffers:
        yield from buffer.param_index_map
