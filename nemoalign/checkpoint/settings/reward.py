"""Reward and critic models: NeMo-Aligner's head and settings, and Hugging Face's sequence classifier.

Both put a linear layer on the final hidden state of an answer's last token. NeMo-Aligner's has a bias,
Hugging Face's has none; NeMo-Aligner's model keeps an output layer it does not use, Hugging Face's
does not. The tensors decide whether there is a head, and how many numbers it returns.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemoalign.archive.dtypes import cast
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.checkpoint.settings.values import section, text
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.sources.stores import Place, PlacedStore
from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.families.registry import CLASSIFIER, architectures_of, classifier_of

WEIGHT, BIAS = "rm_head.weight", "rm_head.bias"
SCORE = "score.weight"
_TARGETS = {
    "binary_ranking": "megatron_gpt_reward_model.MegatronGPTRewardModel",
    "regression": "megatron_gpt_regression_reward_model.MegatronGPTRegressionRewardModel",
}


@dataclass(frozen=True)
class Standardization:
    """How rewards, and values that began as rewards, are moved and scaled: ``(x - mean) / std``."""

    mean: float
    std: float


def reward_standardization(config: Mapping[str, Any], where: str) -> Standardization | None:
    """Return what a model_config.yaml asks for as ``reward_standardization``; None unless it is enabled.

    Raises:
        ContentError: when it is enabled without numbers that can be meant.
    """
    stated = section(config, "reward_standardization")
    if not stated.get("enable"):
        return None
    mean, std = (_number(stated.get(name)) for name in ("mean", "std"))
    if mean is None or std is None or std <= 0:
        raise ContentError(
            f"{where} enables reward_standardization with mean {stated.get('mean')!r:.40} and std "
            f"{stated.get('std')!r:.40}. It needs two numbers, the second above 0."
        )
    return Standardization(mean, std)


def attribute_weights(config: Mapping[str, Any], where: str) -> tuple[float, ...] | None:
    """Return ``regression.attribute_weights`` of a model_config.yaml; None where all count the same.

    Raises:
        ContentError: when they are no numbers.
    """
    stated = section(config, "regression").get("attribute_weights")
    if stated is None:
        return None
    found = [_number(value) for value in stated] if isinstance(stated, list) else []
    weights = tuple(weight for weight in found if weight is not None)
    if not weights or len(weights) < len(found):
        raise ContentError(
            f"{where} has regression.attribute_weights {stated!r:.60}, which is no list of numbers."
        )
    return weights


def with_head(
    arch: Architecture, tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], where: str
) -> Architecture:
    """Return ``arch`` with the reward head that NeMo's ``tensors`` hold, if they hold one.

    Raises:
        ContentError: when the configuration describes another one.
    """
    outputs = _outputs(tensors, WEIGHT)
    stated = section(config, "regression").get("num_attributes")
    if outputs and stated is not None and stated != outputs:
        raise ContentError(
            f"{where} has a reward head of {outputs} outputs, but its model_config.yaml asks for "
            f"{stated!r:.40} (regression.num_attributes). One of the two belongs to another model."
        )
    return replace(arch, num_attributes=outputs)


def classifier_outputs(
    hf_config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str
) -> int:
    """Return how many numbers a sequence classifier returns; 0 for another kind of model.

    Raises:
        ContentError: when a classifier has no head.
    """
    if not is_classifier(hf_config):
        return 0
    outputs = _outputs(tensors, SCORE)
    if not outputs:
        raise ContentError(f"{where} is a {CLASSIFIER} without its {SCORE}. Fetch it again.")
    return outputs


def is_classifier(hf_config: Mapping[str, Any]) -> bool:
    """True for a config.json of a sequence classifier."""
    return any(name.endswith(CLASSIFIER) for name in architectures_of(hf_config))


def reward_settings(
    outputs: int,
    kind: str | None = None,
    *,
    averages: bool = False,
    regression: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what model_config.yaml says of a reward model, as NeMo-Aligner's training writes it.

    Args:
        outputs: of the head; 0 for a model without one.
        kind: ``binary_ranking`` or ``regression``; by the number of outputs unless given.
        averages: True when rewards come from the mean over an answer's tokens.
        regression: what differs from NeMo-Aligner's defaults there.
    """
    if not outputs:
        return {}
    kind = kind or ("binary_ranking" if outputs == 1 else "regression")
    return {
        "share_embeddings_and_output_weights": False,
        "output_sequence": False,
        "use_avg_pool": averages,
        "force_head_dtype": "float32",
        "reward_model_type": kind,
        "regression": {
            "num_attributes": outputs,
            "merge_attributes": False,
            "attribute_weights": None,
            "loss_mask_val": -100,
            **(regression or {}),
        },
        "target": f"nemo_aligner.models.nlp.gpt.{_TARGETS[kind]}",
    }


def classifier_fields(source: Source) -> dict[str, Any]:
    """Return the config.json fields of a reward model, less those its original states already."""
    outputs, original = source.arch.num_attributes, source.hf_config or {}
    if not outputs or (is_classifier(original) and _stated_outputs(original) == outputs):
        return {}
    labels = {str(number): f"LABEL_{number}" for number in range(outputs)}
    return {
        "architectures": [classifier_of(source.family)],
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }


def check_classifier(source: Source) -> None:
    """Refuse what a sequence classifier cannot compute: a mean over the answer's tokens."""
    if source.arch.num_attributes and source.config.get("use_avg_pool"):
        raise ContentError(
            f"{source.path} averages its rewards over all tokens (use_avg_pool: true); Hugging "
            "Face's sequence classifier takes the last token's. It can be converted to .nemo only."
        )


def lost_bias(source: Source) -> str | None:
    """Return what to say of a head whose bias Hugging Face's classifier has no place for."""
    if not source.arch.num_attributes:
        return None
    store = _holder(source)
    bias = cast(store.read(BIAS), store.tensors[BIAS].dtype, "float32")
    if not bias.any():
        return None
    values = ", ".join(f"{value:.9g}" for value in bias)
    return (
        f"{source.path} adds a bias to its rewards, which Hugging Face's sequence classifier has no "
        f"place for: rewards computed there lack {values}. Their order is the same."
    )


def described_head(source: Source) -> dict[str, Any] | None:
    """Return what ``inspect`` says of a reward head."""
    outputs = source.arch.num_attributes
    if not outputs:
        return None
    kind = text(source.config, "reward_model_type")
    return {"outputs": outputs, "type": kind, "dtype": _holder(source).tensors[WEIGHT].dtype}


def _holder(source: Source) -> TensorStore:
    """Return the tensors that a reward head is among."""
    alone = source.adapter if source.is_adapter_only else None
    return source.weights if alone is None else alone.weights


def with_trained_head(base: Source, told_by: Source) -> Source:
    """Return the base of an adapter as a reward model, with the head that was trained with it.

    Without such a head it is the base as it is.
    """
    assert told_by.adapter is not None, "the caller has an adapter"
    trained = told_by.adapter.weights
    heads = {name: Place(trained, name) for name in (WEIGHT, BIAS) if name in trained.tensors}
    if not heads:
        return base
    names = (*reward_settings(1), "target")
    told = {name: told_by.config[name] for name in names if name in told_by.config}
    places = {name: Place(base.weights, name) for name in base.weights.tensors}
    places.setdefault(HEAD, places[EMBEDDING])
    outputs = told_by.arch.num_attributes
    return replace(
        base,
        arch=replace(base.arch, num_attributes=outputs, share_embeddings_and_output_weights=False),
        weights=PlacedStore(places | heads),
        config=base.config | told,
        stored_config=base.stored_config | told,
    )


def _outputs(tensors: Mapping[str, TensorInfo], name: str) -> int:
    info = tensors.get(name)
    return info.shape[0] if info is not None and len(info.shape) == 2 else 0


def _number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def _stated_outputs(hf_config: Mapping[str, Any]) -> int:
    """Transformers assumes two labels where config.json names none."""
    labels = hf_config.get("id2label")
    stated = hf_config.get("num_labels")
    return len(labels) if isinstance(labels, dict) else stated if isinstance(stated, int) else 2
