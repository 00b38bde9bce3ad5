"""The optimizer's state travels with the weights, cut alike; torch and megatron-core read it."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import DistWriter
from nemoalign.archive.files import open_container
from nemoalign.archive.tar import TarWriter
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.checkpoint.targets.optimizer import optimizer_of
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.errors import ConfigError, ContentError, NemoAlignError
from nemoalign.log import PlainReporter
from tests.checkpoint.models import FIXTURES
from tests.checkpoint.test_convert import MCORE_LOAD

RUN = FIXTURES / "plckpt_dist"


def with_torch(folder):
    """Read every tensor of a distributed checkpoint with torch's own reader."""
    known = FileSystemReader(folder).read_metadata().state_dict_metadata
    sizes = {key: entry for key, entry in known.items() if hasattr(entry, "size")}
    state = {key: torch.empty(e.size, dtype=e.properties.dtype) for key, e in sizes.items()}
    load(state, checkpoint_id=folder, no_dist=True)
    return state


@pytest.fixture(scope="module")
def resharded(tmp_path_factory):
    """The run's checkpoint for four pipeline stages of one rank, unpacked."""
    folder = tmp_path_factory.mktemp("resharded")
    options = ReshardOptions(tp=1, pp=4, with_optimizer=True)
    reshard(RUN, folder / "m.nemo", options, reporter=PlainReporter(quiet=True))
    with tarfile.open(folder / "m.nemo") as tar:
        tar.extractall(folder, filter="data")
    return folder


def source_folder():
    path = open_source(RUN).path
    return path if (path / ".metadata").exists() else path / "model_weights"


def test_moments_of_nemos_own_run_are_kept_bit_for_bit(resharded):
    ours, theirs = with_torch(resharded / "model_weights"), with_torch(source_folder())
    assert ours.keys() == theirs.keys()
    assert sum(key.startswith("optimizer.state.exp_avg") for key in ours) == 18
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_steps_and_parameter_groups_are_the_same_file(resharded):
    common = (resharded / "model_weights/common.pt").read_bytes()
    assert common == (source_folder() / "common.pt").read_bytes()


def test_moments_are_cut_and_padded_as_their_weights(tmp_path, quiet):
    """A vocabulary of 509 tokens is 512 rows for two ranks; padding rows have no moments."""
    options = ReshardOptions(tp=2, with_optimizer=True)
    source = copy_with_vocabulary(tmp_path / "run", 509)
    reshard(source, tmp_path / "m.nemo", options, reporter=quiet)
    store = DistStore(open_container(tmp_path / "m.nemo").under("model_weights"))
    key = "decoder.layers.mlp.linear_fc1.weight"
    assert store.chunks(f"optimizer.state.exp_avg.model.{key}") == store.chunks(f"model.{key}")
    table = store.read("optimizer.state.exp_avg_sq.model.embedding.word_embeddings.weight")
    assert table[:509].any()
    assert not table[509:].any()


def copy_with_vocabulary(folder, tokens):
    """Return the checkpoint as an unpacked archive that records its vocabulary."""
    config = open_source(RUN).config | {"nemoalign": {"vocab_size": tokens}}
    shutil.copytree(source_folder(), folder / "model_weights")
    (folder / "model_config.yaml").write_text(dump_checkpoint_config(config))
    (folder / "progress.json").write_text('{"step": 5}')
    return folder


def test_how_far_the_run_came_is_carried_along(tmp_path, quiet):
    source = copy_with_vocabulary(tmp_path / "run", 512)
    options = ReshardOptions(tp=2, with_optimizer=True)
    reshard(source, tmp_path / "m.nemo", options, reporter=quiet)
    assert open_container(tmp_path / "m.nemo").member("progress.json").read(100) == b'{"step": 5}'


@pytest.mark.parametrize("name", ["llama.nemo", "gpt_tp2pp2_ranks.nemo", "hf_llama"])
def test_a_model_without_its_optimizer_is_refused(name, tmp_path, quiet):
    options = ReshardOptions(tp=1, with_optimizer=True)
    with pytest.raises(ContentError, match="has no optimizer state"):
        reshard(FIXTURES / name, tmp_path / "m.nemo", options, reporter=quiet)
    assert not list(tmp_path.iterdir())


def test_rank_files_hold_no_optimizer(tmp_path, quiet):
    options = ReshardOptions(tp=1, with_optimizer=True, format="ranks")
    with pytest.raises(ConfigError, match="--format dist"):
        reshard(RUN, tmp_path / "m.nemo", options, reporter=quiet)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("optimizer.distributed.dp_group_idx_0.gbuf_idx_0.bucket_idx_0.exp_avg", (64,)),
        ("optimizer.state.exp_avg.model.decoder.final_layernorm.weight", (32,)),
    ],
)
def test_a_flattened_optimizer_is_refused_by_name(key, shape, tmp_path):
    """Buffers of megatron-core's distributed optimizer, or moments of another shape than weights."""
    store = DistStore(open_container(source_folder()))
    config = open_source(RUN).config
    with TarWriter(tmp_path / "flat.nemo") as tar:
        tar.add_bytes("model_config.yaml", dump_checkpoint_config(config).encode())
        with DistWriter(tar) as writer:
            for name, info in store.tensors.items():
                if not name.startswith("optimizer."):
                    zeros = (0,) * len(info.shape)
                    writer.add(name, info.shape, zeros, store.read(name), info.dtype)
            writer.add(key, shape, (0,), torch.zeros(shape).numpy(), "float32")
    with pytest.raises(ContentError, match="flattened over the ranks"):
        optimizer_of(open_source(tmp_path / "flat.nemo"))


def test_a_hostile_common_file_is_not_passed_on(tmp_path, quiet):
    source = copy_with_vocabulary(tmp_path / "run", 512)

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"x": Evil()}, source / "model_weights/common.pt", pickle_module=pickle)
    options = ReshardOptions(tp=2, with_optimizer=True)
    with pytest.raises(NemoAlignError, match="print"):
        reshard(source, tmp_path / "m.nemo", options, reporter=quiet)
    assert not (tmp_path / "m.nemo").exists()


@pytest.mark.slow
def test_megatron_core_loads_weights_and_moments_strictly(resharded, tmp_path):
    """Without NeMo's own common.pt, whose DictConfig torch refuses, in the source as well."""
    folder, result = tmp_path / "model_weights", tmp_path / "loaded.pt"
    shutil.copytree(resharded / "model_weights", folder)
    torch.save({}, folder / "common.pt")
    command = [sys.executable, "-c", MCORE_LOAD, folder, result]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    loaded, expected = torch.load(result, weights_only=True), with_torch(source_folder())
    for key, tensor in expected.items():
        assert torch.equal(loaded[key], tensor), key
