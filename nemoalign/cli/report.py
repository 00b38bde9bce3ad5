"""A checkpoint's report as lines of a name and words, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def model_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is shown, line by line; what is not there is left out."""
    from nemoalign.checkpoint.settings.chat_template import PROMPT_TEMPLATE, TURNS
    from nemoalign.cli import show

    sizes = report["sizes"]
    if report["found_in"]:
        yield "found", report["path"]
    yield "family", " / ".join(filter(None, (report["family"], report["hf_architecture"])))
    yield (
        "sizes",
        f"{sizes['layers']} layers, hidden {sizes['hidden']}, MLP {sizes['ffn']}, {sizes['heads']} "
        f"heads of {sizes['head_dim']}, {sizes['query_groups']} query groups",
    )
    if "experts" in sizes:
        yield "experts", f"{sizes['experts']}, of which a token goes to {sizes['top_k']}"
    yield "vocabulary", _vocabulary(sizes)
    yield "sequence", f"{sizes['sequence_length']} tokens, {_positions(sizes)}"
    yield "layer", f"{sizes['normalization']}, {sizes['activation']}"
    if report["reward_head"]:
        head = report["reward_head"]
        words = (f"{head['outputs']} outputs", head["type"], head["dtype"])
        yield "reward", ", ".join(filter(None, words))
    yield from _parameters(report["parameters"])
    saved = report["saved_with"]
    yield "layout", f"{report['layout']}, saved with TP {saved['tp']} PP {saved['pp']}"
    yield "dtype", ", ".join(report["dtypes"])
    yield "size", show.amount_of(report["size_bytes"], "bytes")
    yield "tokenizer", _tokenizer(report["tokenizer"])
    if report["template_from"] == PROMPT_TEMPLATE:
        yield "prompt", repr(report["prompt_template"])
    elif report["template_from"]:
        words = "NeMo's turns" if report["template_from"] == TURNS else "Jinja"
        yield "chat", f"{words}; --template prints it"
    yield from _adapter(report["adapter"])
    yield from _training(report["training"])


def vit_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what is shown of an image classifier."""
    from nemoalign.cli import show

    sizes = report["sizes"]
    if report["found_in"]:
        yield "found", report["path"]
    yield "family", f"vit / {report['hf_architecture'] or 'not in Hugging Face'}"
    yield (
        "sizes",
        f"{sizes['layers']} layers, hidden {sizes['hidden']}, MLP {sizes['ffn']}, {sizes['heads']} "
        f"heads of {sizes['head_dim']}",
    )
    height, width = sizes["image"]
    yield "images", f"{height} x {width}, {sizes['channels']} channels, patches of {sizes['patch']}"
    yield "positions", f"{sizes['class_tokens']} class tokens and {sizes['patches']} patches"
    yield "head", f"{sizes['head']}, {sizes['classes']:,} classes"
    yield "layer", f"{sizes['normalization']}, {sizes['activation']}"
    yield "generation", report["generation"]
    yield from _parameters(report["parameters"])
    yield "layout", f"{report['layout']}, saved with TP {report['saved_with']['tp']}"
    yield "dtype", ", ".join(report["dtypes"])
    yield "size", show.amount_of(report["size_bytes"], "bytes")
    yield from _training(report["training"])


def _vocabulary(sizes: Mapping[str, Any]) -> str:
    padded, tied = sizes["vocab_padded"], sizes["tied_embeddings"]
    stored = "" if padded in (None, sizes["vocab"]) else f" in {padded:,} rows"
    return f"{sizes['vocab']:,}{stored}, output {'tied to input' if tied else 'of its own'}"


def _positions(sizes: Mapping[str, Any]) -> str:
    if sizes["rope"] is None:
        return sizes["positions"]
    options = [f"{name} {value}" for name, value in sizes["rope"].items() if name != "llama3"]
    scaled = ["Llama 3.1 scaling"] if "llama3" in sizes["rope"] else []
    return f"rope ({', '.join([*options, *scaled])})"


def _parameters(parts: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    sums = ("total", "active")
    total = parts.get("total", sum(parts.values()))
    shares = [f"{name} {count:,}" for name, count in parts.items() if name not in sums and count]
    yield "parameters", f"{total:,} ({', '.join(shares)})" if shares else f"{total:,}"
    if "active" in parts:
        yield "active", f"{parts['active']:,} for each token"


def _tokenizer(known: Mapping[str, Any]) -> str:
    files = [Path(name).name for name in known["files"]]
    kind = " ".join(str(known[name]) for name in ("library", "type") if known[name])
    count = f", {known['vocab']:,} tokens" if known["vocab"] else ""
    inside = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "") if files else "not inside"
    return f"{kind or 'none named'} ({inside}){count}"


def _adapter(adapter: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if adapter is not None:
        yield (
            "adapter",
            f"LoRA rank {adapter['rank']}, alpha {adapter['alpha']:g}, on "
            f"{', '.join(adapter['targets'])}; base {adapter['base'] or 'unknown'}",
        )


def _training(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the checkpoint tells about how it was made."""
    for name, value in training.items():
        if isinstance(value, Mapping):
            items = [f"{key} {words}" for key, words in value.items() if words not in (None, "")]
            words = ", ".join(items)
        else:
            words = str(value)
        if words:
            yield name.replace("_", " "), words
