"""Find the checkpoints a PyTorch Lightning run of NeMo left: files, files of ranks, directories.

``checkpoints/`` of a run holds ``NAME.ckpt``, or one of that name in a folder for every rank, or the
directory ``NAME/`` that all ranks wrote together. A checkpoint goes by the name without the rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemoalign.archive.dist import FORMAT_NAME
from nemoalign.archive.dist_index import INDEX_NAME
from nemoalign.archive.files import Container, Region, open_container
from nemoalign.checkpoint.sources.ranks import Rank, rank_of
from nemoalign.errors import ContentError, SourceError

SUFFIX = ".ckpt"
CHECKPOINTS = "checkpoints"

_STEP = re.compile(r"(?:^|-)step=(\d+)")
_VERSION = re.compile(r"-v(\d+)$")
_FSDP = re.compile(r"(?:.+_)?fsdp_shard_\d+")
_TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
"""Of a zip, and of what torch.save wrote before 1.6."""


@dataclass(frozen=True)
class Saved:
    """One Lightning checkpoint: its name as a path, and the torch file of every rank.

    Without ``ranks`` it is a directory that all ranks wrote together.
    """

    path: Path
    ranks: Mapping[Rank, Path]

    def container(self) -> Container:
        """Return its files under their names seen from the folder of all ranks.

        Raises:
            SourceError: when a directory holds what no checkpoint needs.
        """
        if not self.ranks:
            return open_container(self.path)
        home = self.path.parent
        files = {file.relative_to(home).as_posix(): file for file in self.ranks.values()}
        members = {name: Region(file, 0, file.stat().st_size) for name, file in files.items()}
        return Container(self.path, "directory", members)


def saved_at(path: Path) -> Saved | None:
    """Return the checkpoint ``path`` names: a file of one rank stands for all, so does their name.

    Raises:
        SourceError: when it was never completed.
        ContentError: for shards of FSDP.
    """
    _refuse_fsdp(path.parent)
    if path.is_dir():
        return _complete(Saved(path, {})) if is_distributed(path) else None
    if path.is_file() and not is_torch_file(path):
        return None
    inside_rank = path.is_file() and rank_of(path.parent.name) is not None
    home = path.parent.parent if inside_rank else path.parent
    ranks = {
        rank: folder / path.name
        for rank, folder in _rank_folders(home)
        if (folder / path.name).is_file()
    }
    if path.is_file() and not inside_rank:
        ranks = {(0, 0): path}
    return _complete(Saved(home / path.name, ranks)) if ranks else None


def newest(candidates: Sequence[Path]) -> Path | None:
    """Return the checkpoint of the highest step, by its name; of equals the ``-last``, then ``-v1``.

    Raises:
        SourceError: when there are several, and their names do not tell.
    """
    told = [path for path in candidates if _STEP.search(_stem(path))]
    if not told and len(candidates) > 1:
        names = ", ".join(path.name for path in candidates[:5])
        raise SourceError(
            f"{candidates[0].parent} holds {len(candidates)} checkpoints ({names}), and no name has "
            "a step. Name one of them."
        )
    return max(told or candidates, key=_progress, default=None)


def saved_names(folder: Path) -> list[Path]:
    """Return the names of the complete Lightning checkpoints in a folder, EMA copies left out.

    Raises:
        ContentError: for shards of FSDP.
    """
    if not folder.is_dir():
        return []
    found: dict[Path, None] = {}
    for child in sorted(folder.iterdir()):
        _refuse_fsdp(child)
        if child.is_symlink() or child.name.startswith("."):
            continue
        if rank_of(child.name) is not None and child.is_dir():
            found |= {folder / file.name: None for file in sorted(child.glob(f"*{SUFFIX}"))}
        elif is_distributed(child) or (child.suffix == SUFFIX and is_torch_file(child)):
            found[child] = None
    names = [path for path in found if not _marker(path).exists()]
    return [path for path in names if not _stem(path).endswith("-EMA")] or names


def is_distributed(path: Path) -> bool:
    """True for a directory that all ranks wrote together."""
    return any((path / name).is_file() for name in (FORMAT_NAME, INDEX_NAME))


def is_torch_file(path: Path) -> bool:
    """True for a file that torch.save wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(16).startswith(_TORCH_STARTS)


def _rank_folders(home: Path) -> Iterator[tuple[Rank, Path]]:
    for folder in sorted(home.iterdir()) if home.is_dir() else ():
        rank = rank_of(folder.name)
        if rank is not None:
            yield rank, folder


def _complete(saved: Saved) -> Saved:
    marker = _marker(saved.path)
    if marker.exists():
        raise SourceError(
            f"{saved.path} was never completed, or never wholly deleted: {marker.name} lies beside "
            "it. Use another checkpoint of that run."
        )
    return saved


def _refuse_fsdp(folder: Path) -> None:
    if _FSDP.fullmatch(folder.name):
        raise ContentError(
            f"{folder} is a shard of FSDP (model.fsdp), whose flattened weights only the ranks that "
            "wrote them can put together; it is not supported. Save the run with "
            "model.fsdp_sharded_checkpoint=false, or as .nemo."
        )


def _marker(path: Path) -> Path:
    return path.with_name(f"{_stem(path).removesuffix('-EMA')}-unfinished")


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX)


def _progress(path: Path) -> tuple[int, bool, int]:
    stem = _stem(path)
    step, version = _STEP.search(stem), _VERSION.search(stem)
    return int(step[1]) if step else -1, "-last" in stem, int(version[1]) if version else 0
