"""Every operation is exact and invertible for any heads, groups, widths and dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ShapeError
from nemoalign.weights.ops import Copy, FuseGateUp, FuseQKV, PadVocab
from nemoalign.weights.splits import GATED_ROWS, ROWS

RAW_DTYPES = (np.float32, np.uint16, np.float16)


def architecture(**changes) -> Architecture:
    sizes = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 6, "num_attention_heads": 2}
    return Architecture(**(sizes | changes))


def numbered(shape, dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(dtype)


@st.composite
def attention(draw):
    """An architecture with any grouping, any head width and any hidden size, and its q, k, v."""
    tp = draw(st.sampled_from([1, 2, 4]))
    groups = tp * draw(st.integers(1, 3))
    heads = groups * draw(st.integers(1, 4))
    width = draw(st.integers(1, 5))
    hidden = draw(st.integers(1, 7))
    dtype = draw(st.sampled_from(RAW_DTYPES))
    arch = architecture(
        hidden_size=hidden, num_attention_heads=heads, num_query_groups=groups, kv_channels=width
    )
    rest = draw(st.sampled_from([(hidden,), ()]))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    parts = tuple(
        generator.integers(0, 1000, (rows * width, *rest)).astype(dtype)
        for rows in (heads, groups, groups)
    )
    return arch, parts, tp


@given(attention())
def test_qkv_comes_back_exactly(case):
    arch, parts, _ = case
    back = FuseQKV().to_hf(FuseQKV().to_megatron(parts, arch), arch, 0)
    for part, again in zip(parts, back, strict=True):
        np.testing.assert_array_equal(part, again)
        assert part.dtype == again.dtype


@given(attention())
def test_cutting_qkv_by_groups_commutes_with_packing(case):
    arch, parts, tp = case
    smaller = architecture(
        hidden_size=arch.hidden_size,
        num_attention_heads=arch.num_attention_heads // tp,
        num_query_groups=arch.query_groups // tp,
        kv_channels=arch.head_dim,
    )
    packed_then_cut = ROWS.split(FuseQKV().to_megatron(parts, arch), tp)
    for rank, shard in enumerate(packed_then_cut):
        mine = [ROWS.split(part, tp)[rank] for part in parts]
        np.testing.assert_array_equal(FuseQKV().to_megatron(mine, smaller), shard)


def test_qkv_rows_lie_where_the_format_says():
    """Row formulas of the format: (h//R*(R+2) + h%R)*D + d for q, (g*(R+2)+R)*D + d for k, +1 for v."""
    heads, groups, width = 6, 2, 3
    arch = architecture(
        hidden_size=4, num_attention_heads=heads, num_query_groups=groups, kv_channels=width
    )
    q, k, v = (numbered((rows * width, 4)) + base for rows, base in ((6, 0), (2, 1000), (2, 2000)))
    packed = FuseQKV().to_megatron((q, k, v), arch)
    per_group = heads // groups
    for head in range(heads):
        for d in range(width):
            row = (head // per_group * (per_group + 2) + head % per_group) * width + d
            np.testing.assert_array_equal(packed[row], q[head * width + d])
    for group in range(groups):
        for d in range(width):
            row = (group * (per_group + 2) + per_group) * width + d
            np.testing.assert_array_equal(packed[row], k[group * width + d])
            np.testing.assert_array_equal(packed[row + width], v[group * width + d])


def test_qkv_of_another_shape_is_refused_with_both_shapes():
    arch = architecture()
    with pytest.raises(ShapeError, match=r"\(5, 8\) where \(8, 8\)"):
        FuseQKV().to_megatron((numbered((5, 8)),) * 3, arch)
    with pytest.raises(ShapeError, match=r"\(23,\) where \(24,\)"):
        FuseQKV().to_hf(numbered((23, 8)), arch, 0)


@given(rows=st.integers(1, 6), tp=st.sampled_from([1, 2, 3]), dtype=st.sampled_from(RAW_DTYPES))
def test_gate_and_up_come_back_also_through_shards(rows, tp, dtype):
    gate, up = numbered((rows * tp, 3), dtype), numbered((rows * tp, 3), dtype) + 500
    fused = FuseGateUp().to_megatron((gate, up), architecture())
    np.testing.assert_array_equal(fused, np.concatenate([gate, up]))
    joined = GATED_ROWS.join(GATED_ROWS.split(fused, tp))
    again_gate, again_up = FuseGateUp().to_hf(joined, architecture(), 0)
    np.testing.assert_array_equal(again_gate, gate)
    np.testing.assert_array_equal(again_up, up)


def test_halves_of_a_gated_matrix_are_views_not_copies():
    fused = numbered((6, 2))
    gate, up = FuseGateUp().to_hf(fused, architecture(), 0)
    assert np.shares_memory(gate, fused)
    assert np.shares_memory(up, fused)


def test_an_odd_gated_matrix_is_refused():
    with pytest.raises(ShapeError, match="even number of rows, not 5"):
        FuseGateUp().to_hf(numbered((5, 2)), architecture(), 0)


@given(vocab=st.integers(1, 40), multiple=st.integers(1, 16), dtype=st.sampled_from(RAW_DTYPES))
def test_vocabulary_rows_are_padded_with_zeros_and_trimmed(vocab, multiple, dtype):
    arch = architecture(make_vocab_size_divisible_by=multiple)
    table = numbered((vocab, 2), dtype) + 1
    padded = PadVocab().to_megatron((table,), arch)
    assert len(padded) % multiple == 0
    assert len(padded) - vocab < multiple
    assert not padded[vocab:].any()
    assert padded.dtype == dtype
    np.testing.assert_array_equal(PadVocab().to_hf(padded, arch, vocab)[0], table)


def test_a_table_smaller_than_the_vocabulary_is_refused():
    with pytest.raises(ShapeError, match="519 entries but the table only 512 rows"):
        PadVocab().to_hf(numbered((512, 2)), architecture(), 519)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Copy(), [(3, 2)]),
        (FuseQKV(), [(8, 8), (8, 8), (8, 8)]),
        (FuseGateUp(), [(6, 8), (6, 8)]),
        (PadVocab(), [(5, 8)]),
    ],
)
def test_runs_stacked_are_the_megatron_tensor_and_announced_shapes_hold(op, shapes):
    arch = architecture(make_vocab_size_divisible_by=4)
    parts = [numbered(shape) + 100 * index for index, shape in enumerate(shapes)]
    whole = op.to_megatron(parts, arch)
    np.testing.assert_array_equal(np.concatenate(op.runs(parts, arch)), whole)
    assert op.hf_shapes(whole.shape, arch, 5) == tuple(shapes)
    if op.keeps_rows:
        starts = np.cumsum([0] + [shape[0] for shape in shapes[:-1]])
        for start, part in zip(starts, parts, strict=True):
            np.testing.assert_array_equal(whole[start : start + len(part)], part)
