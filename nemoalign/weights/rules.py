"""What a model family is: rows of weights and of configuration that read both ways.

A family file holds one ``Family`` and nothing else. ``weights`` says which Hugging Face tensors make
which Megatron tensor, ``config`` how the fields of config.json and model_config.yaml correspond, and
``fixed`` what every model of the family has in common, which is also how it is recognised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import ConfigRule
from nemoalign.weights.names import numbers_of, pattern_of, with_numbers
from nemoalign.weights.ops import Absent, Copy, Op
from nemoalign.weights.tensors import expected_shapes, holds


@dataclass(frozen=True)
class WeightRule:
    """One Megatron tensor, the Hugging Face tensor or tensors it is made of, and the operation.

    Names hold ``{i}`` for the layer and ``{e}`` for the expert; ``when`` names a condition of
    ``tensors.CONDITIONS``.
    """

    megatron: str
    hf: str | tuple[str, ...]
    op: Op = field(default_factory=Copy)
    when: str = "always"

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The Hugging Face names, also when there is only one."""
        return (self.hf,) if isinstance(self.hf, str) else self.hf


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: how it is recognised and how it is spelled on both sides.

    ``fixed`` maps a field of the architecture to the values a member may have; the first is the one
    written into model_config.yaml. ``facts`` does the same for what the architecture works out from
    its fields, ``layer_spec`` is NeMo's name of a layer of its own. ``hf_prefix`` begins the name of
    every tensor but the head's; checkpoints of a model without its head leave it away.
    ``ignored_hf`` are tensors that older exports saved but are no weights. A family without
    ``hf_architectures`` has no counterpart in Hugging Face.
    """

    name: str
    hf_architectures: tuple[str, ...] = ()
    hf_model_type: str = ""
    weights: tuple[WeightRule, ...] = ()
    config: tuple[ConfigRule, ...] = ()
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    facts: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    layer_spec: str = ""
    hf_prefix: str = "model."
    ignored_hf: tuple[str, ...] = ()

    def differences(self, arch: Architecture) -> list[str]:
        """Return what keeps ``arch`` out of this family, as ``field: value`` words."""
        other_layer = self.hf_architectures and self.layer_spec != arch.layer_spec
        return [f"name: {arch.layer_spec or 'none'}"] * bool(other_layer) + [
            f"{name}: {getattr(arch, name)}"
            for name, allowed in (*self.fixed.items(), *self.facts.items())
            if _folded(getattr(arch, name)) not in allowed
        ]


_CLASSIFIER = (
    WeightRule("output_layer.weight", (), Absent()),
    WeightRule("rm_head.weight", "score.weight"),
    WeightRule("rm_head.bias", (), Absent()),
)
"""What a reward model of any family has in place of its family's output layer."""


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of one model moves: canonical name, Hugging Face names, operation."""

    name: str
    hf_names: tuple[str, ...]
    op: Op


def tensor_plans(family: Family, arch: Architecture) -> list[TensorPlan]:
    """Return one plan for every tensor of the model, in the order of the model.

    Raises:
        ContentError: when no rule of the family covers a tensor the architecture has.
    """
    rules = {rule.megatron: rule for rule in family.weights if holds(rule.when, arch)}
    if arch.num_attributes:
        rules |= {rule.megatron: rule for rule in _CLASSIFIER}
    plans: list[TensorPlan] = []
    for name in expected_shapes(arch, vocab_rows=1):
        pattern = pattern_of(name)
        rule = rules.get(pattern)
        if rule is None:
            raise ContentError(
                f'Family {family.name} has no Hugging Face tensor for "{pattern}", which '
                "model_config.yaml asks for; such a model cannot be written as Hugging Face."
            )
        hf_names = tuple(with_numbers(hf_name, *numbers_of(name)) for hf_name in rule.hf_names)
        plans.append(TensorPlan(name, hf_names, rule.op))
    return plans


def _folded(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value
