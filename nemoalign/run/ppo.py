"""Reinforcement learning put together on this rank: a policy's learner becomes what the loop drives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from megatron.core import parallel_state

from nemoalign.model.sampling import Sampling
from nemoalign.rollouts.batching import Batching
from nemoalign.rollouts.trainee import PpoTrainee
from nemoalign.rollouts.writing import Writing
from nemoalign.run.roles import Casting
from nemoalign.train.checkpointing import Contents
from nemoalign.train.provenance import critic_config_yaml

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.config.schema import RunConfig
    from nemoalign.log import Reporter
    from nemoalign.run.prepare import Prepared
    from nemoalign.train.learner import Learner
    from nemoalign.train.loop import Trainer


def ppo_trainee(
    merged: Merged, made: Prepared, policy: Learner, reporter: Reporter
) -> tuple[PpoTrainee, dict[str, tuple[Learner, Contents]]]:
    """Return what takes the steps of a run, and the roles that are saved beside the policy. Collective."""
    config = merged.config
    own: Any = config.model.algorithm
    casting = Casting(config, made, policy.backend, reporter)
    roles = casting.cast(policy)
    written = replace(made.arch, encoder_seq_length=config.model.encoder_seq_length)
    for line in roles.memory(own.slots, written, made.layout):
        reporter.say(line)
    trainee = PpoTrainee(
        roles,
        own,
        Writing(made.tokenizer, own.max_new_tokens, own.stop, own.slots),
        Sampling(own.temperature, own.top_k, own.top_p, own.min_new_tokens, config.model.seed),
        _batching(config, made),
        update_size=config.model.global_batch_size,
    )
    others: dict[str, tuple[Learner, Contents]] = {}
    if roles.critic is not None and casting.critic_judge is not None:
        source = casting.critic_judge.source
        text = critic_config_yaml(merged, source.config, source.path)
        is_lora = config.model.peft.peft_scheme == "lora"
        others["critic"] = roles.critic, Contents(text, source.files, adapters_only=is_lora)
    return trainee, others


def _batching(config: RunConfig, made: Prepared) -> Batching:
    model, layout = config.model, made.layout
    packs = model.data.train_ds.packed_sequence
    return Batching(
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=layout.dp,
        micro_batch_size=model.micro_batch_size,
        eos_id=made.tokenizer.eos_id,
        pack_capacity=model.micro_batch_size * model.encoder_seq_length if packs else None,
        pad_to=layout.tp if layout.splits_sequence else 1,
        multiple_of=layout.pp if layout.vp else 1,
    )


def tell_warnings(trainee: PpoTrainee, trainer: Trainer) -> None:
    """Let warnings about rewards go into the books of the loop."""

    def warn(text: str) -> None:
        trainer.books.warn(trainer.progress.step + 1, text)

    trainee.warn = warn
