"""Two models side by side: equal ones, and ones that are not; through the child as it is started."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nemoalign.model.compare import compare, fixed_tokens
from tests.checkpoint.models import FIXTURES, save_llama


def side(name, **more):
    return {"path": str(FIXTURES / name), **more}


@pytest.mark.parametrize("engine", ["transformers", "megatron"])
def test_two_forms_of_one_model_agree(engine):
    right = "hf_llama" if engine == "transformers" else "llama_tp2_ranks.nemo"
    found = compare(side("llama.nemo"), side(right))
    assert found["engines"] == ["megatron", engine]
    assert found["max_abs_diff"] < 2e-5
    assert (found["top1_agreement"], found["positions"]) == (1.0, 144)


def test_an_adapter_and_its_base_are_run_together():
    left = side("llama_tp2_ranks.nemo", adapter=str(FIXTURES / "lora_tp1.nemo"))
    right = side("peft_all", base=str(FIXTURES / "hf_llama"))
    assert compare(left, left)["max_abs_diff"] == 0
    assert compare(left, right)["max_abs_diff"] > 0.1
    assert compare(side("hf_llama"), right)["engines"] == ["transformers", "megatron"]


def test_the_difference_is_the_one_that_transformers_computes(tmp_path):
    one = save_llama(tmp_path / "one")
    other = save_llama(tmp_path / "other", rms_norm_eps=0.3)
    tokens = fixed_tokens(61, 48)
    logits = []
    for folder in (one, other):
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        with torch.no_grad():
            logits.append(model.eval()(tokens).logits.numpy())
    found = compare({"path": str(one)}, {"path": str(other)})
    assert found["max_abs_diff"] == pytest.approx(np.abs(logits[0] - logits[1]).max(), rel=1e-4)
    same = (logits[0].argmax(-1) == logits[1].argmax(-1)).mean()
    assert found["top1_agreement"] == pytest.approx(same)


def test_the_child_answers_in_json_also_when_a_side_cannot_run(tmp_path):
    question = {"left": side("hf_llama"), "right": {"path": str(tmp_path / "gone")}}
    ended = subprocess.run(
        [sys.executable, "-m", "nemoalign.model.compare"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "does not exist" in json.loads(ended.stdout.splitlines()[-1])["error"]
