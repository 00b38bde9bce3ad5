"""The composition root: from one merged configuration to one training run on this rank.

Read it top to bottom: checkpoint, layout, rows, model, learner, loop, archive. ``plan`` is the same
road without the training, for ``--dry-run``.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nemoalign.parallel.device import Backend, select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from megatron.core import parallel_state

from nemoalign.checkpoint.convert import convert
from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import Source, open_source
from nemoalign.checkpoint.targets.writing import WriteOptions
from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.architecture import Architecture
from nemoalign.config.check import check_complete
from nemoalign.data.preview import preview
from nemoalign.data.tokenizer import Tokenizer, build_tokenizer
from nemoalign.errors import ConflictError
from nemoalign.log import PlainReporter, speaking_rank
from nemoalign.model.adapters import with_adapters
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights
from nemoalign.model.lora import LoraSettings, lora_settings
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from nemoalign.train.algorithm import load_algorithm
from nemoalign.train.checkpointing import Checkpointer, Contents, find_last, set_damaged_aside
from nemoalign.train.continuing import check_continues
from nemoalign.train.inputs import Inputs, make_feeds, read_inputs
from nemoalign.train.learner import Learner
from nemoalign.train.loop import Trainer
from nemoalign.train.provenance import run_config_yaml
from nemoalign.train.records import RunDirectory

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.config.merged import Merged
    from nemoalign.config.schema import RunConfig
    from nemoalign.log import Reporter


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a process group or a model exists."""

    source: Source
    arch: Architecture
    layout: ParallelLayout
    tokenizer: Tokenizer
    inputs: Inputs


def prepare(merged: Merged, reporter: Reporter) -> Prepared:
    """Open the checkpoint, check the layout against it and read the rows.

    Raises:
        NemoAlignError: whatever is wrong with checkpoint, layout, rows or their lengths.
    """
    config = merged.config
    check_complete(config, merged.algorithm)
    assert config.pretrained_checkpoint.restore_from_path is not None, "check_complete refuses it"
    opened = open_source(config.pretrained_checkpoint.restore_from_path)
    reporter.say(opened.describe())
    # An adapter as --ckpt means the model it makes of its base; --adapter goes on training one.
    source = with_adapter(opened, None, Path("OUT"))
    arch = Architecture.from_nemo(merged.checkpoint_config)
    layout = ParallelLayout(
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        tp=config.model.tensor_model_parallel_size,
        pp=config.model.pipeline_model_parallel_size,
        cp=config.model.context_parallel_size,
        ep=config.model.expert_model_parallel_size,
        vp=config.model.virtual_pipeline_model_parallel_size,
        sequence_parallel=config.model.sequence_parallel,
    )
    layout.check(arch)
    layout.num_microbatches(config.model.global_batch_size, config.model.micro_batch_size)
    tokenizer = build_tokenizer(source.files, merged.checkpoint_config.get("tokenizer") or {})
    inputs = read_inputs(config, tokenizer)
    for line in inputs.report():
        reporter.say(line)
    if inputs.train is not None:
        for line in preview(inputs.train, tokenizer, config.model.data.preview):
            reporter.say(line)
    return Prepared(source, arch, layout, tokenizer, inputs)


def plan(merged: Merged, reporter: Reporter) -> dict[str, Any]:
    """Return what ``train`` would do, without doing it."""
    made = prepare(merged, reporter)
    config, limits = merged.config, made.inputs.limits
    parameters = sum(math.prod(info.shape) for info in made.source.weights.tensors.values())
    return {
        "algorithm": merged.algorithm,
        "checkpoint": made.source.describe(),
        "parameters": parameters,
        "layout": {
            "world_size": made.layout.world_size,
            "tp": made.layout.tp,
            "pp": made.layout.pp,
            "dp": made.layout.dp,
            "micro_batches": limits.global_batch_size
            // (config.model.micro_batch_size * made.layout.dp),
        },
        "data": made.inputs.report(),
        "steps": limits.max_steps,
        "steps_per_epoch": limits.steps_per_epoch,
        "validate_every": limits.val_every,
        "save_every": limits.save_every,
        "lr": {
            "highest": limits.schedule.lr,
            "warmup_steps": limits.schedule.warmup_steps,
        },
        "out": str(config.exp_manager.explicit_log_dir),
    }


def train(merged: Merged, reporter: Reporter) -> dict[str, Any]:
    """Run the whole training on this rank and return its summary, equal on every rank.

    Raises:
        NemoAlignError: with the exit code of what went wrong.
    """
    if not speaking_rank():
        reporter = PlainReporter(quiet=True)
    finished = _already_finished(merged)
    if finished is not None:
        reporter.say(f"{_run_directory(merged.config)} holds this run, finished; nothing to do")
        return finished
    made = prepare(merged, reporter)
    directory = _run_directory(merged.config)
    with start(made.layout, seed=merged.config.model.seed) as backend:
        records = RunDirectory(directory) if speaking_rank() else None
        if records is not None:
            _open_records(records, merged)
        torch.distributed.barrier()
        try:
            trainer = _assemble(merged, made, backend, records, reporter)
            _resume(trainer, merged.config, reporter)
            summary = trainer.fit()
            return _finish(merged, made, trainer, summary, reporter)
        finally:
            if records is not None:
                records.close()


def _already_finished(merged: Merged) -> dict[str, Any] | None:
    """Return the summary of a run that ended here before; refuse a directory of another run.

    Every rank reads the same files before any rank writes one.
    """
    manager = merged.config.exp_manager
    directory = _run_directory(merged.config)
    if manager.overwrite:
        return None
    check_continues(directory, merged.to_yaml(), merged.algorithm)
    if not manager.resume_if_exists and find_last(directory / "checkpoints") is not None:
        raise ConflictError(
            f"{directory} holds a run already and --no-resume forbids continuing it. "
            "Give this one its own directory with -o, or replace it with --overwrite."
        )
    return RunDirectory(directory).summary()


def _open_records(records: RunDirectory, merged: Merged) -> None:
    """Take the run directory's lock and write how to repeat the run."""
    if merged.config.exp_manager.overwrite and records.path.exists():
        shutil.rmtree(records.path)
    records.open()
    records.describe(merged.to_yaml(), [sys.executable, "-m", "nemoalign", *sys.argv[1:]])


def _assemble(
    merged: Merged,
    made: Prepared,
    backend: Backend,
    records: RunDirectory | None,
    reporter: Reporter,
) -> Trainer:
    """Build model, learner, feeds and loop."""
    config = merged.config
    lora = lora_settings(config.model.peft)
    chunks = _loaded_model(config, made, lora)
    algorithm = load_algorithm(ALGORITHMS[merged.algorithm].target, config.model.algorithm)
    learner = Learner(
        chunks,
        algorithm,
        backend,
        config.model.optim,
        grad_clip=config.trainer.loop.gradient_clip_val,
    )
    trained = learner.trained_parameters()
    reporter.say(f"training {trained:,} parameters in {config.trainer.precision} on {backend.name}")
    keep = config.exp_manager.checkpoint_callback_params
    checkpointer = Checkpointer(
        _run_directory(config) / "checkpoints",
        learner,
        Contents(
            run_config_yaml(merged, made.inputs, made.tokenizer),
            made.source.files,
            adapters_only=lora is not None,
        ),
        monitor=keep.monitor,
        keep_top=keep.save_top_k,
    )
    dp_rank = parallel_state.get_data_parallel_rank()
    feeds = make_feeds(made.inputs, config, made.layout, dp_rank, made.tokenizer.eos_id)
    return Trainer(
        learner,
        made.inputs.limits,
        feeds=feeds,
        checkpointer=checkpointer,
        records=records,
        reporter=reporter,
    )


def _loaded_model(config: RunConfig, made: Prepared, lora: LoraSettings | None) -> list[GPTModel]:
    """Build this rank's part of the model and fill it from the checkpoint."""
    chunks = build_model(
        made.arch,
        made.source.vocab_size,
        made.layout,
        precision=config.trainer.precision,
        settings=ModelSettings(
            hidden_dropout=config.model.hidden_dropout,
            attention_dropout=config.model.attention_dropout,
            recompute=config.model.activations_checkpoint_granularity or "none",
            seed=config.model.seed,
        ),
        lora=lora,
    )
    weights = made.source.weights
    if config.model.peft.restore_from_path is not None:
        assert lora is not None, "check_rules refuses --adapter without --lora"
        weights = with_adapters(weights, config.model.peft.restore_from_path, lora)
    load_weights(chunks, weights, made.arch, made.layout, made.source.vocab_size)
    return chunks


def _resume(trainer: Trainer, config: RunConfig, reporter: Reporter) -> None:
    """Continue from the newest complete checkpoint of the run directory, if there is one."""
    directory = _run_directory(config) / "checkpoints"
    for damage in set_damaged_aside(directory):
        reporter.warn(damage)
    last = find_last(directory)
    if last is not None:
        trainer.restore(last)
        reporter.say(f"continuing {last.parent.parent} after step {trainer.progress.step}")


def _finish(
    merged: Merged, made: Prepared, trainer: Trainer, summary: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    """Turn the last checkpoint into the run's ``.nemo`` and write the summary, on rank 0."""
    directory = _run_directory(merged.config)
    archive = directory / f"megatron_gpt_{merged.algorithm}.nemo"
    if made.inputs.limits.max_steps > 0:
        summary["archive"] = str(archive)
    if speaking_rank():
        last = find_last(directory / "checkpoints")
        if last is not None:
            convert(last, archive, WriteOptions(overwrite=True), reporter=reporter)
        assert trainer.records is not None, "rank 0 keeps the records"
        trainer.records.finish(summary)
    torch.distributed.barrier()
    return summary


def _run_directory(config: RunConfig) -> Path:
    assert config.exp_manager.explicit_log_dir is not None, "the command line decides it"
    return config.exp_manager.explicit_log_dir
