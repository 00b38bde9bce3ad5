"""What of a learner goes into a checkpoint, and what is believed of one that comes back."""

import pytest
import torch
from megatron.core import dist_checkpointing

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.errors import SourceError
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.sharded import load_sharded, sharded_state
from tests.train import bench

SETUP = bench.Setup(ParallelLayout(1), lora=LoraSettings(adapter_dim=2))


@pytest.fixture(scope="module")
def learner():
    with bench.learner(SETUP) as made:
        made.step(bench.batches(), 1e-2)
        yield made


@pytest.fixture
def weights(learner, tmp_path):
    dist_checkpointing.save(sharded_state(learner, adapters_only=True), str(tmp_path))
    return tmp_path


def test_an_adapter_checkpoint_holds_no_base_weights(weights) -> None:
    store = DistStore(open_container(weights))
    assert all("adapter_layer" in name for name in store.tensors)
    assert any(name.startswith("model.") for name in store.tensors)
    assert any(name.startswith("optimizer.") for name in store.tensors)


def test_weights_and_moments_come_back_as_they_were(learner, weights) -> None:
    def everything():
        inner = learner.optimizer.optimizer
        trained = [p for group in inner.param_groups for p in group["params"]]
        moments = [inner.state[p][name] for p in trained for name in ("exp_avg", "exp_avg_sq")]
        return [*learner.modules[0].parameters(), *moments]

    before = [tensor.clone() for tensor in everything()]
    learner.step(bench.batches(seed=5), 1e-2)
    assert not all(map(torch.equal, before, everything()))
    load_sharded(learner, weights, adapters_only=True)
    assert all(map(torch.equal, before, everything()))


def test_a_hostile_pickle_is_refused_before_megatron_reads_it(learner, weights) -> None:
    (weights / ".metadata").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(SourceError, match="system"):
        load_sharded(learner, weights, adapters_only=True)


def test_a_checkpoint_without_the_number_of_updates_is_refused_in_words(learner, weights) -> None:
    common = torch.load(weights / "common.pt", weights_only=False)
    del common["updates"]
    torch.save(common, weights / "common.pt")
    with pytest.raises(SourceError, match="of an earlier nemoalign"):
        load_sharded(learner, weights, adapters_only=True)
