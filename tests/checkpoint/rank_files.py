"""Rank files as torch reads them, and a model's slices as independent torch code cuts them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import torch

from tests.checkpoint.models import FIXTURES


def load_ranks(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read every torch file of an archive with torch itself; NeMo's extra state is left out."""
    files = {}
    extra_state = [io.BytesIO] if path.parent == FIXTURES else []  # not in any file of ours
    with tarfile.open(path) as tar, torch.serialization.safe_globals(extra_state):
        for member in tar.getmembers():
            if member.name.endswith(".ckpt"):
                content = tar.extractfile(member).read()
                loaded = torch.load(io.BytesIO(content), weights_only=True)
                files[member.name.removeprefix("./").removesuffix("/model_weights.ckpt")] = {
                    key: value for key, value in loaded.items() if "_extra_state" not in key
                }
    return files


def assert_same_files(ours: Path, theirs: Path, vocabulary: int) -> None:
    """Compare two archives file by file, key by key; rows at or above ``vocabulary`` are free."""
    mine, other = load_ranks(ours), load_ranks(theirs)
    assert mine.keys() == other.keys()
    for name, tensors in other.items():
        assert mine[name].keys() == tensors.keys(), name
        rank = int(name.split("rank_")[1][:2]) if "rank_" in name else 0
        for key, tensor in tensors.items():
            found = mine[name][key]
            assert found.shape == tensor.shape, (name, key)
            assert found.dtype == tensor.dtype, (name, key)
            rows = len(tensor)
            if "word_embeddings" in key or "output_layer" in key:
                rows = max(0, min(rows, vocabulary - rank * rows))
                assert not found[rows:].any(), (name, key)
            assert torch.equal(found[:rows], tensor[:rows]), (name, key)


def shard(key: str, whole: torch.Tensor, tp: int, rank: int, *, gated: bool) -> torch.Tensor:
    """Return a rank's slice of a whole tensor, by the modules' own rules."""
    if ("linear_fc1.weight" in key or "linear_fc1.bias" in key) and gated:
        return torch.cat([half.chunk(tp)[rank] for half in whole.chunk(2)])
    if any(name in key for name in ("linear_proj.weight", "linear_fc2.weight")):
        return whole.chunk(tp, dim=1)[rank]
    rows = ("word_embeddings", "output_layer", "linear_qkv.weight", "linear_qkv.bias", "linear_fc1")
    if any(name in key for name in rows) and "norm" not in key:
        return whole.chunk(tp)[rank]
    return whole
