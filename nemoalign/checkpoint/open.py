"""Recognise any source by its content and open it; nothing of the weights is read.

What is not recognised is refused with what was found there and what to type instead.
"""

from __future__ import annotations

import re
from pathlib import Path

from nemoalign.archive.files import Container, open_container
from nemoalign.archive.urls import UrlPath, is_url
from nemoalign.checkpoint.settings.adapter import find_base
from nemoalign.checkpoint.sources.hf import open_hf
from nemoalign.checkpoint.sources.layouts import WEIGHTS_FILE, WEIGHTS_FOLDER
from nemoalign.checkpoint.sources.lightning import open_lightning, open_run
from nemoalign.checkpoint.sources.lightning_files import (
    CHECKPOINTS,
    Saved,
    is_distributed,
    newest,
    saved_at,
    saved_names,
)
from nemoalign.checkpoint.sources.megatron_lm import (
    last_iteration,
    open_megatron_lm,
    read_arguments,
)
from nemoalign.checkpoint.sources.nemo import (
    CONFIG_NAME,
    open_nemo,
    read_configs,
    read_json_object,
)
from nemoalign.checkpoint.sources.nemo2 import is_nemo2, open_nemo2
from nemoalign.checkpoint.sources.peft import is_peft, open_peft, recorded_base
from nemoalign.checkpoint.sources.ranks import rank_of
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.vit.hf_source import is_hf_vit, open_vit_hf
from nemoalign.checkpoint.vit.ranks import open_vit, open_vit_run
from nemoalign.checkpoint.vit.source import VitSource, is_vit
from nemoalign.errors import ContentError, SourceError

_HF_CONFIG = "config.json"


def open_source(path: Path | str, base: Source | None = None) -> Source:
    """Return the language model at ``path``; raises as ``open_checkpoint``, and for any other model."""
    opened = open_checkpoint(path, base)
    if isinstance(opened, VitSource):
        raise ContentError(
            f"{opened.path} is a ViT, an image classifier; this takes language models. A ViT can be "
            "inspected, converted, resharded and exported."
        )
    return opened


def open_checkpoint(path: Path | str, base: Source | None = None) -> Source | VitSource:
    """Return the checkpoint at ``path``: a file, an unpacked one, a model directory or a run.

    ``base`` is the model of a PEFT adapter, which alone does not say what it adapts.

    Raises:
        SourceError: when there is nothing, or nothing that is a checkpoint, or it is damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    path = Path(path)
    if not path.exists() and saved_at(path) is None:
        raise SourceError(_missing(path))
    if path.is_file():
        _refuse_other_files(path)
    found = _find(path) if path.is_dir() else path
    return _open(found, None if found == path else path, base)


def _open(found: Path, folder: Path | None, base: Source | None) -> Source | VitSource:
    if is_nemo2(found):
        return open_nemo2(open_container(found), folder)
    home = _holder(found)
    if home is not None:
        return open_archive(open_container(home), "nemo directory", folder)
    saved = saved_at(found)
    if saved is not None:
        return _open_saved(saved, folder)
    if found.is_file():
        return open_archive(open_container(found), "nemo", folder)
    container = open_container(found)
    if is_peft(container.members):
        return open_peft(container, base or _peft_base(container))
    return _open_hf(container, folder)


def _open_saved(saved: Saved, folder: Path | None) -> Source | VitSource:
    container = open_container(saved.path) if saved.path.is_dir() else None
    arguments = None if container is None else read_arguments(container)
    if container is not None and arguments is not None:
        return open_megatron_lm(container, arguments, folder)
    run = open_run(saved)
    return (open_vit_run if is_vit(run.config) else open_lightning)(run, folder)


def open_archive(container: Container, kind: str, folder: Path | None = None) -> Source | VitSource:
    """Return the checkpoint in an opened NeMo archive or unpacked directory."""
    _, config = read_configs(container)
    return (open_vit if is_vit(config) else open_nemo)(container, kind, folder)


def _open_hf(container: Container, folder: Path | None) -> Source | VitSource:
    config = read_json_object(container.member(_HF_CONFIG), f"{container.path}: {_HF_CONFIG}")
    return (open_vit_hf if is_hf_vit(config) else open_hf)(container, folder)


def _peft_base(container: Container) -> Source:
    recorded = recorded_base(container)
    found = find_base(recorded, container.path)
    if found is None:
        raise SourceError(
            f"{container.path} is a PEFT adapter of {recorded or 'an unknown model'}, which is not "
            f"there. Name its base: nemoalign convert {container.path} --base BASE -o adapter.nemo, "
            f"or nemoalign export BASE --adapter {container.path} -o merged"
        )
    return open_source(found)


def _holder(found: Path) -> Path | None:
    """Return the unpacked archive that ``found`` is, or whose weights it is."""
    inside_rank = rank_of(found.parent.name) is not None
    is_weights = found.name in (WEIGHTS_FILE, WEIGHTS_FOLDER)
    homes = [found, *([found.parent.parent if inside_rank else found.parent] if is_weights else [])]
    return next((home for home in homes if (home / CONFIG_NAME).is_file()), None)


def _find(folder: Path) -> Path:
    """Return the checkpoint that ``folder`` is or holds."""
    if _is_checkpoint(folder) or is_distributed(folder):
        return folder
    if rank_of(folder.name) is not None:
        return _find(folder.parent)
    last = last_iteration(folder)
    if last is not None:
        return last
    _refuse_other_folders(folder)
    home = folder if folder.name == CHECKPOINTS else folder / CHECKPOINTS
    final = _trained(folder) or sorted(home.glob("*.nemo"))
    if len(final) == 1:
        return final[0]
    saved = newest([*_own_checkpoints(home), *saved_names(home)])
    if saved is not None:
        return saved
    inside = [child for child in sorted(folder.iterdir()) if _is_candidate(child)]
    loose = newest(saved_names(folder))
    inside += [] if loose is None else [loose]
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(child.name for child in inside[:5])
        raise SourceError(f"{folder} holds {len(inside)} checkpoints ({names}). Name one of them.")
    raise SourceError(_nothing_in(folder))


def _trained(run: Path) -> list[Path]:
    """Return the archives of a run's own model, not of the critic that learned beside it."""
    found = sorted(run.glob("megatron_gpt_*.nemo"))
    return [path for path in found if not path.stem.endswith("_critic")] or found


def _is_checkpoint(folder: Path) -> bool:
    if is_nemo2(folder):
        return True
    if (folder / CONFIG_NAME).is_file() or is_peft([c.name for c in folder.iterdir()]):
        return True
    weights = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin"))
    return (folder / _HF_CONFIG).is_file() and bool(weights)


def _is_candidate(child: Path) -> bool:
    return child.suffix == ".nemo" if child.is_file() else child.is_dir() and _is_checkpoint(child)


def _own_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints that a run of ours, or of NeMo 2, left."""
    if not folder.is_dir():
        return []
    children = (child for child in sorted(folder.iterdir()) if not child.is_symlink())
    return [child for child in children if child.is_dir() and _is_complete(child)]


def _is_complete(checkpoint: Path) -> bool:
    marker = checkpoint.with_name(f"{checkpoint.name.removesuffix('.ckpt')}-unfinished")
    if checkpoint.name.startswith(".") or marker.exists():
        return False
    if is_nemo2(checkpoint):
        return (checkpoint / "weights/metadata.json").is_file()
    needed = (CONFIG_NAME, "model_weights/metadata.json")
    return all((checkpoint / name).is_file() for name in needed)


def _refuse_other_files(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors":
        raise SourceError(
            f"{path} is one weights file of a Hugging Face model. Give its folder, which holds "
            f"config.json as well: {path.parent}"
        )
    if start.startswith(b"GGUF"):
        raise ContentError(f"{path} is a GGUF file, which is not supported as a source.")


def _refuse_other_folders(folder: Path) -> None:
    if (folder / _HF_CONFIG).is_file():
        raise SourceError(
            f"{folder} has a config.json but neither *.safetensors nor pytorch_model*.bin: the "
            "weights are missing. Fetch the model again."
        )


def _missing(path: Path) -> str:
    text = f"{path} does not exist."
    if is_url(str(path)):
        return (
            f"{UrlPath(path)} is an address: only plain nemoalign inspect reads a file where it "
            "is. Download it first, for example with curl -LO, and give the file."
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return f"{text} If it names a model on the Hugging Face hub, fetch it first: hf download {path}"
    return f"{text} Check the path, seen from {Path.cwd()}."


def _nothing_in(folder: Path) -> str:
    held = ", ".join(sorted(child.name for child in folder.iterdir())[:5]) or "nothing"
    return (
        f"{folder} is no checkpoint: it holds {held}. Expected is a .nemo file, an unpacked one "
        f"({CONFIG_NAME}), a Hugging Face model (config.json and its weights), a run's directory or its "
        "Lightning checkpoints (*.ckpt)."
    )
