"""What a configuration says of a ViT, and when it is another model's."""

import pytest

from nemoalign.checkpoint.open import open_checkpoint, open_source
from nemoalign.checkpoint.vit.source import is_vit
from nemoalign.errors import ContentError, ShapeError
from tests.checkpoint.vits import NEMO_VIT, fixture_config, fixture_state, save_nemo


def test_it_says_what_it_is():
    source = open_checkpoint(NEMO_VIT)
    assert source.parameters()["total"] == sum(t.numel() for t in fixture_state().values())
    words = "vit classifier of 10 classes, 2 layers of width 64, 16x16 images in patches of 4"
    assert words in source.describe()


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"class_token_length": 8}, ShapeError, r"cls_token.*\[1, 1, 64\].*\[1, 8, 64\]"),
        ({"finetune": False}, ContentError, 'holds "head.weight"'),
        ({"img_h": 32}, ShapeError, "NeMo would resize the positions"),
        ({"num_layers": 3}, ContentError, "layers.2"),
        ({"num_layers": 10**9}, ContentError, "which no model has"),
        ({"num_attention_heads": 5}, ContentError, "5 heads do not divide"),
        ({"img_w": 15}, ContentError, "16x15"),
        ({"position_embedding_type": "rope"}, ContentError, "rope"),
        ({"layerscale": True}, ContentError, "post_attention_layerscale"),
        ({"class_token_length": 0}, ContentError, "class_token_length 0"),
    ],
)
def test_a_configuration_of_another_model_is_refused(tmp_path, changes, error, sentence):
    path = save_nemo(tmp_path / "m.nemo", fixture_state(), **changes)
    with pytest.raises(error, match=sentence):
        open_checkpoint(path)


def test_commands_for_language_models_say_that_it_is_none():
    with pytest.raises(ContentError, match="image classifier"):
        open_source(NEMO_VIT)


def test_a_vit_is_known_by_its_class_or_its_settings():
    config = fixture_config()
    assert is_vit(config)
    assert is_vit(config | {"target": None})
    assert not is_vit(config | {"target": "nemo.x.MegatronCLIPModel"})
    assert not is_vit({"num_layers": 2})
