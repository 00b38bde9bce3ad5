"""A policy's value head goes on with its run, in any layout; what reads the policy never meets it."""

import numpy as np
import pytest

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.checkpoint.check import check
from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.log import PlainReporter
from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.checkpointing import WEIGHTS, Checkpointer, Contents
from nemoalign.train.progress import Progress
from nemoalign.train.rotation import Rotation, find_last
from tests.model import tiny
from tests.train import bench

ONE = ParallelLayout(1)
LORA = LoraSettings(adapter_dim=4, target_modules=("all",))
QUIET = PlainReporter(quiet=True)


def setup_of(layout, lora) -> bench.Setup:
    return bench.Setup(layout, lora=lora, value_head=True, algorithm=bench.Valued(None))


def checkpointer(directory, learner, lora) -> Checkpointer:
    fields = vars(tiny.architecture(tiny.llama().config))
    config = {name: value for name, value in fields.items() if value is not None}
    config |= {"mcore_gpt": True, "tokenizer": {"library": "megatron"}}
    if lora is not None:
        tuning = {"adapter_dim": 4, "alpha": 32, "target_modules": ["all"]}
        config["peft"] = {"peft_scheme": "lora", "lora_tuning": tuning}
    contents = Contents(dump_checkpoint_config(config), {}, adapters_only=lora is not None)
    return Checkpointer(Rotation(directory, monitor="val_loss", keep_top=2), learner, contents)


def train_then_save(lora, directory):
    """Two steps, a checkpoint, the losses of the next two steps and the head after them."""
    with bench.learner(setup_of(ONE, lora)) as learner:
        for _ in range(2):
            learner.step(bench.batches(), 1e-2)
        checkpointer(directory, learner, lora).save(Progress(step=2, consumed_samples=8))
        assert learner.modules[0].value_head.weight.any()
        return two_more(learner)


def restore_then_train(layout, lora, directory):
    with bench.learner(setup_of(layout, lora)) as learner:
        checkpointer(directory, learner, lora).restore(find_last(directory))
        return two_more(learner)


def two_more(learner):
    norms = [learner.step(bench.batches(), 1e-2).grad_norm for _ in range(2)]
    head = learner.modules[-1].value_head
    return norms, None if head is None else head.weight.detach().numpy().copy()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_restored_training_goes_on_bit_for_bit(tmp_path, lora) -> None:
    norms, head = train_then_save(lora, tmp_path)
    again, same = restore_then_train(ONE, lora, tmp_path)
    assert again == norms
    assert np.array_equal(same, head)


@pytest.mark.dist
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("axis", ["tp", "pp"])
def test_a_run_goes_on_in_another_layout(two_ranks, tmp_path, axis, lora) -> None:
    norms, head = train_then_save(lora, tmp_path)
    layout = ParallelLayout(2, **{axis: 2})
    results = two_ranks.run(restore_then_train, layout, lora, tmp_path)
    for found, same in results:
        assert found == pytest.approx(norms, rel=2e-5)
        assert same is None or np.allclose(same, head, rtol=0, atol=1e-6)
    assert results[-1][1] is not None


def test_no_reader_of_the_policy_meets_its_head(tmp_path) -> None:
    train_then_save(None, tmp_path / "run")
    checkpoint = find_last(tmp_path / "run")
    kept = DistStore(open_container(checkpoint / WEIGHTS)).tensors
    assert {"model.value_head.weight", "optimizer.state.exp_avg.model.value_head.bias"} < set(kept)
    source = open_source(checkpoint)
    assert not [name for name in source.weights.tensors if "head" in name]
    assert check(checkpoint, reporter=QUIET)["problems"] == []
    convert(checkpoint, tmp_path / "policy.nemo", reporter=QUIET)
    options = ReshardOptions(tp=2, with_optimizer=True)
    reshard(checkpoint, tmp_path / "two.nemo", options, reporter=QUIET)
    for archive in ("policy.nemo", "two.nemo"):
        written = open_container(tmp_path / archive).under(WEIGHTS)
        assert not [name for name in DistStore(written).tensors if "value_head" in name]


def test_an_adapter_is_read_without_the_head_that_was_trained_beside_it(tmp_path) -> None:
    train_then_save(LORA, tmp_path)
    source = open_source(find_last(tmp_path))
    assert source.is_adapter_only
    assert all("adapter_layer" in name for name in source.adapter.weights.tensors)
