"""The operations between the two spellings, against torch and against their own inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemoalign.config.vit import VitArchitecture
from nemoalign.errors import ContentError
from nemoalign.families.vit import FAMILY
from nemoalign.weights.vit_rules import PackHeads, Patches, Same, vit_plans
from tests.config.test_vit import EXAMPLE


def arch_of(heads: int, width: int, patch: int, channels: int) -> VitArchitecture:
    sizes = {"num_attention_heads": heads, "hidden_size": heads * width, "patch_dim": patch}
    side = {"img_h": patch, "img_w": patch, "num_channels": channels}
    return VitArchitecture.from_nemo(EXAMPLE | sizes | side)


SMALL = st.integers(1, 4)


@settings(max_examples=30)
@given(SMALL, SMALL, SMALL, SMALL, st.sampled_from(["uint16", "float32"]))
def test_every_operation_is_undone_by_its_inverse(heads, width, patch, channels, kind):
    arch = arch_of(heads, width, patch, channels)
    hidden = arch.hidden_size
    random = np.random.default_rng(0)
    for op, shape in (
        (Same(lead=True), (5, hidden)),
        (Patches(), (hidden, patch * patch * channels)),
        (PackHeads(), (3 * hidden, hidden)),
        (PackHeads(), (3 * hidden,)),
    ):
        array = random.integers(0, 60000, shape).astype(kind)
        parts = op.to_hf(array, arch)
        assert tuple(part.shape for part in parts) == op.hf_shapes(shape, arch)
        back = op.to_nemo(parts, arch)
        assert back.shape == shape
        assert np.array_equal(back, array)


def test_a_linear_layer_over_patches_is_the_convolution():
    """NeMo 1.23 flattens a patch as (row, column, channel) before its linear layer."""
    arch = arch_of(2, 4, 3, 2)
    conv = torch.randn(8, 2, 3, 3)
    pixels = torch.randn(1, 2, 6, 9)
    expected = torch.nn.functional.conv2d(pixels, conv, stride=3).flatten(2).transpose(1, 2)
    patches = pixels.view(1, 2, 2, 3, 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(1, 6, 18)
    linear = torch.from_numpy(Patches().to_nemo([conv.numpy()], arch))
    assert torch.allclose(patches @ linear.T, expected, atol=1e-5)


def test_heads_are_packed_as_query_key_value_of_each_head():
    arch = arch_of(2, 3, 1, 1)
    q, k, v = (np.arange(6) + start for start in (0, 100, 200))
    packed = PackHeads().to_nemo([q, k, v], arch)
    assert packed.tolist() == [
        *(0, 1, 2, 100, 101, 102, 200, 201, 202),
        *(3, 4, 5, 103, 104, 105, 203, 204, 205),
    ]


def test_a_tensor_hugging_face_lacks_is_named():
    with pytest.raises(ContentError, match=r"head\.dense_in\.weight"):
        vit_plans(FAMILY, VitArchitecture.from_nemo(EXAMPLE))
