"""What is written for NeMo 2: the same bits, the same model, and a context that both files state."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.validation import StrictHandling

from nemoalign.archive.files import open_container
from nemoalign.checkpoint.check import check
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.nemo2_context import read_model_tree, short_name
from nemoalign.errors import ContentError, VerificationError
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.checkpoint.mcore import HF
from tests.checkpoint.models import FIXTURES, BitFlip
from tests.fixtures.make_mcore import hf_model, mcore_model, packed


def assert_same_weights(left, right):
    assert left.weights.tensors == right.weights.tensors
    for name in right.weights.tensors:
        ours, theirs = left.weights.read(name), right.weights.read(name)
        np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8), err_msg=name)


@pytest.mark.parametrize(
    "name",
    ["llama.nemo", "gpt_tp1_dist.nemo", "llama_tp2_ranks.nemo", "hf_llama", "mixtral_ep2_dist"],
)
def test_there_and_back_every_bit_and_every_setting_is_kept(name, tmp_path, quiet):
    direct, there, back = tmp_path / "direct.nemo", tmp_path / "n2", tmp_path / "back.nemo"
    convert(FIXTURES / name, direct, reporter=quiet)
    convert(direct, there, to="nemo2", reporter=quiet)
    convert(there, back, reporter=quiet)
    one, two = open_source(direct), open_source(back)
    assert_same_weights(two, one)
    assert two.stored_config == one.stored_config
    assert two.vocab_size == one.vocab_size
    contents = [{n: r.read(1 << 24) for n, r in s.files.items()} for s in (one, two)]
    assert contents[0] == contents[1]


def test_megatron_core_loads_every_tensor_and_leaves_none(tmp_path, quiet):
    convert(HF, tmp_path / "n2", to="nemo2", reporter=quiet)
    with start(ParallelLayout(1), seed=1):
        model = mcore_model()
        sharded = {
            name: tensor
            for name, tensor in model.sharded_state_dict(prefix="module.").items()
            if not name.endswith("_extra_state")
        }
        loaded = dist_checkpointing.load(
            sharded, str(tmp_path / "n2" / "weights"), strict=StrictHandling.RAISE_UNEXPECTED
        )
    for name, tensor in packed(hf_model()).items():
        assert torch.equal(loaded[f"module.{name}"], tensor), name


def test_both_files_of_the_context_describe_the_same_model(tmp_path, quiet):
    convert(FIXTURES / "llama.nemo", tmp_path / "n2", to="nemo2", reporter=quiet)
    context = open_container(tmp_path / "n2" / "context")
    whole, _ = read_model_tree(context)
    (tmp_path / "n2" / "context" / "model.yaml").unlink()
    given, _ = read_model_tree(open_container(tmp_path / "n2" / "context"))
    assert short_name(given["config"]["activation_func"]) == "silu"
    for function in ("activation_func", "params_dtype"):
        del whole["config"][function]["_call_"]
    assert given == whole
    assert whole["_target_"] == "nemo.collections.llm.gpt.model.llama.LlamaModel"
    assert whole["tokenizer"]["model_path"].endswith("_tokenizer.model")


def test_io_json_alone_serves_where_it_states_every_value(tmp_path, quiet):
    """Ours does; what a class decides by itself is not guessed."""
    convert(HF, tmp_path / "n2", to="nemo2", reporter=quiet)
    context = tmp_path / "n2" / "context"
    for name in ("model.yaml", "model_config.yaml"):
        (context / name).unlink()
    assert open_source(tmp_path / "n2").arch == open_source(HF).arch
    content = (context / "io.json").read_text()
    (context / "io.json").write_text(
        content.replace("Attr(name='normalization')", "Attr(name='x')")
    )
    with pytest.raises(ContentError, match=r"it lacks normalization\."):
        open_source(tmp_path / "n2")


def test_the_description_is_fiddles(tmp_path, quiet):
    """Every kind of node that fiddle's own file has is written with the same keys."""
    convert(FIXTURES / "llama.nemo", tmp_path / "n2", to="nemo2", reporter=quiet)
    ours = json.loads((tmp_path / "n2" / "context" / "io.json").read_text())
    theirs = json.loads((FIXTURES / "fiddle_io.json").read_text())
    assert ours.keys() == theirs.keys()
    (root,) = (o for o in ours["objects"].values() if o["paths"] == ["<root>"])
    assert root.keys() == theirs["objects"]["ctx_1"].keys()
    assert root["type"] == theirs["objects"]["ctx_1"]["type"]
    names = [path for path, _ in root["metadata"]["items"]]
    genuine = theirs["objects"]["buildable_traverser_metadata_1"]
    assert names == [path for path, _ in genuine["items"]]
    assert root["metadata"]["metadata"] == genuine["metadata"]
    paths = [path for o in ours["objects"].values() for path in o["paths"]]
    assert {"<root>.model", "<root>.model.config", "<root>.model.tokenizer"} <= set(paths)


def test_its_check_finds_a_flipped_byte(tmp_path, quiet):
    convert(FIXTURES / "hf_llama", tmp_path / "n2", to="nemo2", reporter=quiet)
    assert check(tmp_path / "n2", quiet)["intact"]
    data = tmp_path / "n2" / "weights" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert not check(tmp_path / "n2", quiet)["intact"]


def test_bytes_that_change_after_writing_fail_the_conversion(tmp_path):
    with pytest.raises(VerificationError):
        convert(FIXTURES / "hf_llama", tmp_path / "n2", to="nemo2", reporter=BitFlip(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_description_that_contradicts_the_kept_settings_is_refused(tmp_path, quiet):
    convert(HF, tmp_path / "n2", to="nemo2", reporter=quiet)
    path = tmp_path / "n2" / "context" / "model.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["config"]["rotary_base"] = 1e6
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ContentError, match=r"means rotary_base 50000\.0, but model.yaml"):
        open_source(tmp_path / "n2")
    (tmp_path / "n2" / "context" / "model_config.yaml").unlink()
    assert open_source(tmp_path / "n2").arch.rotary_base == 1e6
