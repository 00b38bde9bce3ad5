"""NeMo's adapters beside Hugging Face's modules, and the words PEFT finds modules by."""

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.settings.peft_layers import lora_layers, short_targets
from tests.checkpoint.models import FIXTURES


def layers():
    source = open_source(FIXTURES / "hf_llama")
    return lora_layers(source.family, source.arch)


def test_each_fused_weight_has_its_modules_rows_and_target():
    found = {layer.weight: layer for layer in layers()}
    assert len(found) == 4 * 4
    qkv = found["decoder.layers.2.self_attention.linear_qkv.weight"]
    prefix = "model.layers.2.self_attn."
    assert qkv.modules == tuple(f"{prefix}{name}_proj" for name in "qkv")
    assert (qkv.rows, qkv.columns, qkv.target) == ((64, 32, 32), 64, "attention_qkv")
    lora = "decoder.layers.2.self_attention.adapter_layer."
    assert qkv.adapter == f"{lora}lora_kqv_adapter"
    assert qkv.parts[1] == f"{lora}lora_unfused_kqv_adapter.k_adapter"
    down = found["decoder.layers.0.mlp.linear_fc2.weight"]
    assert (down.parts, down.modules) == ((), ("model.layers.0.mlp.down_proj",))


def test_a_word_stands_for_every_layer_and_names_nothing_else():
    modules = {m for layer in layers() for m in layer.modules}
    down = {m for m in modules if "down" in m}
    assert short_targets(layers(), down) == ["down_proj"]
    some = {m for m in down if ".1." in m}
    assert short_targets(layers(), some) == ["1.mlp.down_proj"]
