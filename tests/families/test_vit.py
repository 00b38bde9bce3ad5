"""The ViT family covers every tensor that transformers saves, under the very names on disk."""

from safetensors import safe_open

from nemoalign.config.vit import VitArchitecture
from nemoalign.families.registry import families
from nemoalign.families.vit import FAMILY
from nemoalign.weights.vit_rules import vit_plans
from tests.checkpoint.vits import save_hf
from tests.config.test_vit import EXAMPLE


def test_every_tensor_transformers_saves_has_a_rule(tmp_path):
    save_hf(tmp_path / "hf")
    with safe_open(tmp_path / "hf/model.safetensors", "np") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
    sizes = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
    images = {"img_h": 16, "img_w": 16, "patch_dim": 4, "num_classes": 5}
    arch = VitArchitecture.from_nemo(
        EXAMPLE | sizes | images | {"class_token_length": 1, "finetune": True}
    )
    expected: dict[str, tuple[int, ...]] = {}
    for plan in vit_plans(FAMILY, arch):
        expected |= dict(zip(plan.hf_names, plan.op.hf_shapes(plan.shape, arch), strict=True))
    assert expected == saved


def test_it_is_no_language_model():
    assert "vit" not in [family.name for family in families()]
