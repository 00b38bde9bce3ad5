"""What is known before a process group or a model exists: checkpoint, layout, tokenizer and rows.

``plan`` is that, told and left, for ``--dry-run``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.parallel.device import select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import Source, open_source
from nemoalign.config.architecture import Architecture
from nemoalign.config.check import check_complete
from nemoalign.data.preview import preview
from nemoalign.data.tokenizer import Tokenizer, build_tokenizer
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.run.reward import check_writes_answers, reward_model
from nemoalign.train.inputs import Inputs, packing_report, read_inputs
from nemoalign.train.sinks import check_packages

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.log import Reporter


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before a process group or a model exists."""

    source: Source
    arch: Architecture
    layout: ParallelLayout
    tokenizer: Tokenizer
    inputs: Inputs
    warnings: list[str]
    """What is odd about rows and schedule, a sentence each."""


def prepare(merged: Merged, reporter: Reporter) -> Prepared:
    """Open the checkpoint, check the layout against it and read the rows.

    Raises:
        NemoAlignError: whatever is wrong with checkpoint, layout, rows or their lengths.
    """
    config = merged.config
    check_complete(config, merged.algorithm)
    check_packages(config.exp_manager)
    assert config.pretrained_checkpoint.restore_from_path is not None, "check_complete refuses it"
    opened = open_source(config.pretrained_checkpoint.restore_from_path)
    reporter.say(opened.describe())
    # An adapter as --ckpt means the model it makes of its base; --adapter goes on training one.
    source = with_adapter(opened, None, Path("OUT"))
    scores = config.model.algorithm.rows == "rewards"
    if not scores:
        check_writes_answers(source)
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
    if config.model.algorithm.trains:
        layout.num_microbatches(config.model.global_batch_size, config.model.micro_batch_size)
    tokenizer = build_tokenizer(source.files, merged.checkpoint_config.get("tokenizer") or {})
    inputs = read_inputs(config, tokenizer)
    for line in inputs.findings.lines() + packing_report(inputs, config, layout):
        reporter.say(line)
    strange = inputs.limits.schedule.problem() if inputs.limits.max_steps else None
    warnings = inputs.findings.problems() + ([strange] if strange else [])
    for warning in warnings:
        reporter.warn(warning)
    if inputs.train is not None:
        for title, segments in preview(inputs.train, tokenizer, config.model.data.preview):
            reporter.say(title)
            reporter.sample(segments)
    if scores:
        arch, weights = reward_model(config, arch, source, inputs, reporter)
        source = replace(source, arch=arch, weights=weights)
    return Prepared(source, arch, layout, tokenizer, inputs, warnings)


def plan(merged: Merged, reporter: Reporter) -> dict[str, Any]:
    """Return what ``train`` would do, without doing it."""
    made = prepare(merged, reporter)
    config, limits = merged.config, made.inputs.limits
    parameters = sum(math.prod(info.shape) for info in made.source.weights.tensors.values())
    packed = packing_report(made.inputs, config, made.layout)
    rows, dp = limits.global_batch_size, made.layout.dp
    return {
        "algorithm": merged.algorithm,
        "checkpoint": made.source.describe(),
        "parameters": parameters,
        "layout": {
            "world_size": made.layout.world_size,
            "tp": made.layout.tp,
            "pp": made.layout.pp,
            "dp": dp,
            # Packs are made as rows come; the report says about how many.
            "micro_batches": None if packed else rows // (config.model.micro_batch_size * dp),
        },
        "data": made.inputs.findings.lines() + packed,
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
