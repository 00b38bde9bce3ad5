"""Open a ``.nemo`` on a server: its headers, configuration and index travel, its weights do not."""

from __future__ import annotations

from dataclasses import dataclass

from nemoalign.archive.files import open_tar
from nemoalign.archive.gzip_read import MAGIC
from nemoalign.archive.remote import RemoteFile
from nemoalign.checkpoint.open import open_archive
from nemoalign.checkpoint.sources.source import Source
from nemoalign.checkpoint.vit.source import VitSource
from nemoalign.errors import SourceError


@dataclass(frozen=True)
class Remote:
    """A checkpoint and the file on a server that it is read from."""

    file: RemoteFile
    source: Source | VitSource

    def told(self) -> str:
        """Return what was read so far, in one line."""
        read, whole = self.file.fetched / 1e6, self.file.size / 1e6
        return f"read {read:,.2f} MB of {whole:,.2f} MB, in {self.file.requests} requests"


def open_remote(url: str) -> Remote:
    """Return the checkpoint in the archive at an address.

    Raises:
        ConfigError: for an address that is neither http(s) nor s3 nor gs.
        SourceError: when it is compressed, no archive, damaged, or the server does not go along.
        ContentError: when tensors and configuration disagree or are not supported.
    """
    file = RemoteFile(url)
    if file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC:
        raise SourceError(
            f"{file.path} is compressed, so nothing in it can be found without reading all "
            f"{file.size} bytes. Download it and inspect the file."
        )
    return Remote(file, open_archive(open_tar(file.region), "nemo"))
