"""Model, learner, feeds and loop of a run, put together on this rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.core import parallel_state

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.log import speaking_rank
from nemoalign.model.lora_settings import lora_settings
from nemoalign.rollouts.trainee import PpoTrainee
from nemoalign.run.built import built_model, trained_architecture
from nemoalign.run.policies import give_reference, load_policy
from nemoalign.run.ppo import ppo_trainee, tell_warnings
from nemoalign.run.reference_cache import CacheWork
from nemoalign.train.algorithm import Algorithm, load_algorithm
from nemoalign.train.archiving import Archiver
from nemoalign.train.checkpointing import Checkpointer, Contents
from nemoalign.train.inputs import make_feeds
from nemoalign.train.learner import Learner
from nemoalign.train.loop import Trainer
from nemoalign.train.provenance import run_config_yaml
from nemoalign.train.rotation import Rotation

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

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
    learner = _learner(config, made, algorithm, chunks, backend, reporter)
    trainee, others = learner, {}
    if config.model.algorithm.rows == "prompts":
        trainee, others = ppo_trainee(merged, made, learner, reporter)
    trainer = Trainer(
        trainee,
        made.inputs.limits,
        feeds=feeds,
        checkpointer=_checkpointer(merged, made, learner, reporter, others),
        records=records,
        reporter=reporter,
    )
    if isinstance(trainee, PpoTrainee):
        tell_warnings(trainee, trainer)
    return trainer


def _learner(
    config: RunConfig,
    made: Prepared,
    algorithm: Algorithm,
    chunks: list[GPTModel],
    backend: Backend,
    reporter: Reporter,
) -> Learner:
    """Return the model with its optimizer, and say what it learns."""
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
    return learner


def _checkpointer(
    merged: Merged,
    made: Prepared,
    learner: Learner,
    reporter: Reporter,
    others: Mapping[str, tuple[Learner, Contents]],
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
    return Checkpointer(
        rotation, learner, contents, in_background=in_background, archiver=archiver, others=others
    )


def archive_prefix(merged: Merged) -> Path:
    """Return what the names of a run's archives begin with: NeMo's name of such a model."""
    return run_directory(merged.config) / f"megatron_gpt_{merged.algorithm}"


def run_directory(config: RunConfig) -> Path:
    """Return the directory a run writes to."""
    assert config.exp_manager.explicit_log_dir is not None, "the command line decides it"
    return config.exp_manager.explicit_log_dir
