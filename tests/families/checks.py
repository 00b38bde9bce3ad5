"""What every family must prove against transformers, with tiny random models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.hf import write_hf
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.config.architecture import Architecture
from nemoalign.families.registry import family_for_hf, family_for_nemo
from nemoalign.log import PlainReporter
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.forward import forward_logits
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.weights.config_rules import hf_fields, nemo_fields
from nemoalign.weights.rules import Family, tensor_plans
from nemoalign.weights.tensors import expected_shapes
from tests.checkpoint.models import assert_same_tensors, logits_of, tokenizer_json

VOCAB = 101
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
QUIET = PlainReporter(quiet=True)
TOLERANCE = 1e-5
_LABELS = ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")
_LABELS += ("bos_token_id", "eos_token_id", "pad_token_id")
# Which layers a window has is told by the logits; several spellings mean the same.
_LABELS += ("layer_types", "max_window_layers")


def save_model(folder: Path, config: PreTrainedConfig, dtype: str = "float32") -> Path:
    """Write a random model as transformers saves it, norms and biases not left at 1 and 0."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(config.vocab_size)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def architecture(family: Family, config: Mapping[str, Any]) -> Architecture:
    """Return what a config.json becomes, read as model_config.yaml is."""
    fixed = {name: allowed[0] for name, allowed in family.fixed.items()}
    return Architecture.from_nemo(fixed | nemo_fields(family.config, config))


def assert_table_covers_the_model(family: Family, config: PreTrainedConfig) -> None:
    """The table has exactly the tensors transformers has, in their shapes."""
    arch = architecture(family, config.to_dict())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    shapes = expected_shapes(arch, vocab_rows=arch.padded_vocab_size(VOCAB))
    ours: dict[str, tuple[int, ...]] = {}
    for plan in tensor_plans(family, arch):
        parts = plan.op.hf_shapes(shapes[plan.name], arch, VOCAB)
        ours.update(zip(plan.hf_names, parts, strict=True))
        zeros = [np.zeros(part, np.float32) for part in parts]
        assert plan.op.to_megatron(zeros, arch).shape == shapes[plan.name]
    assert ours == expected


def assert_config_comes_back(
    family: Family, config: PreTrainedConfig, folder: Path, ignored: tuple[str, ...] = ()
) -> None:
    """Both spellings of config.json give the same .nemo, and that gives transformers' config again."""
    five = config.to_dict()
    assert family_for_hf(five | {"architectures": list(family.hf_architectures)}) is family
    arch = architecture(family, five)
    assert architecture(family, flat_spelling(five)) == arch
    assert family.differences(arch) == []
    written = {"model_type": family.hf_model_type, "vocab_size": VOCAB}
    written |= hf_fields(family.config, arch)
    (folder / "config.json").write_text(json.dumps(written))
    again = AutoConfig.from_pretrained(folder).to_dict()
    for name in five.keys() - {*_LABELS, *ignored}:
        assert again[name] == five[name], name


def flat_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json as transformers 4 writes it."""
    flat = dict(config)
    rope = dict(flat.pop("rope_parameters", None) or {})
    flat |= {
        name: rope.pop(name) for name in ("rope_theta", "partial_rotary_factor") if name in rope
    }
    flat["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    flat["torch_dtype"] = flat.pop("dtype", None)
    flat.pop("layer_types", None)
    return flat


def assert_round_trip(hf: Path, folder: Path) -> Path:
    """HF -> .nemo -> HF keeps every bit and config.json; return the .nemo."""
    nemo, back = folder / "m.nemo", folder / "back"
    convert(hf, nemo, reporter=QUIET)
    export(nemo, back, reporter=QUIET)
    assert_same_tensors(back, hf)
    assert (back / "config.json").read_bytes() == (hf / "config.json").read_bytes()
    return nemo


def as_nemo_wrote_it(path: Path) -> Source:
    """Return an archive as if NeMo had made it: nothing in it remembers Hugging Face or us."""
    source = open_source(path)
    config = {k: v for k, v in source.config.items() if k != "nemoalign"}
    return replace(
        source,
        config=config,
        stored_config=config,
        family=family_for_nemo(config),
        files={},
        hf_config=None,
    )


def assert_export_without_memory(nemo: Path, hf: Path, folder: Path) -> None:
    """An archive of NeMo's own becomes a model of the same logits, from model_config.yaml alone."""
    source = as_nemo_wrote_it(nemo)
    write_hf(source, folder, WriteOptions(), QUIET)
    ids = tokens()
    assert np.abs(logits_of(folder, ids) - logits_of(hf, ids)).max() < TOLERANCE


def tokens(length: int = 24) -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(3))


def megatron_logits(
    path: Path, ids: torch.Tensor, layout: ParallelLayout | None = None
) -> np.ndarray:
    """Return what our megatron-core model computes with a checkpoint: this rank's columns, in fp32."""
    source, layout = open_source(path), layout or ParallelLayout(1)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with start(layout, seed=1), torch.no_grad():
        (model,) = build_model(
            source.arch, source.vocab_size, layout, precision="fp32", settings=ModelSettings()
        )
        load_weights([model], source.weights, source.arch, layout, source.vocab_size)
        batch = SimpleNamespace(tokens=ids, labels=ids, position_ids=positions)
        return forward_logits(model.eval(), batch).numpy()


def assert_same_logits(nemo: Path, hf: Path) -> None:
    """megatron-core with the .nemo computes what transformers computes with the original."""
    ids = tokens()
    ours = megatron_logits(nemo, ids)[..., :VOCAB]
    assert np.abs(ours - logits_of(hf, ids)).max() < TOLERANCE
