"""bf16 matrix products on a CPU without bf16 instructions, computed as fp32 products.

Without avx512_bf16, AMX or their like, torch multiplies bf16 matrices several times slower than fp32
ones. Here the operands are widened block by block (exact), multiplied in fp32 and rounded once, so a
product is at least as accurate as torch's own. It replaces ``aten::mm``, ``addmm`` and ``bmm`` for the CPU,
under autograd, so backward passes are covered; other element types go straight to torch's kernels.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1 << 20
"""Elements of an operand widened at a time (4 MiB), so that fp32 copies stay in the cache."""

NARROW_ROWS = 2


def lacks_bf16_products() -> bool:
    """True when this CPU has no fast bf16 matrix product of its own."""
    if not torch.backends.mkldnn.is_available():
        return True
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def multiply_bf16_in_fp32() -> torch.library.Library:
    """Replace the CPU's matrix products for bf16 operands, for the life of the process."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, replacement in _REPLACEMENTS.items():
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            implementation = functools.partial(replacement, kernel.call_boxed)
            library.impl(name, implementation, "CPU", with_keyset=True, allow_override=True)
    return library


def _mm(torch_mm: Any, keys: Any, a: Tensor, b: Tensor) -> Tensor:
    # A row or two against a weight is bound by reading the weight, which bf16 halves: decoding.
    is_narrow = a.shape[0] <= NARROW_ROWS and b.stride(0) == 1
    if a.dtype is not torch.bfloat16 or is_narrow:
        return torch_mm(keys, a, b)
    return _product(a, b, a.new_empty(a.shape[0], b.shape[1]))


def _mm_out(torch_mm: Any, keys: Any, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    if a.dtype is not torch.bfloat16:
        return torch_mm(keys, a, b, out=out)
    return _product(a, b, out.resize_(a.shape[0], b.shape[1]))


def _addmm(torch_addmm: Any, keys: Any, c: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Tensor:
    if a.dtype is not torch.bfloat16:
        return torch_addmm(keys, c, a, b, **factors)
    return torch.addmm(c.float(), a.float(), b.float(), **factors).bfloat16()


def _addmm_out(
    torch_addmm: Any, keys: Any, c: Tensor, a: Tensor, b: Tensor, **options: Any
) -> Tensor:
    if a.dtype is not torch.bfloat16:
        return torch_addmm(keys, c, a, b, **options)
    out = options.pop("out")
    total = torch.addmm(c.float(), a.float(), b.float(), **options)
    return out.resize_(total.shape).copy_(total)


def _bmm(torch_bmm: Any, keys: Any, a: Tensor, b: Tensor) -> Tensor:
    if a.dtype is not torch.bfloat16:
        return torch_bmm(keys, a, b)
    return torch.bmm(a.float(), b.float()).bfloat16()


def _bmm_out(torch_bmm: Any, keys: Any, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    if a.dtype is not torch.bfloat16:
        return torch_bmm(keys, a, b, out=out)
    total = torch.bmm(a.float(), b.float())
    return out.resize_(total.shape).copy_(total)


def _product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a @ b into ``out``; the longest of the three lengths is cut into blocks."""
    rows, inner, columns = *a.shape, b.shape[1]
    longest = max(rows, inner, columns)
    if longest == inner and inner * max(rows, columns) > BLOCK_ELEMENTS:
        return out.copy_(_inner_blocks(a, b))
    if columns >= rows:
        wide, step = a.float(), _step(inner)
        for start in range(0, columns, step):
            block = slice(start, start + step)
            out[:, block] = wide @ b[:, block].float()
        return out
    wide, step = b.float(), _step(inner)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        out[block] = a[block].float() @ wide
    return out


def _step(other: int) -> int:
    """Return the length of a block ``other`` wide; off multiples of 256 products are a quarter slower."""
    step = BLOCK_ELEMENTS // max(other, 1)
    return step // 256 * 256 or max(64, step)


def _inner_blocks(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b in fp32, summed over blocks of the inner dimension."""
    total = a.new_zeros(a.shape[0], b.shape[1], dtype=torch.float32)
    step = _step(max(a.shape[0], b.shape[1]))
    for start in range(0, a.shape[1], step):
        block = slice(start, start + step)
        total.addmm_(a[:, block].float(), b[block].float())
    return total


_REPLACEMENTS: dict[str, Any] = {
    "mm": _mm,
    "mm.out": _mm_out,
    "addmm": _addmm,
    "addmm.out": _addmm_out,
    "bmm": _bmm,
    "bmm.out": _bmm_out,
}
