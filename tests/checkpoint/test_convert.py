"""There and back: every weight bit for bit, the same config and tokenizer files, the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ConfigError, ConflictError, SourceError
from tests.checkpoint.models import (
    FIXTURES,
    LLAMAS,
    assert_same_tensors,
    logits_of,
    save_llama,
    state_of,
)

MCORE_LOAD = """
import sys, torch
from pathlib import Path
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
folder = Path(sys.argv[1])
tensors = dist_checkpointing.load_tensors_metadata(str(folder))
state = {k: ShardedTensor.from_rank_offsets(k, torch.empty(v.global_shape, dtype=v.dtype))
         for k, v in tensors.items()}
loaded = dist_checkpointing.load(state, str(folder), strict=dist_checkpointing.validation.StrictHandling.RAISE_ALL)
torch.save(loaded, sys.argv[2])
"""


@pytest.mark.parametrize("changes", LLAMAS.values(), ids=LLAMAS)
def test_hf_to_nemo_and_back_keeps_every_bit_and_every_file(changes, tmp_path, quiet):
    hf = save_llama(tmp_path / "hf", **changes)
    convert(hf, tmp_path / "m.nemo", reporter=quiet)
    export(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    assert_same_tensors(tmp_path / "back", hf)
    kept = [path.name for path in hf.iterdir() if "safetensors" not in path.name]
    for name in kept:
        assert (tmp_path / "back" / name).read_bytes() == (hf / name).read_bytes(), name
    np.testing.assert_array_equal(logits_of(tmp_path / "back"), logits_of(hf))


@pytest.mark.parametrize(
    "name", ["llama3 rope", "linear rope", "wide heads", "tied", "biases"], ids=str
)
def test_a_nemo_without_its_original_files_gives_the_same_model(name, tmp_path, quiet):
    """As an archive of NeMo: config.json is made from model_config.yaml alone."""
    hf = save_llama(tmp_path / "hf", **LLAMAS[name])
    convert(hf, tmp_path / "m.nemo", reporter=quiet)
    unpacked = tmp_path / "unpacked"
    with tarfile.open(tmp_path / "m.nemo") as tar:
        members = [m for m in tar.getmembers() if not m.name.startswith("./hf")]
        tar.extractall(unpacked, members, filter="data")
    export(unpacked, tmp_path / "back", reporter=quiet)
    assert_same_tensors(tmp_path / "back", hf)
    np.testing.assert_array_equal(logits_of(tmp_path / "back"), logits_of(hf))


def test_a_rewritten_nemo_holds_the_same_tensors_and_unknown_settings(tmp_path, quiet):
    """From two ranks to today's form: transformers reads the same model out of both."""
    convert(FIXTURES / "llama_tp2_ranks.nemo", tmp_path / "new.nemo", reporter=quiet)
    new, old = open_source(tmp_path / "new.nemo"), open_source(FIXTURES / "llama_tp2_ranks.nemo")
    assert new.layout == "torch_dist"
    changed = {"tensor_model_parallel_size", "nemoalign"}
    for key in old.config.keys() - changed:
        assert new.config[key] == old.config[key], key
    assert new.config["tensor_model_parallel_size"] == 1
    export(tmp_path / "new.nemo", tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", FIXTURES / "hf_llama")


def test_padding_that_depends_on_the_layout_is_made_anew_of_zeros(tmp_path, quiet):
    """519 tokens are 768 rows at TP2 and 640 at TP1; NeMo wrote both archives of one model."""
    convert(FIXTURES / "gpt_tp2pp2_ranks.nemo", tmp_path / "tp1.nemo", reporter=quiet)
    ours, theirs = open_source(tmp_path / "tp1.nemo"), open_source(FIXTURES / "gpt_tp1_dist.nemo")
    table = ours.weights.read("embedding.word_embeddings.weight")
    assert table.shape == (640, 64)
    assert not table[519:].any()
    for name in theirs.weights.tensors:
        rows = 519 if "word_embeddings" in name else None
        np.testing.assert_array_equal(
            ours.weights.read(name)[:rows], theirs.weights.read(name)[:rows]
        )


@pytest.mark.slow
def test_megatron_core_loads_what_we_write(nemo_llama, hf_llama, tmp_path):
    with tarfile.open(nemo_llama) as tar:
        tar.extractall(tmp_path, filter="data")
    result = tmp_path / "loaded.pt"
    command = [sys.executable, "-c", MCORE_LOAD, str(tmp_path / "model_weights"), str(result)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    loaded = torch.load(result, weights_only=True)
    state = state_of(hf_llama)
    fc1 = loaded["model.decoder.layers.mlp.linear_fc1.weight"]
    for layer in range(3):
        names = [f"model.layers.{layer}.mlp.{part}_proj.weight" for part in ("gate", "up")]
        assert torch.equal(fc1[layer], torch.cat([state[name] for name in names]))
    assert torch.equal(loaded["model.output_layer.weight"], state["lm_head.weight"])


@pytest.mark.parametrize(
    ("flag", "dtype", "precision"),
    [("bf16", torch.bfloat16, "bf16"), ("fp16", torch.float16, 16), ("fp32", torch.float32, 32)],
)
def test_dtype_is_what_torch_would_round_to(flag, dtype, precision, hf_llama, tmp_path, quiet):
    convert(hf_llama, tmp_path / "m.nemo", WriteOptions(dtype=flag), reporter=quiet)
    assert open_source(tmp_path / "m.nemo").config["precision"] == precision
    export(tmp_path / "m.nemo", tmp_path / "back", reporter=quiet)
    expected = state_of(hf_llama)
    for name, tensor in state_of(tmp_path / "back").items():
        assert torch.equal(tensor, expected[name].to(dtype)), name
    config = json.loads((tmp_path / "back/config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_target_kind_follows_the_suffix_unless_it_is_said(hf_llama, tmp_path, quiet):
    convert(hf_llama, tmp_path / "folder", reporter=quiet)
    assert (tmp_path / "folder/model.safetensors").is_file()
    convert(hf_llama, tmp_path / "archive", to="nemo", reporter=quiet)
    assert tarfile.is_tarfile(tmp_path / "archive")


def test_the_same_source_gives_the_same_bytes(hf_llama, nemo_llama, tmp_path, quiet):
    convert(hf_llama, tmp_path / "again.nemo", reporter=quiet)
    assert (tmp_path / "again.nemo").read_bytes() == nemo_llama.read_bytes()


def test_an_existing_target_is_kept_unless_it_may_be_overwritten(hf_llama, tmp_path, quiet):
    target = tmp_path / "m.nemo"
    target.write_text("precious")
    with pytest.raises(ConflictError, match="--overwrite"):
        convert(hf_llama, target, reporter=quiet)
    assert target.read_text() == "precious"
    convert(hf_llama, target, WriteOptions(overwrite=True), reporter=quiet)
    assert tarfile.is_tarfile(target)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("nowhere.nemo", SourceError, "does not exist"),
        ("some/model", SourceError, "hf download some/model"),
        (FIXTURES / "llama_logits.npz", SourceError, "fetch it again"),
        (FIXTURES / "vectors", SourceError, "is no checkpoint"),
        (FIXTURES / "lora_tp1.nemo", SourceError, "Name the base"),
    ],
)
def test_a_wrong_source_leaves_nothing_behind(source, error, match, tmp_path, quiet):
    with pytest.raises(error, match=match):
        convert(source, tmp_path / "out", reporter=quiet)
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_of_target_is_refused(hf_llama, tmp_path, quiet):
    with pytest.raises(ConfigError, match="--to is onnx"):
        convert(hf_llama, tmp_path / "m", to="onnx", reporter=quiet)
