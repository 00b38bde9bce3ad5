"""What a checkpoint brings into the merge, and which of it nobody may change.

The weights fix the architecture: another value for one of its keys is a content mismatch, not a
setting. Training settings that a checkpoint was made with are its history and do not come along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from nemoalign.config.architecture import Architecture
from nemoalign.config.check import LEARNED, check_length
from nemoalign.config.layers import Given
from nemoalign.config.legacy import ALIASES
from nemoalign.config.merged import escaped, flattened
from nemoalign.config.names import ARCHITECTURE, OVERWRITE, TOKENIZER
from nemoalign.config.schema import RunConfig
from nemoalign.errors import ConfigError, ContentError

FREE = ("encoder_seq_length", "seq_len_interpolation_factor")
"""Architecture keys that a run may change: they fix no tensor's shape."""

_CARRIED = ("data.chat_prompt_tokens", "data.train_ds.prompt_template")


_REWARD = (
    "reward_model_type",
    "use_avg_pool",
    "regression.loss_mask_val",
    "regression.merge_attributes",
    "regression.attribute_weights",
)
"""What a reward model is, which goes on being so."""


@dataclass(frozen=True)
class Base:
    """A checkpoint's configuration as the lower ground of a merge."""

    source: str
    config: dict[str, Any]
    architecture: Architecture
    values: Mapping[str, Given]

    def covers(self, key: str) -> bool:
        """True for a key whose value the checkpoint may have fixed."""
        return key in ARCHITECTURE or key.startswith(TOKENIZER)

    def apply(
        self, asked: Mapping[str, Any], given: Mapping[str, Given], config: RunConfig
    ) -> Iterator[str]:
        """Take over what people may change, refuse the rest; yield warnings.

        ``asked`` holds the resolved values of the keys this checkpoint covers, as people gave them.

        Raises:
            ContentError: when a locked key got another value.
            ConfigError: when the sequence is longer than learned positions.
        """
        yield from check_length(config, self._with_factor(asked), self._length)
        for key, value in asked.items():
            if value is None:
                continue
            name = key.removeprefix("model.")
            if key.startswith(TOKENIZER):
                self._apply_tokenizer(key, value, given[key].source)
            elif name == "max_position_embeddings" and self._extends:
                self.config[name] = value
            elif name not in (*FREE, *config.model.algorithm.free) and self._differs(name, value):
                self._refuse(key, self.config.get(name), value, given[key].source)
        factor = asked.get("model.seq_len_interpolation_factor")
        if factor is not None:
            self.config["seq_len_interpolation_factor"] = factor
        self.config["encoder_seq_length"] = max(self._length, config.model.encoder_seq_length)

    def describe(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the architecture and tokenizer after ``apply``, by dotted key."""
        flat = flattened(self.config)
        names = {key: key.removeprefix("model.") for key in (*self.values, *asked)}
        return {key: flat[name] for key, name in names.items() if flat.get(name) is not None}

    @property
    def _length(self) -> int:
        return self.architecture.encoder_seq_length

    @property
    def _extends(self) -> bool:
        return self.architecture.position_embedding_type != LEARNED

    def _with_factor(self, asked: Mapping[str, Any]) -> Architecture:
        factor = asked.get("model.seq_len_interpolation_factor")
        changed = {} if factor is None else {"seq_len_interpolation_factor": factor}
        return Architecture.from_nemo({**self.config, **changed})

    def _differs(self, name: str, value: Any) -> bool:
        changed = Architecture.from_nemo({**self.config, name: value})
        return _effective(changed) != _effective(self.architecture)

    def _apply_tokenizer(self, key: str, value: Any, source: str) -> None:
        tokenizer = cast("dict[str, Any]", self.config.setdefault("tokenizer", {}))
        name = key.removeprefix(TOKENIZER)
        inside = any(str(known).startswith("nemo:") for known in tokenizer.values())
        if inside and tokenizer.get(name) != value:
            self._refuse(key, tokenizer.get(name), value, source)
        tokenizer[name] = value

    def _refuse(self, key: str, fixed: Any, asked: Any, source: str) -> None:
        raise ContentError(
            f"{key} is {fixed!r} in {self.source} and {asked!r} in {source}. The checkpoint's weights "
            f"were made with the first, so nothing may change it: remove {key} from {source}."
        )


def read_base(path: Path, config: Mapping[str, Any], upper: Mapping[str, Given]) -> Base:
    """Return what the checkpoint at ``path`` brings, less what ``overwrite_base_config`` drops.

    Raises:
        ContentError: when ``config`` describes no GPT, or a locked key is to be dropped.
        ConfigError: when ``overwrite_base_config`` holds anything but true and false.
    """
    source = f"checkpoint {path}"
    kept = deepcopy(dict(config))
    for key, given in upper.items():
        if key.startswith(OVERWRITE):
            _drop(kept, key.removeprefix(OVERWRITE), given)
    architecture = Architecture.from_nemo(kept)
    kept.setdefault("encoder_seq_length", architecture.encoder_seq_length)
    names = [f.name for f in fields(Architecture)]
    carried = {name: kept[name] for name in names if kept.get(name) is not None}
    flat = flattened(kept)
    for prefix in ("tokenizer", *_CARRIED):
        inside = {k: v for k, v in flat.items() if k == prefix or k.startswith(f"{prefix}.")}
        carried |= {k: v for k, v in inside.items() if v is not None}
    values = {f"model.{k}": Given(escaped(v), source) for k, v in carried.items()}
    head = {ALIASES[f"model.{name}"]: flat.get(name) for name in _REWARD}
    values |= {key: Given(escaped(v), source) for key, v in head.items() if v is not None}
    return Base(source, kept, architecture, values)


def _drop(config: dict[str, Any], key: str, given: Given) -> None:
    """Remove ``key`` from a checkpoint's configuration, as NeMo's ``remove_overwritten_fields``."""
    if not isinstance(given.value, bool):
        raise ConfigError(
            f"{OVERWRITE}{key} is {given.value!r} ({given.source}); it must be true or false."
        )
    if not given.value:
        return
    if f"model.{key}" in ARCHITECTURE and key not in FREE:
        raise ContentError(
            f"{given.source} asks to drop model.{key} from the checkpoint's configuration, but the "
            f"weights were made with it. Remove {OVERWRITE}{key}."
        )
    *above, name = key.split(".")
    node: Any = config
    for part in above:
        node = cast("dict[str, Any]", node).get(part)
        if not isinstance(node, dict):
            return
    cast("dict[str, Any]", node).pop(name, None)


def _effective(architecture: Architecture) -> dict[str, Any]:
    """Return what an architecture comes to, however its optional fields are spelled."""
    return {
        **asdict(architecture),
        "num_query_groups": architecture.query_groups,
        "kv_channels": architecture.head_dim,
    }
