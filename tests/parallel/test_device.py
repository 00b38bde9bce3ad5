import resource
import subprocess
import sys
import types

import pytest
import torch

from nemoalign.errors import ResourceError
from nemoalign.parallel import device
from nemoalign.parallel.device import check_environment, check_symbols, select_backend
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import model_parallel_stream, start

ONE = ParallelLayout(1)


def _in_a_new_process(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_without_cuda_the_backend_is_the_cpu_with_gloo():
    backend = select_backend()
    assert (backend.name, backend.device.type, backend.comm) == ("cpu", "cpu", "gloo")


def test_freed_tensors_are_reused_instead_of_mapped_again():
    select_backend()
    elements, faults = 16 << 20, []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(elements)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # Mapped afresh, each of its 16384 pages would fault every time; the heap has yet to grow at first.
    assert min(faults) < 100


def test_optimizer_scope_names_types_as_cuda_does_and_only_inside():
    tensor = torch.ones(1)
    with select_backend().optimizer_scope():
        assert tensor.type() == "torch.cuda.FloatTensor"
        assert tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
        assert tensor.type(torch.float64).dtype is torch.float64
    assert tensor.type() == "torch.FloatTensor"


def test_a_vanished_symbol_is_named():
    with pytest.raises(ResourceError, match=r"megatron\.core\.jit\.no_such_name"):
        check_symbols([("megatron.core.jit", "no_such_name")])
    with pytest.raises(ResourceError, match=r"megatron\.core\.no_such_module"):
        check_symbols([("megatron.core.no_such_module", "anything")])


def test_another_megatron_version_is_refused(monkeypatch):
    monkeypatch.setattr(device, "version", lambda name: "0.17.0")
    with pytest.raises(ResourceError, match=r"megatron-core 0\.17\.0 is installed"):
        check_environment()


def test_a_missing_psutil_is_named(monkeypatch):
    finder = types.SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(device.importlib, "util", finder)
    with pytest.raises(ResourceError, match="pip install psutil"):
        check_environment()


@pytest.mark.slow
def test_importing_megatron_after_the_backend_is_silent_and_starts_no_compiler():
    warned = _in_a_new_process(
        "import sys\n"
        "from nemoalign.parallel.device import select_backend; select_backend()\n"
        "import megatron.core.optimizer, megatron.core.models.gpt\n"
        "assert 'torch._inductor' not in sys.modules\n"
    )
    lines = [line for line in warned.splitlines() if "megatron" in line and "Warning" in line]
    assert not lines, lines


@pytest.mark.slow
def test_importing_megatron_before_the_backend_ends_in_the_same_state():
    _in_a_new_process(
        "import sys, torch, megatron.core.models.gpt\n"
        "from nemoalign.parallel.device import select_backend; select_backend()\n"
        "from megatron.core.fusions import fused_bias_swiglu\n"
        "assert not hasattr(fused_bias_swiglu.swiglu, '_torchdynamo_orig_callable')\n"
        "assert fused_bias_swiglu.torch is not torch\n"
    )


def test_forked_streams_go_on_where_they_stopped_and_leave_the_outer_one_alone():
    with start(ONE, seed=5):
        outer_first = torch.rand(3)
        with model_parallel_stream():
            inner_first = torch.rand(3)
        outer_second = torch.rand(3)
        with model_parallel_stream():
            inner_second = torch.rand(3)
    with start(ONE, seed=5):
        outer = torch.rand(6)
        with model_parallel_stream():
            inner = torch.rand(6)
    assert torch.equal(torch.cat((outer_first, outer_second)), outer)
    assert torch.equal(torch.cat((inner_first, inner_second)), inner)
    assert not torch.equal(outer, inner)


def test_a_stream_forked_inside_itself_goes_on():
    with start(ONE, seed=5), model_parallel_stream():
        whole = torch.rand(3)
    with start(ONE, seed=5), model_parallel_stream():
        first = torch.rand(1)
        with model_parallel_stream():
            second = torch.rand(1)
        third = torch.rand(1)
    assert torch.equal(torch.cat((first, second, third)), whole)
