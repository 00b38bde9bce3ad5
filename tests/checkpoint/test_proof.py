"""``--verify logits``: the output appears only when it computes what the source computes."""

from __future__ import annotations

import json
import math
import shutil

import psutil
import pytest
from safetensors.torch import load_file, save_file

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.proof import available_memory
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ConfigError, ResourceError, VerificationError
from tests.checkpoint.models import FIXTURES

LOGITS = WriteOptions(verify="logits")


def test_a_conversion_reports_the_difference_and_what_it_allows(tmp_path, quiet):
    report = convert(FIXTURES / "hf_llama", tmp_path / "m.nemo", LOGITS, reporter=quiet)
    assert report["logits"]["engines"] == ["transformers", "megatron"]
    assert report["logits"]["max_abs_diff"] < 2e-5 < report["logits"]["tolerance"]
    assert report["logits"]["top1_agreement"] == 1.0
    assert json.loads((tmp_path / "m.nemo.conversion.json").read_text()) == report


def test_an_output_that_computes_something_else_never_appears(hf_llama, tmp_path, quiet):
    """Weights this large turn the rounding to bfloat16 into other attention, so into other logits."""
    state = load_file(hf_llama / "model.safetensors")
    large = tmp_path / "large"
    large.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (large / name).write_bytes((hf_llama / name).read_bytes())
    state = {n: t * 1000 if "q_proj" in n or "k_proj" in n else t for n, t in state.items()}
    save_file(state, large / "model.safetensors", {"format": "pt"})
    options = WriteOptions(verify="logits", dtype="bf16")
    with pytest.raises(VerificationError, match=r"compute different things: logits differ by"):
        export(large, tmp_path / "out", options, reporter=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(hf_llama, tmp_path, quiet):
    """A file of 1.1 TB that takes no room on the disk: all of it is a hole."""
    folder = shutil.copytree(hf_llama, tmp_path / "vast")
    vocab, header, end = 1 << 32, {}, 0
    for name, tensor in load_file(hf_llama / "model.safetensors").items():
        shape = [vocab, 32] if tensor.shape[0] == 61 else list(tensor.shape)
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": vocab}))
    with pytest.raises(ResourceError, match=r"takes about 1\d\d\d\.\d GB of memory"):
        convert(folder, tmp_path / "m.nemo", LOGITS, reporter=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["vast"]


def test_an_adapter_alone_computes_no_logits(tmp_path, quiet):
    for write in (convert, export):
        more = {"adapter_only": True} if write is export else {}
        with pytest.raises(ConfigError, match="an adapter alone"):
            write(FIXTURES / "lora_tp1.nemo", tmp_path / "x.nemo", LOGITS, reporter=quiet, **more)
    assert not list(tmp_path.iterdir())


def test_available_memory_is_no_more_than_what_the_system_says():
    there = available_memory()
    assert 0 < there <= psutil.virtual_memory().total
