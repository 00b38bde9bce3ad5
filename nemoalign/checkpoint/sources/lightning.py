"""Open a PyTorch Lightning checkpoint of a NeMo run: the weights of training, partly done or not.

The configuration is what the run pickled as ``hyper_parameters``, else the ``hparams.yaml`` of the run.
Optimizer state, loops and callbacks stay unread; nothing that is pickled is ever run.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from nemoalign.archive.dist import COMMON_NAME, read_backend
from nemoalign.archive.dtypes import Array
from nemoalign.archive.files import Container, Region
from nemoalign.archive.plain import plain_config
from nemoalign.archive.store import Index, TensorInfo
from nemoalign.archive.torch_file import TorchFile, flatten_tensors
from nemoalign.checkpoint.settings.values import section
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.canonical import find_tensors
from nemoalign.checkpoint.sources.layouts import dist_weights
from nemoalign.checkpoint.sources.lightning_files import CHECKPOINTS, Saved
from nemoalign.checkpoint.sources.nemo import MAX_CONFIG_BYTES, Settings, assemble
from nemoalign.checkpoint.sources.ranks import Rank, Weights, join_ranks, parallel_sizes
from nemoalign.checkpoint.sources.source import Source
from nemoalign.config.architecture import Architecture
from nemoalign.config.checkpoint_yaml import parse_checkpoint_config
from nemoalign.config.interpolation import Interpolation
from nemoalign.errors import ContentError, SourceError

HPARAMS_NAME = "hparams.yaml"

_WRAPPERS = ("cfg", "model")
"""Keys under which a run keeps the model's configuration."""

_ARTIFACTS = ("model", "vocab_file", "merge_file", "tokenizer_model")
_HASHED = re.compile(r"[0-9a-f]{32}_.+")
_CHUNK = re.compile(r"model(0|[1-9]\d{0,3})")


@dataclass(frozen=True)
class Run:
    """One checkpoint of a run, opened: its configuration, and the torch files of all ranks."""

    saved: Saved
    container: Container
    config: dict[str, Any]
    """The model's own part, resolved; tokenizer files that lie beside are named as artifacts."""
    where: str
    """What to call the place of the configuration."""
    tokenizer_files: Mapping[str, Region]
    torch_files: Mapping[Rank, TorchFile]
    """Of every (pp, tp) rank; empty for a directory that all ranks wrote together."""

    def stores(self) -> dict[Rank, list[Branch]]:
        """Return what every rank holds: one entry, or one for every virtual pipeline stage."""
        return {rank: _stages(file) for rank, file in self.torch_files.items()}


def open_run(saved: Saved) -> Run:
    """Return a checkpoint of a run with its configuration; of no kind of model in particular.

    Raises:
        SourceError: when parts are missing, damaged or hostile.
    """
    container = saved.container()
    files = {
        rank: _torch_file(container, file.relative_to(saved.path.parent).as_posix())
        for rank, file in saved.ranks.items()
    }
    if files:
        parallel_sizes(files, str(saved.path))
        first = files[0, 0]
    else:
        read_backend(container)  # a save that did not end has no common.pt either
        first = _torch_file(container, COMMON_NAME)
    places = _places(saved)
    config, where = _configuration(_dictionary(first), places, first.where)
    beside, artifacts = _tokenizer_files(config, places)
    if artifacts:
        config["tokenizer"] = {**section(config, "tokenizer"), **artifacts}
    return Run(saved, container, config, where, beside, files)


def open_lightning(run: Run, folder: Path | None = None) -> Source:
    """Return the language model of a run; ``folder`` is what a person named to find it.

    Raises:
        SourceError: when parts are missing, damaged or hostile.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    settings = Settings(run.where, run.config, run.config)
    source = assemble(
        run.saved.path,
        "lightning",
        settings,
        lambda arch: _weights(run, arch),
        run.tokenizer_files,
    )
    return replace(source, container=run.container, folder=folder)


def _weights(run: Run, arch: Architecture) -> Weights:
    if not run.torch_files:
        return dist_weights(run.container, arch)
    where = str(run.saved.path)
    ranks = {
        rank: [find_tensors(store, store.where) for store in stores]
        for rank, stores in run.stores().items()
    }
    pp, tp = parallel_sizes(ranks, where)
    virtual = len(ranks[0, 0])
    layout = "single file" if pp * tp == 1 else f"per-rank TP{tp} PP{pp}"
    return join_ranks(ranks, arch, where, f"{layout} VP{virtual}" if virtual > 1 else layout)


class Branch:
    """The tensors below one key of a torch file."""

    def __init__(self, file: TorchFile, key: str) -> None:
        self.where = f"{file.where}: {key}"
        self._file = file
        self._refs = flatten_tensors(file.tree[key], self.where)
        self.tensors: Mapping[str, TensorInfo] = {n: ref.info for n, ref in self._refs.items()}

    def read(self, name: str, index: Index = ()) -> Array:
        """Return a tensor or a slice of it as a read-only view of the file."""
        return self._file.read_ref(self._refs[name], index)


def _torch_file(container: Container, name: str) -> TorchFile:
    home = container.path if name == COMMON_NAME else container.path.parent
    return TorchFile(container.member(name), str(home / name))


def _dictionary(file: TorchFile) -> dict[str, Any]:
    tree = file.tree
    if isinstance(tree, dict):
        return cast("dict[str, Any]", tree)
    raise SourceError(f"{file.where} holds no dictionary, so it is no checkpoint of a run.")


def _stages(file: TorchFile) -> list[Branch]:
    """Return the tensors of one rank, or of every virtual pipeline stage of it."""
    tree = _dictionary(file)
    numbers = sorted(int(match[1]) for key in tree if (match := _CHUNK.fullmatch(str(key))))
    if numbers != list(range(len(numbers))):
        raise ContentError(
            f"{file.where} holds the virtual pipeline stages {numbers}; others are missing. It is "
            "incomplete: use another checkpoint of that run."
        )
    stages = [Branch(file, key) for key in map("model{}".format, numbers)]
    if "state_dict" in tree:
        whole = Branch(file, "state_dict")
        if stages and whole.tensors:
            raise ContentError(
                f'{file.where} holds "{next(iter(whole.tensors))}" beside its virtual pipeline '
                "stages; it is unclear which of them the model is."
            )
        stages = stages or [whole]
    if not any(stage.tensors for stage in stages):
        held = ", ".join(str(key) for key in list(tree)[:5]) or "nothing"
        raise SourceError(
            f"{file.where} is a torch file without weights of a run (state_dict or model0); it holds "
            f"{held}. Give a .nemo file, a checkpoint of a run, or a Hugging Face model's folder."
        )
    return stages


def _places(saved: Saved) -> list[Path]:
    """Return the folders in which a run keeps what belongs to a checkpoint, the nearest first."""
    inside = [] if saved.ranks else [saved.path]
    home = saved.path.parent
    return [*inside, home, *([home.parent] if home.name == CHECKPOINTS else [])]


def _configuration(
    tree: Mapping[str, Any], places: Sequence[Path], where: str
) -> tuple[dict[str, Any], str]:
    """Return the model's configuration, resolved, and what to call the place it was found in."""
    pickled = plain_config(tree.get("hyper_parameters"), where)
    if isinstance(pickled, dict) and pickled:
        return _unwrapped(cast("dict[str, Any]", pickled)), f"{where}: hyper_parameters"
    for place in places:
        file = place / HPARAMS_NAME
        if file.is_file():
            text = Region(file, 0, file.stat().st_size).read(MAX_CONFIG_BYTES)
            parsed = parse_checkpoint_config(text.decode("utf-8", "replace"), str(file))
            return _unwrapped(parsed), str(file)
    raise SourceError(
        f"{where} does not say what model it is: it holds no hyper_parameters, and there is no "
        f"{HPARAMS_NAME} in {', '.join(map(str, places))}. Put the run's {HPARAMS_NAME} there, or "
        "put these weights as model_weights/ into a folder with a model_config.yaml; of an unpacked "
        ".nemo give the folder that holds it."
    )


def _unwrapped(config: dict[str, Any]) -> dict[str, Any]:
    """Return the model's own part; references may start at the root of the run's configuration."""
    path: list[str] = []
    inner = config
    while "num_layers" not in inner:
        key = next((key for key in _WRAPPERS if isinstance(inner.get(key), dict)), None)
        if key is None:
            break
        path.append(key)
        inner = inner[key]
    root = {"model": inner, **config} if path == ["cfg"] else config
    resolved = Interpolation(root).resolved()
    for key in path:
        resolved = resolved[key]
    return resolved


def _tokenizer_files(
    config: Mapping[str, Any], places: Sequence[Path]
) -> tuple[dict[str, Region], dict[str, str]]:
    """Return the tokenizer's files that lie beside the checkpoint, and the settings that name them.

    The configuration names paths of the machine that trained; only the file's name is looked for.
    """
    files: dict[str, Region] = {}
    artifacts: dict[str, str] = {}
    for key, value in section(config, "tokenizer").items():
        if key not in _ARTIFACTS or not isinstance(value, str):
            continue
        base = posixpath.basename(value.removeprefix("nemo:"))
        found = next((f for f in (place / base for place in places) if _is_plain(f)), None)
        if found is None:
            continue
        region = Region(found, 0, found.stat().st_size)
        name = base if _HASHED.fullmatch(base) else f"{_digest(region)}_{base}"
        files[name] = region
        artifacts[key] = f"nemo:{name}"
    return files, artifacts


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _digest(region: Region) -> str:
    return hashlib.sha256(region.read(MAX_FILE_BYTES)).hexdigest()[:32]
