"""Views under canonical names: where they copy, where they must not, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.sources.stores import JoinedStore, MappedStore, Place, PlacedStore, fused
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError, ShapeError
from nemoalign.weights.ops import FuseGateUp, PadVocab
from nemoalign.weights.rules import TensorPlan
from nemoalign.weights.splits import COLUMNS, GATED_ROWS, REPLICATED, ROWS

ARCH = Architecture(
    num_layers=1,
    hidden_size=4,
    ffn_hidden_size=4,
    num_attention_heads=2,
    make_vocab_size_divisible_by=4,
)


class Arrays:
    """A store of arrays."""

    def __init__(self, dtype="float32", **arrays):
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.tensors = {n: TensorInfo(a.shape, dtype) for n, a in self.arrays.items()}

    def read(self, name, index=()):
        return self.arrays[name][index]


def test_a_layer_of_a_stack_is_a_view():
    stack = np.arange(24.0).reshape(2, 3, 4)
    store = PlacedStore(
        {"a.0": Place(Arrays(s=stack), "s", (0,)), "a.1": Place(Arrays(s=stack), "s", (1,))}
    )
    assert store.tensors["a.1"] == TensorInfo((3, 4), "float32")
    assert np.shares_memory(store.read("a.1"), stack)
    np.testing.assert_array_equal(store.read("a.1", (slice(1, 3),)), stack[1, 1:3])


def joined(split, *shards):
    return JoinedStore({"w": (split, [Place(Arrays(w=shard), "w") for shard in shards])})


def test_gated_shards_are_joined_half_by_half():
    store = joined(GATED_ROWS, [[1.0], [3.0]], [[2.0], [4.0]])
    assert store.tensors["w"].shape == (4, 1)
    assert store.read("w").ravel().tolist() == [1, 2, 3, 4]
    assert store.read("w", (slice(1, 3),)).ravel().tolist() == [2, 3]


class Touched(Arrays):
    """Remembers which elements were asked for."""

    def __init__(self, array):
        super().__init__(w=array)
        self.read_elements = 0

    def read(self, name, index=()):
        found = super().read(name, index)
        self.read_elements += found.size
        return found


@pytest.mark.parametrize(
    ("split", "index", "touched"),
    [
        (ROWS, (slice(2, 5),), [8, 4]),
        (ROWS, (slice(4, 8), slice(1, 2)), [0, 4]),
        (COLUMNS, (slice(0, 3), slice(3, 5)), [3, 3]),
        (GATED_ROWS, (slice(1, 3),), [4, 4]),
        (GATED_ROWS, (slice(6, 8), slice(0, 2)), [0, 4]),
        (ROWS, (slice(4, 4),), [0, 0]),
        (COLUMNS, (), [32, 32]),
    ],
)
def test_a_slice_reads_only_its_own_parts_of_the_shards(split, index, touched):
    whole = np.arange(64.0).reshape(8, 8)[:, : 8 if split is COLUMNS else 4]
    shards = [Touched(shard) for shard in split.split(whole, 2)]
    store = JoinedStore({"w": (split, [Place(shard, "w") for shard in shards])})
    np.testing.assert_array_equal(store.read("w", index), whole[index])
    assert [shard.read_elements for shard in shards] == touched


def test_equal_nans_are_no_difference_between_ranks():
    store = joined(REPLICATED, [np.nan, 1.0], [np.nan, 1.0])
    assert store.tensors["w"].shape == (2,)
    np.testing.assert_array_equal(store.read("w"), [np.nan, 1.0])
    with pytest.raises(ContentError, match="rank 1 holds other values"):
        joined(REPLICATED, [0.0], [-0.0]).read("w")


def test_shards_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"\[1, 1\], float32 \[2, 1\]"):
        joined(COLUMNS, [[1.0]], [[1.0], [2.0]])


def test_a_vector_cannot_be_cut_by_columns():
    with pytest.raises(ShapeError, match="cannot share out"):
        joined(COLUMNS, [1.0], [2.0])


def mapped(store, *plans, **shapes):
    return MappedStore(store, plans, ARCH, shapes)


def test_hugging_face_parts_become_one_tensor_of_the_padded_size():
    gate, up = np.ones((2, 4), np.float32), np.zeros((2, 4), np.float32)
    store = Arrays(gate=gate, up=up, table=np.ones((3, 4), np.float32))
    fused = TensorPlan("fc1", ("gate", "up"), FuseGateUp())
    table = TensorPlan("embedding", ("table",), PadVocab())
    mapping = mapped(store, fused, table, fc1=(4, 4), embedding=(4, 4))
    assert mapping.tensors["fc1"] == TensorInfo((4, 4), "float32")
    np.testing.assert_array_equal(mapping.read("fc1"), np.concatenate([gate, up]))
    np.testing.assert_array_equal(mapping.read("embedding")[:, 0], [1, 1, 1, 0])
    first, _ = mapping.read_runs("fc1")
    assert np.shares_memory(first, store.arrays["gate"])


def test_parts_of_different_dtypes_are_refused():
    store = Arrays(gate=np.ones((2, 4)), up=np.ones((2, 4)))
    store.tensors["up"] = TensorInfo((2, 4), "float16")
    with pytest.raises(ContentError, match=r"gate, up become one tensor but .* float16, float32"):
        mapped(store, TensorPlan("fc1", ("gate", "up"), FuseGateUp()), fc1=(4, 4))


def test_gate_and_up_apart_are_one_tensor_and_a_half_is_not_copied():
    arrays = Arrays(
        **{"fc1.weight_w": np.arange(6.0).reshape(3, 2), "fc1.weight_v": np.ones((3, 2))}
    )
    store = fused(arrays)
    whole = np.concatenate([arrays.arrays["fc1.weight_w"], arrays.arrays["fc1.weight_v"]])
    assert store.tensors == {"fc1.weight": TensorInfo((6, 2), "float32")}
    for rows in (slice(None), slice(3), slice(3, None), slice(1, 2), slice(2, 5), slice(4, 6)):
        np.testing.assert_array_equal(store.read("fc1.weight", (rows,)), whole[rows])
    column = (slice(1, 5), slice(1, 2))
    np.testing.assert_array_equal(store.read("fc1.weight", column), whole[column])
    for rows, key in ((slice(3), "fc1.weight_w"), (slice(3, None), "fc1.weight_v")):
        assert np.shares_memory(store.read("fc1.weight", (rows,)), arrays.arrays[key])


def test_the_two_matrices_of_a_glu_from_before_megatron_core_are_one_tensor():
    keys = [f"mlp.dense_h_to_4h{end}.{part}" for part in ("weight", "bias") for end in ("", "_2")]
    store = fused(Arrays(**{key: np.full((2, 2), n) for n, key in enumerate(keys)}))
    assert list(store.tensors) == ["mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias"]
    assert store.read("mlp.dense_h_to_4h.bias").tolist() == [[2, 2], [2, 2], [3, 3], [3, 3]]


@pytest.mark.parametrize("up", [np.ones((2, 2)), None])
def test_halves_that_do_not_fit_stay_what_they_are(up):
    arrays = Arrays(
        **{"fc1.weight_w": np.ones((3, 2))} | ({} if up is None else {"fc1.weight_v": up})
    )
    assert fused(arrays) is arrays
