"""What a reward model is made of: the checkpoint's tensors, and its own head or a new one."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ConfigError, ContentError
from nemoalign.model.reward_head import with_reward_head

if TYPE_CHECKING:
    from nemoalign.archive.store import TensorStore
    from nemoalign.checkpoint.open import Source
    from nemoalign.config.architecture import Architecture
    from nemoalign.config.schema import RunConfig
    from nemoalign.log import Reporter
    from nemoalign.train.inputs import Inputs


def reward_model(
    config: RunConfig, arch: Architecture, source: Source, inputs: Inputs, reporter: Reporter
) -> tuple[Architecture, TensorStore]:
    """Return architecture and tensors of the reward model that a run trains or measures with.

    Raises:
        ConfigError: when the head cannot be what rows, settings and checkpoint say.
    """
    own: Any = config.model.algorithm
    holder = _with_adapter(config, source)
    held = holder.arch.num_attributes
    outputs = _outputs(own, held, inputs)
    if own.score_path and not held:
        raise ConfigError(
            f"{source.path} has no reward head, so it scores nothing. Give a reward model as --ckpt."
        )
    keeps = own.load_rm_head_weights
    if keeps is None or own.score_path:
        keeps = bool(held)
    if holder is not source and not keeps:
        raise ConfigError(
            f"{holder.path} was trained with its reward head, so that a new one does not fit it. Leave "
            "model.rm.load_rm_head_weights out, or --adapter."
        )
    if keeps and held != outputs:
        raise ConfigError(
            f"{source.path} has {f'a reward head of {held} outputs' if held else 'no reward head'}, and "
            f"this run needs one of {outputs}. For a new one: "
            "-s model.rm.load_rm_head_weights=false"
        )
    which = "the checkpoint's" if keeps else f"new, from seed {config.model.seed}"
    reporter.say(
        f"reward head: {which}, {outputs} outputs" if outputs > 1 else f"reward head: {which}"
    )
    arch = replace(arch, num_attributes=outputs, share_embeddings_and_output_weights=False)
    seed = None if keeps else config.model.seed
    return arch, with_reward_head(source.weights, arch, seed=seed)


def check_writes_answers(source: Source) -> None:
    """Refuse a reward model where a model is needed that writes.

    Raises:
        ContentError: when it is one.
    """
    if source.arch.num_attributes:
        typed = shlex.join(["nemoalign", "rm", "--ckpt", str(source.path)])
        raise ContentError(
            f"{source.path} is a reward model: it scores answers and writes none. Give a model that writes "
            f"them, or type: {typed} --score answers.jsonl -o scores.jsonl"
        )


def learns_bias(config: RunConfig) -> bool:
    """True when the head's bias is learned; not from pairs, whose differences leave it nothing but noise."""
    own: Any = config.model.algorithm
    if own.rows == "prompts":
        return True  # of a critic: values have a height
    return own.rows == "rewards" and own.scores_answers and own.learn_bias


def _with_adapter(config: RunConfig, source: Source) -> Source:
    """Return what brings the head: the adapter of ``--adapter``, when one was trained with it."""
    path = config.model.peft.restore_from_path
    adapter = source if path is None else open_source(path)
    return adapter if adapter.arch.num_attributes else source


def _outputs(own: Any, held: int, inputs: Inputs) -> int:
    """Return how many rewards an answer gets: by the rows, else by the settings or the checkpoint."""
    if own.score_path:
        return held
    if own.reward_model_type == "binary_ranking":
        return 1
    rows: Any = inputs.any_rows
    labelled = 0 if rows is None else len(rows.attributes)
    asked = own.num_attributes
    if asked and labelled and asked != labelled:
        raise ConfigError(
            f"model.rm.num_attributes is {asked}, but the rows have {labelled} labels each. "
            f"Use -s model.rm.num_attributes={labelled}, or leave it out."
        )
    return labelled or asked or held or 1
