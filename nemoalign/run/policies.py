"""Which weights a model begins with: the policy's, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.algorithms.preference import Preference
from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import open_source
from nemoalign.errors import ConfigError
from nemoalign.model.adapters import with_adapters
from nemoalign.model.load import load_weights
from nemoalign.model.lora_settings import lora_settings
from nemoalign.model.reference import choose_reference
from nemoalign.run.reward import check_writes_answers

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.archive.store import TensorStore
    from nemoalign.config.schema import RunConfig
    from nemoalign.run.prepare import Prepared
    from nemoalign.run.reference_cache import CacheWork
    from nemoalign.train.algorithm import Algorithm


def load_policy(chunks: list[GPTModel], config: RunConfig, made: Prepared) -> None:
    """Fill this rank's part of the model with what training begins with."""
    fill(chunks, policy_weights(config, made), made)


def policy_weights(config: RunConfig, made: Prepared) -> TensorStore:
    """Return the tensors training begins with: the checkpoint's, and an adapter's that goes on."""
    path, lora = config.model.peft.restore_from_path, lora_settings(config.model.peft)
    if path is None:
        return made.source.weights
    assert lora is not None, "check_rules refuses --adapter without --lora"
    return with_adapters(made.source.weights, path, lora, made.arch.num_layers)


def give_reference(
    algorithm: Algorithm, config: RunConfig, made: Prepared, chunks: list[GPTModel], work: CacheWork
) -> None:
    """Load the policy into ``chunks``, and let ``algorithm`` know what it is compared with. Collective."""
    own: Any = config.model.algorithm
    other = own.reference_path
    weights = policy_weights(config, made) if other is None else _other_weights(other, config, work)
    fill(chunks, weights, made)
    if own.reference_cache:
        assert isinstance(algorithm, Preference), "only these have settings of a reference"
        algorithm.cached = work.fill(algorithm, chunks, weights)
    else:
        algorithm.reference = choose_reference(
            chunks,
            has_fresh_adapters=has_fresh_adapters(config),
            on_host=own.reference_on_host,
            is_start=other is None,
        )
        work.reporter.say(f"reference policy: {algorithm.reference.describe()}")
    if other is not None:
        load_policy(chunks, config, made)


def has_fresh_adapters(config: RunConfig) -> bool:
    """True when a run's adapters add nothing before its first step."""
    peft = config.model.peft
    lora = lora_settings(peft)
    return lora is not None and lora.row_init_method == "zero" and peft.restore_from_path is None


def _other_weights(path: Path, config: RunConfig, work: CacheWork) -> TensorStore:
    """Return the tensors of another checkpoint, whole."""
    own: Any = config.model.algorithm
    if config.model.peft.peft_scheme == "lora" and not own.reference_cache:
        raise ConfigError(
            f"--ref {path} is another model, but with --lora policy and reference share one. "
            "Add --ref-cache, which computes its log-probs before training; or leave --ref out, or train "
            "all weights."
        )
    source = with_adapter(open_source(path), None, Path("OUT"))
    check_writes_answers(source)
    work.reporter.say(f"reference: {source.describe()}")
    return source.weights


def fill(chunks: list[GPTModel], weights: TensorStore, made: Prepared) -> None:
    """Fill this rank's part of a model with some tensors."""
    load_weights(chunks, weights, made.arch, made.layout, made.source.vocab_size)
