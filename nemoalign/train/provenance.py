"""The ``model_config.yaml`` a run writes: the checkpoint's own, plus how it was trained and prompted."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nemoalign
from nemoalign.checkpoint.settings.reward import reward_settings
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.config.values import plain

if TYPE_CHECKING:
    from nemoalign.config.data import DataConfig
    from nemoalign.config.merged import Merged
    from nemoalign.data.dataset import SftDataset
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.train.inputs import Inputs


def run_config_yaml(
    merged: Merged, inputs: Inputs, tokenizer: Tokenizer, num_attributes: int = 0
) -> str:
    """Return the configuration that a run's checkpoints and its final archive carry.

    ``num_attributes`` are the outputs of a reward model's head; 0 for another model.

    What the checkpoint said and training does not read travels unchanged. The prompt template goes
    where NeMo keeps it, so that inference and the next run use the one that was trained.
    """
    config = copy.deepcopy(merged.checkpoint_config)
    run = merged.config
    config["precision"] = run.trainer.precision
    config["tensor_model_parallel_size"] = run.model.tensor_model_parallel_size
    config["pipeline_model_parallel_size"] = run.model.pipeline_model_parallel_size
    config["optim"] = merged.tree["model"]["optim"]
    if num_attributes:
        config |= _reward(run.model.algorithm, num_attributes)
    if inputs.train is not None:
        _record_prompts(config, inputs.train, run.model.data, tokenizer)
    if run.model.peft.peft_scheme == "lora":
        config["peft"] = merged.tree["model"]["peft"]
        config["restore_from_path"] = str(run.pretrained_checkpoint.restore_from_path)
    else:
        config.pop("peft", None)
        config.pop("restore_from_path", None)
    config["nemoalign"] = {
        "version": nemoalign.__version__,
        "algorithm": merged.algorithm,
        "from": str(run.pretrained_checkpoint.restore_from_path),
        "data": [str(file) for file in run.model.data.train_ds.file_path],
        "max_steps": inputs.limits.max_steps,
        "global_batch_size": run.model.global_batch_size,
        "seed": run.model.seed,
    }
    return dump_checkpoint_config(config)


def critic_config_yaml(merged: Merged, config: Mapping[str, Any], path: Path) -> str:
    """Return the configuration that a critic's checkpoints carry: its start's, as a reward model of one output.

    Args:
        merged: the run.
        config: of the checkpoint that the critic started from.
        path: where that lies.
    """
    run, made = merged.config, copy.deepcopy(dict(config))
    made["precision"] = run.trainer.precision
    made["tensor_model_parallel_size"] = run.model.tensor_model_parallel_size
    made["pipeline_model_parallel_size"] = run.model.pipeline_model_parallel_size
    made |= reward_settings(1, averages=False)
    for name in ("peft", "restore_from_path", "reward_standardization"):
        made.pop(name, None)
    if run.model.peft.peft_scheme == "lora":
        made["peft"] = merged.tree["model"]["peft"]
        made["restore_from_path"] = str(path)
    made["nemoalign"] = {
        "version": nemoalign.__version__,
        "algorithm": merged.algorithm,
        "role": "critic",
        "from": str(path),
    }
    return dump_checkpoint_config(made)


def _reward(own: Any, num_attributes: int) -> dict[str, Any]:
    """Return what NeMo-Aligner's reader of reward models asks for."""
    names = ("merge_attributes", "attribute_weights", "loss_mask_val", "loss_func")
    return reward_settings(
        num_attributes,
        own.reward_model_type,
        averages=own.use_avg_pool,
        regression={name: plain(getattr(own, name)) for name in names},
    )


def _record_prompts(
    config: dict[str, Any], rows: SftDataset, settings: DataConfig, tokenizer: Tokenizer
) -> None:
    """Say how prompts were written, where NeMo says it; what a checkpoint before said is over."""
    data = _section(config, "data")
    is_chat = rows.has_chat or rows.has_nemo_chat
    if is_chat or rows.has_prompts:
        data["chat"] = is_chat
        data.pop("chat_prompt_tokens", None)
        _section(data, "train_ds").pop("prompt_template", None)
    if rows.has_chat:
        _section(config, "tokenizer")["chat_template"] = tokenizer.chat_template
    if rows.has_nemo_chat:
        data["chat_prompt_tokens"] = asdict(settings.chat_prompt_tokens)
    if rows.has_prompts:
        used = settings.train_ds
        _section(data, "train_ds").update(
            prompt_template=rows.template.text,
            label_key=rows.template.label_key,
            add_bos=used.add_bos,
            add_eos=used.add_eos,
            add_sep=used.add_sep,
        )


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the mapping at ``name``, made when it is absent or something else."""
    if not isinstance(config.get(name), dict):
        config[name] = {}
    return config[name]
