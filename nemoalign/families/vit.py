"""NeMo's ViT classifier of the first generation and Hugging Face's ``ViTForImageClassification``."""

from nemoalign.weights.config_rules import Field
from nemoalign.weights.vit_rules import PackHeads, Patches, Same, VitFamily, VitRule

FAMILY = VitFamily(
    name="vit",
    hf_architecture="ViTForImageClassification",
    hf_model_type="vit",
    weights=(
        VitRule("backbone.cls_token", "vit.embeddings.cls_token"),
        VitRule(
            "backbone.linear_encoder.weight",
            "vit.embeddings.patch_embeddings.projection.weight",
            Patches(),
        ),
        VitRule("backbone.linear_encoder.bias", "vit.embeddings.patch_embeddings.projection.bias"),
        VitRule(
            "backbone.position_embeddings.weight",
            "vit.embeddings.position_embeddings",
            Same(lead=True),
        ),
        VitRule(
            "backbone.transformer.layers.{i}.input_layernorm.weight",
            "vit.encoder.layer.{i}.layernorm_before.weight",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.input_layernorm.bias",
            "vit.encoder.layer.{i}.layernorm_before.bias",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.self_attention.query_key_value.weight",
            (
                "vit.encoder.layer.{i}.attention.attention.query.weight",
                "vit.encoder.layer.{i}.attention.attention.key.weight",
                "vit.encoder.layer.{i}.attention.attention.value.weight",
            ),
            PackHeads(),
        ),
        VitRule(
            "backbone.transformer.layers.{i}.self_attention.query_key_value.bias",
            (
                "vit.encoder.layer.{i}.attention.attention.query.bias",
                "vit.encoder.layer.{i}.attention.attention.key.bias",
                "vit.encoder.layer.{i}.attention.attention.value.bias",
            ),
            PackHeads(),
        ),
        VitRule(
            "backbone.transformer.layers.{i}.self_attention.dense.weight",
            "vit.encoder.layer.{i}.attention.output.dense.weight",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.self_attention.dense.bias",
            "vit.encoder.layer.{i}.attention.output.dense.bias",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.post_attention_layernorm.weight",
            "vit.encoder.layer.{i}.layernorm_after.weight",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.post_attention_layernorm.bias",
            "vit.encoder.layer.{i}.layernorm_after.bias",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.mlp.dense_h_to_4h.weight",
            "vit.encoder.layer.{i}.intermediate.dense.weight",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.mlp.dense_h_to_4h.bias",
            "vit.encoder.layer.{i}.intermediate.dense.bias",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.mlp.dense_4h_to_h.weight",
            "vit.encoder.layer.{i}.output.dense.weight",
        ),
        VitRule(
            "backbone.transformer.layers.{i}.mlp.dense_4h_to_h.bias",
            "vit.encoder.layer.{i}.output.dense.bias",
        ),
        VitRule("backbone.transformer.final_layernorm.weight", "vit.layernorm.weight"),
        VitRule("backbone.transformer.final_layernorm.bias", "vit.layernorm.bias"),
        VitRule("head.weight", "classifier.weight"),
        VitRule("head.bias", "classifier.bias"),
    ),
    config=(
        Field("num_layers", "num_hidden_layers", 12),
        Field("hidden_size", "hidden_size", 768),
        Field("ffn_hidden_size", "intermediate_size", 3072),
        Field("num_attention_heads", "num_attention_heads", 12),
        Field("num_channels", "num_channels", 3),
        Field("patch_dim", "patch_size", 16),
        Field("layernorm_epsilon", "layer_norm_eps", 1e-12),
        Field("init_method_std", "initializer_range", 0.02),
        Field("hidden_dropout", "hidden_dropout_prob", 0.0),
        Field("attention_dropout", "attention_probs_dropout_prob", 0.0),
    ),
)
