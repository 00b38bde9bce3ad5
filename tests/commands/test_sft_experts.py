"""Training experts by the real command, and what it leaves behind."""

from __future__ import annotations

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from tests.commands import tiny


def make_mixtral(directory):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=tiny.VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=256,
        initializer_range=0.08,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    MixtralForCausalLM(config).save_pretrained(directory)
    tiny.make_tokenizer().save_pretrained(directory)
    return directory


def test_two_steps_train_every_expert_and_leave_nemos_keys(tmp_path):
    source = make_mixtral(tmp_path / "hf")
    data = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(16, seed=1))
    run = tmp_path / "run"
    tiny.quickly(
        *("sft", "--ckpt", source, "--data", data, "-o", run, "--precision", "fp32"),
        *("--lr", 1e-3, "--warmup", 0, "--gbs", 8, "--mbs", 4, "--max-steps", 2, "--devices", 1),
    )
    losses = [entry["loss"] for entry in tiny.read_metrics(run)]
    assert losses[1] < losses[0]
    (checkpoint,) = (run / "checkpoints").glob("*-last.ckpt")
    keys = DistStore(open_container(checkpoint / "model_weights")).tensors
    assert "model.decoder.layers.pre_mlp_layernorm.weight" in keys
    assert keys["model.decoder.layers.mlp.experts.experts.linear_fc1.weight"].shape == (
        2,
        4,
        96,
        32,
    )
    tiny.quickly("export", run / "megatron_gpt_sft.nemo", "-o", tmp_path / "out")
    before = MixtralForCausalLM.from_pretrained(source).state_dict()
    after = MixtralForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts.gate_up_proj"
        changed = (before[name] != after[name]).flatten(1).any(1)
        assert changed.all()
