"""NeMo-Aligner's own files: every key is a setting, means nothing here, or is named in one warning."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.legacy import ALIASES, QUIET, UNHONOURED
from nemoalign.config.values import DataFile, Every
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, merge

# Every key of NeMo-Aligner's gpt_sft.yaml with its default, interpolations included.
ALIGNER = r"""
name: megatron_gpt_sft
trainer:
  {num_nodes: 1, devices: 1, accelerator: gpu, precision: bf16, logger: False, max_time: null,
   enable_checkpointing: False, use_distributed_sampler: False, max_epochs: "${.sft.max_epochs}",
   max_steps: "${.sft.max_steps}", sft: {max_epochs: 1, max_steps: -1, val_check_interval: 100,
   save_interval: "${.val_check_interval}", limit_val_batches: 1.0, gradient_clip_val: 1.0}}
exp_manager:
  {explicit_log_dir: null, exp_dir: null, name: "${name}", create_wandb_logger: False,
   wandb_logger_kwargs: {project: null, name: null}, resume_if_exists: True,
   resume_ignore_no_checkpoint: True, create_checkpoint_callback: True, checkpoint_callback_params:
   {monitor: val_loss, save_top_k: 5, mode: min, save_nemo_on_train_end: False, filename:
   'megatron_gpt_sft--{${.monitor}:.3f}-{step}-{consumed_samples}-{epoch}', model_parallel_size:
   "${model.tensor_model_parallel_size}", save_best_model: False}}
model:
  steerlm:
  steerable_attributes: {quality: 4, toxicity: 0, complexity: null}
  seed: 1234
  tensor_model_parallel_size: 1
  pipeline_model_parallel_size: 1
  restore_from_path: ???
  resume_from_checkpoint: null
  save_nemo_on_validation_end: True
  sync_batch_comm: False
  megatron_amp_O2: False
  encoder_seq_length: 4096
  sequence_parallel: False
  activations_checkpoint_granularity: null
  activations_checkpoint_method: null
  activations_checkpoint_num_layers: null
  activations_checkpoint_layers_per_pipeline: null
  answer_only_loss: False
  gradient_as_bucket_view: False
  seq_len_interpolation_factor: null
  use_flash_attention: null
  hidden_dropout: 0.0
  attention_dropout: 0.0
  ffn_dropout: 0.0
  peft:
    peft_scheme: "none"
    restore_from_path: null
    lora_tuning: {target_modules: ['attention_qkv'], adapter_dim: 32, adapter_dropout: 0.0,
      column_init_method: 'xavier', row_init_method: 'zero', layer_selection: null,
      weight_tying: False, position_embedding_strategy: null}
  data:
    chat: False
    chat_prompt_tokens: {system_turn_start: "\x00", turn_start: "\x11", label_start: "\x12",
      end_of_turn: "\x0A", end_of_name: "\x0A"}
    sample: False
    num_workers: 1
    dataloader_type: single
    train_ds: {file_path: "???", global_batch_size: 128, micro_batch_size: 1, shuffle: True,
      memmap_workers: null, max_seq_length: 2048, min_seq_length: 1, drop_last: True,
      label_key: 'output', add_eos: True, add_sep: False, add_bos: False, truncation_field: "input",
      index_mapping_dir: null, prompt_template: "{input} {output}", hf_dataset: False,
      truncation_method: 'right'}
    validation_ds:
      file_path: ???
      global_batch_size: ${model.data.train_ds.global_batch_size}
      micro_batch_size: ${model.data.train_ds.micro_batch_size}
      shuffle: False
      memmap_workers: ${model.data.train_ds.memmap_workers}
      max_seq_length: ${model.data.train_ds.max_seq_length}
      min_seq_length: 1
      drop_last: False
      label_key: ${model.data.train_ds.label_key}
      add_eos: ${model.data.train_ds.add_eos}
      add_sep: ${model.data.train_ds.add_sep}
      add_bos: ${model.data.train_ds.add_bos}
      truncation_field: ${model.data.train_ds.truncation_field}
      index_mapping_dir: null
      prompt_template: ${model.data.train_ds.prompt_template}
      hf_dataset: False
      truncation_method: 'right'
      output_original_text: True
  optim: {name: distributed_fused_adam, lr: 3e-5, weight_decay: 0.01, betas: [0.9, 0.98],
    sched: {name: CosineAnnealing, warmup_steps: 10, constant_steps: 1000, min_lr: 9e-7}}
"""


def test_the_original_file_with_its_usual_overrides_is_taken_whole(tmp_path):
    merged = merge(
        tmp_path,
        [ALIGNER],
        checkpoint={**CHECKPOINT, "encoder_seq_length": 4096},
        sets=[
            "model.restore_from_path=m.nemo",
            "model.data.train_ds.file_path=t.jsonl",
            "model.data.validation_ds.file_path=v.jsonl",
            "++model.data.train_ds.micro_batch_size=4",
            "trainer.sft.val_check_interval=7",
        ],
        flags={"pretrained_checkpoint.restore_from_path": "m.nemo"},
    )
    model, loop = merged.config.model, merged.config.trainer.loop
    assert (model.global_batch_size, model.micro_batch_size) == (128, 4)
    assert (model.optim.lr, model.optim.sched.min_lr, model.optim.sched.constant_steps) == (
        3e-5,
        9e-7,
        1000,
    )
    assert model.data.train_ds.file_path == (DataFile.parse("t.jsonl"),)
    assert model.data.train_ds.max_seq_length == 2048
    assert model.data.train_ds.shuffle is True
    assert loop.save_interval == loop.val_check_interval == Every(7)
    assert merged.config.exp_manager.checkpoint_callback_params.save_top_k == 5
    (warning,) = merged.warnings
    assert warning == (
        "NeMo settings without effect here: exp_manager.checkpoint_callback_params.filename "
        f"({tmp_path / 'file0.yaml'})."
    )


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("exp_manager.create_mlflow_logger=True", True),
        ("exp_manager.create_mlflow_logger=False", False),
        ("model.data.sample=True", True),
        ("model.ffn_dropout=0.1", True),
        ("trainer.sft.limit_val_batches=0.5", True),
        ("trainer.sft.limit_val_batches=1.0", False),
        ("trainer.max_steps=5", True),
        ("model.data.validation_ds.add_bos=True", True),
        ("model.data.validation_ds.add_eos=True", False),
        ("model.fp8=True", True),
        ("model.fp8_margin=3", False),
        ("model.fsdp=True", True),
        ("model.mcore_gpt=True", False),
        ("model.ub_tp_comm_overlap=True", False),
    ],
)
def test_what_cannot_be_honoured_is_named_only_when_it_is_switched_on(tmp_path, override, named):
    warnings = merge(tmp_path, sets=[override]).warnings
    assert len(warnings) == named
    assert not named or override.partition("=")[0] in warnings[0]


def test_one_warning_names_all_of_them_with_their_sources(tmp_path):
    merged = merge(
        tmp_path, ["model: {data: {sample: true}, reset_lr: true}"], sets=["model.fsdp=true"]
    )
    (warning,) = merged.warnings
    assert "model.data.sample, model.reset_lr (" in warning
    assert "model.fsdp (--set)" in warning


@pytest.mark.parametrize(
    ("written", "precision"),
    [("bf16-mixed", "bf16"), ("32", "fp32"), ("'32'", "fp32"), ("32-true", "fp32")],
)
def test_nemo_spellings_of_values(tmp_path, written, precision):
    merged = merge(tmp_path, [f"trainer: {{precision: {written}, devices: -1}}"])
    assert merged.config.trainer.precision == precision
    assert merged.config.trainer.devices is None


def test_null_means_what_it_means_in_nemo(tmp_path):
    text = """
    model: {peft: {peft_scheme: null}, seed: null, optim: {sched: null}}
    trainer: {sft: {gradient_clip_val: null}}
    """
    config = merge(tmp_path, [text]).config
    assert config.model.peft.peft_scheme == "none"
    assert config.trainer.loop.gradient_clip_val == 0
    assert config.model.seed == 1234
    later = merge(tmp_path, ["model: {seed: 5}", "model: {seed: null}"])
    assert later.config.model.seed == 5


def test_another_algorithm_s_section_is_an_unknown_key(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.dpo\.max_steps"):
        merge(tmp_path, ["trainer: {dpo: {max_steps: 3}}"])


def test_no_setting_of_ours_is_also_listed_as_ignored():
    settings = set(ALGORITHMS["sft"].entries())
    assert settings.isdisjoint([*QUIET, *UNHONOURED, *ALIASES])


def test_append_eod_is_the_end_token_of_an_answer(tmp_path):
    merged = merge(tmp_path, sets=["model.data.append_eod=false"])
    assert merged.config.model.data.train_ds.add_eos is False
    assert merged.warnings == []
