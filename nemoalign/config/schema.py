"""What a training run is: NeMo's configuration tree as frozen dataclasses, every default in place.

Field names are NeMo's (``examples/nlp/gpt/conf`` of NeMo-Aligner); flags carry the short words.
Architecture keys of a checkpoint join ``model`` when the tree is merged, but are no settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.config.data import DataConfig
from nemoalign.config.fields import AlgorithmSettings, Section, section, setting
from nemoalign.config.peft import Peft
from nemoalign.config.trainer import ExpManager, TrainerConfig

COSINE = "CosineAnnealing"
NEMO_SCHEDULES = (
    "WarmupAnnealing",
    "SquareRootAnnealing",
    "InverseSquareRootAnnealing",
    "PolynomialDecayAnnealing",
)
"""NeMo's other schedules: they end at 0 unless told otherwise."""
DISTRIBUTED = ("distributed_fused_adam", "mcore_distributed_optim")


@dataclass(frozen=True, kw_only=True)
class PretrainedCheckpoint(Section):
    """Where a run starts."""

    restore_from_path: Path | None = setting(
        None,
        "What to start from: a .nemo file, a Hugging Face directory, any checkpoint or run.",
        flag="--ckpt",
        metavar="SRC",
        path_kind="any",
        panel="Checkpoint and data",
    )


@dataclass(frozen=True, kw_only=True)
class Schedule(Section):
    """Learning rate over time."""

    name: str = setting(
        COSINE,
        "Shape of the learning rate after warm-up; NeMo's names are known too.",
        flag="--schedule",
        metavar="cosine|linear|constant|...",
        choices={"cosine": COSINE, "linear": "linear", "constant": "constant"}
        | {name: name for name in NEMO_SCHEDULES},
        panel="Optimizer",
    )
    warmup_steps: int | None = setting(
        None,
        "Steps of linear warm-up; 0 is the full rate at step 1.",
        flag="--warmup",
        at_least=0,
        shown="10, at most a tenth of the run",
        panel="Optimizer",
    )
    warmup_ratio: float | None = setting(
        None, "The same as a share of the schedule.", at_least=0, below=1
    )
    constant_steps: int = setting(
        0, "Steps at --min-lr at the end, as NeMo's cosine means it.", at_least=0
    )
    constant_ratio: float | None = setting(
        None, "The same as a share of the schedule.", at_least=0, below=1
    )
    power: float = setting(1.0, "Exponent of PolynomialDecayAnnealing.", above=0)
    min_lr: float = setting(
        1e-6,
        "Where the schedule ends.",
        flag="--min-lr",
        at_least=0,
        shown="a tenth of --lr",
        panel="Optimizer",
    )
    max_steps: int | None = setting(
        None, "Length of the schedule when it is not the run's.", at_least=1
    )


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """AdamW."""

    name: str = setting(
        "adamw",
        "Optimizer; NeMo's names for Adam are all this one, two of them distributed.",
        choices=("adamw", *DISTRIBUTED, "fused_adam", "megatron_fused_adam"),
    )
    use_distributed_optimizer: bool | None = setting(
        None,
        "Share out moments and fp32 masters over the data-parallel ranks.",
        shown="with several of them, and --lora off",
    )
    overlap_grad_sync: bool | None = setting(
        None, "Reduce gradients while the backward pass still computes.", shown="on GPUs"
    )
    lr: float = setting(1e-5, "Highest learning rate.", flag="--lr", at_least=0, panel="Optimizer")
    weight_decay: float = setting(
        0.1,
        "Weight decay; never on norms and biases.",
        flag="--weight-decay",
        at_least=0,
        panel="Optimizer",
    )
    betas: tuple[float, float] = setting((0.9, 0.98), "Adam's betas.", at_least=0, below=1)
    eps: float = setting(1e-8, "Adam's epsilon.", above=0)
    sched: Schedule = section(Schedule)

    @property
    def distributes(self) -> bool | None:
        """What was asked about the optimizer's state, by switch or by name; None is nothing."""
        if self.use_distributed_optimizer is None and self.name in DISTRIBUTED:
            return True
        return self.use_distributed_optimizer


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Batches, parallel sizes and everything else NeMo keeps beside the architecture."""

    micro_batch_size: int = setting(
        1,
        "Rows in one forward pass of one data-parallel rank.",
        flag="--mbs",
        at_least=1,
        panel="Batches and length",
    )
    global_batch_size: int = setting(
        64,
        "Rows in one optimizer step, over all ranks.",
        flag="--gbs",
        at_least=1,
        panel="Batches and length",
    )
    encoder_seq_length: int = setting(
        512,
        "Longest sequence in tokens.",
        flag="--seq-len",
        at_least=2,
        shown="the checkpoint's",
        panel="Batches and length",
    )
    tensor_model_parallel_size: int = setting(
        1, "Tensor-parallel size.", flag="--tp", at_least=1, panel="Parallelism"
    )
    pipeline_model_parallel_size: int = setting(
        1, "Pipeline-parallel size.", flag="--pp", at_least=1, panel="Parallelism"
    )
    virtual_pipeline_model_parallel_size: int | None = setting(
        None,
        "Interleaved model chunks per pipeline stage.",
        flag="--vp",
        at_least=2,
        shown="off",
        panel="Parallelism",
    )
    context_parallel_size: int = setting(
        1, "Context-parallel size; only 1 is offered.", flag="--cp", at_least=1, panel="Parallelism"
    )
    expert_model_parallel_size: int = setting(
        1, "Expert-parallel size; only 1 is offered.", flag="--ep", at_least=1, panel="Parallelism"
    )
    sequence_parallel: bool = setting(
        False,
        "Split norms and dropout along the sequence over the tensor-parallel ranks.",
        flag="--sequence-parallel/--no-sequence-parallel",
        panel="Parallelism",
    )
    seed: int = setting(
        1234,
        "Seed of data order, dropout and new weights.",
        flag="--seed",
        at_least=0,
        panel="Batches and length",
    )
    softmax_over_padding: bool = setting(
        False,
        "Count the padding columns of the vocabulary in the softmax, as NeMo does; depends on --tp.",
    )
    hidden_dropout: float = setting(0.0, "Dropout after attention and MLP.", at_least=0, below=1)
    attention_dropout: float = setting(0.0, "Dropout of attention weights.", at_least=0, below=1)
    activations_checkpoint_granularity: Literal["selective", "full"] | None = setting(
        None,
        "Recompute activations in the backward pass to save memory.",
        flag="--recompute",
        choices={"none": None, "selective": "selective", "full": "full"},
        panel="Parallelism",
    )
    peft: Peft = section(Peft)
    data: DataConfig = section(DataConfig)
    optim: OptimConfig = section(OptimConfig)
    algorithm: AlgorithmSettings = section(AlgorithmSettings, key="{algorithm}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """One training run."""

    pretrained_checkpoint: PretrainedCheckpoint = section(PretrainedCheckpoint)
    model: ModelConfig = section(ModelConfig)
    trainer: TrainerConfig = section(TrainerConfig)
    exp_manager: ExpManager = section(ExpManager)
