import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from nemoalign.parallel.cpu_bf16 import lacks_bf16_products, multiply_bf16_in_fp32

SHAPES = [
    (1, 7, 5),
    (2, 3000, 50),
    (3, 7, 5),
    (33, 70, 20),
    (5, 40, 5000),
    (5000, 40, 5),
    (20, 70000, 33),
]


@pytest.fixture(autouse=True)
def _installed():
    multiply_bf16_in_fp32()


def _operands(rows, inner, columns):
    torch.manual_seed(rows)
    return torch.randn(rows, inner).bfloat16(), torch.randn(columns, inner).bfloat16().t()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_is_the_exact_one_rounded_once(shape):
    a, b = _operands(*shape)
    exact = a.double() @ b.double()
    # Half a unit in the last place of bf16, plus what an fp32 sum of that many terms may lose.
    error = (exact - (a @ b).double()).abs()
    assert (error <= exact.abs() * 2**-8 + shape[1] ** 0.5 * 1e-5).all()


def test_out_variants_sums_and_batches_agree_with_fp32():
    a, b = _operands(33, 70, 20)
    bias = torch.randn(20).bfloat16()
    expected = (bias.float() + a.float() @ b.float()).bfloat16()
    torch.testing.assert_close(torch.addmm(bias, a, b), expected, rtol=0, atol=0)
    torch.testing.assert_close(functional.linear(a, b.t(), bias), expected, rtol=0, atol=0)
    product = torch.empty(33, 20, dtype=torch.bfloat16)
    torch.testing.assert_close(torch.mm(a, b, out=product), a @ b, rtol=0, atol=0)
    batched = torch.bmm(a.expand(3, -1, -1), b.expand(3, -1, -1))
    torch.testing.assert_close(batched, (a @ b).expand(3, -1, -1), rtol=0, atol=0)


def test_gradients_are_those_of_fp32_rounded():
    weight, hidden = torch.randn(40, 30).bfloat16(), torch.randn(2, 9, 30).bfloat16()
    upstream = torch.randn(2, 9, 40).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        w, x = (t.to(dtype).detach().requires_grad_() for t in (weight, hidden))
        functional.linear(x, w).backward(upstream.to(dtype))
        results.append((w.grad, x.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected.bfloat16(), rtol=2**-8, atol=1e-6)


@pytest.mark.slow
def test_fp32_products_are_torchs_own_to_the_bit():
    code = (
        "import torch; torch.manual_seed(0); torch.set_num_threads(1)\n"
        "from nemoalign.parallel.cpu_bf16 import multiply_bf16_in_fp32\n"
        "a, b, c = torch.randn(31, 17), torch.randn(17, 29), torch.randn(29)\n"
        "plain = a @ b, torch.addmm(c, a, b)\n"
        "multiply_bf16_in_fp32()\n"
        "assert all(torch.equal(x, y) for x, y in zip(plain, (a @ b, torch.addmm(c, a, b))))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_mixed_types_are_refused_as_torch_refuses_them():
    with pytest.raises(RuntimeError, match="dtype"):
        torch.mm(torch.ones(2, 2), torch.ones(2, 2).bfloat16())


def test_the_answer_about_this_cpu_is_torchs():
    assert lacks_bf16_products() != torch.ops.mkldnn._is_mkldnn_bf16_supported()
