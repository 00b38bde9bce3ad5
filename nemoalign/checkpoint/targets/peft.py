"""``nemoalign export --adapter-only``: a LoRA adapter as Hugging Face PEFT keeps it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import open_container
from nemoalign.archive.safetensors import SafetensorsStore, SafetensorsWriter
from nemoalign.archive.safetensors_write import SINGLE_NAME
from nemoalign.archive.store import TensorInfo
from nemoalign.checkpoint.settings.adapter import adapted_tensors
from nemoalign.checkpoint.settings.hf_config import check_exportable
from nemoalign.checkpoint.settings.peft_layers import (
    CONFIG_NAME,
    PREFIX,
    WEIGHTS_NAME,
    LoraLayer,
    lora_layers,
    short_targets,
)
from nemoalign.checkpoint.settings.reward import BIAS, SCORE, WEIGHT, lost_bias
from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.sources.source import AdapterInfo, Source
from nemoalign.checkpoint.targets.writing import (
    REPORT_NAME,
    Account,
    WriteOptions,
    hex_sum,
    report_of,
    staging,
    verify_written,
    write_report,
)
from nemoalign.errors import ContentError
from nemoalign.log import Reporter

SCORE_NAME = PREFIX + SCORE
"""PEFT's name of a reward head."""


def write_peft(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write the adapter of ``source`` as a PEFT directory and return the report, also kept in it.

    Raises:
        ContentError: when there is no adapter, or Hugging Face has no such model.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    adapter = source.adapter
    if adapter is None:
        raise ContentError(
            f"{source.path} holds no LoRA adapter; it is a whole model. Leave --adapter-only away, "
            "or name the adapter with --adapter."
        )
    check_exportable(source)
    layers = lora_layers(source.family, source.arch)
    tensors = dict(_tensors(source, adapter, layers, options)) | _head(adapter, options)
    account = Account(list(adapter.weights.tensors))
    declared: dict[str, TensorInfo] = {}
    for name, (array, kind, origin) in tensors.items():
        declared[name] = TensorInfo(array.shape, kind)
        account.rows.append({"source": origin, "target": {name: list(array.shape)}, "dtype": kind})
        account.consumed[origin] = 1
    if BIAS in adapter.weights.tensors:
        _leave_bias(source, account, reporter)
    account.close()
    total = sum(info.size_bytes for info in declared.values())
    adapted = [name for name in tensors if name != SCORE_NAME]
    modules = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in adapted}
    config = _config(source, adapter, short_targets(layers, modules))
    config["fan_in_fan_out"] = layers[0].is_turned
    with staging(target, total) as stage:
        with SafetensorsWriter(stage, declared, sys.maxsize) as writer:
            for name, (array, _, _) in tensors.items():
                writer.write(name, array)
        if options.verify != "none":
            with reporter.progress("Verifying", total, "bytes") as bar:
                verify_written(
                    writer.checksums, SafetensorsStore(open_container(stage)).read, bar.advance
                )
        (stage / SINGLE_NAME).rename(stage / WEIGHTS_NAME)
        (stage / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for row in account.rows:
            row["crc32"] = [hex_sum(writer.checksums[name]) for name in row["target"]]
        report = report_of(source, target, options, began)
        report |= {"bytes": total, "tensors": account.rows}
        write_report(stage / REPORT_NAME, report)
    return report


def _tensors(
    source: Source, adapter: AdapterInfo, layers: list[LoraLayer], options: WriteOptions
) -> Iterator[tuple[str, tuple[Array, str, str]]]:
    """Yield name, array, element type and origin of every matrix in PEFT's names."""
    by_weight = {layer.weight: layer for layer in layers}
    stored = adapter.weights

    def read(name: str) -> tuple[Array, str]:
        kind = stored.tensors[name].dtype
        return options.cast(stored.read(name), kind, name), options.written_dtype(kind)

    for weight, (pairs, unfused) in adapted_tensors(adapter, str(source.path)).items():
        layer = by_weight[weight]
        if unfused is None:
            (pair,) = pairs
            rows, kind = read(pair[1])
            matrices = [(*pair, part, kind) for part in layer.share_out(rows, source.arch)]
        elif len(pairs) == len(layer.modules):
            matrices = [(*pair, *read(pair[1])) for pair in pairs]
        else:
            raise ContentError(
                f"{source.path} adapts the parts of {weight} apart (the canonical variant), but "
                f"{source.family.name} keeps them as one in Hugging Face. Leave --adapter-only away."
            )
        for module, (into, out, rows, kind) in zip(layer.modules, matrices, strict=True):
            yield f"{PREFIX}{module}.lora_A.weight", (*read(into), into)
            yield f"{PREFIX}{module}.lora_B.weight", (rows, kind, out)


def _head(adapter: AdapterInfo, options: WriteOptions) -> dict[str, tuple[Array, str, str]]:
    """Return the reward head that was trained with an adapter, as PEFT saves such a module."""
    info = adapter.weights.tensors.get(WEIGHT)
    if info is None:
        return {}
    weight = options.cast(adapter.weights.read(WEIGHT), info.dtype, WEIGHT)
    return {SCORE_NAME: (weight, options.written_dtype(info.dtype), WEIGHT)}


def _leave_bias(source: Source, account: Account, reporter: Reporter) -> None:
    account.rows.append({"source": BIAS, "target": {}, "dtype": "float32"})
    account.consumed[BIAS] = 1
    if bias := lost_bias(source):
        reporter.warn(bias)


def _config(source: Source, adapter: AdapterInfo, targets: list[str]) -> dict[str, Any]:
    """Return adapter_config.json; what PEFT has a default for that means nothing here is left out."""
    tuning = section(source.config, "peft", "lora_tuning")
    dropout = tuning.get("adapter_dropout")
    alpha = adapter.alpha
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if source.arch.num_attributes else "CAUSAL_LM",
        "base_model_name_or_path": _base_name(source.hf_config or {}, adapter),
        "r": adapter.dim,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout if isinstance(dropout, float) else 0.0,
        "target_modules": targets,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": ["score"] if source.arch.num_attributes else None,
        "use_dora": False,
        "use_rslora": False,
    }


def _base_name(hf_config: Mapping[str, Any], adapter: AdapterInfo) -> str | None:
    """Return the hub's name of the base where its config.json has it, else the recorded path."""
    return str(hf_config.get("_name_or_path") or "") or adapter.base
