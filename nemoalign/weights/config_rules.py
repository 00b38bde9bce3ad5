"""Rows of configuration: how fields of Hugging Face's config.json and NeMo's model_config.yaml correspond.

``normal_form`` settles the two spellings of config.json (transformers 4 and 5) once; rules see only the
flat one. Each rule reads both ways. What a side cannot represent is a ContentError that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError

Fields = Mapping[str, Any]


class ConfigRule(Protocol):
    """One correspondence between the two configurations."""

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return the NeMo fields this rule derives from a config.json in normal form."""
        ...

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the config.json fields this rule derives from an architecture."""
        ...


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()
"""Marks a config.json field without which a model has no shape."""


@dataclass(frozen=True)
class Field:
    """The same value under two names; ``default`` is what transformers assumes when it is absent."""

    nemo: str
    hf: str
    default: Any = REQUIRED

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return the one NeMo field."""
        value = hf.get(self.hf)
        if value is None and self.default is REQUIRED:
            raise ContentError(f"config.json has no {self.hf}, which a model of this family needs.")
        return {self.nemo: self.default if value is None else value}

    def to_hf(self, arch: object) -> dict[str, Any]:
        """Return the one config.json field."""
        return {self.hf: getattr(arch, self.nemo)}


@dataclass(frozen=True)
class Choice:
    """A named value spelled differently on both sides; ``values`` maps NeMo's spellings to HF's."""

    nemo: str
    hf: str
    values: Mapping[str, str]
    default: str

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return NeMo's first spelling of the value."""
        found = hf.get(self.hf, self.default)
        for spelling, value in self.values.items():
            if value == found:
                return {self.nemo: spelling}
        known = ", ".join(dict.fromkeys(self.values.values()))
        raise ContentError(
            f'config.json has {self.hf} "{found}", which cannot be written as a .nemo of this '
            f"family; it knows {known}."
        )

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return Hugging Face's spelling of the value."""
        return {self.hf: self.values[getattr(arch, self.nemo).lower()]}


@dataclass(frozen=True)
class Only:
    """A config.json field of which a ``.nemo`` knows one value; transformers assumes it when absent."""

    hf: str
    value: Any

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return nothing, or refuse another value."""
        found = hf.get(self.hf)
        if found is None or found == self.value:
            return {}
        raise ContentError(
            f"config.json has {self.hf} {found!r:.60}, which a .nemo cannot represent; only "
            f"{self.value!r} has a counterpart there."
        )

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return nothing: it is what transformers assumes."""
        del arch
        return {}


@dataclass(frozen=True)
class Heads:
    """Grouped-query heads and head width: both sides may leave them out, with their own defaults.

    ``groups`` and ``width`` are what transformers assumes where config.json has neither a number nor
    null; None stands for one group a head, and for hidden size / heads.
    """

    groups: int | None = None
    width: int | None = None

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return num_query_groups and, only where it is not hidden / heads, kv_channels."""
        heads, hidden = hf["num_attention_heads"], hf["hidden_size"]
        width = hf.get("head_dim", self.width)
        kv_channels = None if width is None or width * heads == hidden else width
        groups = hf.get("num_key_value_heads", self.groups) or heads
        return {"num_query_groups": groups, "kv_channels": kv_channels}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return num_key_value_heads and head_dim, always spelled out."""
        return {"num_key_value_heads": arch.query_groups, "head_dim": arch.head_dim}


@dataclass(frozen=True)
class Positions:
    """The longest sequence, which NeMo keeps in two fields."""

    default: Any = REQUIRED

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return both NeMo fields with the same length."""
        length = Field("", "max_position_embeddings", self.default).to_nemo(hf)[""]
        return {"encoder_seq_length": length, "max_position_embeddings": length}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the longer of the two lengths: fine-tuning may have shortened one."""
        return {
            "max_position_embeddings": max(arch.encoder_seq_length, arch.max_position_embeddings)
        }


@dataclass(frozen=True)
class Rope:
    """Rotary base and the two kinds of rope scaling NeMo knows: linear and llama3."""

    theta: float = 10000.0

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return rotary_base and the scaling fields; all four numbers of llama3 are written out."""
        scaling: Fields = hf.get("rope_scaling") or {"rope_type": "default"}
        fields = {
            "rotary_base": hf.get("rope_theta") or self.theta,
            "seq_len_interpolation_factor": None,
            "scale_positional_embedding": False,
        }
        kind = scaling["rope_type"]
        if kind == "default":
            return fields
        if kind == "linear":
            return fields | {"seq_len_interpolation_factor": _number(scaling, "factor")}
        if kind == "llama3":
            numbers = {nemo: _number(scaling, name) for nemo, name in _LLAMA3.items()}
            return fields | {"scale_positional_embedding": True} | numbers
        raise ContentError(
            f'config.json has rope type "{kind}" (rope_scaling.rope_type), which a .nemo cannot '
            "represent; it knows default, linear and llama3."
        )

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return rope_theta and rope_scaling; llama3 wins where an archive wrongly has both kinds."""
        scaling: dict[str, Any] | None = None
        if arch.scale_positional_embedding:
            scaling = {name: getattr(arch, nemo) for nemo, name in _LLAMA3.items()}
            scaling["rope_type"] = "llama3"
        elif arch.seq_len_interpolation_factor not in (None, 1.0):
            scaling = {"rope_type": "linear", "factor": arch.seq_len_interpolation_factor}
        return {"rope_theta": arch.rotary_base, "rope_scaling": scaling}


_LLAMA3 = {
    "scale_factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "old_context_len": "original_max_position_embeddings",
}


def _number(scaling: Fields, name: str) -> Any:
    if scaling.get(name) is None:
        raise ContentError(
            f'config.json has rope type "{scaling["rope_type"]}" without its {name}.'
        )
    return scaling[name]


def normal_form(config: Fields) -> dict[str, Any]:
    """Return a config.json in transformers 4's flat spelling, whichever version wrote it.

    Raises:
        ContentError: when the rope parameters differ between kinds of layers.
    """
    fields = dict(config)
    parameters: Any = fields.pop("rope_parameters", None) or {}
    scaling: Any = fields.get("rope_scaling") or parameters  # transformers 5: the old name wins
    if not isinstance(scaling, Mapping):
        raise ContentError(f"config.json has rope_scaling {scaling!r:.60}, which is no mapping.")
    rope = dict(cast("Fields", scaling))
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ContentError(
            "config.json has different rope_parameters for different kinds of layers, which a "
            ".nemo cannot represent."
        )
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            fields[name] = rope.pop(name)
    if "dtype" in fields:
        fields["torch_dtype"] = fields.pop("dtype")
    fields["rope_scaling"] = _normal_scaling(rope)
    return fields


def _normal_scaling(scaling: Fields) -> dict[str, Any] | None:
    if not scaling:
        return None
    named = {name: value for name, value in scaling.items() if name != "type"}
    named.setdefault("rope_type", scaling.get("type", "default"))
    return None if named["rope_type"] == "default" else named


def nemo_fields(rules: Sequence[ConfigRule], hf: Fields) -> dict[str, Any]:
    """Return every NeMo field the rules derive from a config.json of any spelling.

    Raises:
        ContentError: when two fields of config.json ask for different values of one NeMo field.
    """
    normal = normal_form(hf)
    fields: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for rule in rules:
        source = str(getattr(rule, "hf", type(rule).__name__.lower()))
        for name, value in _derived(rule, normal, source).items():
            if name in fields and fields[name] != value:
                raise ContentError(
                    f"config.json has {sources[name]} {fields[name]} but {source} {value}; a .nemo "
                    f'has one field for both ("{name}"), so it cannot represent this model.'
                )
            fields[name], sources[name] = value, source
    return fields


def _derived(rule: ConfigRule, normal: Fields, source: str) -> dict[str, Any]:
    try:
        return rule.to_nemo(normal)
    except (TypeError, ValueError, AttributeError, KeyError, ArithmeticError) as error:
        raise ContentError(
            f"config.json has values for {source} that no model has: {error}"
        ) from error


def hf_fields(rules: Sequence[ConfigRule], arch: Architecture) -> dict[str, Any]:
    """Return every config.json field the rules derive from an architecture, in the flat spelling."""
    fields: dict[str, Any] = {}
    for rule in rules:
        fields.update(rule.to_hf(arch))
    return fields
