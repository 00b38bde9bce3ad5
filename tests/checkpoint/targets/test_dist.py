"""How a tensor becomes the chunks that megatron-core itself would have written."""

from __future__ import annotations

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.targets.dist import runs_of
from tests.checkpoint.models import FIXTURES


def test_gated_matrices_are_written_as_gate_and_up_without_a_copy():
    source = open_source(FIXTURES / "hf_llama")
    runs = runs_of(source, "decoder.layers.0.mlp.linear_fc1.weight")
    assert [run.shape for run in runs] == [(128, 64), (128, 64)]
    assert not any(run.flags.owndata for run in runs)
