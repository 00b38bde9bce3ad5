"""Write a NeMo 2 directory: ``weights/`` with keys under ``module.``, and a ``context/`` that rebuilds it.

NeMo 2 restores a model from ``context/io.json`` alone (``load_context``, which imports what it names)
and its weights from ``weights/``; ``context/model.yaml`` is for people and tools. What neither can hold
stays in ``context/model_config.yaml``, which NeMo 2 ignores.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemoalign.archive.dist import DistStore
from nemoalign.archive.dist_write import ChunkId
from nemoalign.archive.files import open_container
from nemoalign.archive.sink import DirectoryWriter
from nemoalign.checkpoint.settings.nemo2_config import nemo2_classes, nemo2_fields
from nemoalign.checkpoint.settings.values import section, text
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.nemo import CONFIG_NAME, HF_FOLDER, MANIFEST_NAME
from nemoalign.checkpoint.sources.nemo2 import TOKENIZER_FOLDER, WEIGHTS_FOLDER, open_nemo2
from nemoalign.checkpoint.sources.nemo2_context import (
    CONTEXT_FOLDER,
    IO_NAME,
    TARGET,
    YAML_NAME,
    dump_io,
)
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.targets.dist import (
    Job,
    manifest_of,
    total_bytes,
    verify_chunks,
    with_sums,
    write_weights,
)
from nemoalign.checkpoint.targets.nemo_members import settings_for
from nemoalign.checkpoint.targets.writing import (
    REPORT_NAME,
    Account,
    WriteOptions,
    check_copies,
    report_of,
    staging,
    write_report,
)
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.errors import NemoAlignError, VerificationError
from nemoalign.log import Reporter

PREFIX = "module."

_TOKENIZERS = "nemo.collections.common.tokenizers."
_CONTEXT = "nemo.lightning.io.pl.TrainerContext"
_TRAINER: Mapping[str, Any] = {
    TARGET: "nemo.lightning.pytorch.trainer.Trainer",
    "devices": 1,
    "accelerator": "cpu",
    "strategy": {
        TARGET: "nemo.lightning.pytorch.strategies.megatron_strategy.MegatronStrategy",
        "ckpt_save_optimizer": False,
        "always_save_context": True,
    },
}
"""The trainer NeMo 2's own importers record; whoever restores the model brings another."""


def write_nemo2(
    source: Source, target: Path, options: WriteOptions, reporter: Reporter
) -> dict[str, Any]:
    """Write ``source`` as a NeMo 2 directory and return the report, which is also kept in it.

    Raises:
        ContentError: when the source contradicts itself, or NeMo 2 cannot represent it.
        VerificationError: when what was written does not read back; nothing is kept then.
    """
    began = time.perf_counter()
    check_copies(source)
    settings = settings_for(source, options)
    tree = model_tree(source, options)
    account = Account(list(source.weights.tensors))
    job = Job(source=source, options=options, account=account, prefix=PREFIX)
    total = total_bytes(source, options)
    with staging(target, total) as stage:
        with (
            reporter.progress(f"Writing {target.name}", total, "bytes") as bar,
            DirectoryWriter(stage) as sink,
        ):
            _write_context(sink, source, settings, tree)
            sums = write_weights(sink, WEIGHTS_FOLDER, job, bar.advance)
            sink.add_bytes(MANIFEST_NAME, manifest_of(sums))
        account.close()
        if options.verify != "none":
            with reporter.progress("Verifying", total, "bytes") as bar:
                _verify(stage, sums, bar.advance)
        report = report_of(source, target, options, began) | options.proof(stage)
        report |= {"bytes": total, "tensors": with_sums(account.rows, sums)}
        write_report(stage / REPORT_NAME, report)
    return report


def model_tree(source: Source, options: WriteOptions) -> dict[str, Any]:
    """Return the model as NeMo 2 describes it: its class, configuration and tokenizer.

    Raises:
        ContentError: when NeMo 2 has no such model.
    """
    model, config = nemo2_classes(source.family.name, source.arch, source.config)
    written = options.written_dtype(source.dtypes[0])
    fields = nemo2_fields(source.config, source.arch, str(source.path))
    tokenizer = _tokenizer(source)
    if tokenizer is None and fields["vocab_size"] is None:
        # NeMo 2 pads the tokenizer's size; without one it has to be told the rows.
        fields["vocab_size"] = source.arch.padded_vocab_size(source.vocab_size)
    precision = {
        "fp16": written == "float16",
        "bf16": written == "bfloat16",
        "params_dtype": {TARGET: f"torch.{written}", "_call_": False},
    }
    return {
        TARGET: model,
        "config": {TARGET: config, **fields, **precision},
        "optim": None,
        "tokenizer": tokenizer,
    }


def _tokenizer(source: Source) -> dict[str, Any] | None:
    settings = section(source.config, "tokenizer")
    artifact = (text(settings, "model") or "").removeprefix("nemo:")
    if settings.get("library") == "sentencepiece" and artifact in source.files:
        path = _TOKENIZERS + "sentencepiece_tokenizer.SentencePieceTokenizer"
        return {TARGET: path, "model_path": artifact}
    auto = _TOKENIZERS + "huggingface.auto_tokenizer.AutoTokenizer"
    if any(name.startswith(f"{HF_FOLDER}tokenizer") for name in source.files):
        return {TARGET: auto, "pretrained_model_name": TOKENIZER_FOLDER, "use_fast": True}
    return None


def _write_context(
    sink: DirectoryWriter, source: Source, settings: Mapping[str, Any], tree: Mapping[str, Any]
) -> None:
    whole = {TARGET: _CONTEXT, "model": tree, "trainer": dict(_TRAINER), "extra": {}}
    texts = {
        IO_NAME: dump_io(whole),
        YAML_NAME: dump_checkpoint_config(tree),
        CONFIG_NAME: dump_checkpoint_config(settings),
    }
    for name, content in texts.items():
        sink.add_bytes(f"{CONTEXT_FOLDER}/{name}", content.encode())
    for name, region in source.files.items():
        inside = name.replace(HF_FOLDER, f"{TOKENIZER_FOLDER}/", 1)
        sink.add_bytes(f"{CONTEXT_FOLDER}/{inside}", region.read(MAX_FILE_BYTES))


def _verify(stage: Path, sums: Mapping[ChunkId, int], advance: Any) -> None:
    """Open the finished directory as any reader would, and compare every chunk with its sum."""
    try:
        container = open_container(stage)
        open_nemo2(container)
        store = DistStore(container.under(WEIGHTS_FOLDER))
    except NemoAlignError as error:
        raise VerificationError(f"What was written does not open: {error}") from error
    verify_chunks(store, sums, advance)
