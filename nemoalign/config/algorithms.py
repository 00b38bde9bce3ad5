"""The table of algorithms: adding one is adding its settings and its row here, and its own file.

The command, its flags, help and completion, the sections ``model.<name>`` and ``trainer.<name>`` of
the merged tree and the defaults all follow from the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from nemoalign.config.fields import AlgorithmSettings, Entry, Setting, setting, settings_of
from nemoalign.config.generation import GenerateSettings
from nemoalign.config.ppo import PpoSettings
from nemoalign.config.preference import DpoSettings, KtoSettings
from nemoalign.config.reward import RmSettings
from nemoalign.config.schema import RunConfig
from nemoalign.config.values import Every


@dataclass(frozen=True, kw_only=True)
class AlgorithmRow:
    """One algorithm: what it is called, where it lives, what is its own."""

    name: str
    summary: str
    example: str
    """What to type after ``nemoalign <name>``."""
    target: str = ""
    """``module:Class``, resolved by ``train.algorithm.load_algorithm`` and nothing else."""
    settings: type[AlgorithmSettings]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Defaults that differ from the field's, by dotted key."""
    helps: Mapping[str, str] = field(default_factory=dict[str, str])
    """What flags that it shares with others mean here, where the field's help would mislead."""
    shared_flags: tuple[str, ...] | None = None
    """Flags it has beside its own; None for all. Every setting has a key, flag or not."""
    panel: str = "Training"

    def entries(self) -> dict[str, Entry]:
        """Return every setting of a run of this algorithm by its dotted key, in order."""
        return {
            entry.key: replace(
                entry,
                default=self.defaults.get(entry.key, entry.default),
                setting=self._worded(entry),
            )
            for entry in settings_of(RunConfig, self.name, self.settings)
        }

    def _worded(self, entry: Entry) -> Setting:
        return replace(entry.setting, help=self.helps.get(entry.key, entry.setting.help))

    def flags(self) -> list[Entry]:
        """Return the settings that can be typed as flags, in order."""
        own = f"model.{self.name}."
        return [
            entry
            for key, entry in self.entries().items()
            if (flag := entry.setting.flag) is not None
            and (self.shared_flags is None or key.startswith(own) or flag in self.shared_flags)
        ]


@dataclass(frozen=True, kw_only=True)
class SftSettings(AlgorithmSettings):
    """Supervised fine-tuning."""

    counts_tokens: ClassVar[bool] = True

    mask: Literal["assistant", "completion", "none"] = setting(
        "assistant",
        "Which tokens count: every assistant turn, only the last answer, or (none) all of them.",
        flag="--mask",
        panel="Loss",
    )
    loss_average: Literal["tokens", "micro_batches"] = setting(
        "tokens",
        "Mean over the tokens of a global batch, or NeMo's: over each micro-batch's, then over these.",
    )


ALGORITHMS: Mapping[str, AlgorithmRow] = {
    row.name: row
    for row in (
        AlgorithmRow(
            name="sft",
            summary="Fine-tune on answers: prompt-response rows or chat messages.",
            example="--ckpt model.nemo --data train.jsonl --val val.jsonl --lora 16 -o run/",
            target="nemoalign.algorithms.sft:Sft",
            settings=SftSettings,
            defaults={"model.optim.lr": 1e-5, "model.optim.weight_decay": 0.01},
        ),
        AlgorithmRow(
            name="dpo",
            summary="Prefer the better of two answers: DPO and its relatives.",
            example="--ckpt sft.nemo --data pairs.jsonl --beta 0.1 -o run/",
            target="nemoalign.algorithms.dpo:Dpo",
            settings=DpoSettings,
            defaults={"model.optim.lr": 1e-6, "model.optim.weight_decay": 0.1},
        ),
        AlgorithmRow(
            name="kto",
            summary="Learn from single answers, wanted or not.",
            example="--ckpt model.nemo --data feedback.jsonl --beta 0.1 -o run/",
            target="nemoalign.algorithms.kto:Kto",
            settings=KtoSettings,
            defaults={"model.optim.lr": 1e-6, "model.optim.weight_decay": 0.1},
        ),
        AlgorithmRow(
            name="rm",
            summary="Train a reward model from pairs or scores, and score answers with one.",
            example="--ckpt sft.nemo --data pairs.jsonl -o run/",
            target="nemoalign.algorithms.rm:Rm",
            settings=RmSettings,
            defaults={"model.optim.lr": 5e-6, "model.optim.weight_decay": 0.1},
        ),
        AlgorithmRow(
            name="ppo",
            summary="Learn from rewards for the policy's own answers: PPO, REINFORCE, RLOO, GRPO.",
            example="--ckpt sft.nemo --reward rm.nemo --data prompts.jsonl -o run/",
            target="nemoalign.algorithms.ppo:Policy",
            settings=PpoSettings,
            defaults={
                "model.optim.lr": 9e-7,
                "model.optim.weight_decay": 0.1,
                "model.optim.sched.name": "constant",
                "model.data.train_ds.shuffle": True,
                "exp_manager.checkpoint_callback_params.monitor": "val_reward",
                "exp_manager.checkpoint_callback_params.mode": "max",
                "trainer.ppo.val_check_interval": Every(10),
            },
            helps={
                "model.data.train_ds.file_path": "Prompts, as rows of any kind, whose answers are left away "
                "(JSONL, also .gz; Parquet); repeat it to mix files, with a weight each.",
                "model.data.validation_ds.file_path": "Prompts to measure rewards on, before, during and after.",
                "model.data.test_ds.file_path": "Prompts to measure rewards on once, at the end.",
                "model.data.train_ds.packed_sequence": "Lay prompts and answers of an update end to end in packs "
                "of --mbs x --seq-len tokens, each seeing only itself: the same loss without padding.",
                "model.data.train_ds.shuffle": "Ask prompts in a new order in every epoch, instead of the file's.",
                "model.global_batch_size": "Answers in one update, over all ranks; a step has --rollouts / --gbs.",
                "model.encoder_seq_length": "Longest prompt and answer together, in tokens.",
                "model.optim.lr": "The policy's highest learning rate.",
                "model.optim.sched.warmup_steps": "Steps, each a rollout, of linear warm-up; 0 is the full rate at "
                "step 1.",
                "trainer.ppo.max_epochs": "Passes over the prompts.",
                "trainer.ppo.max_steps": "Steps, each a rollout and its updates, if that comes first; 0 only measures "
                "--val and --test.",
            },
        ),
        AlgorithmRow(
            name="generate",
            summary="Let a model answer prompts.",
            example='--ckpt model.nemo --prompt "What is the capital of France?"',
            settings=GenerateSettings,
            shared_flags=(
                *("--ckpt", "--seq-len", "--tp", "--pp", "--devices", "--nodes", "--precision"),
                *("--sequence-parallel/--no-sequence-parallel", "--seed", "--out", "--overwrite"),
            ),
            panel="Using",
        ),
    )
}
