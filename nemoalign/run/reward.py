"""What a reward model is made of: the checkpoint's tensors, and its own head or a new one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemoalign.errors import ConfigError
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
    held = source.arch.num_attributes
    outputs = _outputs(own, held, inputs)
    keeps = own.load_rm_head_weights
    if keeps is None:
        keeps = bool(held)
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


def _outputs(own: Any, held: int, inputs: Inputs) -> int:
    """Return how many rewards an answer gets: by the rows, else by the settings or the checkpoint."""
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
