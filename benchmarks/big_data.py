"""Speed of indexing and peak memory of ``nemoalign sft`` on a JSONL file larger than memory should be.

A file of --gigabytes of different rows is made and indexed; a tiny llama is then trained on it for some
steps in shuffled order, twice, and once on the first rows alone. Fails when the whole file takes
200 MiB more memory than its first rows do, or a second start more than 20 seconds of processor time more.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

from side_by_side import WORK, Finished, publish, run, table

FEW_ROWS = 2000
ALLOWED_MORE_BYTES = 200 << 20
ALLOWED_MORE_SECONDS = 20.0
INDEX = """
import sys, time
from pathlib import Path
from nemoalign.data.index import IndexDirectory
from nemoalign.data.jsonl import JsonlFile

started = time.perf_counter()
with open(sys.argv[1], "rb", buffering=0) as file:
    chunk = bytearray(1 << 22)
    while file.readinto(chunk):
        pass
read = time.perf_counter()
rows = len(JsonlFile(Path(sys.argv[1]), IndexDirectory(Path(sys.argv[2]))))
print(rows, read - started, time.perf_counter() - read)
"""


def main() -> None:
    """Make the file, index it, train on it and publish big_data.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        make_model(options.make)
        return
    folder = WORK / "big_data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    big, few, model = folder / "big.jsonl", folder / "few.jsonl", folder / "model"
    make_rows(big, options.gigabytes)
    with big.open() as lines, few.open("w") as first:
        first.writelines(line for _, line in zip(range(FEW_ROWS), lines, strict=False))
    # Made by a child: what this process's peak memory was, its later children's peaks would include.
    run([sys.executable, __file__, "--make", model])
    indexed = run([sys.executable, "-c", INDEX, big, folder / "alone"])
    rows, read_seconds, index_seconds = map(float, indexed.stdout.split())
    figures: dict[str, Any] = {
        "bytes": big.stat().st_size,
        "rows": int(rows),
        "read_mb_per_second": big.stat().st_size / 1e6 / read_seconds,
        "index_mb_per_second": big.stat().st_size / 1e6 / index_seconds,
        "index_peak_rss_bytes": indexed.peak_rss_bytes,
    }
    for name, data in (("few", few), ("first", big), ("second", big)):
        trained = train(model, data, folder, name)
        figures |= {
            f"{name}_seconds": trained.seconds,
            f"{name}_cpu_seconds": trained.cpu_seconds,
            f"{name}_peak_rss_bytes": trained.peak_rss_bytes,
        }
    publish("big_data", figures, markdown(figures))
    shutil.rmtree(folder)
    if figures["first_peak_rss_bytes"] > figures["few_peak_rss_bytes"] + ALLOWED_MORE_BYTES:
        sys.exit("the file takes more memory than it may")
    if figures["second_cpu_seconds"] > figures["few_cpu_seconds"] + ALLOWED_MORE_SECONDS:
        sys.exit("a second start takes longer than it may")


def train(model: Path, data: Path, folder: Path, name: str) -> Finished:
    """Train three steps of 64 rows drawn from all of ``data``, in one process."""
    command = [sys.executable, "-m", "nemoalign", "sft", "--ckpt", model, "--data", data]
    sizes = ["--gbs", 64, "--mbs", 8, "--max-steps", 3, "--precision", "fp32", "--devices", 1]
    index = f"model.data.train_ds.index_mapping_dir={folder / 'index'}"
    return run([*command, *sizes, "--shuffle", "-o", folder / name, "--set", index])


def make_rows(path: Path, gigabytes: float) -> None:
    """Write rows of about a kilobyte, no two alike."""
    draw = random.Random(1234)
    words = ["cat", "dog", "owl", "whale", "says", "and", "then", "meow", "bark", "hoot"]
    pool = [" ".join(draw.choices(words, k=60)) for _ in range(5000)]
    size = number = 0
    with path.open("w", encoding="utf-8") as file:
        while size < gigabytes * 1e9:
            number += 1
            row = {"input": f"{number}: {pool[number % 5000]}?", "output": draw.choice(pool) * 2}
            size += file.write(json.dumps(row) + "\n")


def make_model(directory: Path) -> None:
    """Save a llama of two narrow layers, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<eos>", *letters])}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=len(letters) + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<eos>").save_pretrained(directory)


def markdown(figures: dict[str, Any]) -> str:
    """Return the figures as a table."""
    gigabytes = figures["bytes"] / 1e9
    head = ["", "speed or seconds (of processor time)", "peak memory"]
    rows = [
        [f"read {gigabytes:.1f} GB", f"{figures['read_mb_per_second']:,.0f} MB/s", ""],
        [
            f"index its {figures['rows']:,} rows",
            f"{figures['index_mb_per_second']:,.0f} MB/s",
            f"{figures['index_peak_rss_bytes'] / 1e6:,.0f} MB",
        ],
    ]
    for name, words in (
        ("few", f"three steps on {FEW_ROWS:,} rows"),
        ("first", "three steps on all, first start"),
        ("second", "three steps on all, second start"),
    ):
        seconds, peak = figures[f"{name}_seconds"], figures[f"{name}_peak_rss_bytes"]
        spent = f"{seconds:.1f} s ({figures[f'{name}_cpu_seconds']:.1f})"
        rows.append([words, spent, f"{peak / 1e6:,.0f} MB"])
    return table(head, rows)


if __name__ == "__main__":
    main()
