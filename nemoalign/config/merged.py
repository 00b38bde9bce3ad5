"""The result of a merge: one run's configuration, typed and as a tree, with the source of each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from nemoalign.config.algorithms import ALGORITHMS, AlgorithmRow
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.config.schema import RunConfig

OUTPUT = "exp_manager.explicit_log_dir"


@dataclass(frozen=True)
class Merged:
    """One run's configuration."""

    algorithm: str
    config: RunConfig
    checkpoint_config: dict[str, Any]
    """The checkpoint's whole ``model_config.yaml``, with what a run is allowed to change in it."""
    tree: dict[str, Any]
    """Plain values of every setting, the architecture and the tokenizer, as NeMo nests them."""
    sources: dict[str, str]
    """Dotted key -> where its value came from, for every key of ``tree``."""
    notes: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    @property
    def row(self) -> AlgorithmRow:
        """The algorithm's row: its target is what ``train.algorithm.load_algorithm`` takes."""
        return ALGORITHMS[self.algorithm]

    def to_yaml(self) -> str:
        """Return YAML that repeats the run when it is the only ``--config``."""
        entries = self.row.entries()
        kept = {
            key: escaped(value)
            for key, value in flattened(self.tree).items()
            if key not in entries or not entries[key].setting.transient
        }
        return dump_checkpoint_config(nested(kept))

    def with_output(self, directory: Path) -> Merged:
        """Return the same run writing to ``directory``, chosen because nobody named one."""
        manager = replace(self.config.exp_manager, explicit_log_dir=directory)
        flat = {**flattened(self.tree), OUTPUT: str(directory)}
        return replace(
            self,
            config=replace(self.config, exp_manager=manager),
            tree=nested(flat),
            sources={**self.sources, OUTPUT: "default (the next free)"},
        )


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree from dotted keys; where a value stands in the way of a section, the later wins."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, name = key.split(".")
        node = tree
        for part in above:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = cast("dict[str, Any]", node[part])
        node[name] = value
    return tree


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys from a tree; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def escaped(value: Any) -> Any:
    """Return ``value`` so that OmegaConf reads no interpolation in it."""
    if isinstance(value, list | tuple):
        return [escaped(item) for item in cast("list[Any]", value)]
    return value.replace("${", "\\${") if isinstance(value, str) else value
