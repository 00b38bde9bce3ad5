"""NeMo-Aligner's configurations of preference runs: every documented key and default, and its overrides."""

from pathlib import Path

import pytest

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.values import DataFile, Every
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, CKPT

OWN = {
    "dpo": """{log_prob_forward_micro_batch_size: "${model.micro_batch_size}",
      ref_policy_kl_penalty: 0.2, preference_average_log_probs: False,
      sft_average_log_probs: "${.preference_average_log_probs}", gt_reward_scale: 1.0,
      preference_loss: dpo, preference_loss_weight: 1, sft_loss_weight: 0}""",
    "kto": """{log_prob_forward_micro_batch_size: "${multiply:${model.micro_batch_size},2}",
      ref_policy_kl_penalty: 0.2, preference_average_log_probs: False, preference_loss: kto,
      sft_average_log_probs: "${.preference_average_log_probs}", preference_loss_weight: 1.0,
      sft_loss_weight: 0, desirable_loss_weight: 1.0, undesirable_loss_weight: 1.0}""",
}
REWARDS = {"dpo": "default_chosen_reward: 1., default_rejected_reward: 0.,", "kto": ""}
FILE = """
trainer:
  {num_nodes: 1, devices: 8, accelerator: gpu, precision: bf16, logger: False, max_time: null,
   enable_checkpointing: False, use_distributed_sampler: False, max_epochs: "${.NAME.max_epochs}",
   max_steps: "${.NAME.max_steps}", NAME: {max_epochs: 1, max_steps: -1, val_check_interval: 0.1,
   save_interval: 100, limit_train_batches: 1.0, limit_val_batches: 1.0, gradient_clip_val: 1.0}}
exp_manager:
  {explicit_log_dir: out, exp_dir: null, name: megatron_gpt, max_time_per_run: "${trainer.max_time}",
   create_wandb_logger: False, wandb_logger_kwargs: {project: p, name: n}, resume_if_exists: True,
   resume_ignore_no_checkpoint: True, create_checkpoint_callback: True, log_step_timing: True,
   step_timing_kwargs: {sync_cuda: True, buffer_size: 5}, checkpoint_callback_params:
   {monitor: val_loss, save_top_k: 3, mode: min, always_save_nemo: False, save_nemo_on_train_end: True,
   filename: 'megatron_gpt--{${.monitor}:.3f}-{step}-{consumed_samples}-{epoch}', save_best_model: False,
   model_parallel_size:
   "${multiply:${model.tensor_model_parallel_size},${model.pipeline_model_parallel_size}}"}}
pretrained_checkpoint: {restore_from_path: null, checkpoint_dir: null, checkpoint_name: null}
model:
  NAME: OWN
  mcore_gpt: True
  micro_batch_size: 1
  global_batch_size: 64
  megatron_amp_O2: True
  seed: 1234
  tensor_model_parallel_size: 1
  pipeline_model_parallel_size: 1
  resume_from_checkpoint: null
  precision: ${trainer.precision}
  peft:
    {peft_scheme: "none", restore_from_path: null, restore_from_ckpt: {checkpoint_dir: null,
     checkpoint_name: null}, lora_tuning: {target_modules: ['attention_qkv'], adapter_dim: 32,
     adapter_dropout: 0.0, column_init_method: 'xavier', row_init_method: 'zero', layer_selection: null,
     weight_tying: False, position_embedding_strategy: null}}
  data:
    {data_impl: jsonl, splits_string: null, seq_length: "${model.encoder_seq_length}", num_workers: 0,
     pad_length_to_multiple_of: null, skip_warmup: True, reset_position_ids: False, REWARDS
     reset_attention_mask: False, eod_mask_loss: False, index_mapping_dir: null, data_prefix: null,
     append_eod: False, apply_ftfy: False, dataloader_type: single}
  optim: {name: distributed_fused_adam, bucket_cap_mb: 200, overlap_grad_sync: False,
    contiguous_grad_buffer: True, lr: 9e-6, weight_decay: 0.1, betas: [0.9, 0.98],
    sched: {name: CosineAnnealing, warmup_steps: 10, constant_steps: 1000, min_lr: 9e-7}}
"""
PREFIX = "++model.data.data_prefix={train: [t.jsonl], validation: [v.jsonl], test: [e.jsonl]}"


def written(folder: Path, name: str) -> Path:
    path = folder / f"gpt_{name}.yaml"
    text = FILE.replace("NAME", name).replace("OWN", OWN[name]).replace("REWARDS", REWARDS[name])
    path.write_text(text)
    return path


def merged(algorithm, configs=(), *sets):
    return merge_run(
        algorithm,
        Said(flags=CKPT, configs=configs, sets=sets, environ={}),
        lambda path: {**CHECKPOINT, "encoder_seq_length": 1024},
    )


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_the_original_file_with_its_usual_overrides_is_taken_whole(tmp_path, name) -> None:
    found = merged(
        *(name, [written(tmp_path, name)], PREFIX),
        *(f"++trainer.{name}.max_steps=5", f"model.{name}.ref_policy_kl_penalty=0.3"),
        *("model.peft.peft_scheme=none", "exp_manager.explicit_log_dir=there"),
    )
    model, loop = found.config.model, found.config.trainer.loop
    assert model.data.train_ds.file_path == (DataFile.parse("t.jsonl"),)
    assert model.data.validation_ds.file_path == (DataFile.parse("v.jsonl"),)
    assert model.data.test_ds.file_path == (DataFile.parse("e.jsonl"),)
    assert (model.data.train_ds.max_seq_length, model.data.train_ds.add_eos) == (1024, False)
    assert (loop.max_steps, loop.val_check_interval) == (5, Every(0.1, epochs=True))
    assert (model.optim.lr, model.optim.sched.constant_steps) == (9e-6, 1000)
    own = model.algorithm
    assert own.ref_policy_kl_penalty == 0.3
    assert own.preference_loss == name
    (warning,) = found.warnings
    assert "exp_manager.checkpoint_callback_params.filename" in warning
    # The reference is computed like the policy, so there is nothing to set; NeMo's KTO asks for more.
    assert ("log_prob_forward_micro_batch_size" in warning) == (name == "kto")


def test_nemos_ipo_is_the_sum_and_rewards_have_their_old_place(tmp_path) -> None:
    sets = ["model.dpo.preference_loss=ipo", "model.data.default_chosen_reward=2.5"]
    own = merged("dpo", [written(tmp_path, "dpo")], PREFIX, *sets).config.model.algorithm
    assert own.losses == [("ipo_sum", 1.0)]
    assert own.sft_average_log_probs is False
    assert own.default_chosen_reward == 2.5


@pytest.mark.parametrize(
    ("written_as", "files"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("[a.jsonl]", ["a.jsonl"]),
        ("[0.7, a.jsonl, 2, b.jsonl]", ["a.jsonl:0.7", "b.jsonl:2"]),
        ("{train: [1.0, a.jsonl, c.jsonl]}", ["a.jsonl:1", "c.jsonl"]),
    ],
)
def test_data_prefix_in_all_its_forms(tmp_path, written_as, files) -> None:
    expected = tuple(DataFile.parse(file) for file in files)
    by_set = merged("kto", (), f"model.data.data_prefix={written_as}")
    assert by_set.config.model.data.train_ds.file_path == expected
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{data: {{data_prefix: {written_as}}}}}")
    assert merged("kto", [path]).config.model.data.train_ds.file_path == expected


def test_splits_string_gives_every_split_its_share_of_the_training_files() -> None:
    sets = ["model.data.data_prefix=[2, a.jsonl, b.jsonl]", "model.data.splits_string=980,10,10"]
    found = merged("dpo", (), *sets)
    data = found.config.model.data
    assert data.shares == pytest.approx((0.98, 0.01, 0.01))
    assert data.train_ds.file_path == (DataFile.parse("a.jsonl:2"), DataFile.parse("b.jsonl"))
    both = (DataFile.parse("a.jsonl"), DataFile.parse("b.jsonl"))
    assert data.validation_ds.file_path == data.test_ds.file_path == both
    key = "model.data.validation_ds.file_path"
    assert found.sources[key] == "default (model.data.splits_string)"
    two = merged("dpo", (), sets[0], "model.data.splits_string=1/1").config.model.data
    assert (two.shares, two.test_ds.file_path) == ((0.5, 0.5, 0.0), ())


def test_a_split_run_repeats_from_its_own_configuration(tmp_path) -> None:
    sets = ["model.data.data_prefix=[2, a.jsonl]", "model.data.splits_string=98,2"]
    first = merged("dpo", (), *sets)
    path = tmp_path / "config.yaml"
    path.write_text(first.to_yaml())
    assert merged("dpo", [path]).config == first.config


@pytest.mark.parametrize("shares", ["", "a,b", "1,2,3,4", "0,0", "1,-1", "nan,1", "inf,1"])
def test_shares_that_are_none_are_refused(shares) -> None:
    with pytest.raises(ConfigError, match="such as 980,10,10"):
        merged("dpo", (), "model.data.data_prefix=a", f"model.data.splits_string='{shares}'")


def test_files_to_measure_on_and_shares_of_the_training_files_contradict() -> None:
    with pytest.raises(ConfigError, match=r"--val names v\.jsonl too"):
        merged("dpo", (), PREFIX, "model.data.splits_string=980,10,10")
