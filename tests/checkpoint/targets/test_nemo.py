"""What a ``.nemo`` of ours holds, and that a faulty one is never published."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest

from nemoalign.archive.safetensors import SafetensorsWriter
from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.config.checkpoint_yaml import load_checkpoint_config
from nemoalign.errors import VerificationError
from tests.checkpoint.models import BitFlip, state_of


def test_the_members_are_nemos_plus_the_original_files_and_a_manifest(nemo_llama):
    with tarfile.open(nemo_llama) as tar:
        names = tar.getnames()
    assert names == [
        ".",
        "./model_config.yaml",
        "./hf",
        "./hf/config.json",
        "./hf/generation_config.json",
        "./hf/tokenizer.json",
        "./hf/tokenizer_config.json",
        "./hf/special_tokens_map.json",
        "./model_weights",
        "./model_weights/__0_0.distcp",
        "./model_weights/.metadata",
        "./model_weights/common.pt",
        "./model_weights/metadata.json",
        "./nemoalign_manifest.json",
    ]


def test_the_manifest_and_the_report_carry_the_checksum_of_every_tensor(nemo_llama, hf_llama):
    with tarfile.open(nemo_llama) as tar:
        manifest = json.load(tar.extractfile("./nemoalign_manifest.json"))
    report = json.loads(nemo_llama.with_name(f"{nemo_llama.name}.conversion.json").read_text())
    state = state_of(hf_llama)
    rows = {row["source"]: row for row in report["tensors"]}
    fc1 = rows["decoder.layers.2.mlp.linear_fc1.weight"]
    expected = [
        f"{zlib.crc32(state[f'model.layers.2.mlp.{part}_proj.weight'].numpy().tobytes()):08x}"
        for part in ("gate", "up")
    ]
    assert fc1["crc32"] == expected
    assert fc1["target"] == {"model.decoder.layers.mlp.linear_fc1.weight": [96, 32]}
    assert fc1["hf"] == [f"model.layers.2.mlp.{part}_proj.weight" for part in ("gate", "up")]
    chunks = manifest["chunks"]["model.decoder.layers.mlp.linear_fc1.weight"]
    assert [c["crc32"] for c in chunks if c["offsets"][0] == 2] == expected


def test_the_settings_are_nemos_and_say_where_they_came_from(nemo_llama):
    with tarfile.open(nemo_llama) as tar:
        text = tar.extractfile("./model_config.yaml").read().decode()
    config = load_checkpoint_config(text, "model_config.yaml")
    assert config["tokenizer"]["library"] == "huggingface"
    assert config["tokenizer"]["type"] == "tiny-llama"
    assert config["precision"] == 32
    assert config["nemoalign"] | {"version": ""} == {
        "version": "",
        "family": "llama",
        "vocab_size": 61,
        "dtype": "float32",
        "original_dtype": "float32",
    }


def test_bytes_that_change_after_writing_fail_the_conversion(hf_llama, tmp_path):
    with pytest.raises(VerificationError, match="is not what was written"):
        convert(hf_llama, tmp_path / "m.nemo", reporter=BitFlip(tmp_path))
    assert not list(tmp_path.iterdir())


def test_verification_can_be_left_out(hf_llama, tmp_path):
    options = WriteOptions(verify="none")
    report = convert(hf_llama, tmp_path / "m.nemo", options, reporter=BitFlip(tmp_path))
    assert report["verified"] == "none"
    assert (tmp_path / "m.nemo").exists()


LAYER = {
    "input_layernorm.weight": (256,),
    "post_attention_layernorm.weight": (256,),
    "self_attn.q_proj.weight": (256, 256),
    "self_attn.k_proj.weight": (256, 256),
    "self_attn.v_proj.weight": (256, 256),
    "self_attn.o_proj.weight": (256, 256),
    "mlp.gate_proj.weight": (1024, 256),
    "mlp.up_proj.weight": (1024, 256),
    "mlp.down_proj.weight": (256, 1024),
}
PEAK = """
import sys
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.log import PlainReporter
quiet = PlainReporter(quiet=True)
convert(sys.argv[1], sys.argv[2] + ".nemo", reporter=quiet)
export(sys.argv[2] + ".nemo", sys.argv[2], reporter=quiet)
assert not {"torch", "megatron", "transformers"} & set(sys.modules)
# ru_maxrss would begin with the memory of the process that ran this one.
status = open("/proc/self/status").read().split()
print(status[status.index("VmHWM:") + 1])
"""


def write_model(folder, layers):
    shapes = {"model.embed_tokens.weight": (512, 256), "model.norm.weight": (256,)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in LAYER.items()}
    tensors = {name: TensorInfo(shape, "float32") for name, shape in shapes.items()}
    with SafetensorsWriter(folder, tensors) as writer:
        for name, shape in shapes.items():
            writer.write(name, np.full(shape, len(name), np.float32))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": 512,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    """4 MB a layer: 64 layers are 260 MB, of which no stack may ever be in memory."""
    peaks = {}
    for layers in (4, 64):
        write_model(tmp_path / f"hf{layers}", layers)
        command = [sys.executable, "-c", PEAK, tmp_path / f"hf{layers}", tmp_path / f"o{layers}"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[layers] = int(run.stdout) * 1024
    assert peaks[64] < 1 << 30
    assert peaks[64] - peaks[4] < 40 << 20, peaks
