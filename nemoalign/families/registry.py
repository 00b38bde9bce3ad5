"""Finding the family of a configuration; families are the modules of this package with a ``FAMILY``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import nemoalign.families
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.rules import Family

CLASSIFIER = "ForSequenceClassification"
"""How Hugging Face ends the name of a class with a reward head."""


@cache
def families() -> tuple[Family, ...]:
    """Return every family of the package, the most particular (most ``fixed`` and ``facts``) first."""
    found: list[Family] = []
    for module in pkgutil.iter_modules(nemoalign.families.__path__):
        if module.name != __name__.rpartition(".")[2]:
            family = importlib.import_module(f"nemoalign.families.{module.name}").FAMILY
            if isinstance(family, Family):  # others are no language models
                found.append(family)
    return tuple(sorted(found, key=_particular_first))


def _particular_first(family: Family) -> tuple[int, str]:
    return -len(family.fixed) - len(family.facts), family.name


def family_for_hf(config: Mapping[str, Any]) -> Family:
    """Return the family of a Hugging Face config.json, by ``architectures`` and else ``model_type``.

    Raises:
        ContentError: when no family knows it.
    """
    architectures = architectures_of(config)
    model_type = config.get("model_type")
    for family in families():
        if _names(family, architectures):
            return family
        if not architectures and model_type and model_type == family.hf_model_type:
            return family
    known = ", ".join(name for family in families() for name in family.hf_architectures)
    found = ", ".join(architectures) or f"model_type {model_type}"
    raise ContentError(f"config.json describes {found}, which no family knows. Known: {known}.")


def family_for_nemo(
    config: Mapping[str, Any], hf_config: Mapping[str, Any] | None = None
) -> Family:
    """Return the family a model_config.yaml describes; ``gpt`` when no particular one fits.

    ``hf_config`` is the config.json an archive keeps, if any: it decides between families that NeMo
    spells alike.
    """
    arch = Architecture.from_nemo(config)
    if hf_config is not None:
        for family in families():
            if _names(family, architectures_of(hf_config)) and not family.differences(arch):
                return family
    return next(family for family in families() if not family.differences(arch))


def classifier_of(family: Family) -> str:
    """Return the Hugging Face class of a family's reward models."""
    return _stem(family.hf_architectures[0]) + CLASSIFIER


def architectures_of(config: Mapping[str, Any]) -> list[str]:
    """Return the classes a config.json names."""
    names: Any = config.get("architectures")
    return [str(name) for name in cast("list[Any]", names)] if isinstance(names, list) else []


def _names(family: Family, architectures: Sequence[str]) -> bool:
    """True when one of these classes is the family's language model, or has a reward head instead."""
    stems = {_stem(name) for name in family.hf_architectures}
    return any(_stem(name) in stems for name in architectures)


def _stem(architecture: str) -> str:
    for suffix in (CLASSIFIER, "ForCausalLM", "LMHeadModel"):
        architecture = architecture.removesuffix(suffix)
    return architecture


def nearest_family(arch: Architecture) -> tuple[Family, list[str]]:
    """Return the Hugging Face family that differs least from ``arch``, and the differences."""
    known = [family for family in families() if family.hf_architectures]
    best = min(known, key=lambda family: len(family.differences(arch)))
    return best, best.differences(arch)
