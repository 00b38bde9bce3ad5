import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.testing import assert_close

from nemoalign.model.forward import forward_logprobs
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.adapted import (
    ALL,
    ONE,
    built,
    fresh_adapters,
    pairs,
    tiny_arrays,
    trained_adapters,
)
from tests.model.test_layouts import LAYOUTS


@pytest.mark.parametrize(
    ("method", "deviation"),
    [
        ("xavier", lambda width: math.sqrt(2 / (width + 64))),
        ("kaiming", lambda width: math.sqrt(1 / (3 * width))),
        ("normal", lambda width: 0.2),
        ("zero", lambda width: 0.0),
    ],
)
def test_the_first_factor_starts_with_the_spread_its_method_says(method, deviation):
    arch, arrays = tiny_arrays()
    lora = replace(ALL, adapter_dim=64, column_init_method=method)
    fresh = fresh_adapters(ONE, lora, arch, arrays)
    for _, a, b in pairs(arch):
        first = fresh[a][1]
        assert first.std() == pytest.approx(deviation(first.shape[1]), rel=0.1)
        assert not fresh[b][1].any()


@pytest.mark.dist
def test_the_start_depends_on_the_seed_and_not_on_the_layout(two_ranks):
    arch, arrays = tiny_arrays()
    lora = replace(ALL, row_init_method="normal")
    one = fresh_adapters(ONE, lora, arch, arrays)
    for name in ("tp2", "pp2"):
        results = two_ranks.run(fresh_adapters, LAYOUTS[name], lora, arch, arrays)
        for tensor, (split, array) in one.items():
            shards = [result[tensor][1] for result in results if tensor in result]
            whole = split.join(shards) if len(shards) > 1 else shards[0]
            assert np.array_equal(whole, array), (name, tensor)
    starts = [array.tobytes() for _, array in one.values()]
    assert len(set(starts)) == len(starts)


def _dropped(layout, position, arch, arrays):
    lora = replace(ALL, adapter_dropout=0.3, dropout_position=position)
    with start(layout, seed=1), torch.no_grad():
        chunks = built(layout, lora, arch, arrays)
        trained = forward_logprobs(chunks[0].train(), tiny.batch())
        return trained, forward_logprobs(chunks[0].eval(), tiny.batch())


@pytest.mark.dist
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("name", ["tp2", "tp2 sequence parallel"])
def test_dropout_keeps_tp_ranks_together_and_ends_with_training(two_ranks, position, name):
    arch, arrays = tiny_arrays()
    arrays |= trained_adapters(arch, arrays)
    plain = _dropped(ONE, position, arch, arrays)[1]
    (one, one_eval), (two, _) = two_ranks.run(_dropped, LAYOUTS[name], position, arch, arrays)
    assert torch.equal(one, two)
    assert_close(one_eval, plain, rtol=0, atol=1e-5)
    assert (one - one_eval).abs().max() > 1e-3


def _sharded_pieces(layout, arch, arrays):
    """What this rank would write: key, place in the whole tensor, values."""
    with start(layout, seed=1):
        chunks = built(layout, ALL, arch, arrays)
        pieces = []
        for chunk in chunks:
            for value in chunk.sharded_state_dict().values():
                tensors = value.build() if isinstance(value, ShardedTensorFactory) else [value]
                for tensor in tensors:
                    if "adapter" in tensor.key:
                        offset = tensor.global_offset
                        place = (tensor.global_shape, offset, tensor.data.detach().numpy())
                        pieces.append((tensor.key, *place))
        return pieces


@pytest.mark.dist
@pytest.mark.parametrize("name", ["tp2", "pp2"])
def test_megatron_checkpoints_hold_the_whole_adapters(two_ranks, name):
    arch, arrays = tiny_arrays()
    adapters = trained_adapters(arch, arrays)
    results = two_ranks.run(_sharded_pieces, LAYOUTS[name], arch, {**arrays, **adapters})
    whole: dict[str, np.ndarray] = {}
    for key, shape, offset, data in (piece for result in results for piece in result):
        target = whole.setdefault(key, np.full(shape, np.nan, np.float32))
        data = data.reshape((1,) * (len(shape) - data.ndim) + data.shape)
        target[tuple(slice(o, o + n) for o, n in zip(offset, data.shape, strict=True))] = data
    for tensor, array in adapters.items():
        layer, _, rest = tensor.removeprefix("decoder.layers.").partition(".")
        stacked = whole[f"decoder.layers.{rest}"]
        assert np.array_equal(stacked[int(layer)], array), tensor
