import shutil

import pytest

from nemoalign.archive.dist import DistStore
from nemoalign.archive.files import open_container
from nemoalign.errors import SourceError
from nemoalign.model.lora import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.checkpointing import Checkpointer, Contents, find_last, set_damaged_aside
from nemoalign.train.progress import Progress
from tests.train import bench

ONE = ParallelLayout(1)


def _checkpointer(directory, learner, *, adapters_only=False, keep_top=2) -> Checkpointer:
    contents = Contents("num_layers: 2\n", {}, adapters_only)
    return Checkpointer(directory, learner, contents, monitor="val_loss", keep_top=keep_top)


def _progress(step: int, val_loss: float | None = None) -> Progress:
    metrics = None if val_loss is None else {"val_loss": val_loss}
    return Progress(step=step, consumed_samples=step * 4, val_metrics=metrics)


def _train_then_save(layout, lora, directory):
    """Two steps, a checkpoint, and what the next two steps are."""
    with bench.learner(bench.Setup(layout, lora=lora)) as learner:
        for _ in range(2):
            learner.step(bench.batches(), 1e-2)
        _checkpointer(directory, learner, adapters_only=lora is not None).save(_progress(2))
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
@pytest.mark.parametrize("layout", [ParallelLayout(2, tp=2), ParallelLayout(2, pp=2)])
def test_a_checkpoint_goes_on_in_another_layout(two_ranks, tmp_path, layout) -> None:
    lora = LoraSettings(adapter_dim=4, target_modules=("all",))
    expected = _train_then_save(ONE, lora, tmp_path)
    for step, losses in two_ranks.run(_restore_then_train, layout, lora, tmp_path):
        assert step == 2
        assert losses == pytest.approx(expected, rel=2e-6)


def test_an_adapter_checkpoint_holds_no_base_weights(tmp_path) -> None:
    _train_then_save(ONE, LoraSettings(adapter_dim=4), tmp_path)
    store = DistStore(open_container(find_last(tmp_path) / "model_weights"))
    assert all("adapter_layer" in name for name in store.tensors)
    assert any(name.startswith("model.") for name in store.tensors)
    assert any(name.startswith("optimizer.") for name in store.tensors)


def test_names_are_nemos_and_rotation_keeps_the_best_and_the_last(tmp_path) -> None:
    with bench.learner(bench.Setup(ONE, lora=LoraSettings(adapter_dim=2))) as learner:
        learner.step(bench.batches(), 1e-2)
        keeper = _checkpointer(tmp_path, learner, adapters_only=True)
        for step, loss in enumerate([0.5, 0.25, 0.75, 0.4, 0.9], start=1):
            keeper.save(_progress(step, loss))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best",
        "megatron_gpt--val_loss=0.250-step=2-consumed_samples=8.0-epoch=0.ckpt",
        "megatron_gpt--val_loss=0.400-step=4-consumed_samples=16.0-epoch=0.ckpt",
        "megatron_gpt--val_loss=0.900-step=5-consumed_samples=20.0-epoch=0-last.ckpt",
    ]
    best = tmp_path / "best"
    assert best.readlink().name.startswith("megatron_gpt--val_loss=0.250-step=2-")


def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path) -> None:
    with bench.learner(bench.Setup(ONE, lora=LoraSettings(adapter_dim=2))) as learner:
        keeper = _checkpointer(tmp_path, learner, adapters_only=True)
        first, second = (keeper.save(_progress(step, 1.0)).name for step in (1, 2))
        assert set_damaged_aside(tmp_path) == []
        (file,) = (tmp_path / second / "model_weights").glob("__0_0.distcp")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        (words,) = set_damaged_aside(tmp_path)
    assert "model_weights/__0_0.distcp is not what was written" in words
    assert f"renamed to .{second}.damaged" in words
    assert find_last(tmp_path).name == first.replace("-last", "")


def test_a_half_written_checkpoint_is_not_the_last(tmp_path) -> None:
    _train_then_save(ONE, LoraSettings(adapter_dim=2), tmp_path)
    whole = find_last(tmp_path)
    torn = tmp_path / "megatron_gpt--step=9-consumed_samples=36.0-epoch=0-last.ckpt"
    shutil.copytree(whole, torn, ignore=shutil.ignore_patterns("progress.json"))
    assert find_last(tmp_path) == whole


def test_a_checkpoint_with_a_hostile_pickle_is_refused_before_megatron_reads_it(tmp_path) -> None:
    _train_then_save(ONE, LoraSettings(adapter_dim=2), tmp_path)
    weights = find_last(tmp_path) / "model_weights"
    (weights / ".metadata").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with (
        bench.learner(bench.Setup(ONE, lora=LoraSettings(adapter_dim=2))) as learner,
        pytest.raises(SourceError, match="system"),
    ):
        _checkpointer(tmp_path, learner, adapters_only=True).restore(find_last(tmp_path))
