import importlib
import sys

import torch


def _megatron_torch():
    return vars(importlib.import_module("megatron.core.tensor_parallel.layers"))["torch"]


def test_megatron_modules_see_the_view_and_nobody_else_does():
    view = _megatron_torch()
    assert view is not torch
    seen = {
        name
        for name, module in sys.modules.items()
        if name.startswith("megatron.core") and vars(module).get("torch") is torch
    }
    assert not seen


def test_cuda_means_the_cpu_inside_megatron():
    view = _megatron_torch()
    assert view.zeros(2, device="cuda").device.type == "cpu"
    assert view.empty(2, device=view.cuda.current_device()).device.type == "cpu"
    assert view.nn is torch.nn
    view.cuda.synchronize()
    with view.cuda.stream(view.cuda.Stream()):
        assert view.cuda.Event().query()


def test_modules_imported_late_get_the_view():
    name = "megatron.core.dist_checkpointing.strategies.torch"
    assert vars(importlib.import_module(name))["torch"] is _megatron_torch()


def test_nothing_of_megatron_is_compiled():
    for name, module in list(sys.modules.items()):
        if name.startswith("megatron.core"):
            for value in vars(module).values():
                assert "_torchdynamo_orig_callable" not in getattr(value, "__dict__", {}), name
