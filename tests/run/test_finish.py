"""What runs leave when they are done, read by transformers and by hand."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from tests.commands import tiny


@pytest.mark.slow
def test_a_lora_run_leaves_its_adapter_as_peft_and_merged_on_request(made) -> None:
    base = AutoModelForCausalLM.from_pretrained(made / "hf").state_dict()
    merged = AutoModelForCausalLM.from_pretrained(
        made / "lora/megatron_gpt_sft-merged"
    ).state_dict()
    peft = made / "lora/megatron_gpt_sft-peft"
    adapter = load_file(peft / "adapter_model.safetensors")
    config = json.loads((peft / "adapter_config.json").read_text())
    changed = []
    for name, weight in base.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            low, high = (adapter[f"{stem}.lora_{one}.weight"] for one in "AB")
            weight = weight + torch.from_numpy(high @ low) * config["lora_alpha"] / config["r"]
            changed.append(np.abs(high).max())
        torch.testing.assert_close(merged[name], weight, rtol=0, atol=1e-6)
    assert len(changed) == 3 * 4
    assert min(changed) > 0


@pytest.mark.slow
def test_a_run_that_was_not_asked_leaves_one_archive_and_the_line_to_type(made, tmp_path) -> None:
    said = tiny.quickly(
        "sft", "--config", made / "lora/config.yaml", "-o", tmp_path / "run", "--max-steps", 1,
        "--tp", 1, "model.peft.save_peft=false", "model.peft.save_merged=false", talk=True,
    )  # fmt: skip
    assert [path.name for path in sorted(tmp_path.glob("run/megatron*"))] == [
        "megatron_gpt_sft.nemo",
        "megatron_gpt_sft.nemo.conversion.json",
    ]
    assert f"nemoalign export {tmp_path}/run/megatron_gpt_sft.nemo --merge -o" in said
