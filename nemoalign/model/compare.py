"""Two checkpoints, run on a CPU in fp32 on the same tokens: how far are their logits apart?

``python -m nemoalign.model.compare`` reads one question from stdin and answers in JSON on stdout. A
Hugging Face directory runs through transformers, anything else through megatron-core. One model is in
memory at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemoalign.parallel.device import select_backend

# The device decides how megatron-core's modules see torch, so it is chosen before they are imported.
select_backend()

from transformers import AutoModelForCausalLM

from nemoalign.checkpoint.export import with_adapter
from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.sources.source import Source
from nemoalign.errors import NemoAlignError
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start

SEQUENCES, LENGTH = 3, 48


def compare(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far apart the logits of two sides are: ``path``, perhaps ``adapter`` and ``base``."""
    sources = [_open(side) for side in (left, right)]
    vocab = min(source.vocab_size for source in sources)
    length = min(LENGTH, *(source.arch.encoder_seq_length for source in sources))
    tokens = fixed_tokens(vocab, length)
    first, second = (_logits(source, tokens)[..., :vocab] for source in sources)
    same = first.argmax(-1) == second.argmax(-1)
    return {
        "max_abs_diff": float(np.abs(first - second).max()),
        "largest_logit": float(np.abs(first).max()),
        "top1_agreement": float(same.mean()),
        "positions": int(same.size),
        "engines": [_engine(source) for source in sources],
    }


def fixed_tokens(vocab: int, length: int) -> torch.Tensor:
    """Return the same token ids each time, spread over the whole vocabulary."""
    rng = np.random.default_rng(20240917)
    return torch.from_numpy(rng.integers(0, vocab, (SEQUENCES, length)))


def _open(side: Mapping[str, Any]) -> Source:
    base = open_source(side["base"]) if side.get("base") else None
    source = open_source(side["path"], base)
    adapter = open_source(side["adapter"], source) if side.get("adapter") else None
    return with_adapter(source, adapter, Path("OUT"))


def _engine(source: Source) -> str:
    is_plain = source.kind == "hf" and source.adapter is None
    return "transformers" if is_plain and any(source.path.glob("*.safetensors")) else "megatron"


def _logits(source: Source, tokens: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    run = _through_transformers if _engine(source) == "transformers" else _through_megatron
    with torch.no_grad():
        return run(source, tokens).float().numpy()


def _through_transformers(source: Source, tokens: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(
        source.path,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation="eager",
    )
    return model.eval()(tokens, use_cache=False).logits


def _through_megatron(source: Source, tokens: torch.Tensor) -> torch.Tensor:
    layout = ParallelLayout(1)
    settings = ModelSettings()
    with start(layout, seed=1):
        (model,) = build_model(
            source.arch, source.vocab_size, layout, precision="fp32", settings=settings
        )
        load_weights([model], source.weights, source.arch, layout, source.vocab_size)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        return model.eval()(tokens, positions, None)


def main() -> None:
    """Answer one question."""
    question = json.load(sys.stdin)
    try:
        answer = compare(question["left"], question["right"])
    except NemoAlignError as error:
        answer = {"error": str(error)}
    sys.stdout.write(f"{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
