"""Experts in GroupedMLP's two matrices, which its forward pass views as [experts, in, out]."""

from __future__ import annotations

import numpy as np
import pytest

from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.sources.canonical import find_tensors
from nemoalign.checkpoint.sources.grouped import ungrouped
from nemoalign.errors import ShapeError

EXPERTS, HIDDEN, WIDTH = 3, 4, 5
LAYER = "model.decoder.layers.0.mlp."


class Arrays:
    def __init__(self, arrays):
        self.arrays = arrays
        self.tensors = {n: TensorInfo(a.shape, "float32") for n, a in arrays.items()}
        self.rows_read = 0

    def read(self, name, index=()):
        self.rows_read += len(self.arrays[name][index])
        return self.arrays[name][index]


def grouped_layer():
    draw = np.random.default_rng(0)
    first = draw.random((EXPERTS, HIDDEN, 2 * WIDTH), np.float32)  # x @ first[e]
    second = draw.random((EXPERTS, WIDTH, HIDDEN), np.float32)
    store = Arrays(
        {
            f"{LAYER}router.weight": np.zeros((EXPERTS, HIDDEN), np.float32),
            f"{LAYER}experts.weight1": first.reshape(HIDDEN, -1),
            f"{LAYER}experts.weight2": second.reshape(-1, HIDDEN),
        }
    )
    return store, first, second


def test_each_expert_is_a_linear_layer_of_its_own():
    store, first, second = grouped_layer()
    found = find_tensors(store, "m").model
    assert len(found) == 1 + 2 * EXPERTS
    for expert in range(EXPERTS):
        name = f"decoder.layers.0.mlp.experts.local_experts.{expert}.linear_fc{{}}.weight"
        np.testing.assert_array_equal(found[name.format(1)].read(), first[expert].T)
        np.testing.assert_array_equal(found[name.format(2)].read(), second[expert].T)
        assert found[name.format(1)].info == TensorInfo((2 * WIDTH, HIDDEN), "float32")


def test_a_slice_is_the_slice_of_the_expert_and_reads_only_its_rows():
    store, _, second = grouped_layer()
    view = ungrouped(store)
    part = view.read(
        f"{LAYER}experts.local_experts.1.linear_fc2.weight", (slice(1, 3), slice(2, 4))
    )
    np.testing.assert_array_equal(part, second[1].T[1:3, 2:4])
    assert store.rows_read == WIDTH


def test_a_matrix_that_does_not_hold_the_routers_experts_is_refused():
    store, _, _ = grouped_layer()
    store.tensors[f"{LAYER}experts.weight2"] = TensorInfo((EXPERTS * WIDTH + 1, HIDDEN), "float32")
    with pytest.raises(ShapeError, match=r"no group of the 3 experts of width 4"):
        ungrouped(store)


def test_what_has_no_grouped_experts_is_left_alone():
    store = Arrays({"model.output_layer.weight": np.zeros((2, 2), np.float32)})
    assert ungrouped(store) is store
