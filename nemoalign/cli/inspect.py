"""The command that shows what a checkpoint is, from headers and index, in half a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.cli import flags
from nemoalign.cli.checkpoint import PANEL, SOURCE
from nemoalign.cli.spec import CommandSpec, Talk
from nemoalign.config.fields import own_settings, setting

if TYPE_CHECKING:
    from nemoalign.checkpoint.settings.chat_template import ChatTemplate
    from nemoalign.checkpoint.sources.remote import Remote
    from nemoalign.checkpoint.sources.source import Source
    from nemoalign.checkpoint.vit.source import VitSource

SHOWN = "What is shown"
PATTERN_FLAG = "--tensors"
EVERY_TENSOR = "*"
DIFF_FLAG = "--diff"
VALUE_FLAGS = ("-k", "--key", DIFF_FLAG)


@dataclass(frozen=True, kw_only=True)
class InspectFlags(Talk):
    """Flags of inspect."""

    template: bool = setting(
        False,
        "Print only the template of a prompt; with --json also as Jinja, the form export installs.",
        flag="--template",
        panel=SHOWN,
    )
    tensors: str | None = setting(
        None,
        "Print name, shape and type of the tensors, all or those that match GLOB.",
        flag=PATTERN_FLAG,
        metavar="[GLOB]",
        panel=SHOWN,
    )
    check: bool = setting(
        False, "Read every byte and compare the sums that are stored.", flag="--check", panel=SHOWN
    )
    diff: Path | None = setting(
        None,
        "Compare with OTHER, a checkpoint of any form, and name what differs.",
        flag=DIFF_FLAG,
        metavar="OTHER",
        path_kind="any",
        panel=SHOWN,
    )
    key: str | None = setting(
        None,
        "Print only this value of model_config.yaml, such as optim.lr.",
        flag="--key",
        short="-k",
        metavar="KEY",
        panel=SHOWN,
    )


def with_pattern(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of inspect with ``*`` after a ``--tensors`` that stands alone.

    A word after it is the pattern, unless nothing else could be SRC.
    """
    filled = list(arguments)
    if PATTERN_FLAG not in filled:
        return filled
    place = filled.index(PATTERN_FLAG)
    following = filled[place + 1] if place + 1 < len(filled) else "-"
    if following.startswith("-") or _positionals(filled) == [following]:
        filled.insert(place + 1, EVERY_TENSOR)
    return filled


def _positionals(arguments: Sequence[str]) -> list[str]:
    """Return the words after the command that are neither flags nor values of one."""
    words: list[str] = []
    before = ""
    for word in arguments[1:]:
        if not word.startswith("-") and before not in VALUE_FLAGS:
            words.append(word)
        before = word
    return words


def inspect(typed: Mapping[str, Any]) -> int:
    """Show what a checkpoint is; return 6 when it is damaged or differs from another."""
    known = flags.read(InspectFlags, typed)
    if known.check or known.diff:
        from nemoalign.cli import trust

        if known.diff:
            return trust.diff(typed["source"], str(known.diff), known)
        return trust.check(typed["source"], known)

    from nemoalign.archive.urls import is_url
    from nemoalign.checkpoint import inspect as room
    from nemoalign.checkpoint.open import open_checkpoint
    from nemoalign.cli import show

    remote = _connect(typed["source"]) if is_url(typed["source"]) else None
    source = remote.source if remote else open_checkpoint(typed["source"])
    if known.key is not None:
        value = room.find_value(source, known.key)
        show.document(value) if known.json else show.emit(_raw(value))
    elif known.template:
        _show_template(room.template_of(source), as_json=known.json)
    elif known.tensors is not None:
        _show_tensors(room.list_tensors(source, known.tensors), as_json=known.json)
    else:
        size = {"size_bytes": remote.file.size} if remote else {}
        _show_report(source, room.inspect_source(source) | size, as_json=known.json)
    if remote:
        show.make_reporter(quiet=known.quiet).say(remote.told())
    return 0


def _connect(url: str) -> Remote:
    from nemoalign.checkpoint.sources.remote import open_remote

    return open_remote(url)


def _raw(value: Any) -> str:
    """Return one value as a script reads it: text bare, the rest as JSON."""
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _show_template(template: ChatTemplate, *, as_json: bool) -> None:
    from nemoalign.cli import show

    if not as_json:
        show.emit(template.text)
        return
    told = {"template": template.text, "from": template.origin, "jinja": template.jinja}
    show.document({**told, "notes": list(template.notes)})


def _show_tensors(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    from nemoalign.cli import show

    if as_json:
        show.document(rows)
        return
    shapes = [(row["name"], " x ".join(map(str, row["shape"])), row["dtype"]) for row in rows]
    show.columns(shapes, ("name", "shape", "type"))


def _show_report(source: Source | VitSource, report: Mapping[str, Any], *, as_json: bool) -> None:
    from nemoalign.cli import show

    if as_json:
        show.document(report)
        return
    reporter = show.make_reporter()
    for warning in source.warnings:
        reporter.warn(warning)
    rows = _vit_rows if report["family"] == "vit" else _rows
    show.emit("\n".join([report["what"], "", *_aligned(list(rows(report)))]))


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows]


def _rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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


def _vit_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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


COMMANDS = (
    CommandSpec(
        name="inspect",
        summary="Show what a checkpoint is: family, sizes, layout, tokenizer, template, origin.",
        panel=PANEL,
        example="model.nemo",
        more_examples=(
            "model.nemo -k optim.lr",
            "model.nemo --tensors '*qkv*'",
            "model.nemo --check",
            "model.nemo --diff other/",
        ),
        positional=SOURCE,
        entries=own_settings(InspectFlags),
        run=inspect,
    ),
)
