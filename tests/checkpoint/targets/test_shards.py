"""What a rank holds of each tensor, and that the parts are the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.adapter import MergedStore
from nemoalign.checkpoint.targets.shards import PaddedStore, Shards, all_tensors
from tests.checkpoint.models import FIXTURES

TABLE = "embedding.word_embeddings.weight"
FC1 = "decoder.layers.1.mlp.linear_fc1.weight"
NORM = "decoder.final_layernorm.weight"


@pytest.fixture(params=["hf_llama", "llama_tp2_ranks.nemo", "llama.nemo"])
def source(request):
    return open_source(FIXTURES / request.param)


def test_pieces_are_every_element_once(source):
    shards = Shards(source, 2)
    for name, info in shards.tensors.items():
        seen = np.zeros(info.shape, int)
        for piece in shards.pieces(name):
            region = tuple(
                slice(at, at + size)
                for at, size in zip(piece.offsets, piece.array.shape, strict=True)
            )
            seen[region] += 1
            np.testing.assert_array_equal(piece.array, source.weights.read(name)[region])
        assert (seen == 1).all(), name


def test_a_gated_shard_is_a_part_of_the_gate_and_a_part_of_up(source):
    whole = source.weights.read(FC1)
    gate, up = np.split(whole, 2)
    found = list(Shards(source, 2).shards(FC1))
    for rank in range(2):
        rows = slice(rank * 64, rank * 64 + 64)
        np.testing.assert_array_equal(found[rank], np.concatenate([gate[rows], up[rows]]))
    assert Shards(source, 2).shard_info(FC1).shape == found[0].shape


def test_one_rank_and_replicated_tensors_are_whole(source):
    (alone,) = Shards(source, 1).shards(FC1)
    np.testing.assert_array_equal(alone, source.weights.read(FC1))
    pieces = list(Shards(source, 2).pieces(NORM))
    assert [piece.rank for piece in pieces] == [None]
    first, second = Shards(source, 2).shards(NORM)
    assert first is second


@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 768), (0, 64)), ((500, 530), (3, 5)), ((600, 700), (0, 1))]
)
def test_rows_behind_the_real_vocabulary_are_zero(rows, columns):
    source = open_source(FIXTURES / "gpt_tp1_dist.nemo")
    padded = PaddedStore(source, 2)
    assert padded.tensors[TABLE].shape == (768, 64)
    expected = np.zeros((768, 64), np.float32)
    expected[:519] = source.weights.read(TABLE)[:519]
    index = (slice(*rows), slice(*columns))
    np.testing.assert_array_equal(padded.read(TABLE, index), expected[index])


def test_a_model_with_an_adapter_is_both():
    base = open_source(FIXTURES / "llama.nemo")
    adapter = open_source(FIXTURES / "lora_tp1.nemo").adapter
    assert adapter is not None
    both = all_tensors(replace(base, adapter=adapter))
    assert both.tensors.keys() == base.weights.tensors.keys() | adapter.weights.tensors.keys()
    for store in (base.weights, adapter.weights):
        name = next(iter(store.tensors))
        np.testing.assert_array_equal(both.read(name), store.read(name))


def test_what_is_computed_is_computed_once():
    base = open_source(FIXTURES / "llama.nemo")
    adapter = open_source(FIXTURES / "lora_tp1.nemo").adapter
    assert adapter is not None
    reads = []

    class Counting(MergedStore):
        def read(self, name, index=()):
            reads.append(name)
            return super().read(name, index)

    merged = replace(base, weights=Counting(base.weights, adapter, base.arch))
    assert len(list(Shards(merged, 2).pieces(FC1))) == 4
    assert reads == [FC1]
