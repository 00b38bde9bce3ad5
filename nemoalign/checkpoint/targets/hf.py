"""Write a language model as a Hugging Face directory: safetensors, config.json, tokenizer files."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from nemoalign.archive.dtypes import Array
from nemoalign.checkpoint.settings.adapter import MergedStore
from nemoalign.checkpoint.settings.chat_template import chat_template, held_template, installed
from nemoalign.checkpoint.settings.hf_config import check_exportable, hf_files
from nemoalign.checkpoint.sources.hf import open_hf
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.hf_directory import Directory, Piece, write_directory
from nemoalign.checkpoint.targets.writing import WriteOptions, check_copies, report_of
from nemoalign.log import Reporter
from nemoalign.weights.gamma_ops import CenterGamma
from nemoalign.weights.rules import TensorPlan, tensor_plans


def write_hf(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write ``source`` as a Hugging Face directory and return the report, which is also kept in it.

    Raises:
        ContentError: when Hugging Face cannot represent the model.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    check_exportable(source)
    check_copies(source)
    files, notes = hf_files(source, options)
    files = _with_chat_template(source, files, reporter)
    for note in notes:
        reporter.warn(note)
    plans = tensor_plans(source.family, source.arch)
    _warn_of_rounding(source, plans, reporter)
    directory = Directory(
        tensors=list(source.weights.tensors),
        pieces=[_piece(source, plan) for plan in plans],
        files=files,
        report=partial(report_of, source, target, options, began),
        reopen=open_hf,
    )
    return write_directory(directory, target, options, reporter)


def _with_chat_template(
    source: Source, files: dict[str, bytes], reporter: Reporter
) -> dict[str, bytes]:
    """Install the template the model was trained with, unless it is the one its tokenizer brings."""
    template = chat_template(source.config, source.files, str(source.path))
    held = held_template(source.files, str(source.path))
    if template is None or template.jinja == held:
        return files
    for note in template.notes:
        reporter.warn(note)
    if template.jinja is None:
        return files
    what = (
        "" if held is None else ", in place of the tokenizer's own, which it was not trained with"
    )
    reporter.say(f"chat template: made of {template.origin}{what}")
    return installed(template, files)


def _warn_of_rounding(source: Source, plans: list[TensorPlan], reporter: Reporter) -> None:
    """Say which norm weights Hugging Face's form of them cannot hold exactly."""
    centered = [(plan.name, plan.op) for plan in plans if isinstance(plan.op, CenterGamma)]
    rounded = [
        name for name, op in centered if not op.is_exact(source.weights.read(name), source.arch)
    ]
    if rounded:
        reporter.warn(
            f"{source.path} keeps norm weights whole, Hugging Face minus one: of {len(centered)} norms "
            f'{len(rounded)} hold a value that had to be rounded, "{rounded[0]}" first.'
        )


def _piece(source: Source, plan: TensorPlan) -> Piece:
    info = source.weights.tensors[plan.name]
    shapes = plan.op.hf_shapes(info.shape, source.arch, source.vocab_size)
    named = dict(zip(plan.hf_names, shapes, strict=True))
    return Piece(plan.name, info.dtype, named, partial(_parts, source, plan))


def _parts(source: Source, plan: TensorPlan) -> tuple[Array, ...]:
    """Return the Hugging Face tensors inside a canonical one, each read on its own where it can be."""
    store, arch, vocab_size = source.weights, source.arch, source.vocab_size
    if not plan.op.keeps_rows or isinstance(store, MergedStore):
        return plan.op.to_hf(store.read(plan.name), arch, vocab_size)
    parts: list[Array] = []
    row = 0
    for shape in plan.op.hf_shapes(store.tensors[plan.name].shape, arch, vocab_size):
        parts.append(store.read(plan.name, (slice(row, row + shape[0]),)))
        row += shape[0]
    return tuple(parts)
