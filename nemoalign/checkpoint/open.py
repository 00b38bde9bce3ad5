"""Recognise any source by its content and open it; nothing of the weights is read.

What is not recognised is refused with what was found there and what to type instead.
"""

from __future__ import annotations

import re
from pathlib import Path

from nemoalign.archive.files import Container, Region, open_container
from nemoalign.archive.torch_file import TorchFile
from nemoalign.checkpoint.hf_source import open_hf
from nemoalign.checkpoint.nemo_source import (
    CONFIG_NAME,
    open_nemo,
    read_configs,
    read_json_object,
)
from nemoalign.checkpoint.source import Source
from nemoalign.checkpoint.vit_hf_source import is_hf_vit, open_vit_hf
from nemoalign.checkpoint.vit_source import VitSource, is_vit, open_vit
from nemoalign.errors import ContentError, SourceError

_HF_CONFIG = "config.json"
_STEP = re.compile(r"(?:^|-)step=(\d+)")


def open_source(path: Path | str) -> Source:
    """Return the language model at ``path``; raises as ``open_checkpoint``, and for any other model."""
    opened = open_checkpoint(path)
    if isinstance(opened, VitSource):
        raise ContentError(
            f"{opened.path} is a ViT, an image classifier; this takes language models. A ViT can be "
            "inspected, converted, resharded and exported."
        )
    return opened


def open_checkpoint(path: Path | str) -> Source | VitSource:
    """Return the checkpoint at ``path``: a file, an unpacked one, a model directory or a run.

    Raises:
        SourceError: when there is nothing, or nothing that is a checkpoint, or it is damaged.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(_missing(path))
    if path.is_file():
        _refuse_other_files(path)
        return _open_nemo(open_container(path), "nemo")
    found = _find(path)
    folder = None if found == path else path
    if found.is_file():
        return _open_nemo(open_container(found), "nemo", folder)
    if (found / CONFIG_NAME).is_file():
        return _open_nemo(open_container(found), "nemo directory", folder)
    return _open_hf(open_container(found), folder)


def _open_nemo(container: Container, kind: str, folder: Path | None = None) -> Source | VitSource:
    _, config = read_configs(container)
    return (open_vit if is_vit(config) else open_nemo)(container, kind, folder)


def _open_hf(container: Container, folder: Path | None) -> Source | VitSource:
    config = read_json_object(container.member(_HF_CONFIG), f"{container.path}: {_HF_CONFIG}")
    return (open_vit_hf if is_hf_vit(config) else open_hf)(container, folder)


def _find(folder: Path) -> Path:
    """Return the checkpoint that ``folder`` is or holds."""
    if _is_checkpoint(folder):
        return folder
    _refuse_other_folders(folder)
    final = sorted(folder.glob("megatron_gpt_*.nemo"))
    if len(final) == 1:
        return final[0]
    saved = _newest(folder / "checkpoints")
    if saved is not None:
        return saved
    inside = [child for child in sorted(folder.iterdir()) if _is_candidate(child)]
    if len(inside) == 1:
        return inside[0]
    if inside:
        names = ", ".join(child.name for child in inside[:5])
        raise SourceError(f"{folder} holds {len(inside)} checkpoints ({names}). Name one of them.")
    raise SourceError(_nothing_in(folder))


def _is_checkpoint(folder: Path) -> bool:
    if (folder / CONFIG_NAME).is_file():
        return True
    return (folder / _HF_CONFIG).is_file() and any(folder.glob("*.safetensors"))


def _is_candidate(child: Path) -> bool:
    return child.suffix == ".nemo" if child.is_file() else child.is_dir() and _is_checkpoint(child)


def _newest(checkpoints: Path) -> Path | None:
    """Return a run's complete checkpoint of the highest step, the ``-last`` one among equals."""
    if not checkpoints.is_dir():
        return None
    complete = [
        child
        for child in sorted(checkpoints.iterdir())
        if not child.is_symlink() and child.is_dir() and _is_complete(child)
    ]
    return max(complete, key=_progress, default=None)


def _is_complete(checkpoint: Path) -> bool:
    marker = checkpoint.with_name(f"{checkpoint.name.removesuffix('.ckpt')}-unfinished")
    if checkpoint.name.startswith(".") or marker.exists():
        return False
    needed = (CONFIG_NAME, "model_weights/metadata.json")
    return all((checkpoint / name).is_file() for name in needed)


def _progress(checkpoint: Path) -> tuple[int, bool]:
    step = _STEP.search(checkpoint.name)
    return (int(step[1]) if step else -1), "-last" in checkpoint.name


def _refuse_other_files(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors":
        raise SourceError(
            f"{path} is one weights file of a Hugging Face model. Give its folder, which holds "
            f"config.json as well: {path.parent}"
        )
    if start.startswith(b"PK\x03\x04"):
        _ = TorchFile(Region(path, 0, path.stat().st_size), str(path)).tree  # any other zip fails
        raise ContentError(
            f"{path} is a torch file (a Lightning .ckpt or a single rank), which is not supported "
            "yet. Give a .nemo file, or the folder of a Hugging Face model."
        )
    if start.startswith(b"\x1f\x8b"):
        raise ContentError(
            f"{path} is a compressed archive (NeMo before 1.7), which is not supported yet. "
            f"Unpack it and give the folder: mkdir model && tar -xzf {path} -C model"
        )
    if start.startswith(b"GGUF"):
        raise ContentError(f"{path} is a GGUF file, which is not supported as a source.")


def _refuse_other_folders(folder: Path) -> None:
    if (folder / "weights").is_dir() and (folder / "context").is_dir():
        raise ContentError(f"{folder} is a NeMo 2 checkpoint, which is not supported yet.")
    if (folder / _HF_CONFIG).is_file() and any(folder.glob("*.bin")):
        raise ContentError(
            f"{folder} holds its weights as pytorch_model.bin, which is not supported yet. Load it "
            "with transformers and save_pretrained() it: that writes safetensors."
        )
    if (folder / _HF_CONFIG).is_file():
        raise SourceError(
            f"{folder} has a config.json but no *.safetensors: the weights are missing. Fetch the "
            "model again."
        )
    if (folder / "metadata.json").is_file() or (folder / ".metadata").is_file():
        raise SourceError(
            f"{folder} holds weights but no {CONFIG_NAME}. Give the folder that holds it: "
            f"{folder.parent}"
        )


def _missing(path: Path) -> str:
    text = f"{path} does not exist."
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        return f"{text} If it names a model on the Hugging Face hub, fetch it first: hf download {path}"
    return f"{text} Check the path, seen from {Path.cwd()}."


def _nothing_in(folder: Path) -> str:
    held = ", ".join(sorted(child.name for child in folder.iterdir())[:5]) or "nothing"
    return (
        f"{folder} is no checkpoint: it holds {held}. Expected is a .nemo file, an unpacked one "
        f"({CONFIG_NAME}), a Hugging Face model (config.json and *.safetensors) or a run directory."
    )
