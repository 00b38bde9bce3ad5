"""The ``model_config.yaml`` a run writes: the checkpoint's own, plus how it was trained and prompted."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import nemoalign
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.train.inputs import Inputs


def run_config_yaml(merged: Merged, inputs: Inputs, tokenizer: Tokenizer) -> str:
    """Return the configuration that a run's checkpoints and its final archive carry.

    What the checkpoint said and training does not read travels unchanged. The prompt template goes
    where NeMo keeps it, so that inference and the next run use the one that was trained.
    """
    config = copy.deepcopy(merged.checkpoint_config)
    run = merged.config
    config["precision"] = run.trainer.precision
    config["tensor_model_parallel_size"] = run.model.tensor_model_parallel_size
    config["pipeline_model_parallel_size"] = run.model.pipeline_model_parallel_size
    config["optim"] = merged.tree["model"]["optim"]
    data = _section(config, "data")
    if inputs.train is not None:
        if inputs.train.has_chat:
            data["chat"] = True
            _section(config, "tokenizer")["chat_template"] = tokenizer.chat_template
        if inputs.train.has_nemo_chat:
            data["chat"] = True
            data["chat_prompt_tokens"] = asdict(run.model.data.chat_prompt_tokens)
        if inputs.train.has_prompts:
            _section(data, "train_ds")["prompt_template"] = inputs.train.template.text
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


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the mapping at ``name``, made when it is absent or something else."""
    if not isinstance(config.get(name), dict):
        config[name] = {}
    return config[name]
