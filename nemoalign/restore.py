"""For Python: any checkpoint as a megatron-core model, its configuration and its tokenizer.

``from nemoalign import restore_from`` is the same function. For more than one rank the program is started
with torchrun or srun, as any other program that uses torch.distributed.
"""

from __future__ import annotations

import atexit
import os
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nemoalign.parallel.device import select_backend
from nemoalign.parallel.world import find_world

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from megatron.core import parallel_state

from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.source import Source
from nemoalign.data.tokenizer import Tokenizer, build_tokenizer
from nemoalign.errors import ConfigError, SourceError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from nemoalign.model.spec import Precision

SEED = 1234
"""NeMo's; dropout is off, so it decides nothing before somebody trains."""


class Restored(NamedTuple):
    """A checkpoint in memory."""

    model: GPTModel
    """This rank's part, in evaluation mode; ``model(tokens, position_ids, None)`` returns logits
    [b, s, padded vocabulary / tp], on a last pipeline stage."""
    config: dict[str, Any]
    """The checkpoint's ``model_config.yaml``, resolved, with the layout and precision restored in."""
    tokenizer: Tokenizer | None
    """None, with a warning, when the checkpoint does not carry a tokenizer that can be read."""


def restore_from(
    path: Path | str,
    *,
    tp: int = 1,
    pp: int = 1,
    precision: Precision | None = None,
    adapter: Path | str | None = None,
) -> Restored:
    """Return the model of any checkpoint that ``nemoalign inspect`` knows, in any layout.

    Adapters are merged: the one named, or the checkpoint's own. ``precision`` is the checkpoint's
    unless given. Collective over all ranks. Process groups are opened when none are, and stay open.

    Raises:
        NemoAlignError: for what is no checkpoint, or cannot be laid out so.
    """
    source = open_source(path)
    source = with_adapter(source, None if adapter is None else open_source(adapter), Path("OUT"))
    precision = precision or ("bf16" if source.dtypes[0] == "bfloat16" else "fp32")
    layout = ParallelLayout(_world_size(), tp=tp, pp=pp)
    layout.check(source.arch)
    _open_groups(layout)
    (model,) = build_model(
        source.arch, source.vocab_size, layout, precision=precision, settings=ModelSettings()
    )
    load_weights([model], source.weights, source.arch, layout, source.vocab_size)
    restored_as = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "precision": 32 if precision == "fp32" else precision,
    }
    return Restored(model.eval(), source.config | restored_as, _tokenizer_of(source))


def _tokenizer_of(source: Source) -> Tokenizer | None:
    try:
        return build_tokenizer(source.files, source.config.get("tokenizer") or {})
    except SourceError as error:
        warnings.warn(f"{source.path}: {error}", stacklevel=3)
        return None


def _world_size() -> int:
    """Return the number of ranks of this program, as its launcher or an open process group says."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    world = find_world(os.environ)
    if world is None:
        return 1
    world.enter(os.environ)
    return world.size


def _open_groups(layout: ParallelLayout) -> None:
    """Open megatron-core's groups until the program ends, or check those that are open."""
    if not parallel_state.model_parallel_is_initialized():
        groups = ExitStack()
        groups.enter_context(start(layout, seed=SEED))
        atexit.register(groups.close)
        return
    tp = parallel_state.get_tensor_model_parallel_world_size()
    pp = parallel_state.get_pipeline_model_parallel_world_size()
    if (tp, pp) != (layout.tp, layout.pp):
        raise ConfigError(
            f"This program's process groups are open at tp={tp}, pp={pp}, so a model cannot be "
            f"restored at tp={layout.tp}, pp={layout.pp}. Restore all models in one layout."
        )
