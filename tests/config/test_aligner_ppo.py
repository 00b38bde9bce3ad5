"""NeMo-Aligner's configurations of PPO, its critic and REINFORCE: every documented key, and its overrides."""

from pathlib import Path

import pytest

from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.values import DataFile, Every, RewardSource
from nemoalign.errors import ConfigError
from tests.config.merging import CHECKPOINT, CKPT

PPO = "critic_warmup_steps: 0, discount_factor: 1.0, gae_lambda: 0.95, normalize_advantages: True,"
LOSS = "entropy_bonus: 0.0, ratio_eps: 0.2,"
REMOTE_CRITIC = """remote_critic_rm:
  {pad_to_length: "${model.encoder_seq_length}", combine_rm_and_critic_server: True,
   reward_model: {name: reward_model, ip: localhost, port: 5555}, critic: {name: {train: critic_train,
   infer: critic_infer, save: critic_save}, ip: localhost, port: 5556}}"""
REMOTE_RM = """remote_rm: {pad_to_length: "${model.encoder_seq_length}",
   reward_model: {name: reward_model, ip: localhost, port: 5555}}"""
ACTOR = """
trainer:
  {num_nodes: 8, devices: 8, accelerator: gpu, precision: bf16, logger: False, max_time: null,
   enable_checkpointing: False, use_distributed_sampler: False, max_epochs: "${.NAME.max_epochs}",
   max_steps: "${.NAME.max_steps}", NAME: {OWN max_epochs: 1, max_steps: -1, val_check_interval: 10,
   save_interval: "${.val_check_interval}", gradient_clip_val: 1.0, initial_policy_kl_penalty: 0.02,
   use_absolute_kl: True, rollout_batch_seq_length: null, trt_llm: {enable: False, reshard: False,
   max_input_len: "${subtract:${model.encoder_seq_length}, ${model.NAME.length_params.max_length}}",
   max_input_tokens: "${multiply:${.max_input_len}, ${model.NAME.rollout_micro_batch_size}}",
   seed: "${model.seed}", model_type: llama, unload_engine_train: False},
   batch_iterator: {use_flask: False, port: 5557}, model_gbs: "${model.global_batch_size}",
   model_mbs: "${model.micro_batch_size}"}}
REMOTE
exp_manager:
  {explicit_log_dir: /results, exp_dir: null, name: megatron_gpt_NAME_actor, create_wandb_logger: False,
   wandb_logger_kwargs: {project: nemo_aligner, name: gpt3_2b}, resume_from_checkpoint: null,
   resume_if_exists: True, resume_ignore_no_checkpoint: True, create_checkpoint_callback: True,
   checkpoint_callback_params: {monitor: val_rewards, save_top_k: 1, mode: max, always_save_nemo: False,
   save_nemo_on_train_end: True, filename: 'gpt-{step}-{NAME_optimization_step}-{val_rewards:.3f}',
   model_parallel_size:
   "${multiply:${model.tensor_model_parallel_size}, ${model.pipeline_model_parallel_size}}"}}
pretrained_checkpoint: {restore_from_path: null}
model:
  NAME: {rollout_micro_batch_size: 8, num_rollout_samples: 512, LOSS
    forward_micro_batch_size: "${.rollout_micro_batch_size}",
    val_rollout_micro_batch_size: "${.rollout_micro_batch_size}",
    num_val_samples: "${.num_rollout_samples}", offload_adam_states: True,
    sampling_params: {use_greedy: False, temperature: 1.0, top_k: 0, top_p: 1.0,
    repetition_penalty: 1.0, add_BOS: False, all_probs: False, compute_logprob: False,
    end_strings: ["<|endoftext|>", "<extra_id_1>"]},
    length_params: {max_length: "${int_div:${model.encoder_seq_length}, 2}", min_length: 1},
    trt_llm: "${trainer.NAME.trt_llm}"}
  peft:
    {peft_scheme: "none", restore_from_path: null, restore_from_ckpt: {checkpoint_dir: null,
     checkpoint_name: null}, lora_tuning: {target_modules: ['attention_qkv'], adapter_dim: 32,
     adapter_dropout: 0.0, column_init_method: 'xavier', row_init_method: 'zero',
     layer_selection: null, weight_tying: False, position_embedding_strategy: null}}
  mcore_gpt: True
  micro_batch_size: 1
  global_batch_size: 64
  megatron_amp_O2: True
  encoder_seq_length: 4096
  max_position_embeddings: ${model.encoder_seq_length}
  sequence_parallel: False
  seed: 1234
  optim: {name: distributed_fused_adam, bucket_cap_mb: 200, overlap_grad_sync: False,
    contiguous_grad_buffer: True, lr: 9e-7, weight_decay: 0.1, betas: [0.9, 0.98],
    sched: {name: CosineAnnealing, warmup_steps: 10, constant_steps: 1000, min_lr: 9e-8}}
  precision: ${trainer.precision}
  data:
    {data_impl: jsonl, splits_string: null, seq_length: "${model.encoder_seq_length}",
     skip_warmup: True, num_workers: 0, dataloader_type: single, reset_position_ids: False,
     reset_attention_mask: False, eod_mask_loss: False, index_mapping_dir: null, data_prefix: null}
  overwrite_base_config: {data: {data_prefix: True}}
"""
CRITIC = """
trainer:
  {num_nodes: 1, devices: 8, accelerator: gpu, precision: bf16, logger: False,
   enable_checkpointing: False, use_distributed_sampler: False, max_epochs: null,
   max_steps: "${.ppo.max_steps}", ppo: {port: 5556, combine_rm_and_critic_server: True,
   max_steps: 10000, gradient_clip_val: 1.0, max_queue_delay_microseconds: 2000,
   strip_sequence_length_to_multiple: null,
   inference_micro_batch_size: ["${model.forward_micro_batch_size}"]}}
pretrained_checkpoint: {restore_from_path: null}
exp_manager:
  {explicit_log_dir: /results, exp_dir: null, name: megatron_gpt_critic, create_wandb_logger: False,
   wandb_logger_kwargs: {project: nemo_aligner_ppo, name: gpt3_ppo_2b}, resume_if_exists: True,
   resume_ignore_no_checkpoint: True, create_checkpoint_callback: True, checkpoint_callback_params:
   {monitor: step, save_top_k: 0, mode: max, always_save_nemo: False, save_nemo_on_train_end: True,
   filename: 'megatron_gpt-{step}', model_parallel_size:
   "${multiply:${model.tensor_model_parallel_size}, ${model.pipeline_model_parallel_size}}"}}
model:
  {loss_clip_val: 0.3, offload_adam_states: False, output_sequence: True,
   reward_standardization: {enable: False, mean: null, std: null},
   forward_micro_batch_size: "${.micro_batch_size}", use_avg_pool: False, force_head_dtype: float32,
   reward_model_type: binary_ranking, regression: {num_attributes: 1, merge_attributes: True,
   attribute_weights: null}, micro_batch_size: 1, global_batch_size: 64, megatron_amp_O2: True,
   encoder_seq_length: 4096, max_position_embeddings: "${.encoder_seq_length}", seed: 1234,
   optim: {name: distributed_fused_adam, bucket_cap_mb: 200, overlap_grad_sync: False,
   contiguous_grad_buffer: True, lr: 7e-6, weight_decay: 0.1, betas: [0.9, 0.98],
   sched: {name: CosineAnnealing, warmup_steps: 10, constant_steps: 1000, min_lr: 9e-7}},
   precision: "${trainer.precision}"}
"""
PREFIX = "++model.data.data_prefix={train: [t.jsonl], validation: [v.jsonl], test: [v.jsonl]}"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / f"gpt_{name}.yaml"
    path.write_text(text)
    return path


def actor(folder: Path) -> Path:
    text = ACTOR.replace("OWN", PPO).replace("LOSS", LOSS).replace("REMOTE", REMOTE_CRITIC)
    return written(folder, "ppo_actor", text.replace("NAME", "ppo"))


def reinforce(folder: Path) -> Path:
    text = ACTOR.replace("OWN", "num_rollouts_per_prompt: 4,").replace("LOSS", "")
    text = text.replace("REMOTE", REMOTE_RM).replace("NAME", "reinforce")
    return written(folder, "reinforce_actor", text)


def critic(folder: Path, text: str = CRITIC) -> Path:
    return written(folder, "ppo_critic", text)


def merged(configs=(), *sets, algorithm="ppo", **flags):
    keys = {f"model.ppo.{key}": value for key, value in flags.items()}
    return merge_run(
        algorithm,
        Said(flags={**CKPT, **keys}, configs=configs, sets=sets, environ={}),
        lambda path: {**CHECKPOINT, "encoder_seq_length": 4096},
    )


def test_the_actors_file_with_its_usual_overrides_is_taken_whole(tmp_path):
    found = merged(
        *(
            [actor(tmp_path)],
            PREFIX,
            "trainer.ppo.max_steps=15",
            "trainer.ppo.val_check_interval=3",
        ),
        *("++model.ppo.length_params.max_length=1024", "++model.ppo.num_rollout_samples=256"),
        *("trainer.ppo.initial_policy_kl_penalty=0.03", "remote_critic_rm.critic.ip=there"),
        *("++model.ppo.combine_rm_and_critic_server=True", "trainer.ppo.trt_llm.enable=True"),
        *("++trainer.ppo.normalize_advantages=True", "trainer.ppo.rollout_batch_seq_length=4096"),
    )
    model, loop, own = found.config.model, found.config.trainer.loop, found.config.model.algorithm
    assert model.data.train_ds.file_path == (DataFile.parse("t.jsonl"),)
    assert model.data.validation_ds.file_path == (DataFile.parse("v.jsonl"),)
    assert (loop.max_steps, loop.val_check_interval, loop.save_interval) == (15, Every(3), Every(3))
    assert (own.initial_policy_kl_penalty, own.kl_kind, own.kl_place) == (0.03, "abs", "reward")
    assert (own.discount_factor, own.gae_lambda, own.critic_warmup_steps) == (1.0, 0.95, 0)
    assert own.whitens
    assert (own.num_rollout_samples, own.num_val_samples, own.answers) == (256, 256, 1)
    assert (own.max_new_tokens, own.min_new_tokens, own.entropy_bonus) == (1024, 1, 0.0)
    assert (own.temperature, own.top_k, own.top_p) == (1.0, 0, 1.0)
    assert own.stop == ("<|endoftext|>", "<extra_id_1>")
    assert (own.ratio_eps, model.global_batch_size, model.encoder_seq_length) == (0.2, 64, 4096)
    assert model.data.train_ds.max_seq_length == 4096 - 1024
    kept = found.config.exp_manager.checkpoint_callback_params
    assert (kept.monitor, kept.mode, kept.save_top_k) == ("val_reward", "max", 1)
    assert found.notes == []
    (warning,) = found.warnings
    assert warning == (
        "NeMo settings without effect here: exp_manager.checkpoint_callback_params.filename "
        f"({tmp_path / 'gpt_ppo_actor.yaml'})."
    )


def test_a_difference_that_is_not_absolute_is_the_first_estimator(tmp_path):
    own = merged([actor(tmp_path)], "trainer.ppo.use_absolute_kl=False").config.model.algorithm
    assert own.kl_kind == "k1"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.ppo.sampling_params.use_greedy=True", True),
        ("model.ppo.sampling_params.repetition_penalty=1.2", True),
        ("model.ppo.sampling_params.repetition_penalty=1", False),
        ("model.ppo.sampling_params.add_BOS=True", False),
        ("model.reward_standardization.enable=True", True),
        ("model.use_avg_pool=True", True),
        ("model.regression.attribute_weights=[1,2]", True),
        ("model.ppo.offload_adam_states=False", False),
        ("trainer.ppo.batch_iterator.use_flask=True", False),
        ("trainer.ppo.trt_llm.model_type=gptnext", False),
    ],
)
def test_what_cannot_be_honoured_is_named_only_when_it_is_switched_on(override, named):
    warnings = merged([], override).warnings
    assert len(warnings) == named
    assert not named or override.partition("=")[0] in warnings[0]


@pytest.mark.parametrize("is_first", [True, False])
def test_of_a_critics_file_only_the_critics_own_is_taken(tmp_path, is_first):
    rm = tmp_path / "rm.nemo"
    rm.touch()
    text = CRITIC.replace("restore_from_path: null", f"restore_from_path: {rm}")
    both = [critic(tmp_path, text), actor(tmp_path)]
    found = merged(both if is_first else both[::-1])
    model, own = found.config.model, found.config.model.algorithm
    assert (own.critic_lr, own.loss_clip_val, own.critic_path) == (7e-6, 0.3, rm)
    assert own.reward == (RewardSource(path=rm),)
    assert (model.optim.lr, model.optim.sched.min_lr) == (9e-7, 9e-8)
    assert (found.config.trainer.loop.max_steps, found.config.trainer.num_nodes) == (-1, 8)
    assert found.config.exp_manager.checkpoint_callback_params.save_top_k == 1
    assert found.config.pretrained_checkpoint.restore_from_path == Path("m.nemo")
    (note,) = found.notes
    assert note.startswith(f"{tmp_path / 'gpt_ppo_critic.yaml'} is a critic's file")
    (warning,) = found.warnings
    assert warning.startswith("NeMo settings without effect here: exp_manager.checkpoint_callback_")
    assert "critic.yaml" not in warning
    assert "critic_file" not in found.tree


def test_a_reward_model_that_another_program_serves_is_not_the_critics_start(tmp_path):
    text = CRITIC.replace("restore_from_path: null", "restore_from_path: c.nemo")
    text = text.replace("combine_rm_and_critic_server: True", "combine_rm_and_critic_server: False")
    own = merged([actor(tmp_path), critic(tmp_path, text)]).config.model.algorithm
    assert (own.critic_path, own.reward) == (Path("c.nemo"), ())


def test_what_policy_and_critic_cannot_have_apart_is_named(tmp_path):
    text = CRITIC.replace("weight_decay: 0.1", "weight_decay: 0.0")
    text = text.replace("global_batch_size: 64", "global_batch_size: 32")
    (warning,) = merged([actor(tmp_path), critic(tmp_path, text)]).warnings
    assert "model.global_batch_size, model.optim.weight_decay (" in warning
    assert "gpt_ppo_critic.yaml" in warning


def test_what_a_critics_file_says_of_the_reward_model_is_the_checkpoints_to_say(tmp_path):
    text = CRITIC.replace("{enable: False, mean: null", "{enable: True, mean: 2.0")
    (warning,) = merged([critic(tmp_path, text)]).warnings
    assert "model.reward_standardization.enable, model.reward_standardization.mean (" in warning


def test_a_critics_file_alone_says_nothing_about_the_policy(tmp_path):
    found = merged([critic(tmp_path)])
    assert found.config.model.optim.lr == 9e-7
    assert found.config.model.algorithm.critic_lr == 7e-6


def test_a_wrong_key_in_a_critics_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no setting model\.loss_clip_vall"):
        merged([critic(tmp_path, CRITIC.replace("loss_clip_val", "loss_clip_vall"))])
    with pytest.raises(ConfigError, match=r"no setting critic_file\.model\.optim\.lr"):
        merged([], "critic_file.model.optim.lr=1")


def test_reinforce_is_rloo_without_a_ratio_and_its_prompts_become_answers(tmp_path):
    found = merged([reinforce(tmp_path)], PREFIX, "trainer.reinforce.max_steps=313")
    loop, own = found.config.trainer.loop, found.config.model.algorithm
    assert (own.advantage, own.policy_loss, own.unfinished) == ("rloo", "reinforce", "mask")
    assert (own.prompts, own.answers, own.num_val_samples) == (512, 4, 512)
    assert (own.initial_policy_kl_penalty, own.kl_kind, own.max_new_tokens) == (0.02, "abs", 2048)
    assert (loop.max_steps, loop.val_check_interval) == (313, Every(10))
    assert own.stop == ("<|endoftext|>", "<extra_id_1>")
    assert found.sources["model.ppo.policy_loss"] == (
        f"NeMo-Aligner's REINFORCE, {tmp_path / 'gpt_reinforce_actor.yaml'}"
    )
    warning, foreign = found.warnings
    assert "the mean over an answer's tokens and ours their sum" in warning
    assert "filename" in foreign


def test_what_a_person_wants_wins_over_what_reinforce_means(tmp_path):
    found = merged(
        *([reinforce(tmp_path)], "++model.reinforce.num_rollout_samples=32"),
        *("model.ppo.unfinished=learn", "trainer.reinforce.num_rollouts_per_prompt=8"),
        policy_loss="ppo",
    )
    own = found.config.model.algorithm
    assert (own.prompts, own.answers) == (32, 8)
    assert (own.policy_loss, own.unfinished) == ("ppo", "learn")
    fewer = merged([reinforce(tmp_path)], num_rollout_samples=128)
    assert fewer.config.model.algorithm.prompts == 32


def test_a_merged_run_repeats_from_its_own_configuration(tmp_path):
    rm = tmp_path / "rm.nemo"
    rm.touch()
    text = CRITIC.replace("restore_from_path: null", f"restore_from_path: {rm}")
    for files in ([actor(tmp_path), critic(tmp_path, text)], [reinforce(tmp_path)]):
        first = merged(files, PREFIX)
        again = merged([written(tmp_path, "again", first.to_yaml())])
        assert again.config == first.config
        assert again.notes == again.warnings == []


def test_other_commands_do_not_know_these_files(tmp_path):
    for file in (actor(tmp_path), reinforce(tmp_path), critic(tmp_path)):
        with pytest.raises(ConfigError, match="there is no setting"):
            merged([file], algorithm="sft")
