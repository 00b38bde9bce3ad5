"""``nemoalign inspect --diff``: what differs between two checkpoints, whatever form each has.

Equal means the same model: architecture, tensors, tokenizer and template. Rows of padding mean
nothing, and neither does how a file was saved; what else two configurations record is listed apart.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemoalign.archive.dtypes import BLOCK, Array, cast
from nemoalign.archive.store import TensorInfo, TensorStore
from nemoalign.checkpoint.open import open_checkpoint
from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.hf import TOKENIZER_FILES
from nemoalign.checkpoint.sources.source import EMBEDDING, HEAD, Source
from nemoalign.checkpoint.targets.writing import prompt_template
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import ContentError
from nemoalign.log import Reporter

_MEANINGLESS = ("make_vocab_size_divisible_by", "override_vocab_size", "init_method_std")
"""Fields that say how many rows a file pads, or how the weights began."""

AnySource = Source | VitSource

_HASHED = re.compile(r"^[0-9a-f]{32}_")


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """One tensor on both sides."""

    name: str
    left: tuple[TensorStore, TensorInfo]
    right: tuple[TensorStore, TensorInfo]
    rows: int | None
    """Rows that mean something, of a table over the vocabulary."""

    def shape(self, info: TensorInfo) -> tuple[int, ...]:
        return info.shape if self.rows is None else (min(self.rows, info.shape[0]), *info.shape[1:])


def diff(left: Path | str, right: Path | str, reporter: Reporter) -> dict[str, Any]:
    """Return what differs between two checkpoints; ``same`` is True when nothing that matters does.

    Raises:
        SourceError, ContentError: when one of them cannot be read.
    """
    began = time.perf_counter()
    sides = (open_checkpoint(left), open_checkpoint(right))
    if isinstance(sides[0], VitSource) != isinstance(sides[1], VitSource):
        raise ContentError(
            f"{left} and {right} are a ViT and a language model, which have nothing to compare."
        )
    tensors = _tensors(*sides, reporter)
    found = {
        "architecture": _architecture(*sides),
        **tensors,
        "tokenizer": _tokenizer(*sides),
        "template": _template(*sides),
    }
    return {
        "left": sides[0].describe(),
        "right": sides[1].describe(),
        "same": not any(found.values()),
        **found,
        "settings": _settings(*sides),
        "compared": len(_stores(sides[0]).keys() & _stores(sides[1]).keys()),
        "seconds": round(time.perf_counter() - began, 3),
    }


def _architecture(left: AnySource, right: AnySource) -> list[dict[str, Any]]:
    return _differing(_facts(left), _facts(right))


def _facts(source: AnySource) -> dict[str, Any]:
    """Return everything that decides what the weights compute, in one spelling."""
    if isinstance(source, VitSource):
        facts = asdict(source.arch) | {"kv_channels": source.arch.head_dim}
        return {name: value for name, value in facts.items() if name not in _MEANINGLESS}
    arch = source.arch
    facts = {name: value for name, value in asdict(arch).items() if name not in _MEANINGLESS}
    facts |= {
        "num_query_groups": arch.query_groups,
        "kv_channels": arch.head_dim,
        "normalization": arch.normalization.lower(),
        "activation": arch.activation.removeprefix("fast-"),
        "vocab_size": source.vocab_size,
    }
    if source.adapter is not None:
        facts |= {"lora.rank": source.adapter.dim, "lora.alpha": source.adapter.alpha}
    return facts


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = [*left, *(name for name in right if name not in left)]
    return [
        {"field": name, "left": left.get(name), "right": right.get(name)}
        for name in names
        if left.get(name) != right.get(name)
    ]


def _stores(source: AnySource) -> dict[str, TensorStore]:
    stores = [source.weights, *([source.adapter.weights] if source.adapter else [])]
    return {name: store for store in stores for name in store.tensors}


def _tensors(left: AnySource, right: AnySource, reporter: Reporter) -> dict[str, list[Any]]:
    """Compare every tensor that both have, on two cores, one pair in memory for each."""
    here, there = _stores(left), _stores(right)
    rows = min(_rows(left), _rows(right))
    pairs = [
        _Pair(
            name=name,
            left=(here[name], here[name].tensors[name]),
            right=(there[name], there[name].tensors[name]),
            rows=rows if name in (EMBEDDING, HEAD) else None,
        )
        for name in here
        if name in there
    ]
    total = sum(info.size_bytes for pair in pairs for _, info in (pair.left, pair.right))
    differing: list[dict[str, Any]] = []
    with reporter.progress("Comparing", total, "bytes") as bar, ThreadPoolExecutor(2) as workers:
        for pair, row in zip(pairs, workers.map(_compare, pairs), strict=True):
            bar.advance(pair.left[1].size_bytes + pair.right[1].size_bytes)
            if row:
                differing.append({"name": pair.name, **row})
    return {
        "only_left": [name for name in here if name not in there],
        "only_right": [name for name in there if name not in here],
        "differing": differing,
    }


def _rows(source: AnySource) -> int:
    """Return how many rows of a table over the vocabulary mean something."""
    return source.vocab_size if isinstance(source, Source) else 0


def _compare(pair: _Pair) -> dict[str, Any] | None:
    """Return how a tensor differs, or None when every value and the type are the same."""
    (left, left_info), (right, right_info) = pair.left, pair.right
    row: dict[str, Any] = {}
    if left_info.dtype != right_info.dtype:
        row["dtype"] = [left_info.dtype, right_info.dtype]
    if pair.shape(left_info) != pair.shape(right_info):
        return row | {"shape": [list(left_info.shape), list(right_info.shape)]}
    values = compare_values(
        left.read(pair.name)[: pair.rows],
        right.read(pair.name)[: pair.rows],
        (left_info.dtype, right_info.dtype),
    )
    return row | values if row or values["differing"] else None


def compare_values(left: Array, right: Array, dtypes: tuple[str, str]) -> dict[str, Any]:
    """Return the number of elements that differ and the largest difference (None: no number)."""
    differing, largest = 0, 0.0
    flat = (np.ascontiguousarray(left).reshape(-1), np.ascontiguousarray(right).reshape(-1))
    for start in range(0, flat[0].size, BLOCK):
        a, b = (array[start : start + BLOCK] for array in flat)
        if dtypes[0] == dtypes[1] and a.tobytes() == b.tobytes():
            continue
        a, b = (_numbers(block, kind) for block, kind in zip((a, b), dtypes, strict=True))
        unequal = (a != b) & ~(np.isnan(a) & np.isnan(b))
        differing += int(np.count_nonzero(unequal))
        with np.errstate(invalid="ignore"):
            distance = np.abs(a[unequal] - b[unequal])
        largest = max(largest, float(np.nan_to_num(distance, nan=np.inf).max(initial=0.0)))
    bounded = largest if np.isfinite(largest) else None  # JSON has no infinity
    return {"differing": differing, "elements": flat[0].size, "max_abs_diff": bounded}


def _numbers(block: Array, kind: str) -> Array:
    return cast(block, kind, "float64") if kind != "float64" else block


def _tokenizer(left: AnySource, right: AnySource) -> list[dict[str, Any]]:
    """Compare the tokenizer's files that both have; when none is shared, all of them differ."""
    here, there = _tokenizer_files(left), _tokenizer_files(right)
    shared = here.keys() & there.keys()
    names = sorted(shared or here.keys() | there.keys())
    return [
        {"file": name, "left": here.get(name), "right": there.get(name)}
        for name in names
        if here.get(name) != there.get(name)
    ]


def _tokenizer_files(source: AnySource) -> dict[str, str]:
    """Return the sha256 of each of the tokenizer's files by its plain name."""
    found: dict[str, str] = {}
    for name, region in source.files.items():
        plain = _HASHED.sub("", Path(name).name)
        if plain in TOKENIZER_FILES:
            found[plain] = hashlib.sha256(region.read(MAX_FILE_BYTES)).hexdigest()
    return found


def _template(left: AnySource, right: AnySource) -> list[dict[str, Any]]:
    """Compare the prompt templates that fine-tuning recorded; Hugging Face has no place for them."""
    if "hf" in (left.kind, right.kind):
        return []
    return _differing(_templates(left), _templates(right))


def _templates(source: AnySource) -> dict[str, Any]:
    return {
        "prompt_template": prompt_template(source.config),
        "chat_prompt_tokens": dict(section(source.config, "data", "chat_prompt_tokens")) or None,
    }


def _settings(left: AnySource, right: AnySource) -> list[dict[str, Any]]:
    """Return what else two NeMo configurations record differently: how they were saved and trained."""
    if "hf" in (left.kind, right.kind):
        return []
    known = {*asdict(left.arch)} - {*_MEANINGLESS}
    here, there = (dict(_leaves(source.config, known)) for source in (left, right))
    return _differing(here, there)


def _leaves(
    config: Mapping[str, Any], known: set[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, set(), f"{prefix}{name}.")
        elif name not in known:
            yield f"{prefix}{name}", value
