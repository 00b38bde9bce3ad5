"""Archives written by NVIDIA's own code, exported, give the logits that code computed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import sentencepiece
from transformers import AutoTokenizer

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import export
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ContentError, SourceError
from tests.checkpoint.models import FIXTURES, assert_same_tensors, logits_of

TOLERANCE = 2e-5
"""Of the fixtures' own manifest."""


def assert_logits(folder, name, vocab, tolerance=TOLERANCE):
    stored = np.load(FIXTURES / name)
    found = logits_of(folder, stored["input_ids"])
    assert found.shape[-1] == vocab
    assert np.abs(found - stored["logits"][..., :vocab]).max() < tolerance


@pytest.mark.parametrize(
    "archive",
    ["llama.nemo", "llama_tp2_ranks.nemo", "llama_tp1_zarr.nemo", "chatsft_tp1_file.nemo"],
)
def test_every_layout_of_one_model_exports_to_the_model_nemo_was_given(archive, tmp_path, quiet):
    export(FIXTURES / archive, tmp_path / "hf", reporter=quiet)
    assert_same_tensors(tmp_path / "hf", FIXTURES / "hf_llama")
    assert_logits(tmp_path / "hf", "llama_logits.npz", 512)


def test_wide_heads_and_stretched_positions_give_nemos_logits(tmp_path, quiet):
    """kv_channels 32 with 4 heads of a width of 64, rotary base 50000, interpolation factor 2."""
    export(FIXTURES / "llhf_dist_dir", tmp_path / "hf", reporter=quiet)
    assert_logits(tmp_path / "hf", "llhf_logits.npz", 640)


def test_a_llama_from_before_megatron_core_gives_nemos_logits(tmp_path, quiet):
    """Directly, and by way of today's form."""
    original = FIXTURES / "legacyllama_tp1_file.nemo"
    convert(original, tmp_path / "upgraded.nemo", reporter=quiet)
    for source, target in ((original, "direct"), (tmp_path / "upgraded.nemo", "upgraded")):
        export(source, tmp_path / target, reporter=quiet)
        assert_logits(tmp_path / target, "legacyllama_logits.npz", 512)
    assert open_source(tmp_path / "upgraded.nemo").layout == "torch_dist"
    assert open_source(tmp_path / "upgraded.nemo").stored_config["mcore_gpt"] is True


def test_a_gpt_from_before_megatron_core_gives_nemos_logits(tmp_path, quiet):
    """Layer norms, biases and learned positions; NeMo computed in bf16, hence its tolerance."""
    export(FIXTURES / "legacygptO2_tp1_file.nemo", tmp_path / "hf", reporter=quiet)
    assert_logits(tmp_path / "hf", "legacygptO2_logits.npz", 519, tolerance=0.06)


def test_an_adapter_is_merged_into_a_base_with_nemos_result(tmp_path, quiet):
    export(
        FIXTURES / "llama_tp2_ranks.nemo",
        tmp_path / "hf",
        adapter=FIXTURES / "lora_tp1.nemo",
        reporter=quiet,
    )
    assert_logits(tmp_path / "hf", "lora_tp1_logits.npz", 512)


def test_an_adapter_finds_its_recorded_base_beside_itself(tmp_path, quiet):
    """The fixture records restore_from_path: base.nemo."""
    shutil.copy(FIXTURES / "lora_tp1.nemo", tmp_path / "lora.nemo")
    shutil.copy(FIXTURES / "llama.nemo", tmp_path / "base.nemo")
    export(tmp_path / "lora.nemo", tmp_path / "hf", reporter=quiet)
    assert_logits(tmp_path / "hf", "lora_tp1_logits.npz", 512)


def test_an_adapter_without_its_base_says_what_to_type(tmp_path, quiet):
    with pytest.raises(SourceError, match=r"nemoalign export BASE --adapter .*lora_tp1.nemo -o"):
        export(FIXTURES / "lora_tp1.nemo", tmp_path / "hf", reporter=quiet)


def test_a_whole_model_given_as_adapter_is_refused(tmp_path, quiet):
    with pytest.raises(ContentError, match="holds no LoRA adapter"):
        export(
            FIXTURES / "llama.nemo",
            tmp_path / "hf",
            adapter=FIXTURES / "llama.nemo",
            reporter=quiet,
        )


def test_an_adapter_of_another_model_is_refused(hf_llama, tmp_path, quiet):
    with pytest.raises(ContentError, match="belong to different models"):
        export(hf_llama, tmp_path / "hf", adapter=FIXTURES / "lora_tp1.nemo", reporter=quiet)
    assert not list(tmp_path.iterdir())


def test_a_family_hugging_face_lacks_is_refused_with_what_differs(tmp_path, quiet):
    with pytest.raises(ContentError, match=r"gpt2, differs in heads_per_group: 2\."):
        export(FIXTURES / "gpt_tp1_dist.nemo", tmp_path / "hf", reporter=quiet)


def test_the_tokenizer_of_a_nemo_archive_comes_as_hugging_face_files(tmp_path, quiet):
    export(FIXTURES / "llama.nemo", tmp_path / "hf", reporter=quiet)
    model = sentencepiece.SentencePieceProcessor(str(tmp_path / "hf/tokenizer.model"))
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    config = json.loads((tmp_path / "hf/config.json").read_text())
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "  The cat\nsat on 3 mats, café 日本  "
    assert loaded(text).input_ids == [model.bos_id(), *model.encode(text)]
    assert loaded(text, add_special_tokens=False).input_ids == model.encode(text)
    for name, token_id in (("bos", model.bos_id()), ("eos", model.eos_id())):
        assert settings[f"{name}_token"] == model.id_to_piece(token_id)
        assert config[f"{name}_token_id"] == token_id


def test_the_prompt_template_of_a_fine_tuned_model_is_kept_in_the_report(tmp_path, quiet):
    report = export(FIXTURES / "chatsft_tp1_file.nemo", tmp_path / "hf", reporter=quiet)
    assert report["prompt_template"] == "{input} {output}"
    assert json.loads((tmp_path / "hf/conversion.json").read_text()) == report


def test_a_merged_model_keeps_the_template_it_was_tuned_with(tmp_path, quiet):
    from nemoalign.checkpoint.export import with_adapter

    base, adapter = (open_source(FIXTURES / n) for n in ("llama.nemo", "lora_tp1.nemo"))
    adapter.stored_config["data"]["train_ds"]["prompt_template"] = "Q: {input} A: {output}"
    merged = with_adapter(base, adapter, tmp_path)
    assert merged.config["data"]["train_ds"]["prompt_template"] == "Q: {input} A: {output}"
