"""A policy and a critic in one checkpoint: both go on, both are summed, and both or none are written."""

import psutil
import pytest

from nemoalign.model.lora_settings import LoraSettings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.train.checkpointing import WEIGHTS, Checkpointer, Contents, SaveError
from nemoalign.train.progress import Progress
from nemoalign.train.rotation import Rotation, find_last
from nemoalign.train.sums import find_damage
from tests.train import bench

ONE = ParallelLayout(1)
LORA = LoraSettings(adapter_dim=4, target_modules=("all",))


def _setups(layout, lora):
    return (
        bench.Setup(layout, lora=lora),
        bench.Setup(
            layout,
            layers=4,
            num_attributes=1,
            algorithm=bench.Critic(),
            optim={"name": "distributed_fused_adam"},
        ),
    )


def _checkpointer(directory, learners, *, critics=None, **options) -> Checkpointer:
    policy, critic = learners
    return Checkpointer(
        Rotation(directory, monitor="val_rewards", keep_top=2, mode="max"),
        policy,
        Contents("num_layers: 2\n", {}, adapters_only=True),
        others={"critic": (critic, critics or Contents("num_layers: 4\n", {}, False))},
        **options,
    )


def _steps(learners, count):
    return [
        learner.step(bench.batches(seed=step), 1e-2).metrics["loss"]
        for step in range(count)
        for learner in learners
    ]


def _train_then_save(directory, **options):
    """A step of both, one more of the critic, a checkpoint, and what the next steps are."""
    with bench.learners(*_setups(ONE, LORA)) as learners:
        _steps(learners, 1)
        _steps(learners[1:], 1)
        keeper = _checkpointer(directory, learners, **options)
        keeper.save(Progress(step=1, consumed_samples=4))
        losses = _steps(learners, 2)
        keeper.settle()
    return losses


def _restore_then_train(layout, directory):
    with bench.learners(*_setups(layout, LORA)) as learners:
        progress = _checkpointer(directory, learners).restore(find_last(directory))
        updates = [learner.updates for learner in learners]
        losses = _steps(learners, 2)
    return progress["step"], updates, losses


@pytest.mark.parametrize("in_background", [False, True])
def test_both_models_go_on_bit_for_bit(tmp_path, in_background) -> None:
    expected = _train_then_save(tmp_path, in_background=in_background)
    assert len(set(expected)) == 4
    assert _restore_then_train(ONE, tmp_path) == (1, [1, 2], expected)


@pytest.mark.dist
@pytest.mark.parametrize(
    "layout", [ParallelLayout(2, tp=2), ParallelLayout(2, pp=2), ParallelLayout(2)]
)
def test_both_models_go_on_in_another_layout(two_ranks, tmp_path, layout) -> None:
    expected = _train_then_save(tmp_path)
    for step, updates, losses in two_ranks.run(_restore_then_train, layout, tmp_path):
        assert (step, updates) == (1, [1, 2])
        if layout.dp == 1:  # else both replicas bring the same rows
            assert losses == pytest.approx(expected, rel=2e-6)


def test_each_is_a_checkpoint_of_its_own_and_damage_to_either_is_found(tmp_path) -> None:
    _train_then_save(tmp_path)
    last = find_last(tmp_path)
    assert find_damage(last) is None
    for home in ("", "critic/"):
        (file, *_) = sorted((last / home / WEIGHTS).glob("*.distcp"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert find_damage(last) == f"{home}{WEIGHTS}/{file.name} is not what was written"
        file.write_bytes(whole)
    (last / "critic/model_config.yaml").unlink()
    assert find_damage(last) == "critic/model_config.yaml is missing"


class _InTheWay(Contents):
    """Lies where the writer of the tensors wants to write."""

    def write(self, directory) -> None:
        super().write(directory)
        (directory / WEIGHTS / "common.pt").mkdir()


def test_where_one_cannot_be_written_the_other_is_not_and_nothing_is_left(tmp_path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with bench.learners(*_setups(ONE, LORA)) as learners:
        blocked = _InTheWay("num_layers: 4\n", {}, adapters_only=False)
        keeper = _checkpointer(tmp_path, learners, critics=blocked, in_background=True)
        with pytest.raises(SaveError, match=r"step 1 could not be written .*directory"):
            keeper.save(Progress(step=1, consumed_samples=4))
        assert not keeper.is_writing()
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children(recursive=True)) == before
