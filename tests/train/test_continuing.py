import pytest
import yaml

from nemoalign.errors import ConflictError
from nemoalign.train.continuing import check_continues

TREE = {
    "model": {"optim": {"lr": 1e-4, "betas": [0.9, 0.98]}, "tensor_model_parallel_size": 1},
    "trainer": {"sft": {"max_steps": 10, "gradient_clip_val": 1.0}, "devices": None},
}


def _started(directory, **changes):
    (directory / "config.yaml").write_text(yaml.safe_dump({**TREE, **changes}))


def test_a_directory_without_a_run_is_free(tmp_path) -> None:
    check_continues(tmp_path, yaml.safe_dump(TREE), "sft")


def test_the_same_settings_go_on(tmp_path) -> None:
    _started(tmp_path)
    check_continues(tmp_path, yaml.safe_dump(TREE), "sft")


@pytest.mark.parametrize(
    "change",
    [
        {"model": {**TREE["model"], "tensor_model_parallel_size": 2}},
        {"trainer": {"sft": {"max_steps": 20, "gradient_clip_val": 1.0}, "devices": 4}},
        {"exp_manager": {"explicit_log_dir": "elsewhere"}},
        {"model": {**TREE["model"], "data": {"train_ds": {"packed_sequence": False}}}},
    ],
    ids=["layout", "limits", "output", "packing"],
)
def test_layout_limits_and_output_may_change(tmp_path, change) -> None:
    _started(tmp_path)
    check_continues(tmp_path, yaml.safe_dump({**TREE, **change}), "sft")


def test_another_learning_rate_is_refused_with_both_values_and_both_ways_out(tmp_path) -> None:
    _started(tmp_path)
    changed = {**TREE, "model": {**TREE["model"], "optim": {"lr": 2e-4, "betas": [0.9, 0.98]}}}
    with pytest.raises(ConflictError) as caught:
        check_continues(tmp_path, yaml.safe_dump(changed), "sft")
    message = str(caught.value)
    assert "model.optim.lr was 0.0001 and is 0.0002" in message
    assert f"--config {tmp_path / 'config.yaml'}" in message
    assert "--overwrite" in message
    assert "betas" not in message


def test_the_run_of_another_algorithm_is_named_as_such(tmp_path) -> None:
    _started(tmp_path)
    changed = {**TREE, "trainer": {"kto": {"max_steps": 10}, "devices": None}}
    with pytest.raises(ConflictError, match="holds a run of sft, and this is kto") as caught:
        check_continues(tmp_path, yaml.safe_dump(changed), "kto")
    assert " was " not in str(caught.value)
