"""Model, learner, feeds and loop of a run, put together on this rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.core import parallel_state

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.log import speaking_rank
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.lora_settings import LoraSettings, lora_settings
from nemoalign.run.policies import give_reference, load_policy
from nemoalign.run.reference_cache import CacheWork
from nemoalign.run.reward import learns_bias
from nemoalign.train.algorithm import load_algorithm
from nemoalign.train.archiving import Archiver
from nemoalign.train.checkpointing import Checkpointer, Contents
from nemoalign.train.inputs import make_feeds
from nemoalign.train.learner import Learner
from nemoalign.train.loop import Trainer
from nemoalign.train.provenance import run_config_yaml
from nemoalign.train.rotation import Rotation

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.architecture import Architecture
    from nemoalign.config.merged import Merged
    from nemoalign.config.schema import RunConfig
    from nemoalign.log import Reporter
    from nemoalign.parallel.device import Backend
    from nemoalign.run.prepare import Prepared
    from nemoalign.train.records import RunDirectory
    from nemoalign.train.stopping import Requests


def assemble(
    merged: Merged,
    made: Prepared,
    backend: Backend,
    records: RunDirectory | None,
    reporter: Reporter,
    requests: Requests | None,
) -> Trainer:
    """Build model, learner, feeds and loop."""
    config = merged.config
    lora = lora_settings(config.model.peft)
    algorithm = load_algorithm(ALGORITHMS[merged.algorithm].target, config.model.algorithm)
    if made.inputs.any_rows is not None:
        algorithm.meet(made.inputs.any_rows)
    chunks = built_model(config, made, lora)
    dp_rank = parallel_state.get_data_parallel_rank()
    feeds = make_feeds(made.inputs, config, made.layout, dp_rank, made.tokenizer.eos_id)
    if algorithm.needs_reference:
        work = CacheWork(config, made, feeds, backend, reporter, requests)
        give_reference(algorithm, config, made, chunks, work)
    else:
        load_policy(chunks, config, made)
    if not made.inputs.limits.max_steps:
        for chunk in chunks:
            chunk.requires_grad_(False)  # so that no gradients and master weights are kept
    learner = Learner(
        chunks,
        algorithm,
        backend,
        config.model.optim,
        grad_clip=config.trainer.loop.gradient_clip_val,
    )
    trained = learner.trained_parameters()
    what = f"training {trained:,} parameters" if made.inputs.limits.max_steps else "measuring"
    reporter.say(f"{what} in {config.trainer.precision} on {backend.name}")
    if trained_architecture(config, made.arch) != made.arch:
        reporter.say(
            "the routers' own losses are left out: they are a token's, and this one a row's"
        )
    return Trainer(
        learner,
        made.inputs.limits,
        feeds=feeds,
        checkpointer=_checkpointer(merged, made, learner, reporter),
        records=records,
        reporter=reporter,
    )


def _checkpointer(
    merged: Merged, made: Prepared, learner: Learner, reporter: Reporter
) -> Checkpointer:
    """Return what saves and restores this run; rank 0's also makes archives when asked."""
    config = merged.config
    keep = config.exp_manager.checkpoint_callback_params
    rotation = Rotation(
        run_directory(config) / "checkpoints",
        monitor=keep.monitor,
        keep_top=keep.save_top_k,
        mode=keep.mode,
    )
    contents = Contents(
        run_config_yaml(merged, made.inputs, made.tokenizer, made.arch.num_attributes),
        made.source.files,
        adapters_only=config.model.peft.peft_scheme == "lora",
    )
    archiver = Archiver(archive_prefix(merged), reporter) if speaking_rank() else None
    # On a CPU the writer takes cores and memory from training: benchmarks/save_stall.py.
    in_background = keep.async_save
    if in_background is None:
        in_background = learner.backend.name == "cuda"
    return Checkpointer(rotation, learner, contents, in_background=in_background, archiver=archiver)


def built_model(config: RunConfig, made: Prepared, lora: LoraSettings | None) -> list[GPTModel]:
    """Build this rank's part of the model."""
    return build_model(
        trained_architecture(config, made.arch),
        made.source.vocab_size,
        made.layout,
        precision=config.trainer.precision,
        settings=ModelSettings(
            hidden_dropout=config.model.hidden_dropout,
            attention_dropout=config.model.attention_dropout,
            recompute=config.model.activations_checkpoint_granularity or "none",
            seed=config.model.seed,
            softmax_over_padding=config.model.softmax_over_padding,
            reward_bias_learns=learns_bias(config),
        ),
        lora=lora,
    )


def trained_architecture(config: RunConfig, arch: Architecture) -> Architecture:
    """Return what is built: without router losses where a run's own loss is no mean over tokens.

    A router's loss is a sum over tokens, and the learner divides all gradients by one count.
    """
    if config.model.algorithm.counts_tokens:
        return arch
    return replace(arch, moe_aux_loss_coeff=0.0, moe_z_loss_coeff=None)


def archive_prefix(merged: Merged) -> Path:
    """Return what the names of a run's archives begin with: NeMo's name of such a model."""
    return run_directory(merged.config) / f"megatron_gpt_{merged.algorithm}"


def run_directory(config: RunConfig) -> Path:
    """Return the directory a run writes to."""
    assert config.exp_manager.explicit_log_dir is not None, "the command line decides it"
    return config.exp_manager.explicit_log_dir
