"""What ``inspect`` says of genuine archives, what it must not read, and what it must not import."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.inspect import (
    find_value,
    inspect,
    inspect_source,
    list_tensors,
    template_of,
)
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ConfigError, ContentError
from tests.checkpoint.models import FIXTURES, LLAMAS, save_llama


def test_a_converted_model_is_described_completely(nemo_llama, hf_llama):
    found = inspect(nemo_llama)
    model = AutoModelForCausalLM.from_pretrained(hf_llama)
    assert found["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert found["family"] == "llama"
    assert found["hf_architecture"] == "LlamaForCausalLM"
    assert found["sizes"] == {
        "layers": 3,
        "hidden": 32,
        "heads": 4,
        "query_groups": 2,
        "head_dim": 8,
        "ffn": 48,
        "vocab": 61,
        "vocab_padded": 61,
        "sequence_length": 2048,
        "positions": "rope",
        "rope": {"base": 10000.0},
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "tied_embeddings": False,
    }
    assert (found["layout"], found["dtypes"]) == ("torch_dist", ["float32"])
    assert found["size_bytes"] == nemo_llama.stat().st_size
    assert found["tokenizer"]["vocab"] == 61
    assert found["chat_template"] == "{{ messages }}"
    assert found["training"]["nemoalign"]["family"] == "llama"
    assert "optimizer" not in found["training"]
    json.dumps(found)


def test_parameters_are_counted_without_padding_by_part():
    parts = inspect(FIXTURES / "gpt_tp2pp2_ranks.nemo")["parameters"]
    assert parts == {
        "embedding": 519 * 64 + 128 * 64,
        "attention": 4 * ((4 + 2 * 2) * 16 * 65 + 64 * 64 + 64),
        "mlp": 4 * (64 * 128 + 128 + 128 * 64 + 64),
        "norms": 4 * 4 * 64 + 2 * 64,
        "head": 0,
        "adapter": 0,
        "total": 158784,
    }


def test_a_fine_tuned_model_says_how_it_was_trained_and_prompted():
    found = inspect(FIXTURES / "chatsft_tp1_file.nemo")
    assert found["prompt_template"] == "{input} {output}"
    assert found["chat_prompt_tokens"]["turn_start"] == "<extra_id_1>"
    assert found["training"]["restored_from"] == "base.nemo"
    assert found["training"]["optimizer"]["lr"] == 2e-4
    assert found["training"]["target"].endswith("GPTSFTModel")


def test_an_adapter_says_rank_targets_and_base():
    found = inspect(FIXTURES / "lora_tp1.nemo")
    assert found["adapter"] == {
        "scheme": "lora",
        "rank": 8,
        "alpha": 8.0,
        "targets": ["all"],
        "base": "base.nemo",
        "tensors": 32,
    }
    assert found["what"].startswith(str(FIXTURES / "lora_tp1.nemo") + ": NeMo archive")


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("linear rope", {"base": 10000.0, "linear_factor": 4.0}),
        (
            "llama3 rope",
            {
                "base": 5e5,
                "llama3": {
                    "scale_factor": 32.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "old_context_len": 64,
                },
            },
        ),
    ],
)
def test_scaled_positions_are_spelled_out(name, rope, tmp_path):
    assert inspect(save_llama(tmp_path / "m", **LLAMAS[name]))["sizes"]["rope"] == rope


def test_a_checkpoint_of_a_run_says_how_far_it_got(tmp_path):
    path = tmp_path / "megatron_gpt--val_loss=0.432-step=1000-consumed_samples=32000.0-epoch=0.ckpt"
    shutil.copytree(FIXTURES / "llhf_dist_dir", path)
    assert inspect(path)["training"]["checkpoint"] == {
        "val_loss": 0.432,
        "step": 1000,
        "consumed_samples": 32000,
        "epoch": 0,
    }
    (path / "progress.json").write_text('{"step": 1001, "val_metrics": {"val_loss": 0.4}}')
    assert inspect(path)["training"]["checkpoint"] == {"step": 1001}


def test_tensors_are_listed_by_glob():
    source = open_source(FIXTURES / "llama.nemo")
    rows = list_tensors(source, "decoder.layers.[01].*fc1.weight")
    assert rows == [
        {
            "name": f"decoder.layers.{layer}.mlp.linear_fc1.weight",
            "shape": [256, 64],
            "dtype": "float32",
            "bytes": 256 * 64 * 4,
        }
        for layer in (0, 1)
    ]
    assert len(list_tensors(source)) == 4 * 6 + 3
    with pytest.raises(ConfigError, match=r"No tensor .*matches .*mlp\.experts"):
        list_tensors(source, "*mlp.experts*")


def test_settings_are_found_by_dotted_key():
    source = open_source(FIXTURES / "llama.nemo")
    assert find_value(source, "optim.sched.min_lr") == 2e-5
    assert find_value(source, "optim.betas.1") == 0.98
    assert find_value(source, "data")["splits_string"] == "900,50,50"
    with pytest.raises(
        ConfigError, match=r"no .optim\.sched\.minlr.*Nearest: optim\.sched\.min_lr"
    ):
        find_value(source, "optim.sched.minlr")
    with pytest.raises(ConfigError, match="Nearest"):
        find_value(source, "optim.betas.2")


def test_the_template_is_the_one_prompts_must_be_put_into(nemo_llama):
    chat = template_of(open_source(FIXTURES / "chatsft_tp1_file.nemo")).text
    assert chat.startswith("<extra_id_0>System\n{system message}\n<extra_id_1>User\n")
    assert chat.endswith("<extra_id_1>Assistant\n{turn 1 assistant message}\n<extra_id_1>")
    assert template_of(open_source(nemo_llama)).text == "{{ messages }}"
    with pytest.raises(ContentError, match="records no prompt template"):
        template_of(open_source(FIXTURES / "llama.nemo"))


def test_a_prompt_template_wins_over_the_tokenizers_chat_template(nemo_llama):
    source = open_source(nemo_llama)
    source.config["data"]["train_ds"] = {"prompt_template": "Q: {input} A: {output}"}
    assert template_of(source).text == "Q: {input} A: {output}"
    assert inspect_source(source)["prompt_template"] == "Q: {input} A: {output}"


def test_a_template_may_be_a_file_of_its_own_or_one_of_several(hf_llama, tmp_path, quiet):
    folder = shutil.copytree(hf_llama, tmp_path / "m")
    several = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert inspect(folder)["chat_template"] == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert inspect(folder)["chat_template"] == "J"
    convert(folder, tmp_path / "m.nemo", reporter=quiet)
    assert inspect(tmp_path / "m.nemo")["chat_template"] == "J"


INSPECT = """
import sys, time
from nemoalign.checkpoint.inspect import inspect
inspect(sys.argv[1])
heavy = {"torch", "transformers", "megatron", "omegaconf", "sentencepiece"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print(time.process_time())
"""


@pytest.mark.parametrize("name", ["llama.nemo", "gpt_tp2pp2_ranks.nemo", "hf_llama"])
def test_inspecting_is_fast_because_of_what_it_does_not_import(name):
    run = subprocess.run(
        [sys.executable, "-c", INSPECT, FIXTURES / name], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 1.0


def test_a_large_archive_is_inspected_from_headers_and_index(tmp_path, quiet):
    """A sparse file whose weights were never written: reading them would fail verification."""
    folder = save_llama(tmp_path / "m")
    convert(folder, tmp_path / "m.nemo", reporter=quiet)
    name = "decoder.layers.0.mlp.linear_fc2.weight"
    source = open_source(tmp_path / "m.nemo")
    weight = source.weights.read(name)
    content = bytearray((tmp_path / "m.nemo").read_bytes())
    at = content.find(weight.tobytes())
    content[at : at + weight.nbytes] = bytes(weight.nbytes)
    (tmp_path / "m.nemo").write_bytes(content)
    assert inspect(tmp_path / "m.nemo")["parameters"]["total"] > 0
    assert not torch.tensor(open_source(tmp_path / "m.nemo").weights.read(name)).any()
