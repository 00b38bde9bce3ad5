import numpy as np
import pytest
import torch

from nemoalign.errors import ContentError, ShapeError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits
from nemoalign.model.load import load_weights, local_tensors
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny
from tests.model.test_layouts import LAYOUTS

ONE = ParallelLayout(1)


def _arrays(tied=False, layers=4):
    model = tiny.llama(tied=tied, layers=layers)
    arch = tiny.architecture(model.config)
    return arch, tiny.weights(model, arch)


def _load(layout, arch, store, precision="fp32"):
    chunks = build_model(arch, tiny.VOCAB, layout, precision=precision, settings=ModelSettings())
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data.fill_(float("nan"))
    load_weights(chunks, store, arch, layout, tiny.VOCAB)
    return chunks


def _loaded(layout, arch, arrays):
    with start(layout, seed=1):
        chunks = _load(layout, arch, tiny.Store(arrays))
        filled = all(not p.isnan().any() for chunk in chunks for p in chunk.parameters())
        tensors = {
            t.name: (t.split, t.parameter.detach().numpy())
            for t in local_tensors(chunks, layout)
            if not t.is_copy
        }
        return filled, tensors


@pytest.mark.dist
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", ["tp2", "pp2", "pp2 vp2"])
def test_shards_of_all_ranks_are_the_whole_file_again(two_ranks, name, tied):
    arch, arrays = _arrays(tied)
    results = two_ranks.run(_loaded, LAYOUTS[name], arch, arrays)
    assert all(filled for filled, _ in results)
    assert set().union(*(tensors for _, tensors in results)) == set(arrays)
    for tensor, array in arrays.items():
        parts = [tensors[tensor] for _, tensors in results if tensor in tensors]
        whole = parts[0][0].join([part for _, part in parts])
        assert np.array_equal(whole[: len(array)], array), tensor
        assert not whole[len(array) :].any(), tensor


def test_more_vocabulary_rows_than_are_real_are_left_out():
    arch, arrays = _arrays()
    padding = np.full((121, arch.hidden_size), 7.0, np.float32)
    padded = {
        name: np.concatenate((array, padding)) if len(array) == tiny.VOCAB else array
        for name, array in arrays.items()
    }
    _, plain = _loaded(ONE, arch, arrays)
    _, trimmed = _loaded(ONE, arch, padded)
    for name, (_, array) in plain.items():
        assert np.array_equal(trimmed[name][1], array), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bf16_files_are_read_as_bf16(precision):
    arch, arrays = _arrays()
    rounded = {name: torch.from_numpy(array).bfloat16() for name, array in arrays.items()}
    store = tiny.Store({n: t.view(torch.uint16).numpy() for n, t in rounded.items()}, "bfloat16")
    with start(ONE, seed=1):
        chunks = _load(ONE, arch, store, precision)
        for tensor in local_tensors(chunks, ONE):
            expected = rounded[tensor.name]
            rows = tensor.parameter.detach()[: len(expected)]
            assert torch.equal(rows, expected.to(rows.dtype)), tensor.name


def test_bf16_logits_are_no_further_from_fp32_than_those_of_transformers():
    model = tiny.llama(layers=4).bfloat16().float()
    arch = tiny.architecture(model.config)
    batch = tiny.batch(rows=8, length=24)
    with start(ONE, seed=1), torch.no_grad():
        chunks = _load(ONE, arch, tiny.Store(tiny.weights(model, arch)), "bf16")
        ours = forward_logits(chunks[0], batch)[..., : tiny.VOCAB]
        exact = model(batch.tokens).logits
        theirs = model.bfloat16()(batch.tokens).logits
    assert ours.dtype is torch.bfloat16
    spread, usual = ((logits.float() - exact).square().mean() for logits in (ours, theirs))
    assert spread <= usual * 1.2


def _refused(changed, error):
    arch, arrays = _arrays()
    changed(arrays)
    with start(ONE, seed=1), pytest.raises(error) as caught:
        _load(ONE, arch, tiny.Store(arrays))
    return str(caught.value)


def test_a_missing_tensor_is_named():
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    assert name in _refused(lambda arrays: arrays.pop(name), ContentError)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.3.mlp.router.weight",
        "decoder.layers.4.mlp.linear_fc2.weight",
        "embedding.position_embeddings.weight",
    ],
)
def test_a_tensor_without_a_place_is_named(name):
    words = _refused(lambda arrays: arrays.update({name: np.zeros(3, np.float32)}), ContentError)
    assert f"holds {name!r}" in words


def test_a_misshapen_tensor_is_named_with_both_shapes():
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    words = _refused(
        lambda arrays: arrays.update({name: np.zeros((64, 64), np.float32)}), ShapeError
    )
    assert f"{name} is [64, 64] in the checkpoint" in words
    assert "[128, 64]" in words


def test_a_vocabulary_shorter_than_the_tokenizer_is_refused():
    name = "output_layer.weight"
    words = _refused(lambda arrays: arrays.update({name: arrays[name][:500]}), ShapeError)
    assert "500 rows, fewer than the vocabulary of 519" in words


def test_an_adapter_the_model_was_not_built_with_is_refused():
    name = "decoder.layers.0.mlp.adapter_layer.lora_hto4h_adapter.linear_in.weight"
    words = _refused(lambda a: a.update({name: np.zeros((4, 64), np.float32)}), ContentError)
    assert f"holds {name!r}" in words
