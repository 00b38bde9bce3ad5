"""What a run keeps of its checkpoints; these are directories with a position and one file of weights."""

import json
import math
import shutil
from dataclasses import asdict

from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.progress import Progress
from nemoalign.train.rotation import Rotation, find_last, set_damaged_aside
from nemoalign.train.sums import write_sums


def _publish(rotation: Rotation, step: int, val_loss: float) -> str:
    progress = Progress(step=step, consumed_samples=step * 4, val_metrics={"val_loss": val_loss})
    temporary, final = rotation.paths(progress)
    (temporary / "model_weights").mkdir(parents=True)
    (temporary / "model_weights/__0_0.distcp").write_bytes(bytes(range(step, 200)))
    (temporary / "progress.json").write_text(json.dumps(asdict(progress)))
    write_sums(temporary)
    rotation.publish(temporary, final)
    return final.name


def test_names_are_nemos_and_rotation_keeps_the_best_and_the_last(tmp_path) -> None:
    rotation = Rotation(tmp_path, monitor="val_loss", keep_top=2)
    for step, loss in enumerate([0.5, 0.25, 0.75, 0.4, 0.9], start=1):
        _publish(rotation, step, loss)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best",
        "megatron_gpt--val_loss=0.250-step=2-consumed_samples=8.0-epoch=0.ckpt",
        "megatron_gpt--val_loss=0.400-step=4-consumed_samples=16.0-epoch=0.ckpt",
        "megatron_gpt--val_loss=0.900-step=5-consumed_samples=20.0-epoch=0-last.ckpt",
    ]
    best = tmp_path / "best"
    assert best.readlink().name.startswith("megatron_gpt--val_loss=0.250-step=2-")


def test_a_high_value_is_best_where_the_mode_says_so_and_minus_one_keeps_all(tmp_path) -> None:
    for folder, mode, keep, best in (("a", "max", 1, 3), ("b", "min", -1, 2)):
        rotation = Rotation(tmp_path / folder, monitor="val_loss", keep_top=keep, mode=mode)
        for step, value in enumerate([0.5, 0.25, 0.75, math.nan, 0.4], start=1):
            _publish(rotation, step, value)
        assert f"-step={best}-" in (tmp_path / folder / "best").readlink().name
        assert len(list((tmp_path / folder).glob("*.ckpt"))) == (2 if keep == 1 else 5)


def test_a_step_saved_twice_is_kept_once_and_leftovers_are_swept(tmp_path) -> None:
    rotation = Rotation(tmp_path, monitor="val_loss", keep_top=3)
    first, again = _publish(rotation, 1, 0.5), _publish(rotation, 1, 0.5)
    better = _publish(rotation, 1, 0.4)
    assert first == again != better
    (tmp_path / ".megatron_gpt--step=2-epoch=0.tmp/model_weights").mkdir(parents=True)
    (tmp_path / ".best.tmp").symlink_to(better)
    rotation.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", better]


def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path) -> None:
    rotation = Rotation(tmp_path, monitor="val_loss", keep_top=2)
    first, second = (_publish(rotation, step, 1.0) for step in (1, 2))
    with start(ParallelLayout(1), seed=1):
        assert set_damaged_aside(tmp_path) == []
        file = tmp_path / second / "model_weights/__0_0.distcp"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        (words,) = set_damaged_aside(tmp_path)
    assert "model_weights/__0_0.distcp is not what was written" in words
    assert f"renamed to .{second}.damaged" in words
    assert find_last(tmp_path).name == first.replace("-last", "")


def test_a_half_written_checkpoint_is_not_the_last(tmp_path) -> None:
    whole = _publish(Rotation(tmp_path, monitor="val_loss", keep_top=2), 1, 0.5)
    torn = tmp_path / "megatron_gpt--step=9-consumed_samples=36.0-epoch=0-last.ckpt"
    shutil.copytree(tmp_path / whole, torn, ignore=shutil.ignore_patterns("progress.json"))
    assert find_last(tmp_path).name == whole
