"""NeMo-Aligner's ``training_rm.yaml`` sets what it means there."""

import pytest

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.reward import RmSettings
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, CKPT

TRAINING_RM = """
trainer:
  num_nodes: 1
  devices: 1
  accelerator: gpu
  precision: bf16
  rm:
    max_epochs: 1
    max_steps: -1
    val_check_interval: 100
    save_interval: 100
    train_random_sampler: True
    val_random_sampler: False
    limit_val_batches: 1.0
    gradient_clip_val: 1.0
model:
  micro_batch_size: 2
  global_batch_size: 64
  share_embeddings_and_output_weights: False
  reward_model_type: regression
  regression:
    num_attributes: 9
    merge_attributes: False
    attribute_weights: null
    loss_mask_val: -100
    loss_func: margin_bt
    load_rm_head_weights: True
  output_sequence: False
  use_avg_pool: True
  force_head_dtype: bfloat16
  forward_micro_batch_size: ${.micro_batch_size}
"""


def test_nemo_aligners_own_file_is_read(tmp_path) -> None:
    path = tmp_path / "training_rm.yaml"
    path.write_text(TRAINING_RM)
    tied = {**CHECKPOINT, "share_embeddings_and_output_weights": True}
    merged = merge_run("rm", Said(flags=CKPT, configs=[path], environ={}), lambda _: tied)
    own = merged.config.model.algorithm
    assert isinstance(own, RmSettings)
    assert (own.reward_model_type, own.loss_func) == ("regression", "margin_bt")
    assert (own.num_attributes, own.load_rm_head_weights, own.use_avg_pool) == (9, True, True)
    assert (own.attribute_weights, own.loss_mask_val) == (None, -100.0)
    assert merged.config.model.data.train_ds.shuffle
    assert merged.warnings == [
        f"NeMo settings without effect here: model.force_head_dtype ({path})."
    ]
    assert merged.checkpoint_config["share_embeddings_and_output_weights"] is True


@pytest.mark.parametrize(
    ("flags", "kind"), [({}, "binary_ranking"), ({"model.rm.loss_func": "scaled_bt"}, "regression")]
)
def test_a_loss_of_regression_says_what_kind_of_model_it_is(flags, kind) -> None:
    merged = merge_run("rm", Said(flags={**CKPT, **flags}, environ={}), lambda _: CHECKPOINT)
    assert merged.config.model.algorithm.reward_model_type == kind


def test_what_a_reward_model_is_goes_on_being_so() -> None:
    trained = {
        **CHECKPOINT,
        "reward_model_type": "regression",
        "use_avg_pool": True,
        "regression": {"num_attributes": 2, "loss_mask_val": -1, "attribute_weights": [0.5, 0.5]},
    }
    merged = merge_run("rm", Said(flags=CKPT, environ={}), lambda _: trained)
    own = merged.config.model.algorithm
    assert (own.reward_model_type, own.use_avg_pool, own.loss_mask_val) == ("regression", True, -1)
    assert (own.attribute_weights, own.merge_attributes) == ((0.5, 0.5), False)
    assert merged.sources["model.rm.use_avg_pool"] == "checkpoint m.nemo"
    merge_run("sft", Said(flags=CKPT, environ={}), lambda _: trained)


def test_a_reward_model_answers_no_prompts() -> None:
    flags = {**CKPT, "model.data.validation_ds.prompts_path": "prompts.jsonl"}
    with pytest.raises(ConfigError, match="Leave --val-prompts out"):
        merge_run("rm", Said(flags=flags, environ={}), lambda _: CHECKPOINT)
