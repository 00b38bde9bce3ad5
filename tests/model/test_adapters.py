from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nemoalign.archive.files import open_container
from nemoalign.archive.torch_file import TorchFile
from nemoalign.errors import ConfigError, ContentError
from nemoalign.model.adapters import with_adapters
from nemoalign.model.lora_settings import LoraSettings
from tests.model.tiny import Store

FIXTURES = Path(__file__).parents[1] / "fixtures"
ADAPTER = FIXTURES / "lora_tp1.nemo"  # rank 8, no alpha recorded: scale 1
NORM = "decoder.final_layernorm.weight"
STORED = TorchFile(open_container(ADAPTER).members["model_weights.ckpt"], "the fixture")
LAYERS = len({name.split(".")[3] for name in STORED.tensors})
SAME = LoraSettings(adapter_dim=8, target_modules=("all",))
BASE = Store({NORM: np.ones(4, np.float32)})


def test_base_and_adapter_are_one_store() -> None:
    store = with_adapters(BASE, ADAPTER, SAME, LAYERS)
    assert set(store.tensors) == {NORM} | {name.removeprefix("model.") for name in STORED.tensors}
    assert np.array_equal(store.read(NORM, (slice(1, 3),)), np.ones(2, np.float32))
    for name in STORED.tensors:
        assert np.array_equal(store.read(name.removeprefix("model.")), STORED.read(name))


def test_a_whole_model_is_no_adapter() -> None:
    with pytest.raises(ContentError, match="Give it as --ckpt"):
        with_adapters(BASE, FIXTURES / "llama.nemo", SAME, LAYERS)


def test_another_rank_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match="--lora 8"):
        with_adapters(BASE, ADAPTER, replace(SAME, adapter_dim=4), LAYERS)


def test_another_scale_is_refused_with_the_right_alpha() -> None:
    with pytest.raises(ConfigError, match="--lora-alpha 8"):
        with_adapters(BASE, ADAPTER, replace(SAME, alpha=32.0), LAYERS)


def test_other_targets_or_layers_are_refused_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match="Use --lora-targets attention_qkv"):
        with_adapters(BASE, ADAPTER, replace(SAME, target_modules=("mlp_fc2",)), LAYERS)
    with pytest.raises(ConfigError, match=r"adapts layers 1, .*layer_selection=1,"):
        with_adapters(BASE, ADAPTER, replace(SAME, layer_selection=(1,)), LAYERS)
    with pytest.raises(ConfigError, match="layer_selection=1,"):
        with_adapters(BASE, ADAPTER, SAME, LAYERS + 1)
