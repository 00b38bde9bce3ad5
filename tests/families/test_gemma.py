"""Gemma 1 against transformers: tensors, configuration, round trips and logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GemmaConfig

from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.hf import write_hf
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.errors import ContentError
from nemoalign.families.gemma import FAMILY
from nemoalign.weights.config_rules import nemo_fields
from tests.checkpoint.models import assert_same_tensors, logits_of, state_of
from tests.families import checks
from tests.model.tiny import Store

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"head_dim": 16},
    "one group": {"head_dim": 8, "num_key_value_heads": 1},
    "untied": {"head_dim": 16, "tie_word_embeddings": False},
}


def config(**changes: Any) -> GemmaConfig:
    return GemmaConfig(**(checks.SIZES | changes))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_table_and_config_are_those_of_transformers(changes, tmp_path):
    checks.assert_table_covers_the_model(FAMILY, config(**changes))
    checks.assert_config_comes_back(FAMILY, config(**changes), tmp_path)


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_round_trip_and_logits(changes, tmp_path):
    hf = checks.save_model(tmp_path / "hf", config(**changes))
    nemo = checks.assert_round_trip(hf, tmp_path)
    checks.assert_same_logits(nemo, hf)
    checks.assert_export_without_memory(nemo, hf, tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ],
)
def test_what_a_nemo_cannot_represent_is_refused_by_field(changes, words):
    with pytest.raises(ContentError, match=words):
        nemo_fields(FAMILY.config, config().to_dict() | changes)


def test_bfloat16_keeps_every_bit_of_weights_near_zero(tmp_path):
    hf = checks.save_model(tmp_path / "hf", config(head_dim=16), dtype="bfloat16")
    checks.assert_round_trip(hf, tmp_path)


def as_nemos_converter_writes_it(nemo: Path, dtype: str) -> Source:
    """Return an archive whose norms hold gamma itself, computed by torch, without the flag."""
    source = checks.as_nemo_wrote_it(nemo)
    arrays = {}
    for name in source.weights.tensors:
        array = source.weights.read(name).copy()
        if "norm" in name:
            gamma = torch.from_numpy(array)
            if dtype == "bfloat16":
                array = (gamma.view(torch.bfloat16) + 1).view(torch.uint16).numpy()
            else:
                array = (gamma + 1).numpy()
        arrays[name] = array
    arch = replace(source.arch, layernorm_zero_centered_gamma=False)
    return replace(source, arch=arch, weights=Store(arrays, dtype))


class Heard(checks.PlainReporter):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_archive_of_nemos_own_holds_gamma_and_exports_to_gamma_minus_one(dtype, tmp_path):
    hf = checks.save_model(tmp_path / "hf", config(head_dim=16), dtype)
    nemo = checks.assert_round_trip(hf, tmp_path)
    source = as_nemos_converter_writes_it(nemo, dtype)
    assert FAMILY.differences(source.arch) == []
    heard = Heard()
    write_hf(source, tmp_path / "made", WriteOptions(), heard)
    assert not heard.warnings  # gamma near 1 has room for gamma - 1
    difference = np.abs(logits_of(tmp_path / "made") - logits_of(hf)).max()
    assert difference < (checks.TOLERANCE if dtype == "float32" else 0.05)
    if (
        dtype == "bfloat16"
    ):  # 1 was added in bfloat16, so the original's last bits are gone for good
        with pytest.raises(AssertionError):
            assert_same_tensors(tmp_path / "made", hf)
    for name, made in state_of(tmp_path / "made").items():
        if "norm" in name:
            whole = state_of(hf)[name].float() + 1
            assert torch.equal((made.float() + 1), whole.to(made.dtype).float()), name


def test_a_gamma_that_minus_one_cannot_hold_is_reported(tmp_path):
    hf = checks.save_model(tmp_path / "hf", config(head_dim=16), "bfloat16")
    source = as_nemos_converter_writes_it(checks.assert_round_trip(hf, tmp_path), "bfloat16")
    norm = source.weights.arrays["decoder.final_layernorm.weight"]
    norm[0] = torch.tensor(0.1, dtype=torch.bfloat16).view(torch.uint16).item()
    heard = Heard()
    write_hf(source, tmp_path / "made", WriteOptions(), heard)
    assert "of 5 norms 1 hold a value that had to be rounded" in heard.warnings[0]
    assert "decoder.final_layernorm.weight" in heard.warnings[0]
