import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from transformers import AutoModelForCausalLM

import nemoalign
from nemoalign.errors import ConfigError

FIXTURES = Path(__file__).parent / "fixtures"
TOKENS = torch.arange(24).reshape(2, 12) % 90


def _logits(model):
    positions = torch.arange(TOKENS.shape[1]).expand_as(TOKENS)
    with torch.no_grad():
        return model(TOKENS, positions, None)


def _restored(path, tp):
    restored = nemoalign.restore_from(path, tp=tp)
    logits = _logits(restored.model).numpy()
    parallel_state.destroy_model_parallel()  # the ranks go on to other tests
    return logits, restored.config, restored.tokenizer.encode("hello")


def _on_own_process(script: str, *words: object) -> str:
    command = [sys.executable, "-c", script, *map(str, words)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


SCRIPT = """
import sys, numpy as np, torch
from nemoalign import restore_from
model, config, tokenizer = restore_from(sys.argv[1])
from megatron.core.models.gpt import GPTModel
assert isinstance(model, GPTModel) and not model.training
tokens = torch.arange(24).reshape(2, 12) % 90
with torch.no_grad():
    logits = model(tokens, torch.arange(12).expand(2, 12), None)
np.save(sys.argv[2], logits.numpy())
print(config["tensor_model_parallel_size"], config["precision"], tokenizer.vocab_size)
"""


def test_a_program_of_one_rank_gets_transformers_logits(tmp_path):
    hf = FIXTURES / "hf_llama"
    said = _on_own_process(SCRIPT, hf, tmp_path / "logits.npy")
    theirs = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(TOKENS).logits.numpy()
    ours = np.load(tmp_path / "logits.npy")[:, :, : expected.shape[2]]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert said.split()[:2] == ["1", "32"]


def test_two_ranks_hold_halves_of_what_one_rank_has(two_ranks, tmp_path):
    archive = FIXTURES / "llama_tp2_ranks.nemo"
    _on_own_process(SCRIPT, archive, tmp_path / "logits.npy")
    whole = np.load(tmp_path / "logits.npy")
    (first, config, ids), (second, _, _) = two_ranks.run(_restored, archive, 2)
    np.testing.assert_allclose(
        np.concatenate([first, second], 2)[:, :, : whole.shape[2]], whole, atol=1e-5
    )
    assert config["tensor_model_parallel_size"] == 2
    assert ids


def _two_layouts(path):
    nemoalign.restore_from(path, tp=2)
    with pytest.raises(ConfigError, match="tp=2, pp=1"):
        nemoalign.restore_from(path, tp=1)
    parallel_state.destroy_model_parallel()


def test_a_second_layout_in_one_program_is_refused(two_ranks):
    two_ranks.run(_two_layouts, FIXTURES / "llama_tp2_ranks.nemo")


def test_a_checkpoint_without_its_tokenizer_is_restored_all_the_same():
    script = SCRIPT.replace("tokenizer.vocab_size", "tokenizer")
    finished = subprocess.run(
        [sys.executable, "-c", script, FIXTURES / "llhf_dist_dir", "/dev/null"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert finished.stdout.split() == ["1", "32", "None"]
    assert "--tokenizer" in finished.stderr


def test_a_name_that_is_not_there_is_an_attribute_error_as_in_any_module():
    assert not hasattr(nemoalign, "restore_form")
