"""Low-rank adapters: ``model.peft``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemoalign.config.fields import Section, section, setting

LORA_TARGETS = (
    "attention_qkv",
    "attention_dense",
    "mlp_fc1",
    "mlp_fc2",
    "attention",
    "mlp",
    "all",
)


@dataclass(frozen=True, kw_only=True)
class LoraTuning(Section):
    """Low-rank adapters."""

    adapter_dim: int = setting(
        32,
        "Train adapters of this rank instead of the weights.",
        flag="--lora",
        metavar="RANK",
        at_least=1,
        shown="off",
        implies={"model.peft.peft_scheme": "lora"},
        panel="LoRA",
    )
    alpha: float = setting(
        32.0,
        "Scale of the adapters is alpha / rank.",
        flag="--lora-alpha",
        above=0,
        shown="the rank",
        panel="LoRA",
    )
    target_modules: tuple[str, ...] = setting(
        ("attention_qkv",),
        "Which linear layers get adapters (commas between several).",
        flag="--lora-targets",
        choices=LORA_TARGETS,
        panel="LoRA",
    )
    adapter_dropout: float = setting(0.0, "Dropout inside the adapters.", at_least=0, below=1)
    dropout_position: Literal["pre", "post"] = setting("post", "Where that dropout acts.")
    column_init_method: Literal["xavier", "kaiming", "normal"] = setting(
        "xavier", "How the first factor starts."
    )
    row_init_method: Literal["zero", "xavier", "kaiming", "normal"] = setting(
        "zero", "How the second factor starts; unless it is zero, so does another model."
    )
    layer_selection: tuple[int, ...] | None = setting(
        None, "Layers that get adapters, counted from 1.", at_least=1, shown="all"
    )
    variant: Literal["nemo"] = setting(
        "nemo",
        "One adapter a linear layer; NeMo's canonical ones are read and merged, not trained.",
    )
    weight_tying: bool = setting(
        False, "Adapters shared by all layers are not offered.", choices={"false": False}
    )


@dataclass(frozen=True, kw_only=True)
class Peft(Section):
    """Which weights are trained."""

    peft_scheme: Literal["none", "lora"] = setting(
        "none", "What is trained: none is all weights, lora is adapters."
    )
    restore_from_path: Path | None = setting(
        None,
        "Trained adapters to go on from.",
        flag="--adapter",
        metavar="SRC",
        path_kind="any",
        panel="LoRA",
    )
    save_peft: bool = setting(
        False, "At the end also write the adapters as Hugging Face PEFT keeps them."
    )
    save_merged: bool = setting(
        False, "At the end also write the whole model, adapters merged, for Hugging Face."
    )
    lora_tuning: LoraTuning = section(LoraTuning)
