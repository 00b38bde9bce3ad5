import pytest

from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.checkpointing import Checkpointer, Contents
from nemoalign.train.progress import Progress
from nemoalign.train.rotation import Rotation, find_last
from tests.train import bench

ONE = ParallelLayout(1)


def _checkpointer(directory, learner, *, adapters_only=False) -> Checkpointer:
    rotation = Rotation(directory, monitor="val_loss", keep_top=2)
    return Checkpointer(rotation, learner, Contents("num_layers: 2\n", {}, adapters_only))


def _train_then_save(layout, lora, directory):
    """Two steps, a checkpoint, and what the next two steps are."""
    with bench.learner(bench.Setup(layout, lora=lora)) as learner:
        for _ in range(2):
            learner.step(bench.batches(), 1e-2)
        _checkpointer(directory, learner, adapters_only=lora is not None).save(
            Progress(step=2, consumed_samples=8)
        )
        return [learner.step(bench.batches(), 1e-2).metrics["loss"] for _ in range(2)]


def _restore_then_train(layout, lora, directory):
    with bench.learner(bench.Setup(layout, lora=lora)) as learner:
        keeper = _checkpointer(directory, learner, adapters_only=lora is not None)
        progress = keeper.restore(find_last(directory))
        losses = [learner.step(bench.batches(), 1e-2).metrics["loss"] for _ in range(2)]
    return progress["step"], losses


@pytest.mark.parametrize("lora", [None, LoraSettings(adapter_dim=4)], ids=["full", "lora"])
def test_restored_training_goes_on_bit_for_bit(tmp_path, lora) -> None:
    expected = _train_then_save(ONE, lora, tmp_path)
    assert _restore_then_train(ONE, lora, tmp_path) == (2, expected)


@pytest.mark.dist
@pytest.mark.parametrize(
    ("layout", "layers"),
    [
        (ParallelLayout(2, tp=2), None),
        (ParallelLayout(2, pp=2), None),
        (ParallelLayout(2, tp=2), (2,)),
    ],
)
def test_a_checkpoint_goes_on_in_another_layout(two_ranks, tmp_path, layout, layers) -> None:
    lora = LoraSettings(adapter_dim=4, target_modules=("all",), layer_selection=layers)
    expected = _train_then_save(ONE, lora, tmp_path)
    for step, losses in two_ranks.run(_restore_then_train, layout, lora, tmp_path):
        assert step == 2
        assert losses == pytest.approx(expected, rel=2e-6)
