"""Files of a ViT as NeMo writes them: what torch reads in each rank's file is the slice it needs."""

import io
import json
import tarfile

import pytest
import torch
import yaml

from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.checkpoint.vit.nemo_target import write_vit_nemo
from nemoalign.cli import app
from nemoalign.errors import ConfigError, VerificationError
from tests.checkpoint.models import BitFlip
from tests.checkpoint.vits import (
    NEMO_VIT,
    assert_same,
    fixture_config,
    fixture_state,
    save_hf,
    save_nemo,
    sliced,
    values_of,
)
from tests.cli.running import run


def ranks_of(path) -> dict[str, dict[str, torch.Tensor]]:
    """Return what torch, allowed to build tensors only, reads from every file of weights."""
    with tarfile.open(path) as tar:
        return {
            name.removeprefix("./"): torch.load(
                io.BytesIO(tar.extractfile(name).read()), weights_only=True
            )
            for name in tar.getnames()
            if name.endswith("model_weights.ckpt")
        }


def config_of(path) -> dict:
    with tarfile.open(path) as tar:
        return yaml.safe_load(tar.extractfile("./model_config.yaml").read())


def test_two_ranks_and_back_keep_every_bit(tmp_path):
    two, one = tmp_path / "two.nemo", tmp_path / "one.nemo"
    ended = run("reshard", NEMO_VIT, "-o", two, "--tp", 2)
    assert ended.code == 0, ended.err
    assert not {"torch", "transformers", "megatron"} & ended.modules
    state = fixture_state()
    files = ranks_of(two)
    assert list(files) == [f"mp_rank_0{rank}/model_weights.ckpt" for rank in range(2)]
    for rank, found in enumerate(files.values()):
        assert found.keys() == {f"model.{name}" for name in state}
        for name, tensor in state.items():
            assert torch.equal(found[f"model.{name}"], sliced(tensor, name, rank)), name
    assert config_of(two) | {"nemoalign": None} == fixture_config() | {
        "tensor_model_parallel_size": 2,
        "nemoalign": None,
    }
    assert app.run(["reshard", str(two), "-o", str(one), "--tp", "1"]) == 0
    assert list(ranks_of(one)) == ["model_weights.ckpt"]
    assert_same(values_of(one), state)
    for path in (one, two):
        assert app.run(["inspect", str(path), "--check"]) == 0


@pytest.mark.parametrize(
    ("changes", "gated", "extra"),
    [
        ({"activation": "geglu"}, (128,), "dense_h_to_4h_2"),
        ({"activation": "fast-geglu"}, (256,), None),
        ({"layerscale": True}, None, None),
    ],
)
def test_whatever_nemo_can_build_can_be_resharded(tmp_path, quiet, changes, gated, extra):
    torch.manual_seed(0)
    state = fixture_state()
    for layer in range(2):
        head = f"backbone.transformer.layers.{layer}"
        if gated:
            name = f"{head}.mlp.{extra or 'dense_h_to_4h'}"
            state |= {f"{name}.weight": torch.randn(*gated, 64), f"{name}.bias": torch.randn(gated)}
        else:
            for scale in ("post_attention", "post_mlp"):
                state[f"{head}.{scale}_layerscale.gamma"] = torch.randn(64)
    source = open_checkpoint(save_nemo(tmp_path / "m.nemo", state, **changes))
    write_vit_nemo(source, tmp_path / "two.nemo", WriteOptions(), quiet, tp=2)
    if changes["activation" if gated else "layerscale"] == "fast-geglu":
        bias = state["backbone.transformer.layers.1.mlp.dense_h_to_4h.bias"]
        found = ranks_of(tmp_path / "two.nemo")["mp_rank_01/model_weights.ckpt"]
        halves = torch.cat([bias[64:128], bias[192:]])  # gate rows and up rows of the second rank
        key = "model.backbone.transformer.layers.1.mlp.dense_h_to_4h.bias"
        assert torch.equal(found[key], halves)
    two = open_checkpoint(tmp_path / "two.nemo")
    write_vit_nemo(two, tmp_path / "one.nemo", WriteOptions(), quiet)
    assert_same(values_of(tmp_path / "one.nemo"), state)


def test_the_report_and_the_manifest_state_every_sum(tmp_path, quiet):
    target = tmp_path / "m.nemo"
    report = write_vit_nemo(open_checkpoint(NEMO_VIT), target, WriteOptions(), quiet, tp=2)
    assert json.loads((tmp_path / "m.nemo.conversion.json").read_text()) == report
    with tarfile.open(target) as tar:
        manifest = json.loads(tar.extractfile("./nemoalign_manifest.json").read())
    stated = {
        f"{file}:{key}": crc
        for file, sums in manifest["files"].items()
        for key, crc in sums.items()
    }
    reported = {
        place: crc
        for row in report["tensors"]
        for place, crc in zip(row["target"], row["crc32"], strict=True)
    }
    assert reported == stated
    assert len(stated) == 2 * len(fixture_state())


def test_the_element_type_can_be_changed(tmp_path, quiet):
    target = tmp_path / "m.nemo"
    write_vit_nemo(open_checkpoint(NEMO_VIT), target, WriteOptions(dtype="bf16"), quiet)
    (state,) = ranks_of(target).values()
    assert torch.equal(state["model.head.weight"], fixture_state()["head.weight"].bfloat16())
    assert config_of(target)["precision"] == "bf16"


def test_what_came_from_hugging_face_keeps_its_files(tmp_path, quiet):
    folder = save_hf(tmp_path / "hf")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    target = tmp_path / "m.nemo"
    write_vit_nemo(open_checkpoint(folder), target, WriteOptions(), quiet)
    with tarfile.open(target) as tar:
        kept = tar.extractfile("./hf/preprocessor_config.json").read()
    assert kept == (folder / "preprocessor_config.json").read_bytes()
    assert config_of(target)["nemoalign"]["original_dtype"] == "float32"


def test_settings_of_ours_may_hold_anything(tmp_path, quiet):
    source = open_checkpoint(save_nemo(tmp_path / "m.nemo", fixture_state(), nemoalign="text"))
    write_vit_nemo(source, tmp_path / "out.nemo", WriteOptions(), quiet)
    assert config_of(tmp_path / "out.nemo")["nemoalign"]["family"] == "vit"


def test_a_size_that_cuts_a_head_is_refused(tmp_path, quiet):
    with pytest.raises(ConfigError, match="use --tp 1, 2 or 4"):
        write_vit_nemo(open_checkpoint(NEMO_VIT), tmp_path / "m.nemo", WriteOptions(), quiet, tp=3)


def test_bytes_that_change_after_writing_fail_the_command(tmp_path):
    source = open_checkpoint(NEMO_VIT)
    with pytest.raises(VerificationError):
        write_vit_nemo(source, tmp_path / "m.nemo", WriteOptions(), BitFlip(tmp_path), tp=2)
    assert not list(tmp_path.iterdir())
